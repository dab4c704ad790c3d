"""Episodes of a run's agent, or of two runs' side by side, as a page for a browser or as a video."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from itertools import count
from pathlib import Path
from typing import Any, Literal

from rlhf_bilevel.config import Config
from rlhf_bilevel.data.run_folder import RunFolder
from rlhf_bilevel.errors import AlreadyExistsError, UserError
from rlhf_bilevel.human.clips import page as pages
from rlhf_bilevel.human.clips import recorder
from rlhf_bilevel.human.clips import video as videos
from rlhf_bilevel.human.clips.episodes import record_episodes
from rlhf_bilevel.runs.checkpoint import Checkpoints
from rlhf_bilevel.runs.environments import make_drawn_env, make_posed_env
from rlhf_bilevel.runs.moment import Moment
from rlhf_bilevel.utils.files import reserve_new_file, write

RUNS, MOMENTS = 2, 20  # at most: runs, and moments of each
IN_VIDEO = 4  # agents side by side, at most
At = int | Sequence[int] | Literal["all"] | None


def watch(
    *folders: Path | str,
    at: At = None,
    episodes: int = 3,
    html: Path | str | None = None,
    video: Path | str | None = None,
    trust: bool = False,
    **custom: Any,
) -> None:
    """Writes episodes of a run's agent, or of two runs' side by side, as a page (``html``) or a ``video`` (.mp4).

    ``folders`` are one or two runs', which may still train: nothing in them is changed. ``at`` is one or several steps
    of training: of each, the newest checkpoint until there; "all" are all checkpoints. Default: the end of a run, or
    its newest checkpoint. The reader of a page chooses among them. No agent has met the episodes in training, and all
    agents meet the same. ``trust`` and ``custom`` are as in ``Agent.load``. UserError if there is no run or no
    checkpoint, or if a file exists already.
    """
    if html is None and video is None:
        raise UserError("watch writes a file: html='FILE.html' is a page, video='FILE.mp4' a video")
    if video is not None:
        videos.check_encoder()
    for path in (html, video):
        if path is not None and Path(path).exists():
            raise AlreadyExistsError(f"{path} exists already and is not overwritten: choose another path")
    moments = load_moments([Path(folder) for folder in folders], at, trust, **custom)
    if html is not None:
        write_page(Path(html), make_page(moments, episodes))
    if video is not None:
        write_video(Path(video), moments, episodes)


def load_moments(folders: Sequence[Path], at: At = None, trust: bool = False, **custom: Any) -> list[Moment]:
    """The moments of one run or of two; ``at`` applies to each run, as in ``watch``. Each moment occurs once."""
    if not 1 <= len(folders) <= RUNS:
        raise UserError(f"{len(folders)} runs: one is watched, or two side by side")
    found: dict[tuple[Path, int], Moment] = {}
    for folder in folders:
        for step in _steps(folder, at):
            moment = Moment.of(folder, step, trust, custom)
            found.setdefault((folder.resolve(), moment.step), moment)
    return sorted(found.values(), key=lambda moment: (folders.index(moment.folder), moment.step))


def _steps(folder: Path, at: At) -> list[int | None]:
    """Each as ``Moment.of`` takes it. UserError if there are too many."""
    if at == "all":
        steps: list[int | None] = [*Checkpoints(RunFolder(folder).examine().checkpoints, "").steps()] or [None]
    else:
        steps = [at] if at is None or isinstance(at, int | str) else [*dict.fromkeys(at)]
    if not steps:
        raise UserError(f'at={at!r} names no moment: a step, several, or "all"')
    if len(steps) > MOMENTS:
        raise UserError(f"{len(steps)} moments of {folder}: at most {MOMENTS} are shown; name some with --at STEP")
    return steps


def make_page(moments: Sequence[Moment], episodes: int) -> str:
    """HTML that needs no other file."""
    shows, names = [], _names(moments)
    for moment, config in _with_same_episodes(moments):
        with closing(make_posed_env(moment.spec.env, config)) as env:
            recorded = record_episodes(moment.act, moment.learned_rewards, env, episodes)
        total = moment.config.total_timesteps
        shows.append(pages.Show(names[moment.folder], moment.method, moment.step, total, recorded))
    title = " and ".join(dict.fromkeys(moment.spec.env for moment in moments))
    return pages.page(title, shows)


def write_page(path: Path, html: str) -> int:
    """Creates the file and returns its size in bytes."""
    data = html.encode()
    with reserve_new_file(path):
        write(path, data)
    return len(data)


def write_video(path: Path, moments: Sequence[Moment], episodes: int) -> int:
    """Creates the file and returns its size in bytes. UserError if an environment cannot be drawn here."""
    if len(moments) > IN_VIDEO:
        raise UserError(
            f"a video of {len(moments)} moments: at most {IN_VIDEO} stand side by side; name them with --at"
        )
    envs, names = [], _names(moments)
    with ExitStack() as stack:
        for moment, config in _with_same_episodes(moments):
            envs.append(stack.enter_context(closing(make_drawn_env(moment.spec.env, config))))
        rates = [
            recorder.frame_rate(env, moment.config.action_repeat) for env, moment in zip(envs, moments, strict=True)
        ]

        def films() -> Iterator[Iterator[Any]]:
            for moment, env, rate in zip(moments, envs, rates, strict=True):
                about = f"{names[moment.folder]}: {moment.method}, step {moment.step:,}"
                film = videos.draw_episode(moment.act, moment.learned_rewards, env, about)
                yield _held(film, round(max(rates) / rate))

        def pictures() -> Iterator[Any]:
            for _ in range(episodes):
                yield from videos.side_by_side(list(films()))

        videos.write(path, pictures(), max(rates))
    return path.stat().st_size


def _with_same_episodes(moments: Sequence[Moment]) -> Iterator[tuple[Moment, Config]]:
    """Each with the settings of its environment: all meet the episodes of the first one's seed."""
    for moment in moments:
        yield moment, moment.config.model_copy(update={"seed": moments[0].config.seed})


def _held(film: Iterator[Any], times: int) -> Iterator[Any]:
    """Each picture so many times: the film of a run with fewer steps in a second, on the clock of the other."""
    return (picture for picture in film for _ in range(times))


def _names(moments: Sequence[Moment]) -> dict[Path, str]:
    """The ends of their folders that tell them apart, and not whole paths: a page may be sent to others."""
    paths = {moment.folder: moment.folder.resolve().parts for moment in moments}
    several = len(set(paths.values()))
    length = next(n for n in count(1) if len({parts[-n:] for parts in paths.values()}) == several)
    return {folder: "/".join(parts[-length:]) for folder, parts in paths.items()}
