"""Every setting of a run, with its unit and range.

Phases that are left out follow from ``total_timesteps`` and ``labels``. This file imports neither torch nor an
environment, so that a wrong value is refused before anything slow is loaded.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Collection, Mapping
from contextlib import suppress
from itertools import pairwise
from numbers import Integral, Real
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, get_origin
from urllib.parse import parse_qs, urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    model_validator,
)

from rlhf_bilevel.errors import CorruptFileError, UserError
from rlhf_bilevel.registries import QUERY_RULES, REWARD_FORMS, TEACHERS
from rlhf_bilevel.utils.registry import Registry
from rlhf_bilevel.utils.suggest import did_you_mean

Count = Annotated[int, Field(ge=0, le=10**9)]
Size = Annotated[int, Field(ge=1, le=10**9)]
Turns = Annotated[int, Field(ge=2, le=10**9)]
Times = Annotated[int, Field(ge=0, le=100_000)]  # repeated without a pause for checks
Often = Annotated[int, Field(ge=1, le=100_000)]
Seconds = Annotated[float, Field(ge=0, le=86_400)]
Few = Annotated[int, Field(ge=0, le=10_000)]
Positive = Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)]
Rate = Annotated[float, Field(gt=0, le=1)]  # a step of Adam is about this long
Fraction = Annotated[float, Field(gt=0, le=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]
Layers = Annotated[tuple[Annotated[int, Field(ge=1, le=65536)], ...], Field(min_length=1, max_length=16)]


POLICIES = 10  # that a run keeps of its own, see ``Config.policy_steps``


def one_of(registry: Registry[Any], optional: bool = False) -> AfterValidator:
    """A name that the registry knows, or ``module:NAME``, which is not imported here; with ``optional`` or nothing."""

    def check(name: str) -> str:
        if not registry.knows(name) and not (optional and not name):
            raise ValueError(f"no {registry.kind} has that name; {did_you_mean(name, registry)}")
        return name

    return AfterValidator(check)


def check_ent_coef(value: Any) -> Any:
    """``ent_coef`` as SB3's SAC takes it: a positive number, ``auto`` or ``auto_0.1``. ValueError for anything else."""
    kind, _, start = value.partition("_") if str(value).startswith("auto") else ("auto", "", value)
    if value == "auto" or (kind == "auto" and "_" not in str(start) and 0 < parse_number(start) <= 1e9):
        return value
    raise ValueError("must be a positive number, auto or auto_NUMBER")


Model = TypeVar("Model", bound=BaseModel)


