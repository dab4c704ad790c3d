"""A vision-language model as a teacher, by the chat protocol of OpenAI, which most servers of models speak.

``vlm:https://HOST/v1?model=NAME`` is asked at ``https://HOST/v1/chat/completions``. A pair is one message: the
question, the pictures of both segments in their order, or their states and actions as text where there are none.
"""

from __future__ import annotations

import json
import re
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from rlhf_bilevel.data.request_log import WORDS
from rlhf_bilevel.utils.urls import VLM

TASK = """You compare two short recordings of an agent in the environment {env}.
Question: {question}
Each recording is shown by {kind}, from its beginning to its end."""
FORM = """Answer with one line of JSON and nothing else: {"answer": "first", "strength": 0.8}
"answer" is "first" or "second" for the better recording, "tie" if they are equally good, "skip" if you cannot tell.
"strength" is how much better it is, from 0 (hardly) to 1 (beyond doubt)."""
CHAT = "/chat/completions"
DIGITS = 3  # of numbers in a text


def endpoint(url: str) -> tuple[str, str]:
    """Where requests go, and the model's name."""
    parts = urlsplit(url.removeprefix(VLM))
    parameters = parse_qsl(parts.query, keep_blank_values=True)
    model = next(value for name, value in parameters if name == "model")
    query = urlencode([(name, value) for name, value in parameters if name != "model"])
    path = parts.path.rstrip("/").removesuffix(CHAT) + CHAT
    return urlunsplit(parts._replace(path=path, query=query, fragment="")), model


def request(model: str, pair: dict[str, Any]) -> dict[str, Any]:
    """The body of a request about a ``pair``, as ``HttpTeacher`` describes it."""
    pictures = "frames" in pair["first"]
    kind = "pictures" if pictures else "its states and actions, a step a row"
    content = [_text(TASK.format(env=pair["env"], question=pair["question"], kind=kind))]
    for side in ("first", "second"):
        content.append(_text(f"The {side} recording:"))
        if pictures:
            content += [{"type": "image_url", "image_url": {"url": frame}} for frame in pair[side]["frames"]]
        else:
            content.append(_text(_table(pair, side)))
    return {"model": model, "messages": [{"role": "user", "content": [*content, _text(FORM)]}]}


def reply(body: Any) -> Any:
    """What the model said, as a teacher's answer; ValueError where it is none.

    The last JSON object in the text counts, so that a model may think aloud before it; else the text is one word.
    """
    try:
        text = body["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        raise ValueError("the reply is no chat completion") from None
    if not isinstance(text, str):
        raise ValueError("the model said nothing")
    for found in reversed(re.findall(r"\{[^{}]*\}", text)):
        try:
            return json.loads(found)
        except ValueError:
            continue
    word = re.sub(r"\W", "", text).lower()
    if word in WORDS:
        return {"answer": word}
    raise ValueError(f"the model said {json.dumps(text.strip()[:60])}, which has no answer in JSON")


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _table(pair: dict[str, Any], side: str) -> str:
    columns = [*pair["names"]["obs"], *(f"action {name}" for name in pair["names"]["act"])]
    rows = ([*obs, *act] for obs, act in zip(pair[side]["obs"], pair[side]["act"], strict=True))
    return "\n".join([", ".join(columns), *(", ".join(f"{value:.{DIGITS}g}" for value in row) for row in rows)])
