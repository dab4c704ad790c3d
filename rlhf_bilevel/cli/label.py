"""The command ``label``: serves the label page of a run, by default only to browsers on the same machine.

It may be started before, during or after training, and again at any time: all that lasts is in the label store. Before
training has begun, it creates nothing in the run's folder, because training needs it to be empty.
"""

from __future__ import annotations

import argparse
import difflib
import shlex
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from filelock import Timeout

from rlhf_bilevel.cli.arguments import Work, add_trust_option, positive
from rlhf_bilevel.data.run_folder import CONFIG, RunFolder, runs_in
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.human.addresses import exposure_warning, in_url, is_loopback, listen, names, public_name
from rlhf_bilevel.utils.files import lock

if TYPE_CHECKING:
    import uvicorn

    from rlhf_bilevel.human.overview import Returns
    from rlhf_bilevel.human.security import SecurityMiddleware

DEFAULT_NAME = "human"  # of the only labeller, if no name is given
INTERVAL = 1.0  # seconds between two looks for a run that has not begun

HELP = "serve the page on which people label a run's pairs"
EXAMPLES = (
    'rlhf-bilevel label runs/one-leg --question "Which one is closer to standing on one leg?"',
    "rlhf-bilevel label runs/one-leg --labeller ada --labeller ben --expert eve --guidelines guidelines.md",
)


def add_arguments(sub: argparse.ArgumentParser) -> None:
    """Adds the command's arguments to its parser."""
    sub.add_argument("dir", type=Path, metavar="DIR", help="of a run with --teacher human")
    sub.add_argument(
        "--question", help="what people are asked (default: as before, and at first 'Which one is better?')"
    )
    sub.add_argument(
        "--guidelines",
        type=Path,
        metavar="FILE.md",
        help="what to judge by: shown at the first visit, and in the help (default: as before)",
    )
    sub.add_argument(
        "--labeller", action="append", default=[], metavar="NAME", help="gets a link; repeatable (default: human)"
    )
    sub.add_argument(
        "--expert", action="append", default=[], metavar="NAME", help="whose answers check those of others"
    )
    sub.add_argument(
        "--owner", action="append", default=[], metavar="NAME", help="sees the overview (default: human, if alone)"
    )
    sub.add_argument("--host", default="127.0.0.1", help="address to listen on; 127.0.0.1 is this machine alone")
    sub.add_argument("--port", type=positive, help="to listen on (default: 8007, or the next that is free)")
    sub.add_argument("--url", help="how people reach it, where a proxy stands before it")
    sub.add_argument("--repeats", type=float, default=0.05, help="share of pairs that are shown again, as a check")
    sub.add_argument("--gold", type=float, default=0.05, help="share of pairs that an expert has answered")
    sub.add_argument(
        "--import", dest="import_file", type=Path, metavar="FILE.parquet", help="add answers given elsewhere, and end"
    )
    sub.add_argument("--labels-db", metavar="postgresql://...", help="where the run keeps its labels, if not in DIR")
    add_trust_option(sub)


def run(args: argparse.Namespace) -> Work:
    """Checks the options and returns the work: to wait for the run, print the links, and serve until Ctrl-C.

    With ``--import`` the work adds the answers of a dataset, and serves nothing. UserError if an option is wrong.
    """
    from rlhf_bilevel.human import guidelines
    from rlhf_bilevel.human.clips.assets import static_files
    from rlhf_bilevel.human.page_text import page_text
    from rlhf_bilevel.human.server import Invitations, create_app
    from rlhf_bilevel.human.store import LabelStore

    people = [(name, "labeller") for name in args.labeller] + [(name, "expert") for name in args.expert]
    people += [(name, "owner") for name in args.owner]
    people = people or [(DEFAULT_NAME, "owner")]
    check(args, [name for name, _ in people])
    files = static_files()
    guidelines_text = guidelines.read(args.guidelines) if args.guidelines else None
    open_store, imported = partial(LabelStore.of, args.dir, args.trust, args.labels_db), None
    if args.import_file and is_run(args.dir):  # read before anything is written
        from rlhf_bilevel.data.preference_dataset import Dataset

        RunFolder(args.dir).examine(writes=True)
        imported = Dataset.read(args.import_file)
    begun_store = open_store() if is_run(args.dir) or args.import_file else None

    def work() -> None:
        if begun_store is None:
            wait(args.dir)
        store = begun_store or open_store()
        if imported is not None:
            from rlhf_bilevel.human.dataset import import_choices

            added, repeated, left_out = import_choices(store, imported)
            counts = f"{added} answers added, {repeated} known before, {left_out} to other queries left out"
            print(f"{args.import_file}: {counts}")
            return
        text = page_text(RunFolder(args.dir), args.question, guidelines_text)
        listener = listen(args.host, args.port)
        port = listener.getsockname()[1]
        base_url = args.url.rstrip("/") if args.url else f"http://{in_url(public_name(args.host))}:{port}"
        hosts, origins = names(args.host, port, args.url)
        invitations = Invitations()
        app = create_app(
            store,
            invitations,
            question=text.question,
            guidelines=guidelines.html(text.guidelines),
            hosts=hosts,
            origins=origins,
            files=files,
            run=str(args.dir),
            ended=lambda: RunFolder(args.dir).ended,
            returns=lambda: returns_of(args.dir),
            repeats=args.repeats,
            gold=args.gold,
        )
        for name, role in people:
            print(f"{name}: {base_url}/join/{invitations.new(name, role)}", flush=True)
        stop = "Ctrl-C stops this page; training goes on, and answers are kept."
        print(f"Open the link in a browser: it works once. {stop}", flush=True)
        if not is_loopback(args.host):
            print(exposure_warning(args.host, port), flush=True)
        with suppress(KeyboardInterrupt), store, only_page(RunFolder(args.dir)):
            server(app).run(sockets=[listener])

    return work


