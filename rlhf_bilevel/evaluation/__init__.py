"""Evaluation: returns, statistics over seeds, comparison and figures."""
