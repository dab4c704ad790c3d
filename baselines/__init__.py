"""What the penalty method is compared with, a file each. ``rlhf_bilevel.methods.registry`` has their table."""
