"""The method of the paper, its variants, and the table of all methods. ``baselines`` are what it is compared with."""
