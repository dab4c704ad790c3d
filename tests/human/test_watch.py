"""The page of ``watch`` in a browser: from a file, without a network, scene and curves on one clock."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlhf_bilevel.envs.fault_tolerance import FaultTolerantEnv
from rlhf_bilevel.human.clips import recorder
from rlhf_bilevel.human.clips.episodes import Episode, Episodes, record_episodes
from rlhf_bilevel.human.clips.page import Show, page
from tests.human.test_clips import WALKER
from tests.human.test_page import Visit, audit
from tests.human.test_viewer import NO_WEBGL, browser  # noqa: F401  (a fixture)

LENGTHS = 100, 60  # steps of the first and of the second run's first episode
FPS = 4  # steps in a second, of ten of the simulator each
CURSORS = "[...document.querySelectorAll('.cursor')].map((path) => parseFloat(path.getAttribute('d').slice(1)))"
NOW = "[...document.querySelectorAll('.now')].map((place) => Number(place.textContent))"


def acting(seed: int) -> Callable[[np.ndarray], np.ndarray]:
    rng = np.random.default_rng(seed)
    return lambda obs: rng.uniform(-1, 1, 6).astype(np.float32)


@pytest.fixture(scope="module")
def episodes() -> list[Episodes]:
    """Of two runs, two each."""

    def one(seed: int) -> Episodes:
        env = FaultTolerantEnv(lambda: recorder.make(WALKER, 0, action_repeat=10))
        return record_episodes(acting(seed), lambda obs, act: -np.abs(act).sum(1), env, 2)

    both = [one(0), one(1)]
    both[1].episodes[0] = cut(both[1].episodes[0], LENGTHS[1])
    return both


def cut(episode: Episode, steps: int) -> Episode:
    """Its beginning alone, as of an episode that ends early."""
    frames = dict(episode.clip["frames"], count=steps)
    for name in ("focus", "parts"):
        short = [[track[:steps] for track in part] for part in frames["parts"]]
        frames[name] = short if name == "parts" else [track[:steps] for track in frames["focus"]]
    assert episode.learned_rewards is not None
    rewards = {"env_rewards": episode.env_rewards[:steps], "learned_rewards": episode.learned_rewards[:steps]}
    return episode._replace(clip=dict(episode.clip, frames=frames), **rewards)


class Opened(Visit):
    def __init__(self, chromium: Any, path: Path, script: str = "", **options: Any) -> None:
        super().__init__(chromium, offline=True, **options)
        self.context.add_init_script("addEventListener('securitypolicyviolation', (e) => console.error(e.blockedURI));")
        self.context.add_init_script(script)
        self.asked: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url[:5]))
        self.page.goto(path.as_uri())
        self.page.wait_for_selector("body[data-state=ready]")

    def seek(self, step: int) -> None:
        """As somebody who drags the slider there."""
        drag = "(step) => { scrubber.value = step; scrubber.dispatchEvent(new Event('input')); }"
        self.page.evaluate(drag, step)

    def picture(self, number: int) -> np.ndarray:
        """Bytes of the middle of a run's scene."""
        middle = """(number) => { const canvas = document.querySelectorAll(".view canvas")[number];
            const left = (canvas.width - 160) / 2, top = (canvas.height - 120) / 2;
            return [...canvas.getContext("2d").getImageData(left, top, 160, 120).data]; }"""
        return np.array(self.page.evaluate(middle, number)).reshape(120, 160, 4)[..., :3]


@pytest.fixture
def opened(browser: Any, episodes: list[Episodes], tmp_path: Path) -> Iterator[Callable[..., Opened]]:  # noqa: F811
    """Ends by seeing that nothing was thrown, refused or asked of a network."""
    pages: list[Opened] = []

    def open_page(shows: list[Show] | None = None, **options: Any) -> Opened:
        file = tmp_path / f"{len(pages)}.html"
        both = [Show(f"run {number}", "pebble", 1000, 2000, found) for number, found in enumerate(episodes)]
        file.write_text(page("walker", both if shows is None else shows))
        pages.append(Opened(browser, file, **options))
        return pages[-1]

    yield open_page
    for each in pages:
        each.context.close()
        assert each.complaints == []
        assert set(each.asked) <= {"file:", "data:"}


