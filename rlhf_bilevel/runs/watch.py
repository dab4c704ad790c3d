"""What agents do, to be seen: their episodes beside the true and the learned reward, as a page or a video."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from rlhf_bilevel.config import Config
from rlhf_bilevel.errors import AlreadyExistsError, UserError
from rlhf_bilevel.human.clips import page as pages
from rlhf_bilevel.human.clips import recorder
from rlhf_bilevel.human.clips import video as videos
from rlhf_bilevel.human.clips.episodes import played
from rlhf_bilevel.runs.build import drawn_env, posed_env
from rlhf_bilevel.runs.moment import Moment
from rlhf_bilevel.utils.files import made_new, write

MOST = 2  # runs side by side


def watch(
    *folders: Path | str,
    at: int | Sequence[int] | None = None,
    episodes: int = 3,
    html: Path | str | None = None,
    video: Path | str | None = None,
    trust: bool = False,
    **own: Any,
) -> None:
    """Writes the episodes of a run's agent, or of two side by side, as a page (``html``) or a ``video`` (.mp4).

    ``folders`` are one or two runs', which may still train: nothing in them is changed. ``at`` is a step of training,
    or one for each run: the newest checkpoint until there. Default: the end of a run, or its newest checkpoint.
    The episodes are met by no agent in training, and are the same for both. ``trust`` and ``own`` are as in
    ``Agent.load``. UserError where there is no run or no checkpoint, and where a file exists already.
    """
    if html is None and video is None:
        raise UserError("watch writes a file: html='FILE.html' is a page, video='FILE.mp4' a video")
    if video is not None:
        videos.check_encoder()
    for path in (html, video):
        if path is not None and Path(path).exists():
            raise AlreadyExistsError(f"{path} exists already and is not overwritten: choose another path")
    found = moments([Path(folder) for folder in folders], at, trust, **own)
    if html is not None:
        write_page(Path(html), page(found, episodes))
    if video is not None:
        write_video(Path(video), found, episodes)


def moments(
    folders: Sequence[Path], at: int | Sequence[int] | None = None, trust: bool = False, **own: Any
) -> list[Moment]:
    """Of one run or two; ``at`` is for both, or one for each."""
    if not 1 <= len(folders) <= MOST:
        raise UserError(f"{len(folders)} runs: one is watched, or two side by side")
    steps = [at] if at is None or isinstance(at, int) else list(at)
    steps = steps * len(folders) if len(steps) == 1 else steps
    if len(steps) != len(folders):
        raise UserError(f"at={at}: give one step for each of {len(folders)} runs, or one for all")
    return [Moment.of(folder, step, trust, own) for folder, step in zip(folders, steps, strict=True)]


def page(found: Sequence[Moment], episodes: int) -> str:
    """HTML that needs no other file."""
    shows = []
    for moment, config in _together(found):
        with closing(posed_env(moment.spec.env, config)) as env:
            shown = played(moment.act, moment.learnt_rewards, env, episodes)
        shows.append(pages.Show(_name(moment), _about(moment), shown))
    title = " and ".join(dict.fromkeys(moment.spec.env for moment in found))
    return pages.page(title, shows)


def write_page(path: Path, html: str) -> int:
    """Makes the file; its size in bytes."""
    data = html.encode()
    with made_new(path):
        write(path, data)
    return len(data)


def write_video(path: Path, found: Sequence[Moment], episodes: int) -> int:
    """Makes the file; its size in bytes. UserError where an environment cannot be drawn here."""
    films, rates = [], []
    with ExitStack() as stack:
        for moment, config in _together(found):
            env = stack.enter_context(closing(drawn_env(moment.spec.env, config)))
            rates.append(recorder.frame_rate(env, config.action_repeat))
            about = f"{_name(moment)}: {_about(moment)}"
            films.append(videos.drawn(moment.act, moment.learnt_rewards, env, episodes, about))
        videos.write(
            path, [_held(film, round(max(rates) / rate)) for film, rate in zip(films, rates, strict=True)], max(rates)
        )
    return path.stat().st_size


def _together(found: Sequence[Moment]) -> Iterator[tuple[Moment, Config]]:
    """Each with the settings of its environment: all meet the episodes of the first."""
    for moment in found:
        yield moment, moment.config.model_copy(update={"seed": found[0].config.seed})


def _held(film: Iterator[Any], times: int) -> Iterator[Any]:
    """Each picture so many times: the film of a run with fewer steps in a second, on the clock of the other."""
    return (picture for picture in film for _ in range(times))


def _name(moment: Moment) -> str:
    return moment.folder.resolve().name  # no path of this machine: the file may be sent to others


def _about(moment: Moment) -> str:
    return f"{moment.spec.method}, step {moment.step:,} of {moment.config.steps:,}"
