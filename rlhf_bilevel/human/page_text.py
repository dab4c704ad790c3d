"""What people are asked on a run's label page, and by what they judge. The next page of the run has the same."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rlhf_bilevel.data.run_folder import RunFolder
from rlhf_bilevel.errors import CorruptFileError
from rlhf_bilevel.human.guidelines import MAX_BYTES
from rlhf_bilevel.utils.files import write
from rlhf_bilevel.utils.json_yaml import read_json, to_json

QUESTION = "Which one is better?"


class PageText(BaseModel):
    """The contents of a run's label_page.json."""

    model_config = ConfigDict(strict=True, extra="forbid")

    question: Annotated[str, Field(min_length=1, max_length=1000)] = QUESTION
    guidelines: Annotated[str, Field(max_length=MAX_BYTES)] = ""  # Markdown, see ``guidelines.html``


def page_text(run: RunFolder, question: str | None = None, guidelines: str | None = None) -> PageText:
    """The text of the page: what is given, and for None what the run's page had before. What is new is kept.

    CorruptFileError if the run's file holds something else.
    """
    before = PageText()
    if run.label_page.is_file():
        try:
            before = PageText.model_validate(read_json(run.label_page))
        except ValidationError as error:
            first = error.errors()[0]
            raise CorruptFileError(f"{run.label_page}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    given = {"question": question, "guidelines": guidelines}
    now = before.model_copy(update={name: text for name, text in given.items() if text is not None})
    if now != before:
        write(run.label_page, to_json(now.model_dump(), indent=1).encode())
    return now
