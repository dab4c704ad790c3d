"""Small helpers that know nothing of learning."""