class Options(BaseModel):
    """Hyper-parameters that only one method has. Its file declares them; ``--set METHOD.NAME=VALUE`` sets them."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    def numbers(self, config: Config, inputs: int) -> int:
        """The most numbers (of 4 bytes) that the method's own state and batches hold at a time.

        ``inputs`` is the size of an observation and an action together.
        """
        return 0


class Config(BaseModel):
    """All settings of a run. ``Config.model_fields[NAME].description`` is the text below each of them.

    "Steps" are environment steps unless a setting says otherwise.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    # Budget
    total_timesteps: Size
    """Length of training in environment steps, those of all learners together."""
    labels: Count = 100
    """Number of answers that may be asked of the teacher in the whole run."""
    select_labels: Count = 0
    """Part of the labels that is held back until training has ended, to choose the policy that a user gets among those
    that were kept (docs/reliable-learning.md)."""
    seed: Count = 0
    """Seed of all random numbers of the run."""
    action_repeat: Annotated[int, Field(ge=1, le=1000)] = 1
    """Simulator steps in one environment step. The action stays the same and the rewards are summed."""
    env_timeout: Seconds = 0.0
    """Seconds that a step or a reset of the environment may take. Above 0, environments run in their own processes;
    0: no limit."""
    env_kwargs: dict[str, JsonValue] = {}
    """Arguments of the environment, passed to gymnasium.make."""
    flatten: bool = False
    """Observations that are not a Box, such as a Dict, become one by gymnasium.wrappers.FlattenObservation."""
    protocol: Literal["bpref", "mt1"] = "bpref"
    """Meta-World only. The goal is random in every episode: bpref hides it from the observation, mt1 shows it."""
    termination: Literal["as_is", "absorb", "nonnegative"] = "as_is"
    """What follows when an episode ends before its time limit. as_is: nothing, its value is 0. absorb: an absorbing
    state until the time limit, for which the reward model has a value. nonnegative: nothing, and the learnt reward is
    shifted so that no step has a negative reward."""

    # Phases; when left out, they follow from total_timesteps and labels (see fill_phases)
    learning_starts: Count
    """Steps with random actions at the start, before anything is learnt."""
    pretrain_steps: Count
    """Steps after these in which the reward is state entropy, before the first label is asked."""
    num_interact: Size
    """Steps between two query sessions. The first session is at the end of pre-training."""
    queries_per_session: Size
    """Labels that are asked in one query session; more only when earlier sessions found too few pairs."""
    initial_comparison_frac: Share = 0.5
    """Share of the labels that the first session asks for, about the episodes of pre-training. 0: as in any session."""
    label_schedule: Literal["constant", "decreasing"] = "constant"
    """constant: queries_per_session in each session until all labels are asked. decreasing: sessions go on until the
    end, and each asks in proportion to the steps that are left (B-Pref's reward_schedule=1); queries_per_session is
    then not used."""
    refresh_every: Count
    """Steps between two updates of the reward model without new labels. 0: never."""
    eval_freq: Size
    """Steps between two evaluations."""
    n_eval_episodes: Annotated[int, Field(ge=1, le=10_000)] = 10
    """Episodes in one evaluation."""

    # Learners (SB3)
    net_arch: Layers = (256, 256)
    """Units of each hidden layer of the actor and of each critic."""
    batch_size: Size = 256
    """Transitions in a batch of a learner."""
    learning_rate: Rate = 5e-4
    """Adam's learning rate for actor, critics and temperature."""
    gamma: Annotated[float, Field(gt=0, lt=1)] = 0.99
    """Discount of a reward one step later."""
    tau: Fraction = 0.005
    """Share of the critics that goes into the target critics at each update."""
    ent_coef: Annotated[str, BeforeValidator(str), AfterValidator(check_ent_coef)] = "auto_0.1"
    """SAC's temperature: a number, or tuned by SAC (auto starts at 1, auto_0.1 at 0.1)."""
    other_every: Turns = 2
    """Of two learners, the one that is not the agent acts in every so many episodes."""
    train_freq: Size = 1
    """Steps between two updates of each learner."""
    gradient_steps: Often = 1
    """Gradient steps in one update. The paper's K is gradient_steps * refresh_every / train_freq."""
    reset_critics: bool = True
    """Whether the critics begin anew at the end of pre-training, as their values are those of state entropy."""
    reset_updates: Times = 100
    """Gradient steps directly after that reset."""
    critic_layer_norm: bool = True
    """SAC only: a layer normalisation before each activation of the critics."""
    newest_share: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of each batch that is drawn from the newest transitions only."""
    newest_rows: Size = 10_000
    """How many transitions count as the newest."""

    # State entropy
    neighbour: Size = 5
    """State entropy is the distance to the k-th nearest neighbour: this k."""
    entropy_states: Size = 1024
    """Stored states among which neighbours are searched; drawn anew each time."""

    # Reward
    ensemble_size: Size = 3
    """Reward models in the ensemble."""
    reward_form: Annotated[str, one_of(REWARD_FORMS)] = "network"
    """Form of each reward model as a function of observation and action. It may be module:NAME."""
    reward_use_action: bool = False
    """Whether the reward depends on the action, and not on the observation alone."""
    reward_net_arch: Layers = (256, 256, 256)
    """Units of each hidden layer of a reward network."""
    reward_units: Literal["measured", "raw"] = "measured"
    """Units of the reward model's inputs. measured: standard deviations of the data. raw: as the environment gives
    them, as in B-Pref."""
    reward_clip: bool = False
    """Whether each input of the reward model is clipped to the range that it has in the labelled segments."""
    reward_lr: Rate = 3e-4
    """Adam's learning rate for the reward model."""
    reward_batch: Size = 128
    """Labelled pairs in a batch of the reward model."""
    reward_epochs: Often = 50
    """The most epochs over all labels after a query session."""
    refresh_epochs: Often = 2
    """The most epochs over all labels in an update without new labels."""
    reward_damping: Weight = 0.3
    """Weight of the mean square of f in the loss, where the reward is tanh(f); in nats. It keeps tanh out of its flat
    ends. B-Pref has 0."""
    reward_accuracy: Fraction = 0.97
    """The epochs of a session stop when this share of the labels is predicted."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Weight of even odds in each label: 0 takes labels as they are."""
    member_weights: Literal["equal", "bootstrap"] = "equal"
    """Weights of the labels in the loss of an ensemble member. bootstrap: each member draws its own from Poisson(1)."""
    pessimism: Weight = 0.0
    """Learners see the ensemble's mean minus this many of its standard deviations."""
    pessimism_from: Literal["start", "last_label"] = "last_label"
    """When that begins: with the first learnt reward, or after the last label."""
    reward: str = ""
    """A file with a learnt reward, or the folder of a run that has one. Learners see it from the first step, it never
    changes, and nobody is asked."""
    reward_sha256: str = ""
    """SHA-256 of that file, filled in when the run begins; another file is refused."""

    # Queries
    segment_length: Size = 50
    """Steps in a segment."""
    query: Annotated[str, one_of(QUERY_RULES)] = "uniform"
    """Rule that chooses pairs among the candidates. policy_aligned is uniform with the setting policy_aligned (QPA). It
    may be module:NAME."""
    policy_aligned: bool = True
    """Whether candidates are cut from the newest episodes only (aligned_episodes)."""
    query_source: Literal["all", "second", "cross"] = "all"
    """With two learners: whose episodes pairs are cut from. all: both learners'. second: the second learner's. cross:
    one segment from each."""
    large_batch: Size = 10
    """Candidate pairs for each label that is asked."""
    least_difference: Weight = 0.0
    """Candidate pairs whose segments look more alike than this are not asked about: the root mean square difference of
    their observations, step by step, in standard deviations. Of two random segments it is about 1.4. 0: no limit."""
    recent_episodes: Size = 100
    """Newest episodes that segments are cut from."""
    aligned_episodes: Size = 10
    """The same when policy_aligned is on."""
    anchor_share: Share = 0.5
    """Share of a session's pairs that compare a segment of the newest aligned_episodes with an anchor segment."""
    anchor: Literal["incumbent", "past"] = "incumbent"
    """incumbent: the anchor is one of the best labelled segments. past: any segment since the first label."""
    anchor_segments: Size = 10
    """How many of the labelled segments count as the best."""

    # Simulated teacher (B-Pref), as feedback/teachers.py uses them; with all defaults it is the oracle
    teacher_beta: Annotated[float, Field(gt=0)] = math.inf
    """Rationality of the answers, in nats per unit of return. Infinite: the higher return is always preferred."""
    teacher_discount: Fraction = 1.0
    """Weight of a step relative to the next one. Below 1 the teacher is myopic: the last steps count most."""
    teacher_mistake: Share = 0.0
    """Probability that a label is flipped."""
    teacher_skip: Share = 0.0
    """Share of the recent average return. The teacher skips a pair when both segments have less."""
    teacher_equal: Share = 0.0
    """Share of the recent average return. The teacher answers with a tie when the difference is less."""
    teacher_person: Weight = 0.0
    """Drift of a simulated person's decision for each spread of recent returns (feedback/person.py), which replaces
    teacher_beta. 0: no simulated person."""
    teacher_bound: Annotated[float, Field(gt=0, le=100)] = 2.0
    """Evidence at which the simulated person decides. More means slower and fewer errors."""
    teacher_watch: Seconds = 3.0
    """Seconds that the simulated person takes for each pair besides the decision."""
    teacher_bpref_compat: bool = False
    """Whether skip and equal work as in B-Pref's code: squared after the first session, and no other ties."""
    teacher_replay: str = ""
    """A run's labels.sqlite or a preference dataset. Its answers are given instead of the teacher's, in order."""
    teacher_rerun: str = ""
    """A run's labels.sqlite. Its answers are given session by session, as in that run."""
    teacher_object: Annotated[str, one_of(TEACHERS, optional=True)] = ""
    """A registered teacher: module:NAME, or a name in registries.py or of an installed package."""

    # People who answer instead of the simulated teacher (human/)
    teacher_human: bool = False
    """Whether people answer, through the page of ``rlhf-bilevel label``."""
    teacher_pending_share: Share = 0.5
    """Training waits when more than this share of all queries is unanswered. 0: it waits for all answers."""
    teacher_votes: Size = 1
    """People who answer each query."""
    teacher_labels_db: str = ""
    """postgresql:// URL of the labels, without a password. Empty: a file in the run's folder."""

    # A teacher that is asked by HTTP (feedback/http_teacher.py)
    teacher_url: str = ""
    """URL of a teacher that is asked by HTTP: https://HOST/PATH, or vlm:https://HOST/v1?model=NAME for a
    vision-language model. Empty: no such teacher."""
    teacher_question: Annotated[str, Field(min_length=1, max_length=10_000)] = "Which one is better?"
    """Question that is sent with each pair."""
    teacher_frames: Annotated[int, Field(ge=0, le=100)] = 8
    """Pictures of each segment that are sent. 0: only states and actions."""
    teacher_timeout: Annotated[float, Field(gt=0, le=86_400)] = 60.0
    """Seconds until a request without an answer is given up."""
    teacher_max_requests: Count = 0
    """The most requests in the whole run, failed ones included. 0: no limit."""

    options: dict[str, Any] = {}
    """Settings that only the method has; see its file."""

    @model_validator(mode="before")
    @classmethod
    def fill_phases(cls, settings: Any) -> Any:
        """Fills in the phases that are missing, in B-Pref's proportions.

        A fiftieth of the steps is random, pre-training ends at a tenth, and labels are asked over the next half of the
        run. ValueError if ``total_timesteps`` is not a whole number.
        """
        if not isinstance(settings, dict):
            return settings
        filled = {
            key: int(value) if isinstance(value, float) and value.is_integer() else value
            for key, value in settings.items()
            if value is not None
        }
        if not isinstance(filled.get("total_timesteps"), int):
            raise ValueError(f"total_timesteps={settings.get('total_timesteps')!r} is no number of steps")
        if filled["total_timesteps"] < 1:
            return filled  # refused by the field's own check
        if filled.get("query") == "policy_aligned":
            filled |= {"query": "uniform", "policy_aligned": True}
        if filled.get("reward"):
            filled.setdefault("labels", 0)
        steps, labels = filled["total_timesteps"], filled.get("labels", cls.model_fields["labels"].default)
        held_back = filled.get("select_labels", 0)
        labels = max(0, labels - held_back) if isinstance(labels, int) and isinstance(held_back, int) else labels
        filled.setdefault("learning_starts", min(1000, steps // 50))
        random_steps = filled["learning_starts"]
        if isinstance(random_steps, int):
            filled.setdefault("pretrain_steps", min(9000, max(0, steps // 10 - random_steps)))
        filled.setdefault("num_interact", max(1, steps // 20))
        phases = [filled.get(name) for name in ("learning_starts", "pretrain_steps", "num_interact")]
        phase_steps = [number for number in phases if isinstance(number, int)]
        share = filled.get("initial_comparison_frac", cls.model_fields["initial_comparison_frac"].default)
        if isinstance(labels, int) and len(phase_steps) == 3 and isinstance(share, (int, float)):
            # else a field's own check refuses one of them
            sessions = min(10, max(1, count_sessions(steps, *phase_steps)))
            first = round(share * labels) if sessions > 1 else 0
            filled.setdefault("queries_per_session", max(1, math.ceil((labels - first) / (sessions - bool(first)))))
        filled.setdefault("queries_per_session", labels)
        filled.setdefault("refresh_every", min(2000, max(1, steps // 50)))
        filled.setdefault("eval_freq", max(1000, steps // 20))  # a short run should not spend its time on evaluations
        return filled

    @model_validator(mode="after")
    def leave_steps_to_learn(self) -> Config:
        """ValueError if random steps and pre-training take the whole run."""
        if self.learning_starts + self.pretrain_steps >= self.total_timesteps:
            raise ValueError(
                f"learning_starts={self.learning_starts} and pretrain_steps={self.pretrain_steps} leave no step "
                f"of {self.total_timesteps} to learn from labels"
            )
        return self

    @property
    def first_session(self) -> int:
        """Environment step of the first query session."""
        return self.learning_starts + self.pretrain_steps or self.num_interact

    @property
    def sessions(self) -> int:
        """Number of query sessions from the first one to the last step."""
        return count_sessions(self.total_timesteps, self.learning_starts, self.pretrain_steps, self.num_interact)

    @model_validator(mode="after")
    def check_teacher(self) -> Config:
        """ValueError if more than one kind of teacher is chosen, or the URL of the labels database is wrong."""
        if self.teacher_labels_db:
            check_database(self.teacher_labels_db)
        if self.teacher_url:
            check_teacher_url(self.teacher_url)
        kinds = (
            "teacher_human", "teacher_replay", "teacher_rerun", "teacher_object", "teacher_url", "teacher_person"
        )  # fmt: skip
        if len(given := [name for name in kinds if getattr(self, name)]) > 1:
            raise ValueError(f"{' and '.join(given)} are {len(given)} teachers: choose one")
        if self.teacher_person and self.teacher_beta < math.inf:
            raise ValueError(f"teacher_beta={self.teacher_beta:g}: the errors of teacher_person follow from its bound")
        for name in ("teacher_bound", "teacher_watch"):
            if (value := getattr(self, name)) != type(self).model_fields[name].default and not self.teacher_person:
                raise ValueError(f"{name}={value:g}: only a simulated person has it (teacher_person above 0)")
        return self

    @property
    def policy_steps(self) -> list[int]:
        """Steps at which the policy is kept: ``POLICIES``, evenly spaced, without those of pre-training."""
        steps = {math.ceil(self.total_timesteps * part / POLICIES) for part in range(1, POLICIES + 1)}
        return sorted(step for step in steps if step > self.learning_starts + self.pretrain_steps)

    @property
    def training_labels(self) -> int:
        """Number of answers that may be asked of the teacher during training."""
        return self.labels - self.select_labels

    @property
    def initial_labels(self) -> int:
        """Number of labels that ``initial_comparison_frac`` gives to the first session; 0 if that is the only one."""
        return round(self.initial_comparison_frac * self.training_labels) if self.sessions > 1 else 0

    @model_validator(mode="after")
    def check_selection(self) -> Config:
        """ValueError if labels are held back that are not there, or that nobody could give at the end of training."""
        if self.select_labels and self.select_labels >= self.labels:
            raise ValueError(f"select_labels={self.select_labels} is a part of labels={self.labels}: it must be less")
        if self.select_labels and (self.teacher_human or self.teacher_replay):
            reason = "recorded answers cannot tell of new pairs"
            if self.teacher_human:
                reason = "people are asked after training, by rlhf-bilevel select RUN --teacher human"
            raise ValueError(f"select_labels={self.select_labels}: {reason}")
        return self

    @model_validator(mode="after")
    def check_given_reward(self) -> Config:
        """ValueError if somebody would be asked although a reward is given."""
        if self.reward:
            asked = ["labels"] if self.labels else []
            asked += [key for key, field in type(self).model_fields.items()
                      if key.startswith("teacher_") and getattr(self, key) != field.default]  # fmt: skip
            if asked:
                raise ValueError(f"{asked[0]}={getattr(self, asked[0])}: a reward is given, and nobody is asked")
        return self


def count_sessions(steps: int, learning_starts: int, pretrain_steps: int, every: int) -> int:
    """Number of query sessions: one when pre-training ends, if there is any, then one every ``every`` steps."""
    start = learning_starts + pretrain_steps
    return max(0, (steps - start) // max(1, every) + (start > 0)) if start <= steps else 0


NAMED: Mapping[str, Registry[Any]] = {"query": QUERY_RULES, "reward_form": REWARD_FORMS, "teacher_object": TEACHERS}
"""Settings that are names in a registry, or ``module:NAME``."""


MOST_THREADS = 1024  # of a run: more than any machine has use for


class ConfigRecord(BaseModel):
    """The contents of a run's config.yaml. ``version`` counts changes of these names and their meaning."""

    model_config = ConfigDict(strict=True)

    version: Literal[1, 2] = 2
    method: str
    method_name: str | None = None  # the own name of a method that is called module:NAME
    env: str
    teacher: str
    algorithm: str
    algorithm_settings: dict[str, Any] | Literal["own"]
    device: Annotated[str, Field(pattern=r"^(auto|(cpu|cuda|mps|xpu)(:\d+)?)$")]
    threads: Annotated[int, Field(ge=1, le=MOST_THREADS)]  # of torch, in each process
    cores: Annotated[int, Field(ge=1, le=MOST_THREADS)] = 1  # what --threads gave to the run
    settings: dict[str, Any]
    versions: dict[str, str]
    commit: str | None = None


BPREF: dict[str, Any] = {
    "query": "disagreement", "policy_aligned": False, "newest_share": 0.0, "anchor_share": 0.0,
    "critic_layer_norm": False, "reward_use_action": True, "initial_comparison_frac": 0.0,
}  # fmt: skip
"""B-Pref's values of settings whose defaults are others here. They were the defaults before."""


def upgrade(record: Mapping[str, Any]) -> dict[str, Any]:
    """The contents of a run's config.yaml, with the settings that did not exist yet as the run was made.

    A run records all settings that there are. What it lacks was as in B-Pref.
    """
    if "versions" not in record or not isinstance(record.get("settings"), Mapping):
        return dict(record)
    return {**record, "settings": {**BPREF, **record["settings"]}}


def check_record(file: object, record: Mapping[str, Any], must_be_complete: bool = True) -> None:
    """UserError if a value in ``record``, read from ``file``, is of another kind than a run writes into config.yaml.

    CorruptFileError if ``must_be_complete`` and a key is missing.
    """
    try:
        ConfigRecord(**record)
    except ValidationError as error:
        missing = [str(problem["loc"][0]) for problem in error.errors() if problem["type"] == "missing"]
        if missing and must_be_complete:
            raise CorruptFileError(f"{file} does not tell {', '.join(sorted(missing))}") from None
        for problem in error.errors():
            key = str(problem["loc"][0])
            if key == "version":
                its_version = f"{record[key]!r:.60}"
                raise UserError(
                    f"{file} has version {its_version} of the format, and this reads versions 1 and 2: update it"
                ) from None
            if key not in missing:
                raise UserError(f"{file}: {key}={record[key]!r:.60}: {problem['msg']}") from None


RENAMED = {
    "steps": "total_timesteps", "batch": "batch_size", "hidden": "net_arch", "initial_alpha": "ent_coef",
    "update_every": "train_freq", "updates": "gradient_steps", "eval_every": "eval_freq",
    "eval_episodes": "n_eval_episodes", "session_every": "num_interact", "session_labels": "queries_per_session",
    "oversample": "large_batch", "members": "ensemble_size", "reward_hidden": "reward_net_arch",
    "reward_learning_rate": "reward_lr",
}  # fmt: skip
"""Old names of settings, still read, and today's: those of Stable-Baselines3 and B-Pref."""
MOVED: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("sigma", "sigma_spread", "upper_weight", "gap_share", "gap_surgery", "sides", "careful_from",
                     "fork_response", "use_gap"), ("penalty",)),
    **dict.fromkeys(("objective", "win_weight", "cost", "cost_hidden", "cost_learning_rate", "cost_steps", "cost_pairs",
                     "cost_labels", "use_cost"), ("penalty", "hypergradient")),
    "visit_episodes": ("penalty", "hypergradient", "incumbent", "parl"),
    "visit_batch": ("penalty", "incumbent"),
    "visit_discount": ("penalty", "hypergradient", "incumbent"),
}  # fmt: skip
"""Old settings of all runs, still read, and the methods whose options they are today."""

FIGURE1: dict[str, Any] = {
    "batch_size": 128, "action_repeat": 2, "segment_length": 25, "eval_freq": 5000, "n_eval_episodes": 5
}  # fmt: skip
PRESETS: dict[str, dict[str, Any]] = {
    "quick": {"net_arch": (64, 64), "batch_size": 128, "learning_rate": 1e-3, "reward_net_arch": (64, 64),
              "reward_lr": 3e-3, "reward_batch": 32, "n_eval_episodes": 5, "action_repeat": 4,
              "segment_length": 25},
    "cpu": {},
    "paper": BPREF | {"net_arch": (1024, 1024), "batch_size": 1024, "tau": 0.0025},
    "paper/Meta-World": BPREF | {"net_arch": (256, 256, 256), "batch_size": 512, "learning_rate": 3e-4, "tau": 0.0025,
                                 "reward_epochs": 10},
    "figure1": FIGURE1 | {"total_timesteps": 125_000, "labels": 100},
    "figure1/Meta-World": FIGURE1 | {"total_timesteps": 200_000, "labels": 1000, "reward_clip": True,
                                     "num_interact": 7500, "queries_per_session": 50},
}  # fmt: skip
"""Differences from Config's defaults. ``paper`` has B-Pref's protocol and sizes, which differ between the two suites.
``figure1`` is what ``make figure1`` runs.

B-Pref updates the target critics by .005 at every second update; SB3 does it at every update, hence half of that.
"""


def preset_settings(name: str, env_id: str) -> dict[str, Any]:
    """The settings of preset ``name`` for the environment ``env_id``. UserError if there is no such preset."""
    if name not in PRESETS:
        raise UserError(f"unknown preset {name!r}; known are {', '.join(PRESETS)}")
    suite = env_id.split("/")[0]
    return PRESETS.get(f"{name}/{suite}", PRESETS[name])


def check_budget(config: Config) -> Config:
    """Returns ``config``. UserError if its query sessions cannot ask for all ``labels``.

    This is not one of ``Config``'s own checks, so that runs made before this check existed can still be read.
    """
    c, labels = config, config.training_labels
    most_labels = c.sessions * c.queries_per_session
    if c.sessions and c.initial_labels:
        most_labels += c.initial_labels - c.queries_per_session
    if labels <= most_labels or (c.label_schedule == "decreasing" and c.sessions):
        return c
    problem = f"labels={labels}: only {most_labels} can be asked in {c.total_timesteps} steps"
    if not c.sessions:
        raise UserError(f"{problem}, as no session comes: num_interact={c.total_timesteps} or less")
    start, needed = c.learning_starts + c.pretrain_steps, math.ceil(labels / c.queries_per_session)
    every = (c.total_timesteps - start) // (needed - (start > 0))
    suggestion = f"queries_per_session={math.ceil(labels / c.sessions)}" + (
        f" or num_interact={every}" if every else ""
    )
    raise UserError(
        f"{problem} ({c.sessions} sessions of queries_per_session={c.queries_per_session}): {suggestion} would do"
    )


def fit_segment_length(config: Config, limit: int | None, chosen: bool) -> tuple[Config, str]:
    """The settings with segments that fit into an episode, and a sentence about what was changed (empty: nothing).

    ``limit`` is the most simulator steps of an episode, None if that is not known. If ``segment_length`` is too long,
    it is shortened; UserError if it was ``chosen`` by the user.
    """
    last = config.first_session + (config.sessions - 1) * config.num_interact  # step of the last session
    steps = math.inf if limit is None else math.ceil(limit / config.action_repeat)
    if config.segment_length <= steps and config.segment_length < last:  # a pair has two segments
        return config, ""
    longest = int(steps) if steps < last else max(1, last // 2)
    reason = f"the last labels are asked at step {last} of {config.total_timesteps}"
    if config.segment_length > steps:
        reason = f"an episode has at most {steps} steps"
        if config.action_repeat > 1:
            reason += f" (the environment's {limit}, with action_repeat={config.action_repeat})"
    problem = f"segment_length={config.segment_length} is too long: {reason}"
    if chosen:
        raise UserError(f"{problem}; segment_length={longest} would do")
    return config.model_copy(update={"segment_length": longest}), f"{problem}; it is {longest} in this run"


def validate(settings: Mapping[str, Any]) -> Config:
    """All settings of a run, from those in ``settings``.

    UserError, in one line, for the first wrong value or unknown name; the line has the nearest known name.
    """
    return validate_as(Config, settings)


def validate_as(model: type[Model], settings: Mapping[str, Any], prefix: str = "") -> Model:
    """Like ``validate``, for any ``model`` of settings. Messages put ``prefix`` before the names."""
    if not isinstance(settings, Mapping):
        raise UserError(f"{prefix.rstrip('.') or 'settings'}={settings!r:.60}: must be a mapping of names to values")
    names, values = [prefix + name for name in model.model_fields], {}
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if name not in names or not isinstance(key, str):
            raise UserError(f"unknown setting {name!r:.60}; {did_you_mean_setting(name, names)}")
        value = value.tolist() if hasattr(value, "shape") else value  # numbers from NumPy or torch
        try:
            values[key] = parse_value(model.model_fields[key].annotation, value)
        except ValueError as error:
            raise UserError(f"{name}={value!r:.60}: {error}") from None
    try:
        return model(**values)
    except ValidationError as error:
        first = error.errors()[0]
        # An error without a place concerns several settings together
        place = f"{prefix}{first['loc'][0]}={first['input']!r:.60}: " if first["loc"] else ""
        raise UserError(place + first["msg"].removeprefix("Value error, ")) from None


def parse_value(kind: Any, value: Any) -> Any:
    """A setting's value from what people write: ``1e5`` for a whole number, ``[64, 64]`` or ``64,64`` for layers.

    ``kind`` is the type of the setting. ValueError if ``value`` is not such a number.
    """
    if value is None:
        return None
    if kind is int:
        return parse_int(value)
    if kind is float:
        return parse_number(value)
    if get_origin(kind) is not tuple:
        return value
    if isinstance(value, str):
        value = [item for item in value.strip("[]() ").split(",") if item.strip()]
    return tuple(map(parse_int, value if isinstance(value, list | tuple) else [value]))


def parse_int(value: object) -> int:
    """A whole number: ``5000``, ``5_000``, ``5e3`` and ``5000.0`` are the same. ValueError for anything else."""
    with suppress(ValueError, OverflowError):  # int(infinity)
        parsed = parse_number(value)
        if parsed == int(parsed):
            return int(parsed)
    raise ValueError("must be a whole number")


def parse_number(value: object) -> int | float:
    """A number, also from text. ValueError for anything else, and for true and false."""
    if isinstance(value, str | Integral) and not isinstance(value, bool):
        with suppress(ValueError):
            return int(value)
    if isinstance(value, str | Real) and not isinstance(value, bool):
        with suppress(ValueError):
            return float(value)
    raise ValueError("must be a number")


def nest_options(settings: Mapping[str, Any], method: str) -> dict[str, Any]:
    """Settings by the names of ``Config``: ``method.name`` moves into ``options``. Options of other methods are left
    out.
    """
    shared = {key: value for key, value in settings.items() if "." not in key}
    method_options = {
        key.removeprefix(f"{method}."): value for key, value in settings.items() if key.startswith(f"{method}.")
    }
    return shared | ({"options": {**shared.get("options", {}), **method_options}} if method_options else {})


def flatten_options(settings: Mapping[str, Any], method: str) -> dict[str, Any]:
    """The opposite of ``nest_options``, for the settings in a run's config.yaml. Old names become today's."""
    shared = dict(current_setting(key, value) for key, value in settings.items() if key not in MOVED)
    method_options = {key: value for key, value in settings.items() if method in MOVED.get(key, ())}
    if isinstance(shared.get("options", {}), Mapping):
        method_options |= shared.pop("options", {})
    return shared | {f"{method}.{key}": value for key, value in method_options.items()}


def current_names(settings: Mapping[str, Any], methods: Collection[str]) -> dict[str, Any]:
    """A user's settings for ``methods``, with today's names in place of old ones (``RENAMED`` and ``MOVED``).

    Warns about each old name, unless it is an option of another method. UserError if a setting has both its names.
    """
    current: dict[str, Any] = {}
    for key, value in settings.items():
        names = [current_setting(key, value)[0]]
        if key in MOVED:
            owners = [method for method in MOVED[key] if method in methods]
            names = [f"{method}.{key}" for method in owners or MOVED[key]]
        if given_names := [name for name in names if name != key and name in settings]:
            raise UserError(f"{key} and {given_names[0]} are the same setting: give it once")
        if key in RENAMED or (key in MOVED and owners):
            warnings.warn(f"{key} is called {' or '.join(names)} now", stacklevel=2)
        current |= dict.fromkeys(names, current_setting(key, value)[1])
    return current


def current_setting(key: str, value: Any) -> tuple[str, Any]:
    """Today's name of a setting, and its value as that setting takes it."""
    if key == "initial_alpha":
        value = f"auto_{value}"
    return RENAMED.get(key, key), value


def did_you_mean_setting(value: str, names: Collection[str]) -> str:
    """Like ``did_you_mean``, for settings: these are too many to list in one line."""
    old_names = {} if "." in value else {name: f"{methods[0]}.{name}" for name, methods in MOVED.items()}
    hint = did_you_mean(value, names, old_names)
    if hint.startswith("did") or len(names) <= 30:
        return hint
    return "rlhf-bilevel settings lists them all, and with a METHOD its own"


def check_database(url: str) -> None:
    """UserError unless ``url`` is that of a PostgreSQL database, without a password: config.yaml would show it."""
    try:
        parts = urlsplit(url)
        _ = parts.port  # checked only when read
    except ValueError as error:
        raise UserError(f"{url!r:.60} is no labels database: {error}") from None
    if parts.scheme not in ("postgresql", "postgresql+psycopg"):
        raise UserError(f"{parts.scheme or 'this'} is no labels database: postgresql://USER@HOST/DATABASE is")
    if parts.password is not None or "password" in parse_qs(parts.query):
        raise UserError("the labels database's URL has a password in it, which config.yaml would hold: "
                         "set PGPASSWORD or write it to ~/.pgpass")  # fmt: skip


VLM = "vlm:"
"""Prefix of the URL of a vision-language model."""
TOKEN = "RLHF_BILEVEL_TEACHER_TOKEN"
"""Environment variable with the token of a teacher by HTTP. The token is in no file."""
SECRETS = re.compile(r"(^|[_-])(api_?key|key|token|secret|password|pwd|sig|signature)$", re.IGNORECASE)
"""Names of a URL's parameters that hold secrets."""


def check_teacher_url(url: str) -> None:
    """UserError unless ``url`` can be a teacher's and holds no secret: it is written to the run's config.yaml."""
    inner = url.removeprefix(VLM)
    form = "vlm:https://HOST/v1?model=NAME" if inner != url else "https://HOST/PATH"
    try:
        parts = urlsplit(inner)
        _ = parts.port  # is checked when it is read, not before
    except ValueError as error:
        raise UserError(f"teacher {url!r:.60}: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or not re.fullmatch(r"[!-~]+", inner):
        raise UserError(f"teacher {url!r:.60} is no URL of a teacher: {form} is")
    parameters = parse_qs(parts.query)
    if parts.username is not None or parts.password is not None or any(map(SECRETS.search, parameters)):
        raise UserError(f"the teacher's URL has a password or a key in it, which config.yaml would hold: set {TOKEN}")
    if inner != url and not parameters.get("model"):
        raise UserError(f"teacher {url!r:.60} names no model: {form} does")


def parse_checkpoint_every(text: str) -> tuple[float, float]:
    """``1m`` (minutes) or ``5000`` (steps) as (environment steps, seconds) between two checkpoints; one is infinite.

    ``0`` means never: both are infinite. UserError for anything else.
    """
    try:
        number_given = parse_int(text.removesuffix("m"))
    except ValueError:
        number_given = -1
    if not 0 <= number_given < 10**9:
        raise UserError(f"{text!r:.60} is no interval between checkpoints: 1m is a minute, 5000 so many steps, 0 never")
    every = number_given or math.inf
    return (math.inf, 60.0 * every) if text.endswith("m") else (every, math.inf)


def parse_keep_every(value: object) -> int:
    """Environment steps between two checkpoints that are kept; 0 for none. UserError for anything else."""
    with suppress(ValueError):
        if 0 <= parse_int(value) <= 10**9:
            return parse_int(value)
    raise UserError(f"keep_every={value!r:.60}: must be a whole number of steps, or 0 for no checkpoint that stays")


class Networks(NamedTuple):
    """Units of the hidden layers of a learner's policy and of each critic, and the number of critics."""

    policy: tuple[int, ...]
    critic: tuple[int, ...]
    critics: int


def network_sizes(config: Config, arguments: Mapping[str, Any], critics: int) -> Networks:
    """The networks of an SB3 algorithm that is made with ``arguments``; ``config`` has what ``policy_kwargs`` leave
    out.

    ``critics`` is the number of critics if nothing says it. A user's own policy class may take other arguments: what is
    not as SB3 has it counts as no layers, and so do SB3's own defaults, which are small.
    """
    policy_kwargs = arguments.get("policy_kwargs", {"net_arch": config.net_arch})
    network_kwargs: Mapping[str, Any] = policy_kwargs if isinstance(policy_kwargs, Mapping) else {}
    arch, number = network_kwargs.get("net_arch"), network_kwargs.get("n_critics")
    parts = (arch.get("pi"), arch.get("qf", arch.get("vf"))) if isinstance(arch, Mapping) else (arch, arch)
    policy, critic = (
        tuple(units for units in part if isinstance(units, int)) if isinstance(part, list | tuple) else ()
        for part in parts
    )
    return Networks(policy, critic, number if isinstance(number, int) else critics)


def num_weights(*units: int) -> int:
    """Number of weights between fully connected layers of ``units`` units each."""
    return sum(i * j for i, j in pairwise(units))


def memory_needed(
    config: Config,
    options: Options,
    obs_size: int,
    act_size: int,
    learners: int,
    arguments: Mapping[str, Any] | None = None,
) -> int:
    """About the most memory of a run, in bytes.

    It counts the replay buffer and the labels; all weights with their gradients, Adam's moments and copies; and what is
    computed at a time: a batch of each learner, a batch of the reward model, the candidates of a session. ``options``
    say what the method adds. ``arguments`` are those of the learners' SB3 algorithm; they take precedence over
    ``config``.
    """
    c, arguments, inputs = config, arguments or {}, obs_size + act_size
    policy, critic, critics = network_sizes(c, arguments, critics=2)
    row = 2 * obs_size + act_size + 2 + 2 * learners  # floats, with the rewards that learners keep
    nets = learners * (4 * num_weights(inputs, *policy, 1) + 5 * critics * num_weights(inputs, *critic, 1))
    nets += 7 * c.ensemble_size * num_weights(inputs, *c.reward_net_arch, 1)
    labels = 2 * c.labels * 2 * c.segment_length * (inputs + 1)
    candidates = min(max(c.queries_per_session, c.initial_labels), c.labels) * c.large_batch * pair_size(c, inputs)
    batch = learners * c.batch_size * (row + 2 * (sum(policy) + critics * sum(critic)))
    batch += c.entropy_states * (obs_size + 2 + c.batch_size)
    reward = min(c.reward_batch, c.labels) * 2 * c.segment_length * c.ensemble_size * 2 * sum(c.reward_net_arch)
    rollout = arguments["n_steps"] * row if isinstance(arguments.get("n_steps"), int) else 0  # PPO's
    numbers = c.total_timesteps * row + labels + nets + candidates + batch + reward + rollout
    return 4 * (numbers + options.numbers(c, inputs))


def pair_size(config: Config, inputs: int) -> int:
    """Numbers in memory for one unlabelled pair, with the reward that each ensemble member gives to its steps."""
    return 2 * config.segment_length * (3 * (inputs + 1) + 2 * config.ensemble_size)
