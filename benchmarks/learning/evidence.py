"""The learning runs behind docs and figures. What is missing is run, two side by side; the rest is left as it is.

    python -m benchmarks.learning.evidence [--group NAME ...] [--workers 2] [--cohort] [--collect]

A run is a ``RunSpec``, printed as it starts. When all of a group have ended, its evaluations are gathered in
``benchmarks/results/GROUP.csv``, under the name that the run has in its group: the method's, or a variant's. A run that
was cut off goes on. ``--collect`` gathers what has ended.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch

from rlhf_bilevel.config.presets import BPREF
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.evaluation.records import EvaluationRecord, read_records, read_table, write_table
from rlhf_bilevel.runs.spec import RunSpec, resolve_device
from rlhf_bilevel.studies.progress import ProgressBoard
from rlhf_bilevel.studies.scheduler import LocalExecutor, begin_together, run_all
from rlhf_bilevel.studies.worker import all_settings, check_same_run

RUNS, RESULTS = Path("runs/evidence"), Path("benchmarks/results")


class Named(NamedTuple):
    name: str  # in tables and figures
    run: RunSpec


Group = Sequence[Named]


Settings = dict[str, Any]
"""Of a run, and its preset where that is another than ``cpu``."""
Variants = Mapping[str, tuple[str, Settings]]
"""Method and settings by the variant's name."""


WITHOUT_REMEDIES: Settings = {
    name: BPREF[name]
    for name in ("anchor_share", "critic_layer_norm", "reward_use_action", "initial_comparison_frac", "reward_form")
}
ALIGNING = ("penalty", "twin", "qpa", "incumbent")  # methods that always had aligned queries and newest batches


def former(method: str) -> Settings:
    """The defaults of ``method`` when most of the groups were run."""
    return WITHOUT_REMEDIES if method in ALIGNING else BPREF


def named(
    group: str, name: str, method: str, env: str, seed: int, steps: int, settings: Settings, today: bool = False
) -> Named:
    """A run with the defaults of ``former``, or ``today`` with those that are in force."""
    settings = settings if today else former(method) | settings
    out = RUNS / group / f"{name.replace(',', '').replace(' ', '-')}-{seed}"
    own = {"total_timesteps": steps, "seed": seed} | {key: value for key, value in settings.items() if key != "preset"}
    return Named(name, RunSpec.of(method, env, own, preset=settings.get("preset", "cpu"), threads=1, out=out))


def on_walker(group: str, variants: Variants, seeds: Iterable[int], steps: int, settings: Settings) -> Group:
    """The variants on walker-walk, seed by seed; ``settings`` are those of all."""
    return [
        named(group, name, method, "dm_control/walker-walk-v0", seed, steps, settings | own)
        for seed in seeds
        for name, (method, own) in variants.items()
    ]


CARTPOLE = "dm_control/cartpole-balance-v0"
QUICK: Settings = {"preset": "quick", "labels": 200, "num_interact": 1000, "eval_freq": 1000}
GROUPS: dict[str, Group] = {
    "quick": [
        named("quick", method, method, CARTPOLE, seed, 12_000, QUICK, today=True)
        for seed, method in product(range(8), ("pebble", "penalty", "twin", "sac"))
    ],
}

