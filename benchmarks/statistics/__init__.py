"""Whether the intervals hold what they promise."""
