"""Clips in a browser: drawn from the poses that were recorded, with and without WebGL, under a strict policy."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page, sync_playwright

from rlhf_bilevel.errors import UserError
from rlhf_bilevel.human.clips import assets
from rlhf_bilevel.human.clips.assets import static_files
from tests.human.test_clips import DOOR, WALKER, play, recorded, unrolled
from tests.human.test_page import CHROMIUM
from tests.human.test_server import POLICY
from tests.support.label_page import data_url

SOFTWARE = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader",
            "--disable-background-networking", "--disable-dev-shm-usage"]  # fmt: skip
SIZE = 160
WATCH = """
window.faults = [];
addEventListener("securitypolicyviolation", (event) => faults.push(event.violatedDirective));
addEventListener("error", (event) => faults.push(event.message));
"""
NO_WEBGL = """
const { getContext } = HTMLCanvasElement.prototype;
HTMLCanvasElement.prototype.getContext = function (kind, ...more) {
  return kind === "2d" ? getContext.call(this, kind, ...more) : null;
};
"""
SCRIPT = """
import { ClipViewer } from "./viewer.js";
window.viewer = new ClipViewer(document.getElementById("clip"), async (id) => (await fetch("/scenes/" + id)).json());
"""
Shot = Callable[[float], np.ndarray]


class Screen:
    """A page that holds one viewer, as a server would give it out, and the files that the server has."""

    def __init__(self, page: Page, webgl: bool) -> None:
        self.files = {name: path.read_text() for name, path in static_files().items()} | {
            "": "<!doctype html><link rel=stylesheet href=/page.css><div id=clip></div>"
            "<script type=module src=/page.js></script>",
            "page.css": f"div {{ width: {SIZE}px; height: {SIZE}px }}",
            "page.js": SCRIPT,
        }
        self.page = page
        page.add_init_script(WATCH + NO_WEBGL * (not webgl))
        page.route("http://clips.test/**", self._answer)
        page.goto("http://clips.test/")

    def _answer(self, route: Any) -> None:
        name = route.request.url.removeprefix("http://clips.test/")
        kind = {"css": "text/css", "js": "text/javascript"}.get(name.rpartition(".")[2], "text/html")
        headers = {"Content-Security-Policy": POLICY, "Content-Type": kind}
        route.fulfill(status=200 if name in self.files else 404, body=self.files.get(name, ""), headers=headers)

    def load(self, clip: dict[str, Any], scene: dict[str, Any] | None = None) -> Shot:
        """Pictures (SIZE, SIZE, 3) at a share of the clip."""
        if scene is not None:
            self.files[f"scenes/{clip['scene']}"] = json.dumps(scene)
        self.page.evaluate("clip => viewer.load(clip)", clip)
        return self.shot

    def shot(self, share: float) -> np.ndarray:
        self.page.evaluate("share => viewer.show(share)", share)
        return self.picture()

    def picture(self) -> np.ndarray:
        drawn = self.page.evaluate("viewer.canvas.toDataURL()").partition(",")[2]
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(drawn))).convert("RGB")).astype(float)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """A clip of 30 steps of each task, and its scene."""
    made = {}
    for env_id in (WALKER, DOOR):
        env, store, recorder = recorded(env_id, tmp_path_factory.mktemp("clips"), 40)
        play(env, store, 1, 40)
        clip = recorder.clip(range(10, 40))
        made[env_id] = clip, recorder.scene(clip["scene"])
        recorder.close()
    return made


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with (
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=CHROMIUM, args=SOFTWARE) as browser,
    ):
        yield browser


@pytest.fixture
def screen(browser: Any) -> Iterator[Callable[[bool], Screen]]:
    """Ends by seeing that no rule of the policy was broken and nothing was thrown."""
    pages: list[Page] = []

    def opened(webgl: bool) -> Screen:
        pages.append(browser.new_page())
        pages[-1].set_default_timeout(90_000)
        screen = Screen(pages[-1], webgl)
        assert pages[-1].evaluate("viewer.fallback") is not webgl
        return screen

    yield opened
    faults = [page.evaluate("window.faults") for page in pages]
    for page in pages:
        page.close()
    assert faults == [[]] * len(pages)


def seen_at(point: np.ndarray, clip: dict[str, Any], scene: dict[str, Any], frame: int) -> tuple[float, float]:
    """Where a camera as the viewer describes it sees a point: pixels (right, down)."""
    frames, camera = clip["frames"], scene["camera"]
    focus = np.array([(np.cumsum(track) + np.zeros(frames["count"]))[frame] for track in frames["focus"]])
    away = 1.15 * np.array(camera["offset"])
    back = away / np.linalg.norm(away)
    right = np.cross([0, 0, 1], back)
    right /= np.linalg.norm(right)
    relative = point - (focus * frames["unit"] + away)
    scale = SIZE / 2 / np.tan(np.radians(min(45, camera["fovy"])) / 2) / -(relative @ back)
    return SIZE / 2 + scale * (relative @ right), SIZE / 2 - scale * (relative @ np.cross(back, right))


def brown(picture: np.ndarray) -> np.ndarray:
    """Where the walker is: the ground and the sky are blue."""
    return picture[..., 0] > picture[..., 2]


@pytest.mark.parametrize("webgl", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_walker_is_drawn_where_its_poses_say_at_every_time(
    webgl: bool, screen: Callable[[bool], Screen], clips: dict[str, Any]
) -> None:
    clip, scene = clips[WALKER]
    positions, _ = unrolled(clip)
    shot = (opened := screen(webgl)).load(clip, scene)
    assert [opened.page.evaluate(f"viewer.{name}") for name in ("frames", "fps")] == [30, 40]
    pictures = {frame: shot(frame / 29) for frame in (0, 15, 29)}
    for frame, picture in pictures.items():
        for part in range(1, 8):  # a geom's middle is inside of it
            right, down = seen_at(positions[frame, part], clip, scene, frame)
            assert brown(picture)[round(down), round(right)], (frame, part)
        assert 0.02 < brown(picture).mean() < 0.3
    assert min((brown(pictures[a]) != brown(pictures[b])).mean() for a, b in ((0, 15), (15, 29), (0, 29))) > 0.01
    between, ends = shot(14.5 / 29), (shot(14 / 29), shot(15 / 29))
    assert all((between != end).any() for end in ends)  # poses between two frames are between


@pytest.mark.slow
def test_with_and_without_webgl_the_same_is_seen(screen: Callable[[bool], Screen], clips: dict[str, Any]) -> None:
    lit, flat = (brown(screen(webgl).load(*clips[WALKER])(0.5)) for webgl in (True, False))
    assert (lit & flat).sum() / (lit | flat).sum() > 0.85


@pytest.mark.slow
def test_a_goal_is_seen_where_it_is(screen: Callable[[bool], Screen], clips: dict[str, Any]) -> None:
    clip, scene = clips[DOOR]
    (mark,) = [number for number, part in enumerate(scene["parts"]) if part.get("mark")]
    right, down = seen_at(unrolled(clip)[0][0, mark], clip, scene, 0)
    picture = screen(True).load(clip, scene)(0)
    green = np.argwhere((picture[..., 1] > 2 * picture[..., 0]) & (picture[..., 1] > 2 * picture[..., 2]))
    assert len(green) > 4
    np.testing.assert_allclose(green.mean(0), [down, right], atol=2)


@pytest.mark.slow
def test_a_goal_is_seen_through_what_hides_it(screen: Callable[[bool], Screen], clips: dict[str, Any]) -> None:
    clip, scene = clips[DOOR]
    top, mark = 1, next(number for number, part in enumerate(scene["parts"]) if part.get("mark"))
    assert scene["parts"][top]["type"] == "box"
    within = [clip["frames"]["parts"][mark][0], *clip["frames"]["parts"][top][1:]]  # the table's top
    frames = {**clip["frames"], "parts": [clip["frames"]["parts"][top], within]}
    opened, green = screen(True), []
    for name, marked in (("with", True), ("without", False)):
        parts = [scene["parts"][top], {**scene["parts"][mark], "mark": marked}]
        picture = opened.load({**clip, "scene": name, "frames": frames}, {**scene, "parts": parts})(0)
        green.append((picture[..., 1] > 1.2 * picture[..., [0, 2]].max(-1)).sum())
    assert green[0] > 4 and green[1] == 0


@pytest.mark.slow
def test_dragging_turns_the_view_the_wheel_zooms_and_a_double_click_goes_back(
    screen: Callable[[bool], Screen], clips: dict[str, Any]
) -> None:
    opened = screen(True)
    before = opened.load(*clips[WALKER])(0.5)
    mouse, middle = opened.page.mouse, SIZE / 2
    mouse.move(middle, middle)
    mouse.down()
    mouse.move(middle + 60, middle + 10)
    mouse.up()
    turned = opened.picture()
    assert (brown(turned) != brown(before)).mean() > 0.02
    mouse.wheel(0, -300)
    opened.page.wait_for_function("viewer.camera.zoom > 1.2")
    assert brown(opened.picture()).sum() > 1.3 * brown(turned).sum()
    mouse.dblclick(middle, middle)
    assert (opened.picture() == before).all()


@pytest.mark.slow
def test_the_later_of_two_clips_is_shown_and_a_new_size_is_taken(
    screen: Callable[[bool], Screen], clips: dict[str, Any]
) -> None:
    opened = screen(False)
    clip, scene = clips[WALKER]
    expected = opened.load(clip, scene)(0)
    opened.files["scenes/far"] = json.dumps({**scene, "camera": {"offset": [0, -20, 2], "fovy": 45}})
    both = [{**clip, "scene": "far"}, clip]
    opened.page.evaluate("([first, second]) => Promise.all([viewer.load(first), viewer.load(second)])", both)
    assert (opened.picture() == expected).all()
    opened.page.evaluate("document.getElementById('clip').style.width = '300px'")
    opened.page.wait_for_function("viewer.canvas.width === 300")
    assert opened.picture().shape[:2] == (SIZE, 300) and brown(opened.picture()).any()
    opened.page.evaluate("viewer.detail = 0.5")
    assert opened.page.evaluate("[viewer.canvas.width, viewer.canvas.clientWidth]") == [150, 300]
    assert brown(opened.picture()).any()  # drawn anew at once


def test_pictures_are_shown_in_their_order(screen: Callable[[bool], Screen]) -> None:
    frames = [data_url(Image.new("RGB", (20, 10), (red, 0, 0))) for red in (50, 120, 250)]
    shot = screen(True).load({"kind": "frames", "fps": 10, "frames": frames})
    assert [shot(share)[SIZE // 2, SIZE // 2, 0] for share in (0, 0.5, 1)] == [50, 120, 250]
    assert not shot(0)[0].any()  # the picture keeps its shape: above it there is nothing


def test_where_three_js_is_missing_one_line_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(assets, "THREE", tmp_path)
    with pytest.raises(UserError, match=r"^three.js is missing.*install rlhf-bilevel again.*npm registry.*$"):
        static_files()