def walker(picture: np.ndarray) -> float:
    """Share of the picture that is the walker's brown: ground and sky are blue."""
    return float((picture[..., 0] > picture[..., 2]).mean())


@pytest.mark.slow
def test_both_scenes_play_and_all_cursors_move_with_the_clock(opened: Callable[..., Opened]) -> None:
    shown = opened()
    before = shown.page.evaluate(CURSORS)
    assert len(before) == 4 and shown.page.locator("#play").inner_text() == "Pause"
    first = shown.picture(0)
    shown.page.wait_for_function(f"() => {CURSORS}[0] > {before[0] + 60}")
    assert min(walker(shown.picture(number)) for number in (0, 1)) > 0.01
    assert (shown.picture(0) != first).any()
    cursors, position, words = shown.page.evaluate(
        f"[{CURSORS}, Number(scrubber.value), document.getElementById('position').textContent]"
    )
    assert len(set(cursors)) == 1  # one clock
    assert abs(cursors[0] - 1000 * position / (LENGTHS[0] - 1)) <= 1000 / (LENGTHS[0] - 1)
    assert abs(float(words.split()[0]) - position / FPS) <= 1 / FPS and words.endswith("of 24.8 s")
    shown.page.click("#play")
    stands = shown.page.evaluate(CURSORS)
    shown.page.wait_for_timeout(300)
    assert shown.page.evaluate(CURSORS) == stands and shown.page.locator("#play").inner_text() == "Play"


@pytest.mark.slow
def test_each_step_shows_its_own_rewards_and_pose(opened: Callable[..., Opened], episodes: list[Episodes]) -> None:
    shown = opened(reduced_motion="reduce")
    assert shown.page.locator("#play").inner_text() == "Play"  # who wants no motion starts it
    one, other = (run.episodes[0] for run in episodes)
    assert one.learned_rewards is not None and other.learned_rewards is not None
    pictures = []
    for step in (0, 30, 80):
        shown.seek(step)
        late = min(step, LENGTHS[1] - 1)  # what has ended stays at its last step
        expected = [one.env_rewards[step], one.learned_rewards[step]]
        expected += [other.env_rewards[late], other.learned_rewards[late]]
        np.testing.assert_allclose(shown.page.evaluate(NOW), expected, rtol=1e-3)
        along = [1000 * at / (LENGTHS[0] - 1) for at in (step, step, late, late)]
        np.testing.assert_allclose(shown.page.evaluate(CURSORS), along, atol=0.01)
        pictures.append(shown.picture(0))
    assert all((a != b).any() for a, b in pairwise(pictures))
    total = shown.page.locator(".sum").first.inner_text()
    assert float(total.split()[1]) == pytest.approx(one.env_rewards.sum(), rel=1e-3) and total.endswith("in 100 steps")
    line = shown.page.locator(".line").nth(1).get_attribute("d")
    heights = [float(point.split()[1]) for point in re.split("[ML]", line or "")[1:]]
    assert np.corrcoef(heights, one.learned_rewards)[0, 1] == pytest.approx(-1, abs=1e-3)  # up is more


def test_a_click_on_a_curve_goes_there_and_another_episode_can_be_chosen(
    opened: Callable[..., Opened], episodes: list[Episodes]
) -> None:
    shown = opened(reduced_motion="reduce")
    box = shown.page.locator("svg").nth(2).bounding_box()
    assert box
    shown.page.mouse.click(box["x"] + box["width"] / 2, box["y"] + 10)
    assert shown.page.evaluate(CURSORS)[0] == pytest.approx(500, abs=5)
    shown.page.select_option("#episode", label="2")
    shown.page.wait_for_function(f"() => {CURSORS}[0] === 0")
    second = episodes[1].episodes[1]
    assert shown.page.evaluate(NOW)[2] == pytest.approx(second.env_rewards[0], rel=1e-3)
    assert shown.page.locator(".sum").nth(2).inner_text().endswith("in 100 steps")


