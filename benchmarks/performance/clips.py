"""What a film costs: steps of training with and without it, side by side; bytes of clips, scenes and rows.

    python -m benchmarks.performance.clips [--env ID ...] [--method pebble] [--rounds 20] [--block 100] ...

Two runs of one seed go on in turns, a block of steps each, so that a machine whose speed drifts slows both alike; a
ratio is taken within a round, and the order of the two changes from one to the next. Times are those of the processor,
which work beside it disturbs less. Blocks are timed once learners are updated at every step. Beside it: what is added
to a step of the environment alone.
"""

import argparse
import gzip
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.performance import ours
from rlhf_bilevel.data.replay_buffer import ReplayBuffer
from rlhf_bilevel.envs import registration
from rlhf_bilevel.envs.fault_tolerance import FaultTolerantEnv
from rlhf_bilevel.human.clips import recorder as films
from rlhf_bilevel.human.clips.recorder import ClipRecorder, RecordedEnv
from rlhf_bilevel.registries import METHODS
from rlhf_bilevel.training.loop import train
from rlhf_bilevel.training.run import Run

SEGMENT = 50
ALONE = 2000  # steps of the environment alone


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", nargs="+", default=["dm_control/walker-walk-v0", "Meta-World/door-open-v3"])
    parser.add_argument("--method", default="pebble", choices=tuple(METHODS))
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--block", type=int, default=100, help="steps")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--batch", type=int, default=256)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    for env_id in map(registration.resolve, args.env):
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps({"env": env_id} | measured(env_id, Path(folder), args)))


def measured(env_id: str, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    film = ClipRecorder(folder)
    runs = [run_of(env_id, args, film) for film in (None, film)]
    blocks = [timed(run, args.block) for run in runs]
    ratios, plain = [], []
    for number in range(args.rounds):
        order = (0, 1) if number % 2 else (1, 0)
        took = {which: next(blocks[which]) for which in order}
        ratios.append(took[1] / took[0])
        plain.append(took[0] / args.block)
    low, middle, high = statistics.quantiles(ratios, n=4)
    film.flush()
    rows = runs[1].store.size
    disk = {name: (folder / "clips" / name).stat().st_size for name in (films.POSES, films.RECORDS)}
    start = time.process_time()
    clip = film.clip(range(SEGMENT))
    first = time.process_time() - start
    start = time.process_time()
    film.clip(range(SEGMENT, 2 * SEGMENT))
    following = time.process_time() - start
    more = added(env_id, folder / "alone")
    told = {
        "ratio": round(middle, 4),
        "quartiles": [round(low, 4), round(high, 4)],
        "milliseconds_of_a_step": round(1e3 * statistics.median(plain), 2),
        "microseconds_added_to_a_step": round(1e6 * more, 1),
        "share_added": round(more / statistics.median(plain), 5),
        "bytes_a_row": disk[films.POSES] / rows,
        "bytes_of_records": disk[films.RECORDS],
        "milliseconds_of_first_clip_and_next": [round(1e3 * first), round(1e3 * following)],
        "gzipped_bytes_of_clip": zipped(clip),
    }
    return told | ({"gzipped_bytes_of_scene": zipped(film.scene(clip["scene"]))} if clip["kind"] == "scene" else {})


def run_of(env_id: str, args: argparse.Namespace, film: ClipRecorder | None) -> Run:
    run = ours.run_of(
        args.method, 0, (10 + args.rounds) * args.block, env=env_id, net_arch=(args.hidden, args.hidden),
        batch_size=args.batch, learning_starts=5 * args.block, queries_per_session=20, labels=20,
        num_interact=10**6, refresh_every=0, reset_updates=0,  # one session, before anything is timed
    )  # fmt: skip
    if film:
        guards = (FaultTolerantEnv(partial(films.make, env_id, run.config.seed)) for _ in run.envs)
        run.envs = [RecordedEnv(guard, run.store, film) for guard in guards]
    return run


def timed(run: Run, block: int) -> Iterator[float]:
    """Processor seconds of block after block, from when learners are updated at every step."""
    rows = train(run)
    for _ in range(10 * block):
        next(rows)
    while True:
        start = time.process_time()
        for _ in range(block):
            next(rows)
        yield time.process_time() - start


def added(env_id: str, folder: Path) -> float:
    """Seconds that filming adds to a step of the environment, of which the median block counts."""
    plain: Any = FaultTolerantEnv(partial(registration.make, env_id, 0))
    store = ReplayBuffer(plain.observation_space.shape[0], plain.action_space.shape[0], capacity=1)
    film = ClipRecorder(folder)
    filmed: Any = RecordedEnv(FaultTolerantEnv(partial(films.make, env_id, 0)), store, film)
    actions = np.random.default_rng(0).uniform(-1, 1, (ALONE // 20, *plain.action_space.shape)).astype(np.float32)
    differences = []
    for _ in range(20):
        took = []
        for env in (plain, filmed):
            env.reset()
            start = time.process_time()
            for action in actions:
                env.step(action)
            took.append(time.process_time() - start)
        differences.append((took[1] - took[0]) / len(actions))
    film.close()
    return statistics.median(differences)


def zipped(told: dict[str, Any]) -> int:
    return len(gzip.compress(json.dumps(told, separators=(",", ":")).encode()))


if __name__ == "__main__":
    main()
