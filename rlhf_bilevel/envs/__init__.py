"""Environments by name, with episodes that are a function of the seed."""
