"""Episodes as an MP4 file, where this machine can draw pictures and has an encoder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from itertools import zip_longest
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from rlhf_bilevel.envs.interface import ABSORBED
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.human.clips.episodes import LONGEST, Act, Env, Rewards
from rlhf_bilevel.utils.files import reserve_new_file

CAPTION, GAP, GREY = 36, 4, (32, 34, 38)  # pixels below a picture, and between two
Picture = np.ndarray
"""(height, width, 3) uint8."""


def check_encoder() -> None:
    """UserError if no encoder is installed."""
    if find_spec("imageio_ffmpeg") is None:
        raise UserError("a video needs an encoder, which is not installed: pip install 'imageio[ffmpeg]'")


def draw_episode(act: Act, rewards: Rewards, env: Env, about: str) -> Iterator[Picture]:
    """A picture of each step of the next episode of ``env``: a ``recorder.make_drawn`` inside a ``FaultTolerantEnv``.

    ``about`` and the rewards of the step stand below it.
    """
    obs, over, steps = env.reset()[0], False, 0
    while not over and steps < LONGEST:
        picture, action = np.array(env.render()), act(obs)
        next_obs, reward, terminated, truncated, info = env.step(action)
        learned = rewards(obs[None], action[None])
        second = "" if learned is None else f"   learned reward {learned[0]:.4g}"
        yield _captioned(picture, [about, f"true reward {reward:.4g}{second}"])
        obs, over, steps = next_obs, terminated or truncated or ABSORBED in info, steps + 1


def side_by_side(films: Sequence[Iterable[Picture]]) -> Iterator[Picture]:
    """All films in one; a shorter one stays at its last picture. Sizes become even, as the codec needs them."""
    last = list[Picture]()
    for pictures in zip_longest(*films):
        last = [last[k] if new is None else new for k, new in enumerate(pictures)]
        height = max(len(picture) for picture in last) // 2 * 2
        gap = np.full((height, GAP, 3), GREY, np.uint8)
        frame = np.hstack([part for picture in last for part in (gap, _of_height(picture, height))][1:])
        yield np.ascontiguousarray(frame[:, : frame.shape[1] // 2 * 2])


def write(path: Path, pictures: Iterable[Picture], fps: float) -> None:
    """Makes a video of pictures of one size. Nothing is left if one fails."""
    import imageio_ffmpeg

    with reserve_new_file(path):
        writer = None
        try:
            for picture in pictures:
                if writer is None:
                    size = picture.shape[1], picture.shape[0]
                    writer = imageio_ffmpeg.write_frames(str(path), size, fps=fps, macro_block_size=2, quality=7)
                    writer.send(None)
                writer.send(picture)
        finally:
            if writer is not None:
                writer.close()


def _captioned(picture: Picture, lines: Sequence[str]) -> Picture:
    height, width, _ = picture.shape
    image = Image.new("RGB", (width, height + CAPTION), GREY)
    image.paste(Image.fromarray(picture))
    ImageDraw.Draw(image).multiline_text((6, height + 4), "\n".join(lines), "white")
    return np.asarray(image)


def _of_height(picture: Picture, height: int) -> Picture:
    return np.pad(picture, ((0, max(0, height - len(picture))), (0, 0), (0, 0)))[:height]
