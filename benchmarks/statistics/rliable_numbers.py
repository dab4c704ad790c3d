"""What rliable says of fixed scores, for the tests to compare with; printed as JSON.

    python3 -m venv .venv-peers/rliable
    .venv-peers/rliable/bin/pip install rliable==1.2.0 "pandas<3"
    .venv-peers/rliable/bin/python -m benchmarks.statistics.rliable_numbers > tests/rliable.json

A virtual environment of its own: rliable needs arch, which (7.2.0) cannot be imported beside pandas 3, and statsmodels,
seaborn and their dependencies, for a few numbers. rliable's scores are (runs, tasks), ours are (tasks, runs).
"""

import json
from typing import Any

import numpy as np
from rliable import library, metrics

THRESHOLDS = np.linspace(0.1, 1.3, 7)


def main() -> None:
    rng = np.random.default_rng(0)
    ours, theirs = (
        (1 - rng.gamma(1.5, 0.15, (runs, 4)) * [0.5, 1, 1.5, 2] + [0.3, moved, 0, -0.1]).round(1)  # ties on purpose
        for runs, moved in ((10, 0.1), (8, -0.1))
    )
    np.random.seed(0)  # rliable draws from the global generator, whatever it is given

    def estimated(scores: Any, statistic: Any) -> dict[str, Any]:
        value, bounds = library.get_interval_estimates({"": scores}, lambda *x: np.atleast_1d(statistic(*x)), reps=5000)
        low, high = bounds[""]
        return {"value": value[""].tolist(), "low": low.tolist(), "high": high.tolist()}

    told = {
        "ours": ours.T.tolist(),
        "theirs": theirs.T.tolist(),
        "thresholds": THRESHOLDS.tolist(),
        "mean": estimated(ours, metrics.aggregate_mean),
        "median": estimated(ours, metrics.aggregate_median),
        "iqm": estimated(ours, metrics.aggregate_iqm),
        "optimality_gap": estimated(ours, metrics.aggregate_optimality_gap),
        "improvement": estimated((ours, theirs), metrics.probability_of_improvement),
        "profile": estimated(ours, lambda scores: library.score_distributions(scores, THRESHOLDS)),
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main()
