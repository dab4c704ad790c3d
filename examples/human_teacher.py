"""You are the teacher: training and the label page, started by one script.

python examples/human_teacher.py

Open the link that it prints, and answer with the arrow keys. Training goes on as you answer.
"""

import subprocess
import sys

from rlhf_bilevel import Agent

QUESTION = "In which one does the pole stay more upright?"


def main(out: str = "runs/by-hand", steps: int = 5_000, labels: int = 50) -> Agent:
    page = [sys.executable, "-m", "rlhf_bilevel", "label", out, "--question", QUESTION]
    server = subprocess.Popen(page)  # it waits until the run is there
    try:
        agent = Agent(
            "pebble",
            "dm_control/cartpole-balance-v0",
            teacher="human",
            teacher_pending_share=0.2,  # training waits while more than a fifth is unanswered
            labels=labels,
            preset="quick",
            out=out,
        )
        agent.learn(steps)
    finally:
        server.terminate()
        server.wait()
    print(agent.evaluate(episodes=5).summary()["true_return"])
    return agent


if __name__ == "__main__":
    main()