def test_any_moment_of_any_run_can_be_chosen(opened: Callable[..., Opened], episodes: list[Episodes]) -> None:
    one, other = episodes
    blind = one._replace(episodes=[episode._replace(learned_rewards=None) for episode in one.episodes])
    moments = [("a", 100, blind), ("a", 2000, other), ("b", 2000, one)]
    shown = opened([Show(run, "pebble", step, 2000, found) for run, step, found in moments], reduced_motion="reduce")
    left, right = shown.page.locator(".column").all()
    about = "pebble, step 2,000 of 2,000"
    assert [left.locator(".run").inner_text(), left.locator(".about").inner_text()] == ["a", about]
    assert [right.locator(".run").inner_text(), right.locator(".about").inner_text()] == ["b", about]
    assert left.locator("optgroup").evaluate_all("(groups) => groups.map((group) => group.label)") == ["a", "b"]
    shown.seek(30)
    left.locator("select").select_option(label="step 100")
    shown.page.wait_for_function(f"() => {CURSORS}[0] === 0")
    assert left.locator(".about").inner_text() == "pebble, step 100 of 2,000"
    assert left.locator(".missing").is_visible() and not left.locator("[data-of=learned]").is_visible()
    now = [float(place.inner_text()) for place in (left.locator(".now").first, right.locator(".now").first)]
    assert now == pytest.approx([one.episodes[0].env_rewards[0]] * 2, rel=1e-3)


def test_pictures_play_too_and_a_run_without_a_learned_reward_says_so(opened: Callable[..., Opened]) -> None:
    env = FaultTolerantEnv(lambda: recorder.make("Drawn-v0", 0))
    found = record_episodes(lambda obs: -np.sign(obs), lambda obs, act: None, env, 1)  # to the middle
    shown = opened([Show("run", "sac", 100, 100, found)], reduced_motion="reduce", script=NO_WEBGL)
    outcome = "success" if found.episodes[0].success else "no success"
    assert shown.page.locator(".about").inner_text() == f"sac, step 100 of 100 · {outcome}"
    assert not shown.page.locator(".moment").is_visible()  # there is nothing to choose
    pictures = []
    for step in (0, 25):
        shown.seek(step)
        pictures.append(shown.picture(0))
    assert (pictures[0] != pictures[1]).any() and max(picture.max() for picture in pictures) > 200
    assert "No reward had been learned by then." in shown.page.locator(".missing").inner_text()


@pytest.mark.parametrize("scheme", ["light", pytest.param("dark", marks=pytest.mark.slow)])
def test_no_rule_of_accessibility_is_broken(opened: Callable[..., Opened], scheme: str) -> None:
    for size in ((1280, 800), (390, 844), (320, 568)):
        viewport = {"width": size[0], "height": size[1]}
        shown = opened(color_scheme=scheme, reduced_motion="reduce", viewport=viewport)
        audit(shown.page)
        assert shown.page.locator("#scrubber").get_attribute("aria-valuetext") == "0.0 of 24.8 s"


@pytest.mark.slow
def test_the_keyboard_reaches_and_moves_everything(opened: Callable[..., Opened]) -> None:
    shown = opened(reduced_motion="reduce")
    reached = []
    for _ in range(7):
        shown.page.keyboard.press("Tab")
        reached.append(shown.page.evaluate("document.activeElement.id || document.activeElement.className"))
    assert reached == ["moment", "moment", "play", "restart", "scrubber", "episode", "speed"]
    shown.page.focus("#scrubber")
    shown.page.keyboard.press("ArrowRight")
    assert shown.page.evaluate(CURSORS)[0] == pytest.approx(1000 / (LENGTHS[0] - 1), abs=0.01)
    shown.page.focus("#play")
    shown.page.keyboard.press("Space")
    shown.page.wait_for_function(f"() => {CURSORS}[0] > 40")
