"""A moving picture (APNG) of what a run's agent does, for the documents.

    python -m benchmarks.learning.moving_picture RUN --follow cart --skip 50 --out docs/figures/spin.png

It needs OpenGL.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from rlhf_bilevel import Agent

SIZE, COLOURS = (200, 200), 64


def frames(folder: Path, skip: int, count: int, follow: str = "") -> tuple[list[Image.Image], float]:
    """At most ``count`` pictures of an episode after its first ``skip`` steps, one a step; milliseconds of a step.

    The camera is the task's first one. With ``follow`` it moves sideways with that body of a dm_control task.
    """
    agent = Agent.load(folder)
    assert agent.config is not None
    env = agent.make_env(render_mode="rgb_array")
    obs, over, drawn = env.reset()[0], False, []
    for step in range(skip + count):
        if over:
            break
        if follow:
            physics = env.get_wrapper_attr("physics")
            physics.model.cam_pos[0, 0] = physics.named.data.xpos[follow, "x"]
        obs, _, terminated, truncated, _ = env.step(agent.predict(obs)[0])
        over = terminated or truncated
        if step >= skip:
            drawn.append(Image.fromarray(np.asarray(env.render())).resize(SIZE, Image.Resampling.LANCZOS))
    return drawn, 1000 * agent.config.action_repeat / env.metadata["render_fps"]


def save(pictures: Sequence[Image.Image], milliseconds: float, out: Path) -> None:
    """They play on and on, with one palette."""
    colours = Image.fromarray(np.concatenate([np.asarray(picture) for picture in pictures])).quantize(COLOURS)
    first, *rest = (picture.quantize(palette=colours, dither=Image.Dither.NONE) for picture in pictures)
    first.save(out, save_all=True, append_images=rest, duration=milliseconds, loop=0, optimize=True)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--follow", default="", help="a body that the camera follows")
    parser.add_argument("--skip", type=int, default=0, help="steps of the episode that are left out (0)")
    parser.add_argument("--frames", type=int, default=50, help="how many, one a step (50)")
    args = parser.parse_args(argv)
    save(*frames(args.run, args.skip, args.frames, args.follow), args.out)
    print(f"{args.out}: {args.out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
