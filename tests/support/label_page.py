"""A label server in a thread of the test, over a real store; the better clip of a pair is the brighter one."""

import base64
import io
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from rlhf_bilevel.cli.label import server
from rlhf_bilevel.human.addresses import listen, names
from rlhf_bilevel.human.clips.assets import static_files
from rlhf_bilevel.human.records import Question
from rlhf_bilevel.human.security import SecurityMiddleware
from rlhf_bilevel.human.server import Invitations, create_app
from rlhf_bilevel.human.store import LabelStore

FRAMES, FPS = 10, 20


def data_url(image: Image.Image) -> str:
    image.save(file := io.BytesIO(), "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def picture(grey: int, mark: int) -> str:
    """A grey picture with a white column at ``mark``."""
    image = Image.new("L", (60, 40), grey)
    image.paste(255, (mark, 0, mark + 1, 40))
    return data_url(image)


def clip(grey: int) -> dict[str, Any]:
    return {"kind": "frames", "fps": FPS, "frames": [picture(grey, 5 * t) for t in range(FRAMES)]}


def ask(store: LabelStore, count: int, session: int = 0, greys: Sequence[int] = (60, 180)) -> None:
    """Queries whose second segment is the better, brighter one."""
    dark, bright = map(clip, greys)
    store.ask(session, [Question(b"first", b"second", dark, bright) for _ in range(count)])


class Served:
    def __init__(self, store: LabelStore, port: int | None = None, patience: int = 1, **told: Any) -> None:
        self.store, self.invitations = store, Invitations()
        self._socket = listen("127.0.0.1", port)
        self.port = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.app = application(store, self.invitations, self.port, **told)
        self._server = server(self.app, log_level="critical", timeout_keep_alive=patience, timeout_graceful_shutdown=1)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]}, daemon=True)

    def link(self, name: str = "human", role: str = "labeller") -> str:
        return f"{self.url}/join/{self.invitations.new(name, role)}"

    def __enter__(self) -> "Served":
        self._thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()


def application(store: LabelStore, invitations: Invitations, port: int, **told: Any) -> SecurityMiddleware:
    hosts, origins = names("127.0.0.1", port, None)
    settings: dict[str, Any] = {"question": "Which one is brighter?", "repeats": 0.0, "gold": 0.0}
    settings |= {"clock": lambda: 0.0} | told  # what training has reported does not grow old
    return create_app(store, invitations, hosts=hosts, origins=origins, files=static_files(), **settings)


@contextmanager
def served(folder: Path, count: int, **told: Any) -> Iterator[Served]:
    """A new store with ``count`` queries, and its server."""
    with LabelStore.open(folder / "book.sqlite", "run") as store:
        store.set_run_info({"method": "penalty", "env": "Bright-v0"})
        ask(store, count)
        with Served(store, **told) as server:
            yield server
