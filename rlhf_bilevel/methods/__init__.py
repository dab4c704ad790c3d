"""The method of the paper and its variants. ``baselines`` are what it is compared with; ``registries.py`` lists all."""
