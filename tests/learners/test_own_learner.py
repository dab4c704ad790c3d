"""A learner that has nothing from Stable-Baselines3 trains, resumes, forks, evaluates and is watched."""

import copy
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from torch import Tensor

from rlhf_bilevel import Agent
from rlhf_bilevel.config import Config
from rlhf_bilevel.data.replay_buffer import ReplayBuffer
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.learners.algorithm_settings import check
from rlhf_bilevel.runs.moment import Moment
from rlhf_bilevel.types import Metrics, RowReward
from rlhf_bilevel.utils.serialization import load_optimizer, optimizer_state
from tests.runs.test_resume import killed, state


class Linear:
    """What a user gets: a deterministic policy, linear in the observation."""

    def __init__(self, env: gymnasium.Env) -> None:
        self.observation_space, self.action_space = env.observation_space, env.action_space
        sizes = self.observation_space.shape[0], self.action_space.shape[0]
        self.policy = torch.nn.Linear(*sizes)
        self.num_timesteps = 0

    def predict(self, observation: np.ndarray, deterministic: bool = True, **_: Any) -> tuple[np.ndarray, None]:
        with torch.no_grad():
            action = torch.tanh(self.policy(torch.as_tensor(observation))).numpy()
        return self.action_space.low + (action + 1) / 2 * (self.action_space.high - self.action_space.low), None

    def save(self, file: Any, exclude: Any = None) -> None:
        torch.save(self.policy.state_dict(), file)


class Regression:
    """Moves the policy towards the actions that paid more than others of their batch."""

    def __init__(self, env: Any, config: Config, store: ReplayBuffer, number: int, device: str, noise: float = 0.5):
        self.model = Linear(env)
        self._optimizer = torch.optim.Adam(self.model.policy.parameters(), 1e-2)
        self._store, self._noise, self._reward = store, noise, store.true_reward
        self._rng = torch.Generator().manual_seed(config.seed + number)

    def act(self, obs: np.ndarray, step: int) -> tuple[np.ndarray, np.ndarray]:
        mean = torch.tanh(self.model.policy(torch.as_tensor(obs))).detach()
        action = (mean + self._noise * torch.randn(mean.shape, generator=self._rng)).clamp(-1, 1).numpy()
        space = self.model.action_space
        return space.low + (action + 1) / 2 * (space.high - space.low), action

    def improve(self, updates: int, step: int) -> Metrics:
        for _ in range(updates):
            rows = torch.randint(self._store.size, (64,), generator=self._rng)
            reward = self._reward(rows)
            weight = torch.softmax((reward - reward.mean()) / (reward.std() + 1e-6), 0)
            error = torch.tanh(self.model.policy(self._store.obs[rows])) - self._store.act[rows]
            loss = (weight * error.square().sum(-1)).sum()
            self._optimizer.zero_grad()
            loss.backward()
            self._optimizer.step()
        return {"train/loss": loss.item()}

    def set_reward(self, reward: RowReward, cache: bool = True) -> None:
        self._reward = reward

    def follow(self, other: Any) -> None:
        self.load_state_dict(copy.deepcopy(other.state_dict()))

    def value(self, obs: Tensor, act: Tensor) -> Tensor:
        return torch.zeros(obs.shape[:-1])

    def reset_critic(self) -> None:
        pass

    def state_dict(self) -> Any:
        parts = {"policy": self.model.policy.state_dict(), "rng": self._rng.get_state()}
        return parts | {"optimizer": optimizer_state(self._optimizer)}

    def load_state_dict(self, state: Any) -> None:
        self.model.policy.load_state_dict(state["policy"])
        load_optimizer(self._optimizer, state["optimizer"])
        self._rng.set_state(state["rng"])


SETTINGS: dict[str, Any] = {
    "segment_length": 10, "reward_net_arch": 16, "learning_starts": 20, "pretrain_steps": 40, "num_interact": 60,
    "labels": 12, "queries_per_session": 4, "eval_freq": 100, "n_eval_episodes": 1,
}  # fmt: skip


def agent(out: Path | None = None, method: str = "pebble", **settings: Any) -> Agent:
    return Agent(
        method, "tests.conftest:Steer-v0", algorithm=Regression, algorithm_settings={"noise": 0.3}, out=out,
        keep_every=100, checkpoint_every="100", **SETTINGS | settings,
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Agent:
    return agent(tmp_path_factory.mktemp("own") / "run").learn(300)


def test_it_learns_from_labels_and_is_loaded(trained: Agent) -> None:
    assert trained.run is not None and len(trained.run.prefs) == 12
    loaded = Agent.load(trained.out, algorithm=Regression)
    obs = trained.make_env().reset()[0]
    assert np.array_equal(loaded.predict(obs)[0], trained.predict(obs)[0])
    assert loaded.evaluate(2).summary()["episodes"] == 2


def test_its_settings_in_a_file_are_numbers_and_switches(trained: Agent, tmp_path: Path) -> None:
    assert trained.out is not None
    check("config.yaml", Regression, {"noise": 0.3, "depth": 3, "wide": True})
    for value in ("/etc/passwd", [1], float("inf")):
        with pytest.raises(UserError, match=r"config.yaml: algorithm_settings: noise=.*give algorithm_settings="):
            check("config.yaml", Regression, {"noise": value})


def test_a_killed_run_of_it_goes_on_bit_for_bit(trained: Agent, tmp_path: Path) -> None:
    killed(220, lambda: agent(tmp_path / "run").learn(300))
    assert state(Agent.resume(tmp_path / "run", algorithm=Regression)) == state(trained)


def test_it_is_forked_seen_at_a_checkpoint_and_chosen_by_preference(trained: Agent) -> None:
    assert trained.out is not None
    fork = Agent.fork(trained.out, custom={"algorithm": Regression}, labels=16).learn(100)
    assert fork.run is not None and len(fork.run.prefs) == 16
    moment = Moment.of(trained.out, 100, custom={"algorithm": Regression})
    assert moment.step <= 100 and moment.act(np.zeros(1, np.float32)).shape == (1,)
    assert trained.select(teacher="oracle").chosen


@pytest.mark.parametrize("method", ["twin", "rune", "sac"])
def test_methods_that_need_no_critic_of_its_own_take_it(method: str) -> None:
    assert agent(method=method, labels=0 if method == "sac" else 8).learn(200).run is not None


@pytest.mark.parametrize(("method", "lacks"), [("penalty", "value_gap"), ("mrn", "critics_after")])
def test_a_method_that_needs_more_of_a_learner_says_so_at_once(method: str, lacks: str) -> None:
    with pytest.raises(UserError, match=f"algorithm=Regression: the method {method} needs its {lacks}"):
        agent(method=method)


def test_a_callback_which_gets_a_model_of_sb3_is_refused() -> None:
    with pytest.raises(UserError, match="a callback gets a model of SB3, and this learner has a Linear"):
        agent().learn(300, lambda *_: True)


@pytest.mark.parametrize(
    ("state", "told"),
    [
        (lambda self: {"moments": {0: 1.0}}, "has a key 0 in run/learners/0/moments: keys must be text"),
        (lambda self: {"mean": np.zeros(2)}, "has a numpy.ndarray in run/learners/0/mean"),
        (lambda self: {"rng": object()}, "has a builtins.object in run/learners/0/rng"),
    ],
)
def test_a_state_that_would_not_come_back_is_refused(monkeypatch: Any, tmp_path: Path, state: Any, told: str) -> None:
    monkeypatch.setattr(Regression, "state_dict", state)
    with pytest.raises(UserError, match=f"the state to save {told}"):
        agent(tmp_path / "run").learn(300)
