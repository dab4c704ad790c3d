"""The algorithm: the loop, what a method is, and the state of a run."""