ALIGNED: Settings = {"query": "policy_aligned"}
HYBRID = ALIGNED | {"newest_share": 0.5}
EVENLY = HYBRID | {"other_every": 2}
FORWARD: Settings = {"penalty.sides": "forward", "penalty.cost": "information", "penalty.sigma": 30}
PAPER: Settings = {"penalty.sides": "one", "penalty.cost": "labels", "penalty.sigma": 10}
WALK: Settings = {"preset": "quick", "eval_freq": 3000, "n_eval_episodes": 5, "labels": 100}
ONE_LEARNER: dict[str, tuple[str, Settings]] = {
    "pebble": ("pebble", {}),
    "pebble, aligned, newest half": ("pebble", HYBRID),
}
VARIANTS = ONE_LEARNER | {
    "twin, aligned, newest half": ("twin", EVENLY),
    "penalty, forward, aligned, newest half": ("penalty", FORWARD | EVENLY),
}
ONE_SIDED = {"penalty, aligned, newest half": ("penalty", PAPER | EVENLY)}
WILD = {"reward_damping": 0.01}  # the default until this search
SEARCHED = VARIANTS | ONE_SIDED | {f"{name}, hardly damped": (way, own | WILD) for name, (way, own) in VARIANTS.items()}
SHARED = HYBRID | {"other_every": 4}
SIZE: Settings = {"batch_size": 128, "action_repeat": 2, "segment_length": 25, "eval_freq": 5000, "n_eval_episodes": 5}
"""Those of the former Figure 1, and of ``--preset figure1``: half of the preset's batch, and steps of two simulator
steps. Segments last as long as B-Pref's."""
SIZED = ONE_LEARNER | {
    "twin, aligned, newest half, agent 3 of 4": ("twin", SHARED),
    "penalty, forward, aligned, newest half, agent 3 of 4": ("penalty", FORWARD | SHARED),
}
LONG = ONE_LEARNER | {"penalty": ("penalty", {})}
WALKER = SIZE | {"labels": 100}
GROUPS["walker-long"] = on_walker("walker-long", LONG, range(3), 250_000, WALKER)
"""As many simulator steps as published figures have: the former Figure 1 has 75,000 of these."""
CLIPPED = {"reward_clip": True}
LATE = {"num_interact": 7500, "queries_per_session": 50}  # of 200,000 steps: 1000 labels until 152,500
OPENED: dict[str, tuple[str, Settings]] = {
    "pebble, aligned, newest half, clipped": ("pebble", HYBRID | CLIPPED),
    "pebble, aligned, newest half, clipped, labels early": (
        "pebble",
        HYBRID | CLIPPED | {"num_interact": 2500, "queries_per_session": 100},
    ),
    "penalty, clipped": ("penalty", CLIPPED),
    "pebble, aligned, newest half": ("pebble", HYBRID),
    "penalty, clipped, labels late": ("penalty", CLIPPED | LATE),
}
TRIED = (
    ("pebble, aligned, newest half, clipped", 100, 200_000),
    ("penalty, clipped", 100, 200_000),
    ("pebble, aligned, newest half, clipped", 101, 150_000),
    ("penalty, clipped", 101, 150_000),
    ("pebble, aligned, newest half, clipped, labels early", 100, 125_000),
    ("pebble, aligned, newest half", 100, 200_000),
    ("penalty, clipped, labels late", 101, 200_000),
)
EVEN: Settings = {"other_every": 2}
COUPLED = EVEN | {"penalty.visit_episodes": 1}
LINEAR, QUADRATIC = ({"reward_form": form, "reward_lr": 0.01, "refresh_every": 500} for form in ("linear", "quadratic"))
WIN_RATE: Settings = {
    "penalty.sides": "one",
    "penalty.cost": "labels",
    "penalty.objective": "win_rate",
    "penalty.win_weight": 10,
}
WINS = WIN_RATE | {"penalty.sigma_spread": 3}
WITHOUT_GAP: Settings = {"penalty.use_gap": False}
STRONG = {
    "twin": ("twin", EVEN),
    "penalty, spread .3": ("penalty", COUPLED | {"penalty.sigma_spread": 0.3}),
    "penalty, spread 1": ("penalty", COUPLED | {"penalty.sigma_spread": 1}),
    "penalty, spread 1, without gap": ("penalty", COUPLED | {"penalty.sigma_spread": 1} | WITHOUT_GAP),
}
LINEARLY = {
    "pebble, aligned, newest half, linear": ("pebble", HYBRID | LINEAR),
    "twin, linear": ("twin", EVEN | LINEAR),
    "penalty, win rate, linear": ("penalty", COUPLED | LINEAR | WINS),
    "penalty, win rate, linear, without gap": ("penalty", COUPLED | LINEAR | WINS | WITHOUT_GAP),
}
OFTEN: dict[str, tuple[str, Settings]] = {
    "penalty": ("penalty", {}),
    "penalty, two updates a step": ("penalty", {"gradient_steps": 2}),
    "penalty, reward moved twice as often": ("penalty", {"refresh_every": 300}),
    "penalty, reward moved half as often": ("penalty", {"refresh_every": 1200}),
}
SOURCES = {
    "twin, pairs of the other": ("twin", EVEN | {"query_source": "second"}),
    "twin, pairs across": ("twin", EVEN | {"query_source": "cross"}),
}
LABELLED = ONE_LEARNER | {
    "penalty": ("penalty", {}),
    "penalty, one-sided": ("penalty", PAPER),
    "penalty, one-sided, without gap": ("penalty", PAPER | WITHOUT_GAP),
    "twin": ("twin", {}),
}
TO_THE_END = {
    f"{name}, labels to the end": (method, own | {"num_interact": 7000})  # of 75,000: until 70,500
    for name, (method, own) in LABELLED.items()
}
UNTIL_226_000 = {"pebble, aligned, newest half, labels to the end": ("pebble", HYBRID | {"num_interact": 24_000})}
ANCHORS = HYBRID | {"anchor_share": 0.5}
NORMALISED = ANCHORS | {"critic_layer_norm": True}
STATES = {"reward_use_action": False}
FIRST = {"initial_comparison_frac": 0.5}
ANCHORED = {
    "pebble, aligned, newest half": ("pebble", HYBRID),
    "pebble, aligned, newest half, anchored by the best labelled": ("pebble", ANCHORS),
    "pebble, aligned, newest half, anchored, labels to the end": ("pebble", ANCHORS | {"label_schedule": "decreasing"}),
    "pebble, aligned, newest half, anchored, normalised critics": ("pebble", NORMALISED),
    "pebble, all that, rewards of observations, half of the labels first": ("pebble", NORMALISED | STATES | FIRST),
}
DOOR_LIKE: Settings = {"labels": 500} | CLIPPED | {"num_interact": 3750}
OTHER_TASKS: dict[str, tuple[int, Settings]] = {
    "dm_control/cartpole-swingup-v0": (30_000, {"labels": 100}),
    "dm_control/reacher-easy-v0": (30_000, {"labels": 100}),
    "dm_control/walker-stand-v0": (40_000, {"labels": 100}),
    "Meta-World/drawer-open-v3": (50_000, DOOR_LIKE),
    "Meta-World/button-press-v3": (50_000, DOOR_LIKE),
}
DEFAULTS = ONE_LEARNER | {"twin": ("twin", {}), "penalty": ("penalty", {})}


