"""Every setting of a run, with its unit and range.

Phases that are left out follow from ``total_timesteps`` and ``labels``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, model_validator

from rlhf_bilevel.config.fields import (
    Count,
    Fraction,
    Layers,
    Often,
    Rate,
    Seconds,
    Share,
    Size,
    Times,
    Turns,
    Weight,
    check_ent_coef,
    one_of,
)
from rlhf_bilevel.registries import QUERY_RULES, REWARD_FORMS, TEACHERS
from rlhf_bilevel.utils.registry import Registry
from rlhf_bilevel.utils.urls import check_database, check_teacher_url

POLICIES = 10  # that a run keeps of its own, see ``Config.policy_steps``
FORM_DEFAULTS: Mapping[str, dict[str, Any]] = {
    "additive": {"reward_lr": 0.01, "reward_lasso": 0.3},
    "linear": {"reward_lr": 0.01, "reward_lasso": 0.0},
    "quadratic": {"reward_lr": 0.01, "reward_lasso": 0.0},
    "network": {"reward_lr": 3e-4, "reward_lasso": 0.0},
}
"""Settings that depend on ``reward_form``. A form that is not ours has a network's."""


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
    n_eval_episodes: Annotated[int, Field(ge=1, le=10_000)] = 5
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
    reward_form: Annotated[str, one_of(REWARD_FORMS)] = "additive"
    """Form of each reward model as a function of observation and action. additive: a sum of functions of one entry
    each. It may be module:NAME."""
    reward_use_action: bool = False
    """Whether the reward depends on the action, and not on the observation alone."""
    reward_net_arch: Layers = (256, 256, 256)
    """Units of each hidden layer of a reward network."""
    reward_units: Literal["measured", "raw"] = "measured"
    """Units of the reward model's inputs. measured: standard deviations of the data, from its mean. raw: as the
    environment gives them, as in B-Pref."""
    reward_clip: bool = False
    """Whether each input of the reward model is clipped to the range that it has in the labelled segments."""
    reward_lr: Rate
    """Adam's learning rate for the reward model. 0.0003 for a network, 0.01 for forms with few weights."""
    reward_batch: Size = 128
    """Labelled pairs in a batch of the reward model."""
    reward_epochs: Often = 50
    """The most epochs over all labels after a query session."""
    refresh_epochs: Often = 2
    """The most epochs over all labels in an update without new labels."""
    reward_damping: Weight = 0.3
    """Weight of the mean square of f in the loss, where the reward is tanh(f); in nats. It keeps tanh out of its flat
    ends. B-Pref has 0."""
    reward_lasso: Weight
    """Weight in the loss of the summed norms of each term's first weights, in nats. It leaves few entries that count.
    0.3 for an additive reward, 0 for other forms."""
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
    def fill_reward(cls, settings: Any) -> Any:
        """Fills in the reward's settings that are missing and depend on its form (``FORM_DEFAULTS``)."""
        if not isinstance(settings, dict):
            return settings
        given = {key: value for key, value in settings.items() if value is not None}
        form = given.get("reward_form", cls.model_fields["reward_form"].default)
        return FORM_DEFAULTS.get(str(form), FORM_DEFAULTS["network"]) | given

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
