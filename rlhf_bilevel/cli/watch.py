"""The command ``watch``: an agent's episodes in a browser on this machine, or as a file to send."""

from __future__ import annotations

import argparse
import secrets
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_bilevel.cli.arguments import WATCHED, Work, add_trust_option, positive, up_to
from rlhf_bilevel.cli.checks import new_file, run_folder
from rlhf_bilevel.human.addresses import listen, names

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from rlhf_bilevel.human.security import SecurityMiddleware

HOST = "127.0.0.1"
POLICY = "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"  # the page itself has the rest
ALL = "all"

HELP = "watch a run's agent act, with the true and the learned reward: in a browser, or as a file"
EXAMPLES = (
    "rlhf-bilevel watch runs/walker runs/other",
    "rlhf-bilevel watch runs/walker --at all --html walker.html",
)


def moment(value: str) -> int | str:
    """A step, or ``all``."""
    try:
        return ALL if value == ALL else positive(value)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}, nor 'all'") from None


def add_arguments(sub: argparse.ArgumentParser) -> None:
    """Adds the command's arguments to its parser."""
    sub.add_argument("dir", type=Path, metavar="RUN", help="the run's folder; it may still train")
    sub.add_argument("other", type=Path, nargs="?", metavar="RUN2", help="another one beside it, on the same episodes")
    sub.add_argument(
        "--at",
        type=moment,
        action="append",
        default=[],
        metavar="STEP",
        help="the newest checkpoint until there, or all; repeatable (default: the end, or the newest checkpoint)",
    )
    sub.add_argument("--episodes", type=up_to(WATCHED), default=3, help="number of episodes")
    sub.add_argument("--html", type=Path, metavar="FILE.html", help="write the page as one file, and serve nothing")
    sub.add_argument("--video", type=Path, metavar="FILE.mp4", help="write a video, where pictures can be drawn")
    add_trust_option(sub)


def run(args: argparse.Namespace) -> Work:
    """Checks the options and returns the work: to record, and to write files or serve the page until Ctrl-C."""
    folders = [args.dir] if args.other is None else [args.dir, args.other]
    for folder in folders:
        run_folder(folder)
    html = args.html and new_file("--html", args.html, ".html")
    video = args.video and new_file("--video", args.video, ".mp4")
    if video:
        from rlhf_bilevel.human.clips.video import check_encoder

        check_encoder()
    if html or not video:
        from rlhf_bilevel.human.clips.assets import static_files

        static_files()

    at: Any = ALL if ALL in args.at else args.at or None

    def work() -> None:
        from rlhf_bilevel.runs import watch

        moments = watch.load_moments(folders, at, args.trust)
        for found in moments:
            print(f"{found.folder}: {found.method} on {found.spec.env}, step {found.step:,}", flush=True)
        if at == ALL and len(moments) == len(folders):
            print("No more moments were kept: train with --keep-every STEPS to watch the agent learn", flush=True)
        if video:
            size = watch.write_video(video, moments, args.episodes)
            print(f"{video}: {size / 1e6:.1f} MB")
        if html:
            size = watch.write_page(html, watch.make_page(moments, args.episodes))
            print(f"{html}: {size / 1e6:.1f} MB; any browser opens it, also without a network")
        elif not video:
            serve(watch.make_page(moments, args.episodes))

    return work


def serve(html: str) -> None:
    """Serves the page to browsers on this machine, at an address that nobody can guess, until Ctrl-C."""
    from rlhf_bilevel.cli.label import server

    path, listener = f"/{secrets.token_urlsafe(16)}", listen(HOST, None)
    port = listener.getsockname()[1]
    print(f"http://{HOST}:{port}{path}\nOpen this address in a browser. Ctrl-C stops the page.", flush=True)
    with suppress(KeyboardInterrupt):
        server(application(html, path, port)).run(sockets=[listener])


def application(html: str, path: str, port: int) -> SecurityMiddleware:
    """What serves the page at ``path``, and nothing else."""
    from starlette.responses import HTMLResponse, PlainTextResponse

    from rlhf_bilevel.human.security import SecurityMiddleware

    page = HTMLResponse(html, headers={"content-security-policy": POLICY})

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        known = secrets.compare_digest(scope["path"].encode(), path.encode())
        await (page if known else PlainTextResponse("there is no such page", 404))(scope, receive, send)

    hosts, origins = names(HOST, port, None)
    return SecurityMiddleware(app, frozenset(hosts), frozenset(origins))
