"""The method of the paper and its variants. All other methods are in the folder ``baselines`` beside this package.

``registries.py`` lists all of them.
"""
