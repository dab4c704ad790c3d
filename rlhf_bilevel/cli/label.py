"""The command ``label``: serves a run's page, on this machine's loopback unless told otherwise.

It may be started before, while and after training runs, and again at any time: all that lasts is in the book. Started
before, it makes nothing in the run's folder, which training wants for itself.
"""

from __future__ import annotations

import argparse
import difflib
import ipaddress
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from rlhf_bilevel.data.run_folder import CONFIG, RunFolder, runs_in
from rlhf_bilevel.errors import UserError

if TYPE_CHECKING:
    import uvicorn

    from rlhf_bilevel.data.preference_dataset import Dataset
    from rlhf_bilevel.human.security import Gate
    from rlhf_bilevel.human.store import LabelStore

PORT, PORTS_TRIED = 8007, 50
NAME = "human"  # of the only labeller, where no name is given
INTERVAL = 1.0  # seconds between two looks for a run that is not there yet


def label(args: argparse.Namespace) -> Callable[[], None]:
    """Checks what can be got wrong, waits for the run, and serves until Ctrl-C. Prints a link for each labeller."""
    from rlhf_bilevel.human import guidelines
    from rlhf_bilevel.human.clips.assets import static_files
    from rlhf_bilevel.human.server import Invitations, create_app
    from rlhf_bilevel.human.store import LabelStore

    people = [(name, "labeller") for name in args.labeller] + [(name, "expert") for name in args.expert]
    people = people or [(NAME, "labeller")]
    check(args, [name for name, _ in people])
    files = static_files()
    rules = guidelines.html(args.guidelines) if args.guidelines else ""
    opened, given = partial(LabelStore.of, args.dir, args.trust, args.labels_db), None
    if args.import_file and is_run(args.dir):  # read before anything is written
        from rlhf_bilevel.data.preference_dataset import Dataset

        RunFolder(args.dir).examine(writes=True)
        given = Dataset.read(args.import_file)
    begun = opened() if is_run(args.dir) or args.import_file else None

    def work() -> None:
        if begun is None:
            wait(args.dir)
        book = begun or opened()
        if given is not None:
            bring(book, given, args.import_file)
            return
        listening = listen(args.host, args.port)
        port = listening.getsockname()[1]
        base = args.url.rstrip("/") if args.url else f"http://{written(reached(args.host))}:{port}"
        hosts, origins = names(args.host, port, args.url)
        invitations = Invitations()
        app = create_app(
            book,
            invitations,
            question=args.question,
            guidelines=rules,
            hosts=hosts,
            origins=origins,
            files=files,
            ended=lambda: RunFolder(args.dir).ended,
            repeats=args.repeats,
            gold=args.gold,
        )
        for name, role in people:
            print(f"{name}: {base}/join/{invitations.new(name, role)}", flush=True)
        print(
            "Open the link in a browser: it works once. Ctrl-C stops this page; training goes on, and answers are kept."
        )
        sys.stdout.flush()
        if not is_loopback(args.host):
            print(exposed(args.host, port), flush=True)
        with suppress(KeyboardInterrupt), book:
            server(app).run(sockets=[listening])

    return work


def server(app: Gate, **settings: Any) -> uvicorn.Server:
    """That serves ``app`` and tells nothing of itself; ``settings`` are uvicorn's, in place of these."""
    import uvicorn

    from rlhf_bilevel.human.security import Impatient

    here: dict[str, Any] = {
        "http": Impatient,
        "ws": "none",
        "lifespan": "off",
        "log_level": "error",  # each request that is no HTTP would be a line
        "access_log": False,
        "server_header": False,
        "proxy_headers": False,
        "backlog": 128,
        "timeout_keep_alive": 15,
        "timeout_graceful_shutdown": 2,
        "h11_max_incomplete_event_size": 2**14,
    }
    return uvicorn.Server(uvicorn.Config(app, **(here | settings)))


def is_run(folder: Path) -> bool:
    """False where a run can still be made there. UserError where none is and none can be; names runs that are there."""
    if RunFolder(folder).begun:
        return True
    if not folder.parent.is_dir():
        raise UserError(f"{folder}: there is no folder {folder.parent}{near(folder)}")
    if RunFolder(folder).vacant:
        return False
    if RunFolder(folder).begun:  # it came between the two looks
        return True
    raise UserError(f"{folder} is not a run's folder: it has no {CONFIG}{near(folder)}")


