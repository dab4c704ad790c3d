"""The only writer of a run's folder while it trains: metrics to CSV, TensorBoard and screen, evaluations to CSV."""

from __future__ import annotations

import csv
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from stable_baselines3.common.logger import (
    CSVOutputFormat,
    HumanOutputFormat,
    KVWriter,
    Logger,
    TensorBoardOutputFormat,
)

from rlhf_bilevel.evaluate import Evaluation

EVALUATIONS = "evaluations.csv"
COLUMNS = ("step", "labels", "learner", "is_agent", "episode", "true_return", "success")


class Log:
    """Collects metrics and writes the newest of each once an episode. Keys follow SB3; the second learner's are under
    ``train_1/``. ``folder=None`` writes no file."""

    def __init__(self, folder: Path | None, screen: bool) -> None:
        writers: list[KVWriter] = [HumanOutputFormat(sys.stdout)] if screen else []
        if folder:
            writers += [CSVOutputFormat(str(folder / "progress.csv")), TensorBoardOutputFormat(str(folder))]
        self._evaluations = folder / EVALUATIONS if folder else None
        self._logger = Logger(folder=None, output_formats=writers)
        self._started = time.monotonic()

    def record(self, row: Mapping[str, float], step: int) -> None:
        for key, value in row.items():
            self._logger.record(key.replace("learner_0/", "").replace("learner_1/train", "train_1"), value)
        if "rollout/true_return" in row or "eval/true_return" in row:
            self._logger.record("time/fps", step / (time.monotonic() - self._started))
            self._logger.record("time/total_timesteps", step)
            self._logger.dump(step)

    def evaluation(self, result: Evaluation, step: int, labels: int, learner: int, is_agent: bool) -> None:
        """One row an episode: return, and success as 0, 1 or empty where the environment knows none."""
        if self._evaluations is None:
            return
        successes = [""] * len(result.returns) if result.successes is None else [int(s) for s in result.successes]
        new = not self._evaluations.exists()
        with self._evaluations.open("a", newline="") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(COLUMNS)
            for episode, (value, success) in enumerate(zip(result.returns, successes, strict=True)):
                writer.writerow([step, labels, learner, int(is_agent), episode, round(float(value), 4), success])

    def close(self) -> None:
        self._logger.close()
