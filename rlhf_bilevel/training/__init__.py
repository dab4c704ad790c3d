"""The algorithm: the loop, what a method says, and the state of a run."""
