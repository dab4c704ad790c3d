"""Watch: what a run's agent did at a moment of its training, as its folder tells; nothing in the folder is changed."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from starlette.testclient import TestClient

import rlhf_bilevel
from rlhf_bilevel import Agent
from rlhf_bilevel.cli import watch as command
from rlhf_bilevel.envs.interface import FAULT
from rlhf_bilevel.errors import AlreadyExistsError, UserError
from rlhf_bilevel.human.clips import page as pages
from rlhf_bilevel.human.clips import video
from rlhf_bilevel.human.clips.episodes import Episode, Episodes, record_episodes
from rlhf_bilevel.human.clips.page import Show
from rlhf_bilevel.learners.off_policy import SB3Learner
from rlhf_bilevel.runs import watch
from rlhf_bilevel.runs.environments import make_drawn_env, make_posed_env
from rlhf_bilevel.runs.moment import Moment
from tests.cli.test_cli import fails
from tests.conftest import FEW
from tests.runs.test_fork import snapshot
from tests.runs.test_resume import QUICK, state

DRAWN, STEPS = "tests.human.test_clips:Drawn-v0", 150  # three episodes


def run(method: str, out: Path | None, callback: Any = None, **settings: Any) -> Agent:
    settings = {"num_interact": 50} | QUICK | settings
    return Agent(method, DRAWN, out=out, keep_every=50, **settings).learn(STEPS, callback)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run at which nobody looked, and the digest of its state at the end."""
    out = tmp_path_factory.mktemp("runs") / "pebble"
    return out, state(run("pebble", out))


@pytest.fixture(scope="module")
def pebble(whole: tuple[Path, str]) -> Path:
    return whole[0]


def content_of(html: str) -> dict[str, Any]:
    """What the page holds."""
    found = re.search(r'<script type="application/json" id="content">(.*?)</script>', html, re.DOTALL)
    return json.loads(found[1])


