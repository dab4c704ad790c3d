"""Many runs: which are missing, where they are trained, and what they found."""
