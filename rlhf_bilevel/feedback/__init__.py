"""Which pairs are asked about, and who answers."""
