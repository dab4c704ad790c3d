"""The learners below: algorithms of Stable-Baselines3, and what may be told of them."""
