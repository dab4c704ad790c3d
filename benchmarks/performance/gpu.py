"""On a machine with a GPU, in one call: is the stacked update right there, and how fast is it?

    python -m benchmarks.performance.gpu [--learners 1 2 20] [--updates 200]

Checks every learner of a stack on the GPU, in a captured graph, against the same learner alone on the CPU, then times
updates of all learners against SB3's own on the same GPU. Prints a line of JSON a measurement; exits with 1 where a
check fails, and with 2 where there is no GPU.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence

import torch
from stable_baselines3 import SAC

from benchmarks.performance.ours import Plain, run_of
from rlhf_bilevel.learners.together import stacked
from rlhf_bilevel.training.run import Run

TOLERANCE = 1e-3  # relative, after 20 updates in float32 whose sums go in other orders


def runs(count: int, device: str, algorithm: type[SAC] = SAC) -> list[Run]:
    return [run_of("sac", 10_000, algorithm=algorithm, device=device, seed=seed) for seed in range(count)]


def seconds(improve: object, updates: int) -> float:
    """Of one round, the best of five."""
    best = float("inf")
    for _ in range(5):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(updates):
            improve()  # type: ignore[operator]
        torch.cuda.synchronize()
        best = min(best, (time.perf_counter() - start) / updates)
    return best


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--learners", type=int, nargs="+", default=[1, 2, 20])
    parser.add_argument("--updates", type=int, default=200)
    args = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("benchmarks.performance.gpu: torch sees no GPU", file=sys.stderr)
        raise SystemExit(2)
    torch.backends.cuda.matmul.allow_tf32 = False
    there = runs(3, "cuda")
    stack = stacked([run.learners[0] for run in there])
    assert stack is not None
    stack.improve(20, 1)
    worst = 0.0
    for run, alone in zip(there, runs(3, "cpu"), strict=True):
        alone.improve(20, 1)
        pairs = zip(run.learners[0].model.policy.parameters(), alone.learners[0].model.policy.parameters(), strict=True)  # type: ignore[attr-defined]
        worst = max(worst, *(((a.cpu() - b).norm() / b.norm()).item() for a, b in pairs))
    print(json.dumps({"check": "GPU against CPU, relative", "worst": worst, "allowed": TOLERANCE}), flush=True)
    plain = runs(1, "cuda", Plain)[0]
    one = seconds(lambda: plain.improve(1, 1), args.updates)
    print(json.dumps({"subject": "SB3", "learners": 1, "updates_per_second": 1 / one}), flush=True)
    for count in args.learners:
        stack = stacked([run.learners[0] for run in runs(count, "cuda")])
        assert stack is not None
        took = seconds(lambda stack=stack: stack.improve(1, 1), args.updates)
        told = {"learners": count, "updates_per_second": count / took, "times_sb3": count * one / took}
        print(json.dumps({"subject": "stack", "device": torch.cuda.get_device_name(), **told}), flush=True)
    if worst > TOLERANCE:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
