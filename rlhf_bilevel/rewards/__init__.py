"""The reward model: the ensemble, its loss, and what is known of it."""