NETWORK: Settings = {"preset": "figure1", "labels": 100, "reward_form": "network"}
ADDITIVE: Settings = {"preset": "figure1", "labels": 100, "reward_form": "additive", "reward_lasso": 0.1}
ADDED = (
    ("additive, lasso .1 (module)", "pebble", "dm_control/walker-walk-v0", range(300, 306), 125_000, 100),
    ("additive, lasso .1", "pebble", "dm_control/walker-walk-v0", [310], 125_000, 100),
    ("penalty, additive, lasso .1", "penalty", "dm_control/walker-walk-v0", [311], 125_000, 100),
    ("additive, lasso .1", "pebble", "dm_control/cheetah-run-v0", [100], 250_000, 100),
)
"""The first six had the form in a module of their own."""
FORMS: Mapping[str, Settings] = {
    "network": {"reward_form": "network"},
    "additive, learning rate .003": {"reward_form": "additive", "reward_lasso": 0.1},
    "additive, learning rate .01": {"reward_form": "additive", "reward_lasso": 0.1, "reward_lr": 0.01},
}
LASSOS: Sequence[tuple[str, str, Settings, Iterable[int]]] = (
    ("pebble, lasso .1", "pebble", {"reward_lasso": 0.1}, range(320, 330)),
    ("pebble, lasso .2", "pebble", {"reward_lasso": 0.2}, [325]),
    ("pebble, lasso .3", "pebble", {"reward_lasso": 0.3}, [325]),
    ("penalty, lasso .1", "penalty", {"reward_lasso": 0.1}, range(320, 323)),
    ("penalty, lasso .3", "penalty", {"reward_lasso": 0.3}, [320, 321]),
)


