"""The methods that the penalty method is compared with, one file each. ``rlhf_bilevel.methods.registry`` lists them."""
