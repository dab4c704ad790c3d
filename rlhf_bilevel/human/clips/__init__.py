"""Clips: what people see of a segment, as scenes or pictures for a browser."""
