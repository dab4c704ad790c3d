"""What the label server bears: many people at once, with retries, and the wait for the first pair in a browser.

    python -m benchmarks.performance.labelling --labellers 50 --labels 200 --think 1 --retried 0.1

A server process of its own (``rlhf-bilevel label``) on SQLite, or on ``--labels-db postgresql://...``. Each labeller
asks for pairs as the page does, thinks (from half to one and a half of ``--think`` seconds; 0 is a machine's pace) and
answers. A share of the answers is sent again with the same key: half of them because the connection was dropped before
the reply came. Then the label store is read: an acknowledged answer that is not there is lost, a query with two is
doubled. Seconds until the first pair are from opening the link in Chromium to two walker clips being drawn, those of
the next pair from a key to the frame in which it is painted, two seconds after the one before. The labellers run on the
same machine, and their load is part of every figure: ``late_ms`` is how much later than planned they woke, which is the
machine's and not the server's.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import yaml

from rlhf_bilevel.human.records import Question, Status
from rlhf_bilevel.human.store import LabelStore

NEXT = """() => new Promise((done) => {
  const before = document.body.dataset.query, pressed = performance.now();
  document.body.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowLeft", bubbles: true }));
  const look = () => document.body.dataset.query === before ? setTimeout(look)
    : requestAnimationFrame(() => setTimeout(() => done(performance.now() - pressed)));
  look();
})"""
QUANTILES = {"p50": 0.5, "p99": 0.99, "max": 1.0}
CHROMIUM = "/usr/bin/chromium"
FLAGS = ("--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labellers", type=int, default=50)
    parser.add_argument("--labels", type=int, default=200, help="of each labeller")
    parser.add_argument("--think", type=float, default=1.0, help="seconds a label, on average")
    parser.add_argument("--retried", type=float, default=0.1, help="share of answers that are sent again")
    parser.add_argument("--labels-db", default="", help="PostgreSQL in place of SQLite")
    parser.add_argument("--openings", type=int, default=5, help="of the page in Chromium; 0 for none")
    args = parser.parse_args(argv)
    found: dict[str, Any] = {key: value for key, value in vars(args).items() if key != "labels_db"}
    with tempfile.TemporaryDirectory() as folder:
        found |= load(Path(folder), args)
    if args.openings:
        with tempfile.TemporaryDirectory() as folder:
            found |= openings(Path(folder), args.openings)
    print(json.dumps(found))


def new_run(folder: Path, url: str = "") -> LabelStore:
    settings = {"teacher_human": True, "teacher_labels_db": url}
    (folder / "config.yaml").write_text(yaml.safe_dump({"settings": settings}))
    return LabelStore.of(folder)


class Server:
    """``rlhf-bilevel label`` in a process of its own; ``links`` are in the order of ``people``."""

    def __init__(self, folder: Path, people: Sequence[str]) -> None:
        names = [f"--labeller={name}" for name in people]
        command = [sys.executable, "-u", "-m", "rlhf_bilevel", "label", str(folder), "--repeats=0", "--gold=0", *names]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout
        self.links = [self.process.stdout.readline().split()[-1] for _ in people]

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *raised: object) -> None:
        self.process.terminate()
        self.process.wait()


def load(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    clip = {"kind": "frames", "fps": 20, "frames": []}
    with new_run(folder, args.labels_db) as store:
        held = 3  # pairs that a labeller has asked for and will not answer
        store.ask(0, [Question(b"first", b"second", clip, clip)] * (args.labellers * (args.labels + held)))
        with Server(folder, [f"labeller-{i}" for i in range(args.labellers)]) as server:
            begun = time.perf_counter()
            work = asyncio.run(labellers(server.links, args))
            seconds = time.perf_counter() - begun
        stored = Counter(choice.query_id for choice in store.all_chosen())
    acknowledged = {query for labeller in work for query in labeller["acknowledged"]}
    return {
        "acknowledged": len(acknowledged),
        "stored": sum(stored.values()),
        "sent_again": sum(labeller["again"] for labeller in work),
        "lost": len(acknowledged - stored.keys()),
        "doubled": sum(count > 1 for count in stored.values()),
        "seconds": round(seconds, 1),
        "submit_ms": quantiles([seconds for labeller in work for seconds in labeller["submits"]]),
        "late_ms": quantiles([seconds for labeller in work for seconds in labeller["late"]]),
    }


def quantiles(seconds: Sequence[float]) -> dict[str, float]:
    """In milliseconds."""
    return {name: round(1000 * float(np.quantile(seconds, q)), 1) for name, q in QUANTILES.items()}


async def labellers(links: Sequence[str], args: argparse.Namespace) -> list[dict[str, Any]]:
    return await asyncio.gather(*(one(link, args, random.Random(i)) for i, link in enumerate(links)))


async def one(link: str, args: argparse.Namespace, rng: random.Random) -> dict[str, Any]:
    base, _, token = link.partition("/join/")
    done: dict[str, Any] = {"acknowledged": [], "submits": [], "late": [], "again": 0}
    async with httpx.AsyncClient(base_url=base, headers={"origin": base}, timeout=120, trust_env=False) as browser:
        (await browser.post("/api/join", json={"token": token})).raise_for_status()
        pairs: list[dict[str, str]] = []
        seen: set[str] = set()
        while len(done["acknowledged"]) < args.labels:
            if len(pairs) < 2:
                offered = (await browser.get("/api/next?count=3")).raise_for_status().json()["pairs"]
                pairs += [pair for pair in offered if pair["query"] not in seen]
                seen |= {pair["query"] for pair in offered}
            think, begun = args.think * rng.uniform(0.5, 1.5), time.perf_counter()
            await asyncio.sleep(think)
            done["late"].append(time.perf_counter() - begun - think)
            query, now = pairs.pop(0)["query"], time.time()
            answer = {
                "query": query,
                "choice": "left",
                "key": secrets.token_hex(16),
                "shown_at": now,
                "answered_at": now,
            }
            retried = rng.random() < args.retried
            if retried and rng.random() < 0.5:  # the reply never comes
                with_cut = asyncio.create_task(browser.post("/api/answers", json=answer))
                await asyncio.sleep(rng.uniform(0, 0.02))
                with_cut.cancel()
                await asyncio.gather(with_cut, return_exceptions=True)
                done["again"] += 1
            for _ in range(1 + retried):
                begun = time.perf_counter()
                (await browser.post("/api/answers", json=answer)).raise_for_status()
                done["submits"].append(time.perf_counter() - begun)
            done["again"] += retried
            done["acknowledged"].append(query)
    return done


def openings(folder: Path, count: int) -> dict[str, Any]:
    """Seconds from opening a link to the first pair on the screen, in a new browser each time."""
    from playwright.sync_api import sync_playwright

    with new_run(folder) as store:
        questions, scenes = walker(folder)
        for number, scene in scenes.items():
            store.add_scene(number, scene)
        store.ask(0, questions * (count + 8))  # each visitor holds some that nobody else is shown
        store.set_status(Status(0, 1, 0, 1, True, 1, "it waits"))
    seconds, answers = list[float](), list[float]()
    with Server(folder, [f"visitor-{i}" for i in range(count)]) as server, sync_playwright() as playwright:
        for link in server.links:
            with playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS)) as browser:
                page = browser.new_page(viewport={"width": 1280, "height": 800})
                begun = time.perf_counter()
                page.goto(link)
                page.wait_for_selector("body[data-state=pair]", timeout=120_000)
                seconds.append(time.perf_counter() - begun)
                if len(seconds) == count:
                    for _ in range(12):
                        page.wait_for_timeout(2000)
                        answers.append(page.evaluate(NEXT))
    first = {"median": round(statistics.median(seconds), 2), "max": round(max(seconds), 2)}
    return {"first_pair_seconds": first, "next_pair_ms": quantiles([ms / 1000 for ms in answers])}


def walker(folder: Path, length: int = 50) -> tuple[list[Question], dict[str, Any]]:
    """Pairs of clips of a walker that acts at random, and their scenes."""
    from types import SimpleNamespace

    from rlhf_bilevel.human.clips import recorder

    reel, store = recorder.ClipRecorder(folder), SimpleNamespace(size=0)
    env = recorder.RecordedEnv(recorder.make("dm_control/walker-walk-v0", 0), store, reel)  # type: ignore[arg-type]
    env.reset()
    for _ in range(8 * length):
        env.step(env.action_space.sample())
        store.size += 1
    clips = [reel.clip(range(first, first + length)) for first in range(0, store.size, length)]
    pairs = [Question(b"first", b"second", *clips[i : i + 2]) for i in range(0, len(clips), 2)]
    return pairs, {clip["scene"]: reel.scene(clip["scene"]) for clip in clips}


if __name__ == "__main__":
    main()
