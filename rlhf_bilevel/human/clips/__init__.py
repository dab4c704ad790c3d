"""Clips: what people see of an episode, as scenes for a browser."""
