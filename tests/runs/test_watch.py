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
from rlhf_bilevel.errors import AlreadyExistsError, CorruptFileError, UserError
from rlhf_bilevel.human.clips import video
from rlhf_bilevel.human.clips.episodes import Episode, Episodes, played
from rlhf_bilevel.human.clips.page import Show, page
from rlhf_bilevel.runs import watch
from rlhf_bilevel.runs.build import drawn_env, posed_env
from rlhf_bilevel.runs.moment import Moment
from tests.cli.test_cli import fails
from tests.conftest import FEW
from tests.runs.test_fork import snapshot
from tests.runs.test_resume import QUICK, state

DRAWN, STEPS = "tests.human.test_clips:Drawn-v0", 150  # three episodes


def run(method: str, out: Path | None, callback: Any = None, **settings: Any) -> Agent:
    settings = {"session_every": 50} | QUICK | settings
    return Agent(method, DRAWN, out=out, keep_every=50, **settings).learn(STEPS, callback)


@pytest.fixture(scope="module")
def pebble(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "pebble"
    run("pebble", out)
    return out


def told(html: str) -> dict[str, Any]:
    """What the page holds."""
    found = re.search(r'<script type="application/json" id="told">(.*?)</script>', html, re.DOTALL)
    assert found
    return json.loads(found[1])


def alike(one: Iterable[torch.Tensor], other: Iterable[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_the_rewards_beside_an_episode_are_the_environments_and_the_runs_own(pebble: Path, tmp_path: Path) -> None:
    rlhf_bilevel.watch(pebble, episodes=2, html=tmp_path / "page.html")
    (shown,) = told((tmp_path / "page.html").read_text())["shows"]
    agent = Agent.load(pebble)
    assert agent.reward is not None
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
    for episode, (obs, action, truth) in zip(shown, expected, strict=True):
        np.testing.assert_allclose(episode["truth"], truth, rtol=1e-5)
        with torch.no_grad():  # actions lie in [-1, 1] already
            learnt = agent.reward(torch.tensor(obs), torch.tensor(action))
        np.testing.assert_allclose(episode["learnt"], learnt, rtol=1e-4, atol=1e-6)
        assert len(episode["clip"]["frames"]) == len(truth) == 50 and episode["clip"]["fps"] == 20
        assert isinstance(episode["success"], bool)


@pytest.mark.parametrize("method", ["prefppo", "sac", "penalty"])
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
            assert moment.reward is None and moment.learnt_rewards(np.zeros((1, 1)), np.zeros((1, 1))) is None
        elif step == STEPS:
            assert agent.reward is not None and moment.reward is not None
            assert alike(moment.reward.state_dict().values(), agent.reward.state_dict().values())


def test_a_run_that_still_trains_is_watched_and_goes_on_as_if_nobody_had(tmp_path: Path) -> None:
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
    assert "pebble, step 100 of 150" in page.read_text()
    assert state(watched) == state(run("pebble", tmp_path / "alone"))


def test_two_runs_meet_the_same_episodes(pebble: Path, tmp_path: Path) -> None:
    run("sac", tmp_path / "other", seed=5)
    found = watch.moments([pebble, tmp_path / "other"])
    one, other = told(watch.page(found, 2))["shows"]
    first = [[episode["clip"]["frames"][0] for episode in shown] for shown in (one, other)]
    assert first[0] == first[1] and first[0][0] != first[0][1]
    assert one[0]["truth"] != other[0]["truth"]
    assert one[0]["learnt"] and other[0]["learnt"] is None


def test_one_step_is_for_both_runs_or_each_has_its_own(pebble: Path) -> None:
    def steps(*at: int) -> list[int]:
        return [moment.step for moment in watch.moments([pebble, pebble], at)]

    assert steps(100) == [100, 100] and steps(50, 150) == [50, 150]
    assert watch.moments([pebble], 149)[0].step == 100
    with pytest.raises(UserError, match="one step for each of 2 runs"):
        steps(50, 100, 150)
    with pytest.raises(UserError, match="3 runs"):
        watch.moments([pebble] * 3)


def test_before_its_first_label_a_run_has_no_learned_reward(tmp_path: Path) -> None:
    run("pebble", tmp_path / "run", labels=0)
    assert Moment.of(tmp_path / "run").reward is None and Moment.of(tmp_path / "run", 100).reward is None


def test_a_saved_agent_without_checkpoints_is_watched(pebble: Path, tmp_path: Path) -> None:
    Agent.load(pebble).save(tmp_path / "saved")
    assert Moment.of(tmp_path / "saved").reward is not None


def test_an_episode_in_which_the_environment_fails_is_left_out(pebble: Path) -> None:
    moment = Moment.of(pebble)
    env = posed_env(DRAWN, moment.config)
    inner, calls = env.env.unwrapped, []
    step = inner.step

    def failing(action: np.ndarray) -> Any:
        calls.append(action)
        if len(calls) == 30:
            raise OSError("a broken simulator")
        return step(action)

    inner.step = failing
    with pytest.warns(UserWarning, match="episode 0 is cut"):
        found = played(moment.act, moment.learnt_rewards, env, 2)
    assert [len(episode.truth) for episode in found.found] == [50, 50]


def test_no_name_and_no_text_of_an_environment_leaves_its_place_in_the_page() -> None:
    bad = "</script><script>alert(1)</script>"
    clip = {"kind": "frames", "fps": 10, "frames": [bad]}
    episode = Episode(clip, np.array([0.5]), np.array([0.25]), None)
    html = page(bad, [Show(bad, bad, Episodes([episode], {}))])
    assert "alert(1)</script>" not in html
    assert told(html)["shows"][0][0] == {"clip": clip, "truth": [0.5], "learnt": [0.25], "success": None}


def test_the_same_episodes_give_the_same_bytes(pebble: Path) -> None:
    assert watch.page([Moment.of(pebble)], 1) == watch.page([Moment.of(pebble)], 1)


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
    env = drawn_env(DRAWN, moment.config)
    pictures = list(video.drawn(moment.act, moment.learnt_rewards, env, 2, "pebble"))
    assert len(pictures) == 100 and {picture.shape for picture in pictures} == {(64 + video.CAPTION, 96, 3)}
    assert (pictures[0][:64] != pictures[30][:64]).any()
    assert (pictures[0][64:] != pictures[30][64:]).any()


def test_a_video_is_written_where_there_is_an_encoder(pebble: Path, tmp_path: Path) -> None:
    encoder = pytest.importorskip("imageio_ffmpeg")
    rlhf_bilevel.watch(pebble, pebble, at=[50, 150], episodes=1, video=tmp_path / "v.mp4")
    told = next(frames := encoder.read_frames(str(tmp_path / "v.mp4")))
    assert told["size"] == (192, 64 + video.CAPTION) and told["fps"] == 20
    assert len(list(frames)) == 50


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
    assert "give one for each" in fails(capsys, *words, "--at", "50", "--at", "100")
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
    (tmp_path / "page.html").touch()
    with pytest.raises(AlreadyExistsError):
        rlhf_bilevel.watch(pebble, html=tmp_path / "page.html")


def test_a_checkpoint_of_other_settings_is_refused(pebble: Path, tmp_path: Path) -> None:
    shutil.copytree(pebble, other := tmp_path / "other")
    config = other / "config.yaml"
    config.write_text(config.read_text().replace("segment_length: 10", "segment_length: 11"))
    with pytest.warns(UserWarning, match="passed over"), pytest.raises(CorruptFileError, match="put back the config"):
        Moment.of(other, 100)
