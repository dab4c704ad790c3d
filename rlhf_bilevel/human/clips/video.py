"""Episodes as an MP4 file, where this machine can draw pictures and has an encoder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from itertools import zip_longest
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from rlhf_bilevel.envs.interface import ABSORBED
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.human.clips.episodes import Act, Env, Rewards
from rlhf_bilevel.utils.files import made_new

CAPTION, GREY = 36, (32, 34, 38)  # pixels below a picture
Picture = np.ndarray
"""(height, width, 3) uint8."""


def check_encoder() -> None:
    """UserError where there is none."""
    if find_spec("imageio_ffmpeg") is None:
        raise UserError("a video needs an encoder, which is not installed: pip install 'imageio[ffmpeg]'")


def drawn(act: Act, rewards: Rewards, env: Env, count: int, about: str) -> Iterator[Picture]:
    """A picture of each step of the next ``count`` episodes of ``env``, one of ``recorder.make_drawn``."""
    for _ in range(count):
        obs, info = env.reset()
        over = False
        while not over:
            picture, action = np.array(env.render()), act(obs)
            following, truth, terminated, truncated, info = env.step(action)
            learnt = rewards(obs[None], action[None])
            told = "" if learnt is None else f"   learned reward {learnt[0]:.4g}"
            yield captioned(picture, [about, f"true reward {truth:.4g}{told}"])
            obs, over = following, terminated or truncated or ABSORBED in info


def captioned(picture: Picture, lines: Sequence[str]) -> Picture:
    height, width, _ = picture.shape
    image = Image.new("RGB", (width, height + CAPTION), GREY)
    image.paste(Image.fromarray(picture))
    ImageDraw.Draw(image).multiline_text((6, height + 4), "\n".join(lines), "white")
    return np.asarray(image)


def write(path: Path, films: Sequence[Iterator[Picture]], fps: float) -> None:
    """Films side by side; the last picture of a shorter one stays. Nothing is left where one fails."""
    import imageio_ffmpeg

    with made_new(path):
        writer, last = None, list[Picture]()
        try:
            for pictures in zip_longest(*films):
                last = [last[k] if new is None else new for k, new in enumerate(pictures)]
                high = max(len(picture) for picture in last) // 2 * 2  # the codec takes even sizes
                frame = np.hstack([_of_height(picture, high) for picture in last])
                frame = np.ascontiguousarray(frame[:, : frame.shape[1] // 2 * 2])
                if writer is None:
                    size = frame.shape[1], frame.shape[0]
                    writer = imageio_ffmpeg.write_frames(str(path), size, fps=fps, macro_block_size=2, quality=7)
                    writer.send(None)
                writer.send(frame)
        finally:
            if writer is not None:
                writer.close()


def _of_height(picture: Picture, height: int) -> Picture:
    return np.pad(picture, ((0, max(0, height - len(picture))), (0, 0), (0, 0)))[:height]
