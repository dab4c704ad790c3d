"""Many runs: sweeps, searches of settings, and what they came to."""