def alike(one: Iterable[torch.Tensor], other: Iterable[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_the_rewards_beside_an_episode_are_the_environments_and_the_runs_own(pebble: Path, tmp_path: Path) -> None:
    rlhf_bilevel.watch(pebble, episodes=2, html=tmp_path / "page.html")
    (shown,) = content_of((tmp_path / "page.html").read_text())["shows"]
    agent = Agent.load(pebble)
    env, expected = agent.make_env(), []
    for _ in range(2):
        obs, over, steps = env.reset()[0], False, []
        while not over:
            action = agent.predict(obs)[0]
            following, reward, terminated, truncated, info = env.step(action)
            assert FAULT not in info
            steps.append((obs, action, reward))
            obs, over = following, terminated or truncated
        expected.append([np.array(column) for column in zip(*steps, strict=True)])
    assert (shown["run"], shown["method"], shown["step"], shown["steps"]) == ("pebble", "pebble", STEPS, STEPS)
    for episode, (obs, action, truth) in zip(shown["episodes"], expected, strict=True):
        np.testing.assert_allclose(episode["envRewards"], truth, rtol=1e-5)
        with torch.no_grad():  # actions lie in [-1, 1] already
            learnt = agent.reward(torch.tensor(obs), torch.tensor(action))
        np.testing.assert_allclose(episode["learnedRewards"], learnt, rtol=1e-4, atol=1e-6)
        assert len(episode["clip"]["frames"]) == len(truth) == 50 and episode["clip"]["fps"] == 20
        assert isinstance(episode["success"], bool)


@pytest.mark.parametrize(
    "method", ["sac", pytest.param("prefppo", marks=pytest.mark.slow), pytest.param("penalty", marks=pytest.mark.slow)]
)
def test_a_moment_is_the_agent_and_the_reward_of_that_step(tmp_path: Path, method: str) -> None:
    seen: dict[int, list[torch.Tensor]] = {}

    def remember(local: dict[str, Any], _: dict[str, Any]) -> bool:
        model = local["self"]
        if model.num_timesteps in (100, STEPS):
            seen[model.num_timesteps] = [value.clone() for value in model.policy.state_dict().values()]
        return True

    agent = run(method, tmp_path / "run", remember, **FEW.get(method, {}))
    for at, step in ((149, 100), (STEPS, STEPS), (None, STEPS)):
        moment = Moment.of(tmp_path / "run", at)
        assert moment.step == step
        assert alike(moment.model.policy.state_dict().values(), seen[step])
        if method == "sac":
            assert moment.reward is None and moment.learned_rewards(np.zeros((1, 1)), np.zeros((1, 1))) is None
        elif step == STEPS:
            assert alike(moment.reward.state_dict().values(), agent.reward.state_dict().values())


def test_a_run_that_still_trains_is_watched_and_goes_on_as_if_nobody_had(
    tmp_path: Path, whole: tuple[Path, str]
) -> None:
    out, page = tmp_path / "run", tmp_path / "page.html"
    seen = []

    def look(local: dict[str, Any], _: dict[str, Any]) -> bool:
        if local["self"].num_timesteps == 120:
            before = snapshot(out)
            rlhf_bilevel.watch(out, episodes=1, html=page)
            seen.append(snapshot(out) == before)
        return True

    watched = run("pebble", out, look)
    assert seen == [True]
    (shown,) = content_of(page.read_text())["shows"]
    assert (shown["step"], shown["steps"]) == (100, 150)
    assert state(watched) == whole[1]


def test_two_runs_meet_the_same_episodes(pebble: Path, tmp_path: Path) -> None:
    run("sac", tmp_path / "other", seed=5)
    moments = watch.load_moments([pebble, tmp_path / "other"])
    content = content_of(watch.make_page(moments, 2))
    one, other = (shown["episodes"] for shown in content["shows"])
    first = [[episode["clip"]["frames"][0] for episode in shown] for shown in (one, other)]
    assert first[0] == first[1] and first[0][0] != first[0][1]
    assert one[0]["envRewards"] != other[0]["envRewards"]
    assert one[0]["learnedRewards"] and other[0]["learnedRewards"] is None
    assert content["columns"] == [0, 1]


def test_each_moment_that_is_asked_for_is_there_once_and_in_order(pebble: Path) -> None:
    def steps(at: Any, folders: int = 1) -> list[int]:
        return [moment.step for moment in watch.load_moments([pebble] * folders, at)]

    assert steps(149) == [100] and steps([150, 60, 50]) == [50, 150]
    assert steps("all") == steps("all", folders=2) == [50, 100, 150]
    with pytest.raises(UserError, match="at step 49 or before"):
        steps([49, 100])
    with pytest.raises(UserError, match="21 moments"):
        steps(range(1, 22))
    with pytest.raises(UserError, match="3 runs"):
        steps(None, folders=3)


def test_a_run_is_seen_first_and_last_and_two_runs_at_their_last_moments() -> None:
    def columns(*runs: str) -> list[int]:
        return pages.columns([Show(run, "pebble", 1, 1, Episodes([], {})) for run in runs])

    assert columns("a") == [0] and columns("a", "a", "a") == [0, 2] and columns("a", "a", "b", "b") == [1, 3]


def test_runs_are_named_by_what_tells_them_apart_and_not_by_their_paths(pebble: Path, tmp_path: Path) -> None:
    shutil.copytree(pebble, tmp_path / "other" / "pebble")
    moments = watch.load_moments([pebble, tmp_path / "other" / "pebble"], 50)
    assert watch._names(moments) == {pebble: f"{pebble.parent.name}/pebble", moments[1].folder: "other/pebble"}
    html = watch.make_page(moments, 1)
    assert str(tmp_path) not in html and str(pebble.parent) not in html


@pytest.mark.slow
def test_before_its_first_label_a_run_has_no_learned_reward(tmp_path: Path) -> None:
    run("pebble", tmp_path / "run", labels=0)
    assert Moment.of(tmp_path / "run").reward is None and Moment.of(tmp_path / "run", 100).reward is None


@pytest.mark.slow
def test_the_learned_reward_is_the_one_that_the_learner_was_paid(tmp_path: Path) -> None:
    run("pebble", tmp_path / "run", pessimism=1)
    first, last = (Moment.of(tmp_path / "run", at).reward for at in (50, STEPS))
    assert (first.pessimism, last.pessimism) == (0, 1)  # from the last label on


@pytest.mark.slow
def test_a_run_on_a_given_reward_is_watched_with_it(pebble: Path, tmp_path: Path) -> None:
    run("pebble", tmp_path / "run", reward=pebble, labels=0)
    given = Moment.of(pebble).reward
    for at in (None, 100):
        reward = Moment.of(tmp_path / "run", at).reward
        assert reward is not None and alike(reward.state_dict().values(), given.state_dict().values())


@pytest.mark.slow
def test_actions_may_be_discrete(tmp_path: Path) -> None:
    settings: dict[str, Any] = QUICK | FEW["prefppo"] | {"num_interact": 50}
    Agent("prefppo", "CartPole-v1", out=tmp_path / "run", keep_every=100, **settings).learn(250)
    for at in (None, 200):
        moment = Moment.of(tmp_path / "run", at)
        obs = np.zeros((2, 4), np.float32)
        act = np.stack([moment.act(row) for row in obs])
        learned = moment.learned_rewards(obs, act)
        assert learned is not None and learned.shape == (2,) and act.dtype.kind == "i"


class Own(SB3Learner):
    """A learner of a user's own: it need not know how to load a policy alone."""

    load_policy: Any = property()

    def state_dict(self) -> Any:
        return {"policy": self.model.policy.state_dict()}

    def load_state_dict(self, state: Any) -> None:
        self.model.policy.load_state_dict(state["policy"])


@pytest.mark.slow
def test_a_learner_of_a_users_own_is_watched(tmp_path: Path) -> None:
    agent = Agent("pebble", DRAWN, algorithm=Own, out=tmp_path / "run", keep_every=50, **QUICK).learn(100)
    moment = Moment.of(tmp_path / "run", 100, custom={"algorithm": Own})
    assert alike(moment.model.policy.state_dict().values(), agent.model.policy.state_dict().values())


def test_a_saved_agent_without_checkpoints_is_watched(pebble: Path, tmp_path: Path) -> None:
    Agent.load(pebble).save(tmp_path / "saved")
    moment = Moment.of(tmp_path / "saved")
    assert moment.reward is not None and moment.step == moment.config.total_timesteps


def test_an_episode_in_which_the_environment_fails_is_left_out(pebble: Path) -> None:
    moment = Moment.of(pebble)
    env = make_posed_env(DRAWN, moment.config)
    inner, calls = env.env.unwrapped, []
    step = inner.step

    def failing(action: np.ndarray) -> Any:
        calls.append(action)
        if len(calls) == 30:
            raise OSError("a broken simulator")
        return step(action)

    inner.step = failing
    with pytest.warns(UserWarning, match="episode 0 is cut"):
        recorded = record_episodes(moment.act, moment.learned_rewards, env, 2)
    assert [len(episode.env_rewards) for episode in recorded.episodes] == [50, 50]


def test_no_name_and_no_text_of_an_environment_leaves_its_place_in_the_page() -> None:
    bad = "</script><script>alert(1)</script>"
    clip = {"kind": "frames", "fps": 10, "frames": [bad]}
    episode = Episode(clip, np.array([0.5]), np.array([0.25]), None)
    html = pages.page(bad, [Show(bad, bad, 1, 1, Episodes([episode], {}))])
    assert "alert(1)</script>" not in html
    (shown,) = content_of(html)["shows"]
    assert (shown["run"], shown["method"]) == (bad, bad)
    assert shown["episodes"] == [{"clip": clip, "envRewards": [0.5], "learnedRewards": [0.25], "success": None}]


@pytest.mark.slow
def test_the_same_episodes_give_the_same_bytes(pebble: Path) -> None:
    assert watch.make_page([Moment.of(pebble)], 1) == watch.make_page([Moment.of(pebble)], 1)


def test_the_page_is_given_out_under_its_address_alone() -> None:
    app = command.application("<p>page", "/secret", 8007)
    client = TestClient(app, "http://127.0.0.1:8007")
    found = client.get("/secret")
    assert (found.status_code, found.text) == (200, "<p>page") and "no-store" in found.headers["cache-control"]
    assert "frame-ancestors 'none'" in found.headers["content-security-policy"]
    assert [client.get(path).status_code for path in ("/", "/secre", "/secret/", "/%C3%A9")] == [404] * 4
    assert TestClient(app, "http://evil.example:8007").get("/secret").status_code == 421


def test_a_video_shows_each_step_with_its_rewards(pebble: Path) -> None:
    moment = Moment.of(pebble)
    env = make_drawn_env(DRAWN, moment.config)
    pictures = list(video.draw_episode(moment.act, moment.learned_rewards, env, "pebble"))
    assert len(pictures) == 50 and {picture.shape for picture in pictures} == {(64 + video.CAPTION, 96, 3)}
    assert (pictures[0][:64] != pictures[30][:64]).any()
    assert (pictures[0][64:] != pictures[30][64:]).any()


def test_films_stand_side_by_side_and_the_shorter_one_stays_at_its_end() -> None:
    def film(length: int, width: int) -> list[np.ndarray]:
        return [np.full((5, width, 3), number, np.uint8) for number in range(length)]

    frames = list(video.side_by_side([film(2, 4), film(4, 7)]))
    assert {frame.shape for frame in frames} == {(4, 14, 3)}  # even
    assert [(frame[0, 0, 0], frame[0, -1, 0]) for frame in frames] == [(0, 0), (1, 1), (1, 2), (1, 3)]


def test_a_video_is_written_where_there_is_an_encoder(pebble: Path, tmp_path: Path) -> None:
    encoder = pytest.importorskip("imageio_ffmpeg")
    rlhf_bilevel.watch(pebble, at=[50, 150], episodes=1, video=tmp_path / "v.mp4")
    about = next(frames := encoder.read_frames(str(tmp_path / "v.mp4")))
    assert about["size"] == (2 * 96 + video.GAP, 64 + video.CAPTION) and about["fps"] == 20
    assert len(list(frames)) == 50


def test_a_video_of_too_many_moments_is_refused_before_one_is_drawn(pebble: Path, tmp_path: Path) -> None:
    moment = Moment.of(pebble)
    with pytest.raises(UserError, match="a video of 5 moments"):
        watch.write_video(tmp_path / "v.mp4", [moment] * 5, 1)


def test_a_mistake_is_one_line_and_nothing_is_written(
    capsys: pytest.CaptureFixture, pebble: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, html = tmp_path / "there.html", tmp_path / "new.html"
    there.write_text("mine")
    words = ["watch", str(pebble), "--html", str(html)]
    assert "has no checkpoint at step 49 or before: it has 50, 100, 150" in fails(capsys, *words, "--at", "49")
    assert "is not a run's folder" in fails(capsys, "watch", str(tmp_path / "nowhere"), "--html", str(html))
    assert "is not a run's folder" in fails(capsys, *words[:2], str(tmp_path), *words[2:])
    assert "exists already" in fails(capsys, *words[:3], str(there))
    assert "must end in .html" in fails(capsys, *words[:3], str(tmp_path / "new.txt"))
    assert "'start' is not a whole number, nor 'all'" in fails(capsys, *words, "--at", "start")
    assert "at least 1" in fails(capsys, *words, "--episodes", "0")
    shutil.copytree(pebble, strange := tmp_path / "strange")
    config = strange / "config.yaml"
    config.write_text(config.read_text().replace(DRAWN, "a_strangers_module:Drawn-v0"))
    assert "would import the module 'a_strangers_module'" in fails(capsys, "watch", str(strange), *words[2:])
    monkeypatch.setattr(video, "find_spec", lambda name: None)
    line = fails(capsys, "watch", str(pebble), "--video", str(tmp_path / "new.mp4"))
    assert "pip install 'imageio[ffmpeg]'" in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["strange", "there.html"]
    assert there.read_text() == "mine"


def test_a_mistake_in_python_is_told_too(pebble: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="html='FILE"):
        rlhf_bilevel.watch(pebble)
    with pytest.raises(UserError, match="at least 1"):
        rlhf_bilevel.watch(pebble, episodes=0, html=tmp_path / "page.html")
    for at, told in (([], "names no moment"), ("500", "must be a step of training")):
        with pytest.raises(UserError, match=told):
            rlhf_bilevel.watch(pebble, at=at, html=tmp_path / "page.html")  # type: ignore[arg-type]
    (tmp_path / "page.html").touch()
    with pytest.raises(AlreadyExistsError):
        rlhf_bilevel.watch(pebble, html=tmp_path / "page.html")
