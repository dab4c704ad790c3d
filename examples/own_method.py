"""A method of your own: PEBBLE with a temperature in its loss (15 seconds).

cd examples; python own_method.py
rlhf-bilevel train own_method:METHOD --env Pendulum-v1 --preset quick --steps 1000 --set tempered.temperature=4
"""

from typing import Annotated

from pydantic import Field

from rlhf_bilevel import Agent
from rlhf_bilevel.config import Options
from rlhf_bilevel.rewards.bradley_terry import cross_entropy
from rlhf_bilevel.training.method import Method


class TemperedOptions(Options):
    temperature: Annotated[float, Field(gt=0, le=100)] = 2.0
    """By how much the logits are divided."""


METHOD = Method(
    name="tempered",
    learners=1,
    learner_rewards=lambda run: [run.store.learned(run.reward)],
    reward_loss=lambda run, answers, logits: cross_entropy(logits / run.options.temperature, answers.label).mean(),
    options=TemperedOptions,
)


def main(steps: int = 1_000, labels: int = 40) -> Agent:
    agent = Agent(METHOD, "Pendulum-v1", labels=labels, preset="quick", options={"temperature": 4.0}).learn(steps)
    print(agent.evaluate(episodes=5).summary()["true_return"])
    return agent


if __name__ == "__main__":
    main()
