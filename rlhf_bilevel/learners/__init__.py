"""The lower level: RL algorithms of Stable-Baselines3, on the replay buffer and the reward of a run."""
