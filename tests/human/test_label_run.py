"""From an arrow key to a reward: a browser labels a run that trains meanwhile, each program in a process of its own."""

import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import torch
from playwright.sync_api import Request, Response, expect, sync_playwright

from rlhf_bilevel import Agent
from rlhf_bilevel.data.label_log import decode_answers, decode_segments
from rlhf_bilevel.human.addresses import listen
from rlhf_bilevel.human.store import LabelStore
from rlhf_bilevel.human.tables import EQUAL, LEFT, RIGHT
from rlhf_bilevel.rewards.bradley_terry import accuracy, logits
from rlhf_bilevel.rewards.ensemble import RewardEnsemble
from tests.human.test_page import CHROMIUM, KEYS, SHOWN, Visit, start
from tests.human.test_viewer import SOFTWARE

LABELLED, KILLED_AT = 20, 7
TRAIN = (
    "train pebble --env cartpole_balance --preset quick --steps 2000 --labels 20 --teacher human --seed 3 "
    "--set queries_per_session=4 --set num_interact=20 "
    "--set eval_freq=2000 --set n_eval_episodes=1 --set reset_updates=20"
)


@contextmanager
def training(folder: Path) -> Iterator[subprocess.Popen]:
    command = [sys.executable, "-m", "rlhf_bilevel", *TRAIN.split(), "--out", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        while not (folder / "config.yaml").exists():
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.1)
        yield process
    finally:
        process.kill()
        process.wait()


def of_query(folder: Path, query: str) -> tuple[str, bytes, bytes]:
    """The first segment's clip, and both segments."""
    with closing(sqlite3.connect(folder / "book.sqlite", timeout=30)) as store:
        return store.execute("SELECT first_clip, first, second FROM queries WHERE id = ?", (query,)).fetchone()


def oracle(first: bytes, second: bytes) -> float:
    """The label by the environment's own reward."""
    better, worse = decode_segments([first, second]).env_reward.sum(-1).tolist()
    return 0.5 if better == worse else float(better > worse)


@pytest.mark.slow
def test_a_person_who_presses_keys_teaches_a_run_while_it_trains(tmp_path: Path) -> None:
    """And the label server dies inside a POST: what was acknowledged is what training used, each answer once."""
    folder = tmp_path / "run"
    with listen("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    with training(folder) as run, sync_playwright() as playwright:
        server, link = start(folder, port)
        try:
            with (
                playwright.chromium.launch(executable_path=CHROMIUM, args=SOFTWARE) as browser,
                LabelStore.of(folder) as store,
            ):
                visit = Visit(browser, viewport={"width": 800, "height": 640})
                page, acknowledged, given = visit.page, dict[str, str](), dict[str, str]()

                def heard(response: Response) -> None:
                    if response.url.endswith("/api/answers") and response.ok:
                        answer = response.request.post_data_json
                        acknowledged[answer["query"]] = answer["choice"]

                def dies(request: Request) -> None:
                    if request.url.endswith("/api/answers") and server.poll() is None:
                        server.send_signal(signal.SIGKILL)

                page.on("response", heard)
                page.goto(link)
                steps = []
                for number in range(LABELLED):
                    page.wait_for_selector("body[data-state=pair]", timeout=100_000)
                    assert run.poll() is None, "training is over before it was taught"
                    query, left = page.evaluate(SHOWN), page.evaluate("document.body.dataset.left")
                    first_clip, *segments = of_query(folder, query)
                    label = oracle(*segments)
                    choice = EQUAL if label == 0.5 else LEFT if (label == 1) == (left == first_clip) else RIGHT
                    given[query] = choice
                    if number != KILLED_AT:
                        visit.press(KEYS[choice])
                    else:
                        visit.sent()
                        page.wait_for_selector("body[data-answerable]")
                        page.on("request", dies)
                        page.keyboard.press(KEYS[choice])  # the next pair may have to wait for the server
                        expect(page.locator("#notice")).to_contain_text("No connection", timeout=60_000)
                        page.wait_for_function(f"before => {SHOWN} !== before", arg=query)
                        page.remove_listener("request", dies)
                        assert server.wait() == -signal.SIGKILL
                        server, _ = start(folder, port)
                    if status := store.status():
                        steps.append(status.step)
                visit.sent()
                assert page.evaluate("window.violations") == []
                visit.context.close()
            assert acknowledged == given
            assert steps[-1] > steps[0]  # it went on while they were given
            assert run.wait(200) == 0, run.communicate()[1]
        finally:
            server.terminate()
            server.wait()
    with closing(sqlite3.connect(folder / "labels.sqlite")) as log:
        used = log.execute("SELECT label, first, second FROM answers").fetchall()
    asked = [tuple(of_query(folder, query)[1:]) for query in acknowledged]
    assert Counter((oracle(*pair), *pair) for pair in asked) == Counter(used) and len(used) == LABELLED
    agent = Agent.load(folder)
    assert agent.reward and agent.config
    clips, seed = unseen(agent), torch.Generator().manual_seed(agent.config.seed)
    before = RewardEnsemble(clips[0].shape[-1], clips[1].shape[-1], agent.config.ensemble_size, (64, 64), seed)
    assert orders(before, clips) < 0.5 < 0.7 < orders(agent.reward, clips)
    assert taught(agent.reward, used) > 0.85


def taught(reward: RewardEnsemble, used: list[tuple[float, bytes, bytes]]) -> float:
    """The share of the labels without a tie that the reward orders as they say."""
    answers = decode_answers(used)
    with torch.no_grad():
        return accuracy(logits(reward, answers), answers.label).item()


Clips = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def unseen(agent: Agent) -> Clips:
    """Clips obs (32, T, o), act (32, T, a) of fresh episodes, under actions from none to full, and their returns."""
    assert agent.config
    env, length = agent.make_env(), agent.config.segment_length
    env.action_space.seed(0)
    obs, acts, rewards = [], [], []
    for episode in range(8):
        at = env.reset()[0]
        for _ in range(4 * length):
            act = episode / 7 * env.action_space.sample()
            obs.append(torch.as_tensor(at))
            acts.append(torch.as_tensor(act))
            at, reward, *_ = env.step(act)
            rewards.append(float(reward))
    return (
        torch.stack(obs).unflatten(0, (32, length)),
        torch.stack(acts).unflatten(0, (32, length)),
        torch.tensor(rewards).reshape(32, length).sum(1),
    )


def orders(reward: RewardEnsemble, clips: Clips) -> float:
    """The share of pairs of clips that the reward puts in the order of their returns."""
    obs, act, truth = clips
    with torch.no_grad():
        value = reward(obs, act).sum(1)
    one, other = torch.combinations(torch.arange(len(truth))).T
    return float(((value[one] > value[other]) == (truth[one] > truth[other])).float().mean())
