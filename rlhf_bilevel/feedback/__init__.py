"""Which pairs are asked about, and teachers, who answer."""
