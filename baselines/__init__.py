"""The methods that the penalty method is compared with, one file each. ``rlhf_bilevel/registries.py`` lists them."""