def near(folder: Path) -> str:
    """For a message: up to three runs' folders around there, those with the most similar names first."""
    around = next(place for place in folder.parents if place.is_dir())
    found = [str(run) for run in runs_in(around, depth=2)]
    runs = difflib.get_close_matches(str(folder), found, cutoff=0)
    return f"; the nearest runs are {', '.join(runs)}" if len(runs) > 1 else f"; a run is {runs[0]}" if runs else ""


def wait(folder: Path) -> None:
    """Until training has begun there. UserError where it becomes something else than a run's folder."""
    print(
        f"waiting for {folder} to be made by: rlhf-bilevel train ... --teacher human --out {folder} (Ctrl-C ends)"
        f"{near(folder)}",
        file=sys.stderr,
        flush=True,
    )
    while not is_run(folder):
        time.sleep(INTERVAL)


def check(args: argparse.Namespace, people: list[str]) -> None:
    """UserError on what cannot be."""
    for option, share in (("--repeats", args.repeats), ("--gold", args.gold)):
        if not 0 <= share <= 0.5:
            raise UserError(f"{option} {share:g}: a share from 0 to 0.5")
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
        raise UserError(f"--host {args.host:.60}: is no name of a host") from None


def is_base(url: str) -> bool:
    """Whether a page can have ``url`` before the names of its own."""
    with suppress(ValueError):
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.path in ("", "/")
    return False


def bring(book: LabelStore, given: Dataset, path: Path) -> None:
    """Adds the answers of a dataset, which is in ``path``, to queries that this run has asked."""
    from rlhf_bilevel.human.dataset import import_choices

    found = import_choices(book, given)
    print(
        f"{path}: {found.added} answers added, {found.known} known before, {found.left_out} to other queries left out"
    )


def listen(host: str, port: int | None) -> socket.socket:
    """Bound to ``port``, or to the first free one from PORT on. OSError where there is none."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
    first = PORT if port is None else port
    for candidate in range(first, first + (PORTS_TRIED if port is None else 1)):
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((address[0], candidate))
            listening.listen(128)
            return listening
        except OSError as error:
            listening.close()
            refused = error
    raise UserError(f"--host {host} --port {candidate}: {refused.strerror}")


def names(host: str, port: int, url: str | None) -> tuple[set[str], set[str]]:
    """What Host and Origin may say: loopback, the host, of a wildcard this machine's names, and ``url``."""
    known = {"127.0.0.1", "localhost", "::1", host}
    if is_wildcard(host):
        known |= {socket.gethostname(), socket.getfqdn(), reached(host)} - {""}
    hosts = {f"{written(name)}:{port}" for name in known}
    if port == 80:
        hosts |= {written(name) for name in known}
    origins = {f"http://{name}" for name in hosts}
    if url:
        hosts.add(urlsplit(url).netloc)
        origins.add(f"{urlsplit(url).scheme}://{urlsplit(url).netloc}")
    return hosts, origins


def written(host: str) -> str:
    """As in a URL."""
    return f"[{host}]" if ":" in host else host


def reached(host: str) -> str:
    """The name by which others reach it: of a wildcard, this machine's address on its way out."""
    if not is_wildcard(host):
        return host
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, suppress(OSError):
        probe.connect(("192.0.2.1", 9))  # sends nothing: an address for documentation
        return probe.getsockname()[0]
    return socket.gethostname()


def is_wildcard(host: str) -> bool:
    return host in ("0.0.0.0", "::")


def is_loopback(host: str) -> bool:
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def exposed(host: str, port: int) -> str:
    return (
        f"--host {host}: whoever reaches port {port} of this machine and has a link or a session sees this run's clips "
        "and progress and can answer; without one, only that a label page is here. Nothing else of this machine is "
        "served. It is plain HTTP, which others on the way can read: use it in a network that you trust, or behind a "
        "proxy that speaks HTTPS, named by --url."
    )