def server(app: SecurityMiddleware, **settings: Any) -> uvicorn.Server:
    """A web server for ``app`` that says nothing about itself. ``settings`` are uvicorn's, and replace the defaults."""
    import uvicorn

    from rlhf_bilevel.human.security import LimitedHTTP

    defaults: dict[str, Any] = {
        "http": LimitedHTTP,
        "ws": "none",
        "lifespan": "off",
        "log_level": "error",  # otherwise each request that is not HTTP prints a line
        "access_log": False,
        "server_header": False,
        "proxy_headers": False,
        "backlog": 128,
        "timeout_keep_alive": 15,
        "timeout_graceful_shutdown": 2,
        "h11_max_incomplete_event_size": 2**14,
    }
    return uvicorn.Server(uvicorn.Config(app, **(defaults | settings)))


@contextmanager
def only_page(run: RunFolder) -> Iterator[None]:
    """Says it, if another label page of the run is open on this machine. Both can be used."""
    page_lock = lock(run.label_page_lock)
    try:
        page_lock.acquire()
    except Timeout:
        both = "Both put pairs and keep answers; the links of one do not sign in to the other."
        print(f"Another label page of {run} is open. {both}", flush=True)
    except OSError:  # the folder is for reading only: nobody is told
        pass
    try:
        yield
    finally:
        page_lock.release()


def is_run(folder: Path) -> bool:
    """Whether ``folder`` is the folder of a run; False if a run can still be started there.

    UserError, which names the nearest runs, if it is neither.
    """
    if RunFolder(folder).begun:
        return True
    if not folder.parent.is_dir():
        missing = f"{folder}: there is no run, and no folder {folder.parent}"
        raise UserError(f"{missing}; start it first: {begin(folder)}{near(folder)}")
    if RunFolder(folder).vacant:
        return False
    if RunFolder(folder).begun:  # it was started between the two checks
        return True
    raise UserError(f"{folder} is not a run's folder: it has no {CONFIG}{near(folder)}")


def begin(folder: Path) -> str:
    """The command that begins a run in ``folder``; what the user chooses is in capitals."""
    options = "--env ENV --steps STEPS --labels LABELS --teacher human"
    return f"rlhf-bilevel train METHOD {options} --out {shlex.quote(str(folder))}"


def near(folder: Path) -> str:
    """The end of a message: up to three folders of runs near ``folder``, those with the most similar names first."""
    parent = next(place for place in folder.parents if place.is_dir())
    runs_nearby = [str(run) for run in runs_in(parent, depth=2)]
    runs = difflib.get_close_matches(str(folder), runs_nearby, cutoff=0)
    return f"; the nearest runs are {', '.join(runs)}" if len(runs) > 1 else f"; a run is {runs[0]}" if runs else ""


def wait(folder: Path) -> None:
    """Waits until a run has begun in ``folder``. UserError if something else appears there."""
    print(
        f"{folder}: there is no run yet{near(folder)}. The page begins as soon as there is one (Ctrl-C ends the wait). "
        f"In another terminal:\n  {begin(folder)}\nor, to choose among the policies of a run that has ended:\n"
        f"  rlhf-bilevel select RUN --teacher human --out {shlex.quote(str(folder))}",
        file=sys.stderr,
        flush=True,
    )
    while not is_run(folder):
        time.sleep(INTERVAL)


def check(args: argparse.Namespace, people: list[str]) -> None:
    """UserError if an option has a value that is not allowed. ``people`` are the names of all labellers and experts."""
    for option, share in (("--repeats", args.repeats), ("--gold", args.gold)):
        if not 0 <= share <= 0.5:
            raise UserError(f"{option} {share:g}: a share from 0 to 0.5")
    if args.question is not None and not 0 < len(args.question.strip()) <= 1000:
        raise UserError(f"--question {args.question[:60]!r}: it must have 1 to 1,000 letters")
    for name in people:
        if people.count(name) > 1:
            raise UserError(f"labeller {name!r} is named twice")
        if not (0 < len(name) <= 100 and name.isprintable() and name.strip() == name):
            raise UserError(f"labeller {name[:100]!r}: a name has 1 to 100 printable letters")
    if args.import_file and not args.import_file.is_file():
        raise UserError(f"--import {args.import_file}: no such file")
    if args.port is not None and args.port > 65535:
        raise UserError(f"--port {args.port}: at most 65535")
    if args.url and not is_base(args.url):
        raise UserError(f"--url {args.url}: http or https, a host, and no path, such as https://labels.example.org")
    try:
        socket.getaddrinfo(args.host, None)
    except OSError as error:
        raise UserError(f"--host {args.host}: {error.strerror}") from None
    except UnicodeError:
        raise UserError(f"--host {args.host:.60}: this is not the name of a host") from None


def is_base(url: str) -> bool:
    """Whether ``url`` consists of http or https and a host, without a path."""
    with suppress(ValueError):
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.path in ("", "/")
    return False


def returns_of(folder: Path) -> Returns | None:
    """The mean returns of the run's last episodes; None if its progress.csv is not there yet, or cannot be read."""
    from rlhf_bilevel.human.overview import recent_returns

    with suppress(UserError, OSError, ValueError):
        return recent_returns(RunFolder(folder).read_progress())
    return None
