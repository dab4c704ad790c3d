"""Environment steps a second of a whole training loop, without evaluations, logs and checkpoints.

    python -m benchmarks.performance.loop_speed --method pebble --env ID --steps N --hidden 256 --batch 256 --json

A quarter of the steps is random. From then on learners are updated at every step; 20 labels are asked after the first,
second and third quarter, and the reward is trained for 10 epochs each time, and for 2 at each refresh, if any.
"""

import argparse
import json
import resource
import time
from collections.abc import Sequence

import torch

from benchmarks.performance.ours import looping
from rlhf_bilevel.envs import registration
from rlhf_bilevel.registries import METHODS
from rlhf_bilevel.training.loop import train


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="pebble", choices=tuple(METHODS))
    parser.add_argument("--env", default="dm_control/walker-walk-v0")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--hidden", type=int, default=256, help="units of two layers, of the actor and of each critic")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--refresh-every", type=int, default=0, help="steps between refreshes of the reward (never)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    quarter, env_id = args.steps // 4, registration.resolve(args.env)
    sizes = {"net_arch": (args.hidden, args.hidden), "batch_size": args.batch}
    run = looping(args.method, args.steps, env=env_id, refresh_every=args.refresh_every, **sizes)
    rows, start, learning = train(run), time.perf_counter(), 0.0
    for _ in rows:
        if run.step == quarter:
            learning = time.perf_counter()
    end = time.perf_counter()
    told = {
        "method": args.method,
        "env": env_id,
        "total_timesteps": args.steps,
        "steps_per_second": args.steps / (end - start),
        "learning_steps_per_second": (args.steps - quarter) / (end - learning),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    print(json.dumps(told) if args.json else "\n".join(f"{key}: {value}" for key, value in told.items()))


if __name__ == "__main__":
    main()
