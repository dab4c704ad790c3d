"""What holds for every learner that has a name."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlhf_bilevel import Agent
from rlhf_bilevel.registries import LEARNERS, METHODS
from rlhf_bilevel.runs.parts import Parts
from tests.conftest import FEW, SMALL, Steer


@pytest.mark.parametrize("name", LEARNERS.ours)
def test_a_run_with_it_trains_and_is_loaded_and_goes_on(name: str, tmp_path: Path) -> None:
    own = [method for method in ("pebble", *METHODS.ours) if METHODS[method].algorithm == name]
    method, algorithm = (own[0], "") if own else ("pebble", name)
    settings: dict[str, Any] = SMALL | {"eval_freq": 100, "n_eval_episodes": 1, **FEW.get(method, {})}
    agent = Agent(method, "tests.conftest:Steer-v0", algorithm=algorithm, out=tmp_path / "run", **settings).learn(200)
    assert Parts.of(method, algorithm).algorithm is LEARNERS[name]
    assert np.isfinite(agent.evaluate(2).returns).all()
    loaded = Agent.load(tmp_path / "run", trust=True)
    obs = np.linspace(-1, 1, 20, dtype=np.float32)[:, None]
    actions = [agent.predict(row, deterministic=True)[0] for row in obs]
    if name != "RandomPolicy":
        assert np.array_equal(actions, [loaded.predict(row, deterministic=True)[0] for row in obs])
    assert all(Steer().action_space.contains(action) for action in actions)
    assert loaded.learn(60).config.total_timesteps == 260