SEARCH: dict[str, Group] = {
    "search-walk": on_walker("search-walk", SEARCHED, range(100, 104), 30_000, WALK),
    "search-size": on_walker("search-size", SIZED, range(100, 103), 75_000, WALKER),
    "search-tasks": [
        named(f"search-tasks/{env.split('/')[-1]}", name, method, env, seed, steps, SIZE | of_task | own)
        for seed in range(100, 102)
        for env, (steps, of_task) in OTHER_TASKS.items()
        for name, (method, own) in DEFAULTS.items()
    ],
    "search-late": on_walker("search-late", TO_THE_END, range(100, 103), 75_000, WALKER),
    "search-late-long": on_walker("search-late-long", UNTIL_226_000, [1], 250_000, WALKER),  # it fell in walker-long
    "search-anchors": on_walker("search-anchors", ANCHORED, range(200, 208), 125_000, WALKER),
    "search-network": [
        named("search-network", method, method, "dm_control/walker-walk-v0", seed, 125_000, NETWORK, today=True)
        for seed in range(300, 306)
        for method in ("pebble", "penalty", "twin")
    ],
    "search-additive": [
        named("search-additive", name, method, env, seed, steps, ADDITIVE | {"labels": labels}, today=True)
        for name, method, env, seeds, steps, labels in ADDED
        for seed in seeds
    ]
    + [
        named("search-additive", name, "pebble", CARTPOLE, seed, 12_000, QUICK | own, today=True)
        for seed in range(100, 104)
        for name, own in FORMS.items()
    ],
    "search-lasso": [
        named("search-lasso", name, method, "dm_control/walker-walk-v0", seed, 125_000, ADDITIVE | own, today=True)
        for name, method, own, seeds in LASSOS
        for seed in seeds
    ],
    "search-spread": [
        named("search-spread", name, method, "dm_control/walker-walk-v0", seed, 30_000, WALK | own)
        for seed in range(100, 106)
        for name, (method, own) in (STRONG | LINEARLY).items()
        if seed < 104 or name in ("twin", "penalty, spread .3")
    ],
    "search-often": on_walker("search-often", OFTEN, range(100, 103), 30_000, WALK),
    "search-source": on_walker("search-source", SOURCES, range(100, 104), 30_000, WALK),
    "search-door": [
        named("search-door", name, method, "Meta-World/door-open-v3", seed, steps, SIZE | {"labels": 1000} | own)
        for name, seed, steps in TRIED
        for method, own in [OPENED[name]]
    ],
}
"""Settings of the penalty method, looked for on other seeds than Figure 1's: first on smaller networks and longer steps
than there, then at its size; what a coupling does that acts; what helps of a second learner; what the door
needs; what labels to the end change; whether what was chosen does on other tasks what it does here; how often
the reward should move; which remedies keep runs from collapsing or from staying on a plateau."""


def in_results(table: Path, one: Named) -> bool:
    """Whether the run's evaluations, to its last step, are in the committed table."""
    key = one.name, one.run.env, one.run.seed, one.run.steps
    return table.is_file() and any(key == (p.method, p.env, p.seed, p.step) for p in read_table(table))


def collect(table: Path, members: Group) -> None:
    """Adds what has ended to what the table holds already, in the order of the group."""
    known = read_table(table) if table.is_file() else []
    rows: list[EvaluationRecord] = []
    for name, run in members:
        if run.folder.ended:
            rows += [point._replace(method=name) for point in read_records(run.folder.path)]
        else:
            rows += [p for p in known if (p.method, p.env, p.seed) == (name, run.env, run.seed)]
    if rows:
        table.parent.mkdir(exist_ok=True)
        write_table(rows, table)
        print(f"{table}: {len({(p.method, p.env, p.seed) for p in rows})} of {len(members)} runs")


def gather(groups: Mapping[str, Group], workers: int, results: Path = RESULTS, cohort: bool = False) -> None:
    """Runs what is missing, ``workers`` side by side (0: nothing), and collects.

    ``cohort`` begins the seeds of a variant together, in one update, on a GPU where there is one. SystemExit where a
    run failed, or one was begun with other settings.
    """
    tables = {results / f"{name}.csv": members for name, members in groups.items()}
    missing = [one.run for table, members in tables.items() for one in members if not in_results(table, one)]
    for run in missing:
        try:
            check_same_run(run, all_settings(run))
        except UserError as other:
            raise SystemExit(str(other)) from None
    failed = []
    if workers:
        if cohort:
            begin_together([replace(run, device=resolve_device("auto")) for run in missing])
        with ProgressBoard(missing) as board:
            failed = run_all(missing, LocalExecutor(workers), board.update)
    for table, members in tables.items():
        collect(table, members)
    if failed:
        raise SystemExit(f"{len(failed)} runs failed: the same command tries them again")


def running(options: argparse.ArgumentParser) -> None:
    """How what is missing is run."""
    options.add_argument("--workers", type=int, default=2, help="runs side by side, a thread each")
    options.add_argument(
        "--cohort",
        action=argparse.BooleanOptionalAction,
        default=torch.cuda.is_available(),
        help="the seeds of a variant in one process and one update (where there is a GPU)",
    )


def main(argv: Sequence[str] | None = None) -> None:
    groups = GROUPS | SEARCH
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument(
        "--group", choices=groups, action="append", help="may be given more than once (all but searches)"
    )
    running(options)
    options.add_argument("--collect", action="store_true", help="run nothing")
    args = options.parse_args(argv)
    asked = {name: groups[name] for name in args.group or GROUPS}
    gather(asked, 0 if args.collect else args.workers, cohort=args.cohort)


if __name__ == "__main__":
    main()
