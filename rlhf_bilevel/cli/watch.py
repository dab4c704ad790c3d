"""The command ``watch``: an agent's episodes in a browser, from this machine alone, or as a file to send."""

from __future__ import annotations

import argparse
import secrets
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from rlhf_bilevel.cli.commands import new_file, run_folder
from rlhf_bilevel.errors import UserError

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from rlhf_bilevel.human.security import Gate

HOST = "127.0.0.1"
POLICY = "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"  # the page itself has the rest


def watch(args: argparse.Namespace) -> Callable[[], None]:
    """Checks what can be got wrong, plays, and writes; or serves the page until Ctrl-C."""
    folders = [args.dir] if args.other is None else [args.dir, args.other]
    for folder in folders:
        run_folder(folder)
    if len(args.at) > len(folders):
        raise UserError(f"--at {args.at[-1]}: one is for all runs, or give one for each")
    html = args.html and new_file("--html", args.html, ".html")
    video = args.video and new_file("--video", args.video, ".mp4")
    if video:
        from rlhf_bilevel.human.clips.video import check_encoder

        check_encoder()
    if html or not video:
        from rlhf_bilevel.human.clips.assets import static_files

        static_files()

    def work() -> None:
        from rlhf_bilevel.runs import watch

        found = watch.moments(folders, args.at or None, args.trust)
        for moment in found:
            print(f"{moment.folder}: {moment.spec.method} on {moment.spec.env}, step {moment.step:,}", flush=True)
        if video:
            size = watch.write_video(video, found, args.episodes)
            print(f"{video}: {size / 1e6:.1f} MB")
        if html:
            size = watch.write_page(html, watch.page(found, args.episodes))
            print(f"{html}: {size / 1e6:.1f} MB, opens in any browser, also without a network")
        elif not video:
            serve(watch.page(found, args.episodes))

    return work


def serve(html: str) -> None:
    """Gives the page out to browsers on this machine, under an address that nobody can guess, until Ctrl-C."""
    from rlhf_bilevel.cli.label import listen, server

    path, listening = f"/{secrets.token_urlsafe(16)}", listen(HOST, None)
    port = listening.getsockname()[1]
    print(f"http://{HOST}:{port}{path}\nOpen the address in a browser. Ctrl-C ends this page.", flush=True)
    with suppress(KeyboardInterrupt):
        server(application(html, path, port)).run(sockets=[listening])


def application(html: str, path: str, port: int) -> Gate:
    """What gives the page out under ``path``, and nothing else."""
    from starlette.responses import HTMLResponse, PlainTextResponse

    from rlhf_bilevel.cli.label import names
    from rlhf_bilevel.human.security import Gate

    page = HTMLResponse(html, headers={"content-security-policy": POLICY})

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        known = secrets.compare_digest(scope["path"].encode(), path.encode())
        await (page if known else PlainTextResponse("there is no such page", 404))(scope, receive, send)

    return Gate(app, *map(frozenset, names(HOST, port, None)))
