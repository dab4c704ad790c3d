"""What was seen and answered: the replay buffer, labels, preference datasets."""
