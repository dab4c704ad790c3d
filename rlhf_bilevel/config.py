"""Every setting of a run, with its unit and range. Phases that are left out scale with ``steps`` and ``labels``.

This file imports neither torch nor an environment, so that a wrong value is refused before anything slow is loaded.
"""

from __future__ import annotations

import difflib
import math
import warnings
from collections.abc import Collection, Mapping
from contextlib import suppress
from itertools import pairwise
from numbers import Integral, Real
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, get_origin
from urllib.parse import parse_qs, urlsplit

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from rlhf_bilevel.errors import CorruptFileError, UserError

Count = Annotated[int, Field(ge=0, le=10**9)]
Size = Annotated[int, Field(ge=1, le=10**9)]
Turns = Annotated[int, Field(ge=2, le=10**9)]
Times = Annotated[int, Field(ge=0, le=100_000)]  # so often in a row, with nothing in between
Often = Annotated[int, Field(ge=1, le=100_000)]
Seconds = Annotated[float, Field(ge=0, le=86_400)]
Few = Annotated[int, Field(ge=0, le=10_000)]
Positive = Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)]
Rate = Annotated[float, Field(gt=0, le=1)]  # of Adam, whose steps are about so long: no weight survives longer ones
Fraction = Annotated[float, Field(gt=0, le=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]
Layers = Annotated[tuple[Annotated[int, Field(ge=1, le=65536)], ...], Field(min_length=1, max_length=16)]

Query = Literal["uniform", "disagreement", "entropy", "information_gain", "k_center", "k_center+disagreement",
                "k_center+entropy", "k_center+information_gain"]  # fmt: skip
"""Rules of ``query.RULES``."""


Model = TypeVar("Model", bound=BaseModel)


class Options(BaseModel):
    """Hyper-parameters that one method alone has: its file declares them, ``--set METHOD.NAME=VALUE`` sets them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def numbers(self, config: Config, inputs: int) -> int:
        """How many numbers of 4 bytes the method's own state and batches take at most.

        ``inputs`` is the size of an observation and an action together.
        """
        return 0


class Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    # Budget
    steps: Size  # environment steps, those of all learners together
    labels: Count = 100  # answers that may be asked of the teacher
    seed: Count = 0
    action_repeat: Annotated[int, Field(ge=1, le=1000)] = 1  # simulator steps in a step, their rewards summed
    env_timeout: Seconds = 0.0  # for a step; above 0, envs run in processes of their own
    env_kwargs: dict[str, JsonValue] = {}  # arguments of gymnasium.make
    flatten: bool = False  # observations that are no Box, by gymnasium.wrappers.FlattenObservation
    protocol: Literal["bpref", "mt1"] = "bpref"  # Meta-World: goal hidden, or visible
    # What an episode that ended early is worth to a learner: nothing; what the reward says of an absorbing state, until
    # the time limit; or nothing, where the reward of a step is never negative
    termination: Literal["as_is", "absorb", "nonnegative"] = "as_is"

    # Phases, in environment steps; left out, they follow from steps and labels (see fill_phases)
    learning_starts: Count  # steps with random actions before any learning
    pretrain_steps: Count  # steps that follow with state entropy as the reward
    session_every: Size  # between two query sessions; the first is at the end of pre-training
    session_labels: Size  # labels asked in one session; more only to catch up on what had no new pair to ask about
    # decreasing: sessions go on to the end, and ask for ever fewer labels, as B-Pref's reward_schedule=1 does:
    # proportional to the steps that are left. session_labels has no say then
    label_schedule: Literal["constant", "decreasing"] = "constant"
    refresh_every: Count  # between two reward updates without new labels; 0 for never
    eval_every: Size  # between two evaluations
    eval_episodes: Annotated[int, Field(ge=1, le=10_000)] = 10

    # Learners (SB3)
    hidden: Layers = (256, 256)  # units of the actor's and of each critic's layers
    batch: Size = 256  # transitions
    learning_rate: Rate = 5e-4
    gamma: Annotated[float, Field(gt=0, lt=1)] = 0.99
    tau: Fraction = 0.005  # step of the target critics, at each update
    initial_alpha: Positive = 0.1  # SAC: temperature that its tuning starts from
    other_every: Turns = 2  # of two learners, the one that is not the agent acts in every so many episodes
    update_every: Size = 1  # environment steps between two updates of each learner (SB3's train_freq)
    updates: Often = 1  # gradient steps in an update (the paper's K is updates * refresh_every / update_every)
    reset_critics: bool = True  # at the end of pre-training, whose values say nothing of the reward
    reset_updates: Times = 100  # gradient steps right then
    critic_layer_norm: bool = False  # SAC: a layer normalisation before each activation of the critics
    newest_share: Annotated[float, Field(ge=0, le=1)] = 0.0  # of each batch, drawn from the newest rows alone
    newest_rows: Size = 10_000  # how many those are

    # State entropy
    neighbour: Size = 5  # k of the k-nearest-neighbour estimate
    entropy_states: Size = 1024  # stored states, drawn anew each time, among which neighbours are looked for

    # Reward
    members: Size = 3
    reward_form: Literal["network", "linear", "quadratic"] = "network"  # of observation and action: reward.py
    reward_hidden: Layers = (256, 256, 256)  # of a network
    reward_units: Literal["measured", "raw"] = "measured"  # of what it sees: standard deviations, or as B-Pref has them
    reward_clip: bool = False  # to the range that labels have shown, each of its inputs by itself
    reward_learning_rate: Rate = 3e-4
    reward_batch: Size = 128  # pairs
    reward_epochs: Often = 50  # at most, per session
    refresh_epochs: Often = 2  # per refresh
    reward_damping: Weight = 0.3  # nats per mean square of f in tanh(f), which keeps tanh from its flats; B-Pref has 0
    reward_accuracy: Fraction = 0.97  # on the labels; a session's epochs stop there
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0  # share of each label that is taken for even odds
    member_weights: Literal["equal", "bootstrap"] = "equal"  # of labels in each member's loss; Poisson(1), own to each
    pessimism: Weight = 0.0  # learners see the members' mean less so many of their standard deviations
    pessimism_from: Literal["start", "last_label"] = "last_label"
    reward: str = ""  # a file with a learnt reward, which learners see as it is: nobody is asked
    reward_sha256: str = ""  # of that file

    # Queries
    segment_length: Size = 50  # steps
    query: Query = "disagreement"  # policy_aligned for [QPA]'s: uniform ones, and the setting below
    policy_aligned: bool = False  # candidates are cut from the newest episodes only
    query_source: Literal["all", "second", "cross"] = "all"  # with two learners: whose episodes a pair is cut from
    oversample: Size = 10  # candidate pairs per label that is asked
    recent_episodes: Size = 100  # that segments are cut from
    aligned_episodes: Size = 10  # the same where policy_aligned
    anchor_share: Share = 0.0  # of a session's pairs: a segment of the aligned episodes against an anchor
    anchor: Literal["incumbent", "past"] = "incumbent"  # one of the best labelled segments, or any since labels began
    anchor_segments: Size = 10  # how many of the labelled segments are the best

    # Simulated teacher (B-Pref), as teacher.py uses them; at rest, all of them, it is the oracle
    teacher_beta: Annotated[float, Field(gt=0)] = math.inf  # nats per return; infinite: always prefers the better
    teacher_discount: Fraction = 1.0  # weight of a step against the one after it
    teacher_mistake: Share = 0.0  # probability that a label is flipped
    teacher_skip: Share = 0.0  # of the recent average return: where neither segment has more, no answer
    teacher_equal: Share = 0.0  # of the recent average return: where the difference is less, a tie
    teacher_bpref_compat: bool = False  # B-Pref's code: skip and equal squared after the first session, no other tie
    teacher_replay: str = ""  # a run's labels.sqlite or a dataset, whose answers are given in place of the teacher's
    teacher_rerun: str = ""  # a run's labels.sqlite, whose answers are given session by session, as they were

    # People who answer, in place of the simulated teacher (human/)
    teacher_human: bool = False
    teacher_pending_share: Share = 0.5  # of all that was asked: where more is unanswered, training waits; 0 for all
    teacher_votes: Size = 1  # people who are to answer each query
    teacher_labels_db: str = ""  # postgresql:// URL without a password; empty for a file in the run's folder

    options: dict[str, Any] = {}  # of the method alone, see its file

    @model_validator(mode="before")
    @classmethod
    def fill_phases(cls, given: Any) -> Any:
        """B-Pref's proportions: a fiftieth random, pre-training up to a tenth, labels over the next half of the run."""
        if not isinstance(given, dict):
            return given
        filled = {
            key: int(v) if isinstance(v, float) and v.is_integer() else v for key, v in given.items() if v is not None
        }
        if not isinstance(filled.get("steps"), int):
            raise ValueError(f"steps={given.get('steps')!r} is no number of steps")
        if filled["steps"] < 1:
            return filled  # let the field's own check say so
        if filled.get("query") == "policy_aligned":
            filled |= {"query": "uniform", "policy_aligned": True}
        if filled.get("reward"):
            filled.setdefault("labels", 0)
        steps, labels = filled["steps"], filled.get("labels", cls.model_fields["labels"].default)
        filled.setdefault("learning_starts", min(1000, steps // 50))
        random = filled["learning_starts"]
        if isinstance(random, int):
            filled.setdefault("pretrain_steps", min(9000, max(0, steps // 10 - random)))
        filled.setdefault("session_every", max(1, steps // 20))
        phases = [filled.get(name) for name in ("learning_starts", "pretrain_steps", "session_every")]
        known = [number for number in phases if isinstance(number, int)]
        if isinstance(labels, int) and len(known) == 3:  # else one of them is at fault: its own check says so
            fit = min(10, max(1, _sessions(steps, *known)))
            filled.setdefault("session_labels", max(1, math.ceil(labels / fit)))
        filled.setdefault("session_labels", labels)
        filled.setdefault("refresh_every", min(2000, max(1, steps // 50)))
        filled.setdefault("eval_every", max(1000, steps // 20))  # a short run is not spent on its evaluations
        return filled

    @model_validator(mode="after")
    def leave_steps_to_learn(self) -> Config:
        if self.learning_starts + self.pretrain_steps >= self.steps:
            raise ValueError(
                f"learning_starts={self.learning_starts} and pretrain_steps={self.pretrain_steps} leave no step "
                f"of steps={self.steps} to learn from labels"
            )
        return self

    @property
    def first_session(self) -> int:
        """Environment step."""
        return self.learning_starts + self.pretrain_steps or self.session_every

    @property
    def sessions(self) -> int:
        """How many there may be until the last step."""
        return _sessions(self.steps, self.learning_starts, self.pretrain_steps, self.session_every)

    @model_validator(mode="after")
    def check_teacher(self) -> Config:
        if self.teacher_labels_db:
            check_database(self.teacher_labels_db)
        if sum(map(bool, (self.teacher_human, self.teacher_replay, self.teacher_rerun))) > 1:
            raise ValueError("teacher_human, teacher_replay and teacher_rerun are three teachers: choose one")
        return self

    @model_validator(mode="after")
    def check_given_reward(self) -> Config:
        if self.reward:
            asked = ["labels"] if self.labels else []
            asked += [key for key, field in type(self).model_fields.items()
                      if key.startswith("teacher_") and getattr(self, key) != field.default]  # fmt: skip
            if asked:
                raise ValueError(f"{asked[0]}={getattr(self, asked[0])}: a reward is given, and nobody is asked")
        return self


def _sessions(steps: int, learning_starts: int, pretrain_steps: int, every: int) -> int:
    """One when pre-training ends, if there is any, and one every so many steps after it."""
    start = learning_starts + pretrain_steps
    return max(0, (steps - start) // max(1, every) + (start > 0)) if start <= steps else 0


class Record(BaseModel):
    """What a run's config.yaml tells. ``version`` is that of these names and their meaning."""

    model_config = ConfigDict(strict=True)

    version: Literal[1] = 1
    method: str
    env: str
    teacher: str
    algorithm: str
    algorithm_settings: dict[str, Any] | Literal["own"]
    device: Annotated[str, Field(pattern=r"^(auto|(cpu|cuda|mps|xpu)(:\d+)?)$")]
    threads: Annotated[int, Field(ge=1, le=1024)]
    settings: dict[str, Any]
    versions: dict[str, str]
    commit: str | None = None


def recorded(file: object, told: Mapping[str, Any], whole: bool = True) -> None:
    """UserError unless ``told`` is as a run's config.yaml has it; CorruptFileError where the ``whole`` lacks a key."""
    try:
        Record(**told)
    except ValidationError as error:
        missing = [str(fault["loc"][0]) for fault in error.errors() if fault["type"] == "missing"]
        if missing and whole:
            raise CorruptFileError(f"{file} does not tell {', '.join(sorted(missing))}") from None
        for fault in error.errors():
            key = str(fault["loc"][0])
            if key == "version":
                theirs = f"{told[key]!r:.60}"
                raise UserError(
                    f"{file} has version {theirs} of the format, and this reads version 1: update it"
                ) from None
            if key not in missing:
                raise UserError(f"{file}: {key}={told[key]!r:.60}: {fault['msg']}") from None


FORMER: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("sigma", "sigma_spread", "upper_weight", "gap_share", "gap_surgery", "sides", "careful_from",
                     "fork_response", "use_gap"), ("penalty",)),
    **dict.fromkeys(("objective", "win_weight", "cost", "cost_hidden", "cost_learning_rate", "cost_steps", "cost_pairs",
                     "cost_labels", "use_cost"), ("penalty", "hypergradient")),
    "visit_episodes": ("penalty", "hypergradient", "incumbent", "parl"),
    "visit_batch": ("penalty", "incumbent"),
    "visit_discount": ("penalty", "hypergradient", "incumbent"),
}  # fmt: skip
"""Names that settings of all runs had once, and the methods whose options they are now. They are still read."""

PRESETS: dict[str, dict[str, Any]] = {
    "quick": {"hidden": (64, 64), "batch": 128, "learning_rate": 1e-3, "reward_hidden": (64, 64),
              "reward_learning_rate": 3e-3, "reward_batch": 32, "eval_episodes": 5, "action_repeat": 4,
              "segment_length": 25},
    "cpu": {},
    "paper": {"hidden": (1024, 1024), "batch": 1024, "tau": 0.0025},
    "paper/Meta-World": {"hidden": (256, 256, 256), "batch": 512, "learning_rate": 3e-4, "tau": 0.0025,
                         "reward_epochs": 10},
}  # fmt: skip
"""Differences from Config's defaults. ``paper`` holds B-Pref's sizes, which differ between the two suites.

B-Pref moves the target critics by .005 every second update; SB3 moves them at every one, hence half the step.
"""


def preset(name: str, env_id: str) -> dict[str, Any]:
    """The settings of preset ``name`` for an environment of that id; UserError where there is no such preset."""
    if name not in PRESETS:
        raise UserError(f"unknown preset {name!r}; known are {', '.join(PRESETS)}")
    suite = env_id.split("/")[0]
    return PRESETS.get(f"{name}/{suite}", PRESETS[name])


def reaching(config: Config) -> Config:
    """The settings; UserError where their sessions cannot ask for all labels.

    Not one of ``Config``'s own checks: a run that was trained before there was this one can still be read.
    """
    c, most = config, config.sessions * config.session_labels
    if c.labels <= most or (c.label_schedule == "decreasing" and c.sessions):
        return c
    told = f"labels={c.labels}: only {most} can be asked in steps={c.steps}"
    if not c.sessions:
        raise UserError(f"{told}, as no session comes: session_every={c.steps} or less")
    start, needed = c.learning_starts + c.pretrain_steps, math.ceil(c.labels / c.session_labels)
    every = (c.steps - start) // (needed - (start > 0))
    would = f"session_labels={math.ceil(c.labels / c.sessions)}" + (f" or session_every={every}" if every else "")
    raise UserError(f"{told} ({c.sessions} sessions of session_labels={c.session_labels}): {would} would do")


def fitting(config: Config, limit: int | None, own: bool) -> tuple[Config, str]:
    """The settings with segments that fit into episodes of at most ``limit`` simulator steps (None: not known).

    A segment length of the user's ``own`` that does not fit is refused; another is shortened, and what is to be said of
    it comes with the settings: else nothing.
    """
    last = config.first_session + (config.sessions - 1) * config.session_every  # step of the last session
    steps = math.inf if limit is None else math.ceil(limit / config.action_repeat)
    if config.segment_length <= steps and config.segment_length < last:  # a pair has two segments
        return config, ""
    longest = int(steps) if steps < last else max(1, last // 2)
    why = f"the last labels are asked at step {last} of {config.steps}"
    if config.segment_length > steps:
        why = f"an episode has at most {steps} steps"
        if config.action_repeat > 1:
            why += f" (the environment's {limit}, with action_repeat={config.action_repeat})"
    told = f"segment_length={config.segment_length} is too long: {why}"
    if own:
        raise UserError(f"{told}; segment_length={longest} would do")
    return config.model_copy(update={"segment_length": longest}), f"{told}; it is {longest} in this run"


def settle(given: Mapping[str, Any]) -> Config:
    """The settings, complete; UserError in one line that names the first wrong value and, for a name, the nearest."""
    return complete(Config, given)


def complete(model: type[Model], given: Mapping[str, Any], prefix: str = "") -> Model:
    """The same for any settings; in messages ``prefix`` stands before their names."""
    if not isinstance(given, Mapping):
        raise UserError(f"{prefix.rstrip('.') or 'settings'}={given!r:.60}: must be a mapping of names to values")
    known, read = [prefix + name for name in model.model_fields], {}
    for key, value in given.items():
        name = f"{prefix}{key}"
        if name not in known or not isinstance(key, str):
            raise UserError(f"unknown setting {name!r:.60}; {nearest_setting(name, known)}")
        value = value.tolist() if hasattr(value, "shape") else value  # a number or numbers of NumPy's or torch's
        try:
            read[key] = as_written(model.model_fields[key].annotation, value)
        except ValueError as error:
            raise UserError(f"{name}={value!r:.60}: {error}") from None
    try:
        return model(**read)
    except ValidationError as error:
        first = error.errors()[0]
        # A fault without a place is one of several settings together
        told = f"{prefix}{first['loc'][0]}={first['input']!r:.60}: " if first["loc"] else ""
        raise UserError(told + first["msg"].removeprefix("Value error, ")) from None


def as_written(kind: Any, value: Any) -> Any:
    """A setting's value in the ways in which people write it: ``1e5`` for a whole number, ``[64, 64]`` for layers.

    ``kind`` is the setting's type. ValueError on what is no such number.
    """
    if value is None:
        return None
    if kind is int:
        return whole(value)
    if kind is float:
        return number(value)
    if get_origin(kind) is not tuple:
        return value
    if isinstance(value, str):
        value = [item for item in value.strip("[]() ").split(",") if item.strip()]
    return tuple(map(whole, value if isinstance(value, list | tuple) else [value]))


def whole(value: object) -> int:
    """``5000``, ``5_000``, ``5e3`` and ``5000.0`` are the same; ValueError where it is no whole number."""
    with suppress(ValueError, OverflowError):  # of an infinity
        found = number(value)
        if found == int(found):
            return int(found)
    raise ValueError("must be a whole number")


def number(value: object) -> int | float:
    """ValueError where it is none, as is the case for true and false."""
    if isinstance(value, str | Integral) and not isinstance(value, bool):
        with suppress(ValueError):
            return int(value)
    if isinstance(value, str | Real) and not isinstance(value, bool):
        with suppress(ValueError):
            return float(value)
    raise ValueError("must be a number")


def gather(given: Mapping[str, Any], method: str) -> dict[str, Any]:
    """Settings by the names of ``Config``: ``method.name`` goes into ``options``, other methods' are left out."""
    plain = {key: value for key, value in given.items() if "." not in key}
    own = {key.removeprefix(f"{method}."): value for key, value in given.items() if key.startswith(f"{method}.")}
    return plain | ({"options": {**plain.get("options", {}), **own}} if own else {})


def spread(settings: Mapping[str, Any], method: str) -> dict[str, Any]:
    """``gather`` undone, for the settings in a run's config.yaml, which may have ``FORMER`` names."""
    plain = {key: value for key, value in settings.items() if key not in FORMER}
    own = {key: value for key, value in settings.items() if method in FORMER.get(key, ())}
    if isinstance(plain.get("options", {}), Mapping):
        own |= plain.pop("options", {})
    return plain | {f"{method}.{key}": value for key, value in own.items()}


def renamed(given: Mapping[str, Any], methods: Collection[str]) -> dict[str, Any]:
    """What a user gave for ``methods``, with the options that ``FORMER`` names mean in place of them.

    Warns where one of the methods has it; elsewhere it is another method's option. UserError where a setting is given
    by both names.
    """
    names: dict[str, list[str]] = {}
    for key in filter(FORMER.__contains__, given):
        owners = [method for method in FORMER[key] if method in methods]
        names[key] = [f"{method}.{key}" for method in owners or FORMER[key]]
        if both := [name for name in names[key] if name in given]:
            raise UserError(f"{key} and {both[0]} are the same setting: give it once")
        if owners:
            warnings.warn(f"{key} is called {' or '.join(names[key])} now", stacklevel=2)
    return {name: value for key, value in given.items() for name in names.get(key, [key])}


def nearest(value: str, known: Collection[str], others: Mapping[str, str] = {}) -> str:
    """``others`` are more names, by those that are as near to what was meant."""
    # PEBBLE is as near to pebble as can be
    written = {**others, **{name.casefold(): name for name in reversed([*known])}}
    near = difflib.get_close_matches(value.casefold(), written, n=1, cutoff=0.5)
    return f"did you mean {written[near[0]]!r}?" if near else f"known are {', '.join(known) or 'none'}"


def nearest_setting(value: str, known: Collection[str]) -> str:
    """The same for settings, which are too many for one line."""
    former = {} if "." in value else {name: f"{methods[0]}.{name}" for name, methods in FORMER.items()}
    told = nearest(value, known, former)
    if told.startswith("did") or len(known) <= 30:
        return told
    return "rlhf_bilevel/config.py has them all, and those of one method alone are called METHOD.NAME"


def check_database(url: str) -> None:
    """UserError unless it is a PostgreSQL database's, without a password: a run's config.yaml holds it."""
    try:
        parts = urlsplit(url)
        _ = parts.port  # is checked only when it is read
    except ValueError as error:
        raise UserError(f"{url!r:.60} is no labels database: {error}") from None
    if parts.scheme not in ("postgresql", "postgresql+psycopg"):
        raise UserError(f"{parts.scheme or 'this'} is no labels database: postgresql://USER@HOST/DATABASE is")
    if parts.password is not None or "password" in parse_qs(parts.query):
        raise UserError("the labels database's URL has a password in it, which config.yaml would hold: "
                         "set PGPASSWORD or write it to ~/.pgpass")  # fmt: skip


def checkpoint_interval(told: str) -> tuple[float, float]:
    """``1m`` or ``5000`` as (environment steps, seconds) between two checkpoints, one of them infinite; 0 for never."""
    try:
        count = whole(told.removesuffix("m"))
    except ValueError:
        count = -1
    if not 0 <= count < 10**9:
        raise UserError(f"{told!r:.60} is no interval between checkpoints: 1m is a minute, 5000 so many steps, 0 never")
    every = count or math.inf
    return (math.inf, 60.0 * every) if told.endswith("m") else (every, math.inf)


def kept_interval(told: object) -> int:
    """Environment steps between two checkpoints that stay; 0 for none."""
    with suppress(ValueError):
        if 0 <= whole(told) <= 10**9:
            return whole(told)
    raise UserError(f"keep_every={told!r:.60}: must be a whole number of steps, or 0 for no checkpoint that stays")


class Networks(NamedTuple):
    """Units of a learner's hidden layers: those of its policy, and of each of its ``critics``."""

    policy: tuple[int, ...]
    critic: tuple[int, ...]
    critics: int


def networks(config: Config, arguments: Mapping[str, Any], critics: int) -> Networks:
    """Of an SB3 algorithm that is made with ``arguments``, as ``policy_kwargs`` or else ``config`` says; ``critics`` is
    their number where nothing tells it.

    A policy class of a user's own may be made in another way: what is not as SB3 has it is left out, as are SB3's own
    defaults, which are small.
    """
    given = arguments.get("policy_kwargs", {"net_arch": config.hidden})
    chosen: Mapping[str, Any] = given if isinstance(given, Mapping) else {}
    arch, number = chosen.get("net_arch"), chosen.get("n_critics")
    parts = (arch.get("pi"), arch.get("qf", arch.get("vf"))) if isinstance(arch, Mapping) else (arch, arch)
    policy, critic = (
        tuple(units for units in part if isinstance(units, int)) if isinstance(part, list | tuple) else ()
        for part in parts
    )
    return Networks(policy, critic, number if isinstance(number, int) else critics)


def weights(*units: int) -> int:
    """Between layers of so many units each."""
    return sum(i * j for i, j in pairwise(units))


def footprint(
    config: Config,
    options: Options,
    obs_size: int,
    act_size: int,
    learners: int,
    arguments: Mapping[str, Any] | None = None,
) -> int:
    """About how many bytes a run holds at most: its store and labels, weights with their gradients, Adam's moments and
    copies, and what is computed at once: a batch of the learners, a batch of the reward, a session's candidates; and
    what the method takes, by its ``options``.

    ``arguments`` are those of the learners' SB3 algorithm that go before ``config``.
    """
    c, arguments, inputs = config, arguments or {}, obs_size + act_size
    policy, critic, critics = networks(c, arguments, critics=2)
    row = 2 * obs_size + act_size + 2 + 2 * learners  # floats, the learners' known rewards included
    nets = learners * (4 * weights(inputs, *policy, 1) + 5 * critics * weights(inputs, *critic, 1))
    nets += 7 * c.members * weights(inputs, *c.reward_hidden, 1)
    labels = 2 * c.labels * 2 * c.segment_length * (inputs + 1)
    candidates = min(c.session_labels, c.labels) * c.oversample * of_pair(c, inputs)
    batch = learners * c.batch * (row + 2 * (sum(policy) + critics * sum(critic)))
    batch += c.entropy_states * (obs_size + 2 + c.batch)
    reward = min(c.reward_batch, c.labels) * 2 * c.segment_length * c.members * 2 * sum(c.reward_hidden)
    rollout = arguments["n_steps"] * row if isinstance(arguments.get("n_steps"), int) else 0  # of PPO
    numbers = c.steps * row + labels + nets + candidates + batch + reward + rollout
    return 4 * (numbers + options.numbers(c, inputs))


def of_pair(config: Config, inputs: int) -> int:
    """Numbers that an unlabelled pair takes, with the members' rewards of its steps."""
    return 2 * config.segment_length * (3 * (inputs + 1) + 2 * config.members)
