"""Where a page is served: a socket that listens, and the names by which browsers may reach it."""

from __future__ import annotations

import ipaddress
import socket
from contextlib import suppress
from urllib.parse import urlsplit

from rlhf_bilevel.errors import UserError

PORT, PORTS_TRIED = 8007, 50


def listen(host: str, port: int | None) -> socket.socket:
    """A socket that listens at ``port``, or at the first free port from PORT on. UserError if there is none."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
    first = PORT if port is None else port
    for candidate in range(first, first + (PORTS_TRIED if port is None else 1)):
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((address[0], candidate))
            listener.listen(128)
            return listener
        except OSError as error:
            listener.close()
            last_error = error
    raise UserError(f"--host {host} --port {candidate}: {last_error.strerror}")


def names(host: str, port: int, url: str | None) -> tuple[set[str], set[str]]:
    """The values of the headers Host and Origin that name this server, for a server at ``host`` and ``port``.

    They are the loopback names, the host, the machine's names if the host stands for all addresses, and ``url``.
    """
    machine_names = {"127.0.0.1", "localhost", "::1", host}
    if is_wildcard(host):
        machine_names |= {socket.gethostname(), socket.getfqdn(), public_name(host)} - {""}
    hosts = {f"{in_url(name)}:{port}" for name in machine_names}
    if port == 80:
        hosts |= {in_url(name) for name in machine_names}
    origins = {f"http://{name}" for name in hosts}
    if url:
        hosts.add(urlsplit(url).netloc)
        origins.add(f"{urlsplit(url).scheme}://{urlsplit(url).netloc}")
    return hosts, origins


def in_url(host: str) -> str:
    """``host`` as a URL contains it: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host else host


def public_name(host: str) -> str:
    """The name by which other machines reach ``host``. For all addresses, it is the one of outgoing connections."""
    if not is_wildcard(host):
        return host
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, suppress(OSError):
        probe.connect(("192.0.2.1", 9))  # sends nothing: an address for documentation
        return probe.getsockname()[0]
    return socket.gethostname()


def is_wildcard(host: str) -> bool:
    """Whether ``host`` stands for all addresses of the machine."""
    return host in ("0.0.0.0", "::")


def is_loopback(host: str) -> bool:
    """Whether ``host`` can be reached from this machine only."""
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def exposure_warning(host: str, port: int) -> str:
    """What to tell a user whose label page other machines can reach."""
    return (
        f"--host {host}: whoever reaches port {port} of this machine and has a link or a session sees this run's clips "
        "and progress and can answer; without one, only that a label page is here. Nothing else of this machine is "
        "served. It is plain HTTP, which others on the way can read: use it in a network that you trust, or behind a "
        "proxy that speaks HTTPS, named by --url."
    )
