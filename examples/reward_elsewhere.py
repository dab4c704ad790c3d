"""A learnt reward, handed to plain Stable-Baselines3 as one file (a minute and a half).

python examples/reward_elsewhere.py
"""

import gymnasium
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env

from rlhf_bilevel import Agent, LearnedReward, LearnedRewardVecEnvWrapper, LearnedRewardWrapper

ENV, FILE = "Pendulum-v1", "pendulum.safetensors"


def main(steps: int = 5_000, labels: int = 50) -> None:
    agent = Agent("pebble", ENV, labels=labels, preset="quick", action_repeat=1, out="runs/for-others").learn(steps)
    LearnedReward.load(agent.out).save(FILE)

    # Whoever gets the file needs nothing else of the run
    reward = LearnedReward.load(FILE)
    model = PPO("MlpPolicy", LearnedRewardVecEnvWrapper(make_vec_env(ENV, 4), reward), n_steps=64)
    model.learn(steps)

    env = LearnedRewardWrapper(gymnasium.make(ENV), FILE)
    obs, _ = env.reset(seed=0)
    obs, paid, _, _, info = env.step(model.predict(obs)[0])
    print(f"the learnt reward pays {paid:.3f}, the environment {info['true_reward']:.3f}")


if __name__ == "__main__":
    main()
