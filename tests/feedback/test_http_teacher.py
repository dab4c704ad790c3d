"""Teachers by HTTP against a server of the test's own: what it is asked, and whatever it may do, nothing is lost."""

import importlib.util
import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from rlhf_bilevel import Agent
from rlhf_bilevel.__main__ import main, parser
from rlhf_bilevel.cli import run_options
from rlhf_bilevel.config import Config
from rlhf_bilevel.data.label_log import read_sessions
from rlhf_bilevel.data.replay_buffer import ReplayBuffer
from rlhf_bilevel.data.request_log import RequestLog
from rlhf_bilevel.envs import registration
from rlhf_bilevel.errors import CorruptFileError, UserError
from rlhf_bilevel.feedback import http_teacher
from rlhf_bilevel.feedback.http_teacher import FAILURES, TRIES, HttpTeacher
from rlhf_bilevel.feedback.teacher_spec import teacher_settings
from rlhf_bilevel.types import Queries, Segments
from rlhf_bilevel.utils.urls import TOKEN
from tests.data.test_label_log import queries
from tests.runs.test_resume import EVERY, equal, killed, started

ROOT = Path(__file__).parents[2]
FIRST = {"answer": "first"}
ENTRIES = {"obs": ["x", "y"], "act": ["push"]}


class Server:
    """``does`` is called with what was asked and how often that was, and gives a status and a body, or raises."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.more: dict[str, str] = {}  # headers of the answers
        self.does: Callable[[Any, int], Any] = lambda pair, number: FIRST
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.asked.append(body)
                server.headers.append(dict(self.headers))
                server.paths.append(self.path)
                told = server.does(body, len(server.asked))
                status, text = told if isinstance(told, tuple) else (200, told)
                if callable(text):
                    text(self)
                    return
                data = text if isinstance(text, bytes) else json.dumps(text).encode()
                self.send_response(status)
                for name, value in {"Content-Length": str(len(data)), **server.more}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}/judge"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv(TOKEN, raising=False)
    monkeypatch.setattr(http_teacher, "WAITS", (0.0, 0.0))
    found = Server()
    yield found
    found.http.shutdown()
    found.http.server_close()


def teacher(server: Server, log: RequestLog | None = None, **settings: Any) -> HttpTeacher:
    url = settings.pop("url", server.url)
    config = Config(**{"total_timesteps": 100, "teacher_url": url, "teacher_timeout": 20, **settings})
    return HttpTeacher(config, "Point-v0", ENTRIES, log or RequestLog(None), ReplayBuffer(2, 1, 10))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_time_of_all_requests_about_the_asked_pairs_is_told_also_of_answers_that_were_there(
    server: Server, tmp_path: Path
) -> None:
    server.does = lambda pair, number: (503, {}) if number == 2 else FIRST  # the second pair needs two requests
    first = teacher(server, RequestLog(tmp_path / "teacher.jsonl"))
    first(queries(3))
    times = [line["seconds"] for line in lines(tmp_path / "teacher.jsonl")]
    assert len(times) == 4 and first.seconds == pytest.approx(sum(times), abs=1e-3)
    again = teacher(server, RequestLog(tmp_path / "teacher.jsonl"))
    again(queries(3))
    assert again.seconds == pytest.approx(first.seconds) and len(server.asked) == 4
    again(queries(1, seed=5))
    assert again.seconds == lines(tmp_path / "teacher.jsonl")[-1]["seconds"]


def test_a_pair_is_sent_without_the_true_reward_and_answers_become_labels(server: Server) -> None:
    answers = [FIRST, {"answer": "second"}, {"answer": "tie", "strength": 0.3}, {"answer": "skip"}]
    answers += [{"answer": "first", "strength": 0.5}, {"answer": "second", "strength": 0, "reason": "about the same"}]
    server.does = lambda pair, number: answers[number - 1]
    asked = queries(6)
    found = teacher(server, teacher_question="Which is calmer?")(asked)
    assert found.label.tolist() == [1, 0, 0.5, 0.75, 0.5]
    assert torch.equal(found.first.obs, asked.first.obs[[0, 1, 2, 4, 5]])
    told = server.asked[1]
    assert set(told) == {"version", "question", "env", "names", "first", "second"} and told["version"] == 1
    assert (told["question"], told["env"], told["names"]) == ("Which is calmer?", "Point-v0", ENTRIES)
    assert set(told["first"]) == {"obs", "act"}
    assert torch.equal(torch.tensor(told["second"]["obs"]), asked.second.obs[1])
    assert torch.equal(torch.tensor(told["second"]["act"]), asked.second.act[1])


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"", "nothing, which is no JSON"),
        (b"<html>", "which is no JSON"),
        (b"\xff\xfe", "which is no JSON"),
        (b"[" * 100_000, "which is no JSON"),
        ([1, 2], "no object with an answer"),
        ({"better": "first"}, "no object with an answer"),
        ({"answer": "left"}, 'the answer "left" is none of first, second, tie, skip'),
        ({"answer": ["first"]}, "is none of first"),
        ({"answer": None}, "is none of first"),
        ({"answer": "first", "strength": 2}, "the strength 2 is no number in [0, 1]"),
        ({"answer": "first", "strength": "much"}, 'the strength "much" is no number'),
        ({"answer": "first", "strength": True}, "the strength true is no number"),
        (b'{"answer": "first", "strength": NaN}', "the strength NaN is no number"),
        (b'{"answer": "first"' + b" " * 2**20 + b"}", "more than 1,048,576 bytes"),
        ((500, "it broke"), "it answered 500"),
    ],
)
def test_nonsense_costs_no_label_and_is_told_in_one_line(server: Server, answer: Any, why: str) -> None:
    log = RequestLog(None)
    server.does = lambda pair, number: answer if number <= TRIES else FIRST
    with pytest.warns(UserWarning) as told:
        found = teacher(server, log)(queries(2))
    assert len(found.label) == 1 and len(server.asked) == TRIES + 1
    (line,) = [str(warning.message) for warning in told]
    assert why in line and server.url in line and "it costs no label" in line and "\n" not in line and len(line) < 300


def test_what_no_other_try_would_change_is_asked_once(server: Server) -> None:
    server.does = lambda pair, number: (401, {"error": "no token"}) if number == 1 else FIRST
    with pytest.warns(UserWarning, match=r"it answered 401: .*no token.*1 try"):
        assert teacher(server)(queries(2)).label.tolist() == [1]
    assert len(server.asked) == 2


def test_a_server_says_how_long_to_wait_and_is_not_waited_for_longer_than_for_an_answer(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    server.does = lambda pair, number: (429, {}) if number in (1, 2) else FIRST
    server.more = {"Retry-After": "7"}
    assert teacher(server)(queries(1)).label.tolist() == [1]
    server.asked.clear()
    server.more = {"Retry-After": "100000"}
    assert teacher(server)(queries(1)).label.tolist() == [1]
    assert [wait for wait in waits if wait > 1] == [7, 7, 20, 20]


@pytest.mark.slow
def test_waiting_is_bounded_also_where_a_byte_comes_now_and_then(server: Server) -> None:
    over = threading.Event()

    def drip(handler: BaseHTTPRequestHandler) -> None:
        while not over.is_set():
            handler.wfile.write(b"H")
            handler.wfile.flush()
            over.wait(0.05)

    def silent(handler: BaseHTTPRequestHandler) -> None:
        over.wait()

    try:
        for never in (drip, silent):
            server.asked.clear()
            server.does = lambda pair, number, never=never: (200, never) if number <= TRIES else FIRST
            with pytest.warns(UserWarning, match=r"no answer within 0.3 s \(3 tries\)"):
                assert len(teacher(server, teacher_timeout=0.3)(queries(2)).label) == 1
    finally:
        over.set()


def test_connections_that_break_and_faults_that_pass_are_tried_again(server: Server) -> None:
    def breaks(handler: BaseHTTPRequestHandler) -> None:
        handler.connection.close()

    def short(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.0 200 OK\r\nContent-Length: 100\r\n\r\n{}")

    for faults in ([(200, breaks), (200, short)], [(503, {})] * (TRIES - 1)):
        server.asked.clear()
        server.does = lambda pair, number, faults=faults: [*faults, FIRST][number - 1]
        assert teacher(server)(queries(1)).label.tolist() == [1]


def test_too_many_failures_in_a_row_stop_with_one_line(server: Server) -> None:
    server.does = lambda pair, number: (404, {})
    with pytest.warns(UserWarning), pytest.raises(UserError, match=r"5 pairs in a row got no answer.*404") as error:
        teacher(server)(queries(FAILURES + 3))
    assert len(server.asked) == FAILURES and "\n" not in str(error.value)
    server.asked.clear()
    server.does = lambda pair, number: FIRST if number % FAILURES == 0 else (404, {})
    with pytest.warns(UserWarning, match="12 of 15 pairs got no answer"):
        assert len(teacher(server)(queries(3 * FAILURES)).label) == 3


def test_no_more_requests_are_made_than_may_be(server: Server, tmp_path: Path) -> None:
    server.does = lambda pair, number: (500, {}) if number == 2 else FIRST
    for _ in range(2):  # the second time, as a process that goes on
        with pytest.warns(UserWarning, match="teacher_max_requests=4 have been made"):
            found = teacher(server, RequestLog(tmp_path / "log"), teacher_max_requests=4)(queries(6))
        assert len(found.label) == 3 and len(server.asked) == 4
    assert len(lines(tmp_path / "log")) == 4


def test_every_request_is_logged_and_no_answer_is_asked_for_again(server: Server, tmp_path: Path) -> None:
    path, asked = tmp_path / "teacher.jsonl", queries(4)
    answers = [{"answer": "second", "strength": 0.5}, {"answer": "skip"}, b"?", (400, {"error": "too large"}), FIRST]
    server.does = lambda pair, number: [*answers, FIRST, FIRST][number - 1]
    with pytest.warns(UserWarning):
        before = teacher(server, RequestLog(path))(asked)
    assert [(line["status"], line["answer"], line["strength"], line["try"]) for line in lines(path)] == [
        (200, "second", 0.5, 1),
        (200, "skip", 1, 1),
        (200, None, None, 1),
        (400, None, None, 2),
        (200, "first", 1, 1),
    ]
    assert "no JSON" in lines(path)[2]["error"] and "too large" in lines(path)[3]["reply"]
    with path.open("ab") as file:
        file.write(b'{"time": 1, "pa')  # a kill cut the line
    log = RequestLog(path)
    assert log.requests == 5
    again = teacher(server, log)(asked)
    assert len(server.asked) == 6  # the one that had failed
    assert again.label.tolist() == [0.25, 1, 1] and before.label.tolist() == [0.25, 1]
    assert len(lines(path)) == 6


@pytest.mark.parametrize(
    "line", [b"{}", b"[]", b"what", b"9" * 100_000, b'{"pair": "a", "answer": "left", "strength": 1}', b"\xff"]
)
def test_a_log_that_is_none_is_refused(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "log").write_bytes(line + b"\n")
    with pytest.raises(CorruptFileError, match="line 1 is no request"):
        RequestLog(tmp_path / "log")


def test_the_token_is_sent_to_the_named_place_alone_and_is_kept_nowhere(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TOKEN, "abc/123")
    path, other = tmp_path / "log", Server()
    with pytest.warns(UserWarning) as told:
        server.does = lambda pair, number: (403, {"you sent": server.headers[-1]["Authorization"]})
        teacher(server, RequestLog(path))(queries(1))
        server.does = lambda pair, number: {"answer": server.headers[-1]["Authorization"]}
        teacher(server, RequestLog(path))(queries(1, seed=1))
        for status in (301, 307):
            server.does = lambda pair, number, status=status: (status, {})
            server.more = {"Location": other.url}
            teacher(server, RequestLog(path))(queries(1, seed=status))
    other.http.shutdown()
    other.http.server_close()
    assert {header["Authorization"] for header in server.headers} == {"Bearer abc/123"}
    assert not other.asked and "redirects are not followed" in str(told[-1].message)
    text = path.read_text() + "".join(str(warning.message) for warning in told)
    assert "abc/123" not in text and "Bearer ..." in text
    monkeypatch.setenv(TOKEN, "two\nlines")
    with pytest.raises(UserError, match=TOKEN) as error:
        teacher(server)
    assert "two" not in str(error.value)
    monkeypatch.setenv(TOKEN, "abc")
    with pytest.warns(UserWarning, match=f"{TOKEN} goes to example.org without encryption") as told:
        teacher(server, url="http://example.org/judge")


@pytest.mark.parametrize(
    ("url", "fault"),
    [
        ("ftp://host/x", "is no URL of a teacher: https://HOST/PATH is"),
        ("https://", "is no URL of a teacher"),
        ("https://host/a b", "is no URL of a teacher"),
        ("https://host:99999/", "Port out of range"),
        ("https://me:secret@host/x", "has a password or a key in it"),
        ("https://host/x?api_key=secret", "has a password or a key in it"),
        ("https://host/x?access_token=secret", "has a password or a key in it"),
        ("vlm:host", "is no URL of a teacher: vlm:https://HOST/v1?model=NAME is"),
        ("vlm:https://host/v1", "names no model"),
        ("xyz", "https://HOST/PATH, vlm:https://HOST/v1?model=NAME"),
    ],
)
def test_a_wrong_url_is_one_clear_line(url: str, fault: str) -> None:
    with pytest.raises(UserError) as error:
        Agent("pebble", "Pendulum-v1", teacher=url)
    assert fault in str(error.value) and "\n" not in str(error.value) and "secret" not in str(error.value)


def test_a_url_is_a_teacher_and_how_it_is_asked_stays(tmp_path: Path) -> None:
    url = "https://example.org/judge?a=1,2"
    assert teacher_settings(url)["teacher_url"] == url and teacher_settings("oracle")["teacher_url"] == ""
    (tmp_path / "own.yaml").write_text(f"teacher_url: {url}\nteacher_question: Which is calmer?\nteacher_skip: 0.1\n")
    words = ["train", "pebble", "--env", "Pendulum-v1", "--steps", "100", "--config", str(tmp_path / "own.yaml")]
    with pytest.raises(UserError, match=r"names a teacher elsewhere.*--teacher"):
        run_options.spec(parser().parse_args(words), "pebble", "Pendulum-v1")
    settings = run_options.spec(parser().parse_args([*words, "--teacher", url]), "pebble", "Pendulum-v1").settings
    assert settings["teacher_question"] == "Which is calmer?" and settings["teacher_skip"] == 0
    with pytest.raises(UserError, match="are 2 teachers: choose one"):
        Agent("pebble", "Pendulum-v1", teacher=url, teacher_human=True)


CHEAP: dict[str, Any] = {"train_freq": 50, "eval_freq": 1000, "n_eval_episodes": 1, "refresh_every": 0}


def by_obs(pair: dict[str, Any], number: int) -> dict[str, Any]:
    """Likes the right."""
    first, second = (sum(obs[0] for obs in pair[side]["obs"]) for side in ("first", "second"))
    return {"answer": "first" if first > second else "second", "strength": 0.8}


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on_bit_for_bit_and_asks_for_no_answer_twice(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = RequestLog.append

    def in_equal_times(log: RequestLog, pair: str, number: int, seconds: float, *rest: Any) -> None:
        append(log, pair, number, 0.25, *rest)  # evaluations.csv has the labelling minutes

    monkeypatch.setattr(RequestLog, "append", in_equal_times)
    server.does = by_obs
    words: dict[str, Any] = CHEAP | {"teacher": server.url}
    with pytest.warns(UserWarning, match="states and actions alone"):
        started("pebble", tmp_path / "whole", **words)
    count = len(server.asked)
    assert count == 40 and server.asked[0]["names"] == {"obs": ["obs[0]"], "act": ["act[0]"]}
    labels = torch.cat([part.label for part in read_sessions(tmp_path / "whole" / "labels.sqlite") if part])
    assert set(labels.tolist()) == {torch.tensor(0.9).item(), torch.tensor(0.1).item()}
    server.asked.clear()
    killed(130, lambda: started("pebble", tmp_path / "run", **words))
    half = len(server.asked)
    assert 0 < half < count
    with pytest.raises(UserError, match=r"would send its pairs to http.*only with explicit trust"):
        Agent.resume(tmp_path / "run", checkpoint_every=EVERY)
    assert len(server.asked) == half
    Agent.resume(tmp_path / "run", checkpoint_every=EVERY, trust=True)
    equal(tmp_path / "run", tmp_path / "whole")
    assert len(server.asked) == count == len(lines(tmp_path / "run" / "teacher.jsonl"))
    told = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert told["teacher"] == "settings" and told["settings"]["teacher_url"] == server.url


def test_a_run_whose_teacher_goes_away_stops_with_one_line_and_goes_on_later(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    server.does = lambda pair, number: by_obs(pair, number) if number <= 6 else (500, {})
    with pytest.warns(UserWarning), pytest.raises(UserError, match=r"5 pairs in a row.*resume .* --trust goes on"):
        started("pebble", tmp_path / "run", **CHEAP, teacher=server.url, teacher_frames=0)
    log = tmp_path / "run" / "teacher.jsonl"
    assert len([line for line in lines(log) if line["answer"]]) == 6
    with pytest.raises(SystemExit) as error:  # still away
        main(["resume", str(tmp_path / "run"), "--trust"])
    assert error.value.code == 2 and "5 pairs in a row got no answer" in capsys.readouterr().err
    server.does = by_obs
    main(["resume", str(tmp_path / "run"), "--trust"])
    answered = [line["pair"] for line in lines(log) if line["answer"]]
    labels = [part.label for part in read_sessions(tmp_path / "run" / "labels.sqlite") if part]
    assert len(set(answered)) == len(answered) == len(torch.cat(labels)) == 40  # none asked twice, none lost


def test_a_fork_goes_to_no_place_that_its_source_names(server: Server, tmp_path: Path) -> None:
    server.does = by_obs
    started("pebble", tmp_path / "run", steps=200, **CHEAP, teacher=server.url, teacher_frames=0)
    count, more = len(server.asked), {"labels": 50}
    with pytest.raises(UserError, match="would send its pairs to"):
        Agent.fork(tmp_path / "run", out=tmp_path / "fork", **more).learn(100)
    with pytest.raises(UserError, match="would send its pairs to"):
        Agent.load(tmp_path / "run").learn(100)
    with pytest.raises(UserError, match="teacher_frames=0"):
        Agent.fork(tmp_path / "run", trust=True, teacher_frames=8, **more).learn(100)
    assert len(server.asked) == count and not (tmp_path / "fork").exists()
    Agent.fork(tmp_path / "run", out=tmp_path / "fork", teacher_url=server.url, **more).learn(100)
    assert len(server.asked) == count + 10 == count + len(lines(tmp_path / "fork" / "teacher.jsonl"))


def test_the_example_server_judges_and_asks_for_the_token(monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
    file = ROOT / "examples" / "http_teacher.py"
    assert len(file.read_text().splitlines()) <= 40
    spec = importlib.util.spec_from_file_location("example", file)
    assert spec and spec.loader
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    example.Handler.entry, example.TOKEN = "y", "abc-123"
    monkeypatch.setattr(example.Handler, "log_message", lambda *_: None)
    http = ThreadingHTTPServer(("127.0.0.1", 0), example.Handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    url, asked = f"http://127.0.0.1:{http.server_port}", queries(5)
    try:
        with pytest.warns(UserWarning, match="401"):
            assert not len(teacher(server, url=url)(queries(1)).label)
        monkeypatch.setenv(TOKEN, "abc-123")
        found = teacher(server, url=url)(asked).label
    finally:
        http.shutdown()
        http.server_close()
    higher = asked.first.obs[..., 1].sum(1) > asked.second.obs[..., 1].sum(1)
    assert found.tolist() == higher.float().tolist()


class Drawing:
    """A film whose pictures tell which they are."""

    fault = ""

    def pictures(self, rows: Sequence[int], steps: Sequence[int]) -> list[str]:
        if self.fault:
            raise RuntimeError(self.fault)
        return [f"data:image/jpeg;base64,{rows[step]}" for step in steps]


def filmed(server: Server, **settings: Any) -> tuple[HttpTeacher, Queries, Drawing]:
    """A teacher that sees what happened, and a pair of rows 0 to 4 and 6 to 10 of the store."""
    store, film = ReplayBuffer(2, 1, 20), Drawing()
    store.begin(0)
    for row in range(20):
        store.add(np.full(2, row, np.float32), np.zeros(1, np.float32), np.zeros(2, np.float32), 0.0, False)
    columns = store.obs, store.act, store.env_reward
    asked = Queries(*(Segments(*(column[None, start : start + 5] for column in columns)) for start in (0, 6)))
    config = Config(total_timesteps=100, **{"teacher_url": server.url, "teacher_frames": 3, **settings})
    return HttpTeacher(config, "Point-v0", ENTRIES, RequestLog(None), store, film), asked, film


def frames(*rows: int) -> list[str]:
    return [f"data:image/jpeg;base64,{row}" for row in rows]


def test_pictures_are_sent_where_there_are_any(server: Server) -> None:
    asks, asked, film = filmed(server)
    assert asks(asked).label.tolist() == [1]
    told = server.asked[0]
    assert told["frame_steps"] == [0, 2, 4]
    assert (told["first"]["frames"], told["second"]["frames"]) == (frames(0, 2, 4), frames(6, 8, 10))
    film.fault = "no OpenGL\nwas found"
    with pytest.warns(UserWarning, match="states and actions alone: no OpenGL was found"):
        assert asks(Queries(asked.second, asked.first)).label.tolist() == [1]
    assert "frames" not in server.asked[1]["first"] and "frame_steps" not in server.asked[1]
    for count, steps in ((1, [0]), (100, [0, 1, 2, 3, 4])):
        asks, asked, _ = filmed(server, teacher_frames=count)
        asks(asked)
        assert server.asked[-1]["frame_steps"] == steps


def chat(text: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}]}


def test_a_vision_language_model_is_shown_the_pictures_and_the_question(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TOKEN, "abc-123")
    server.does = lambda body, number: chat('```json\n{"answer": "second", "strength": 0.6}\n```')
    url = f"vlm:http://127.0.0.1:{server.http.server_port}/v1?model=see/it-2&version=3"
    asks, asked, _ = filmed(server, teacher_url=url, teacher_question="Which {one} stands?")
    assert asks(asked).label.tolist() == [pytest.approx(0.2)]
    assert server.paths == ["/v1/chat/completions?version=3"]
    assert server.headers[0]["Authorization"] == "Bearer abc-123"
    (body,) = server.asked
    assert set(body) == {"model", "messages"} and body["model"] == "see/it-2"
    (message,) = body["messages"]
    assert message["role"] == "user"
    parts = [part["text"] if part["type"] == "text" else part["image_url"]["url"] for part in message["content"]]
    assert "Point-v0" in parts[0] and "Which {one} stands?" in parts[0] and "pictures" in parts[0]
    assert parts[1:-1] == ["The first recording:", *frames(0, 2, 4), "The second recording:", *frames(6, 8, 10)]
    assert '"answer"' in parts[-1] and '"strength"' in parts[-1]


def test_a_model_reads_states_where_there_are_no_pictures(server: Server) -> None:
    server.does = lambda body, number: chat("Tie.")
    url = f"vlm:http://127.0.0.1:{server.http.server_port}/v1/chat/completions?model=reader"
    asks, asked, _ = filmed(server, teacher_url=url, teacher_frames=0)
    assert asks(asked).label.tolist() == [0.5] and server.paths == ["/v1/chat/completions"]
    parts = [part["text"] for part in server.asked[0]["messages"][0]["content"]]
    assert parts[4].splitlines() == ["x, y, action push", *(f"{row}, {row}, 0" for row in range(6, 11))]


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ('The first falls {early}. {"answer": "first"} or rather\n{"answer": "second", "strength": 1}', 0),
        ('{"answer": "tie"}', 0.5),
        (" **First**\n", 1),
        ("I like the first", None),
        ('{"answer": "both"}', None),
        ("", None),
        (None, None),
        ([{"type": "text", "text": "first"}], None),
    ],
)
def test_a_model_may_think_aloud_and_what_is_no_answer_costs_no_label(server: Server, text: Any, label: Any) -> None:
    server.does = lambda body, number: chat(text)
    url = f"vlm:http://127.0.0.1:{server.http.server_port}/v1?model=m"
    asks, asked, _ = filmed(server, teacher_url=url)
    with nullcontext() if label is not None else pytest.warns(UserWarning, match="it costs no label"):
        assert asks(asked).label.tolist() == ([] if label is None else [label])
    assert len(server.asked) == (TRIES if label is None else 1)


def test_what_is_no_chat_completion_costs_no_label(server: Server) -> None:
    asks, asked, _ = filmed(server, teacher_url=f"vlm:{server.url}?model=m")
    with pytest.warns(UserWarning, match="the reply is no chat completion"):
        assert not len(asks(asked).label)


def test_the_documents_show_what_is_sent_and_what_comes_back(server: Server, tmp_path: Path) -> None:
    sent, back = map(json.loads, re.findall(r"```json\n(.*?)```", (ROOT / "docs/teachers.md").read_text(), re.DOTALL))
    server.does = lambda pair, number: back
    asks, asked, _ = filmed(server)
    assert asks(asked).label.tolist() == [pytest.approx(0.9)]
    assert server.asked[0].keys() == sent.keys() and server.asked[0]["first"].keys() == sent["first"].keys()
    assert server.asked[0]["version"] == sent["version"] and server.asked[0]["names"].keys() == sent["names"].keys()
    env = registration.make(sent["env"], 0)
    assert registration.entry_names(env) == sent["names"]["obs"] + sent["names"]["act"]
