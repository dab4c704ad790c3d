"""What labellers are to go by: a little Markdown, with paragraphs, lists and emphasis. All else in it is text."""

from __future__ import annotations

from pathlib import Path

from markdown_it import MarkdownIt

from rlhf_bilevel.errors import UserError

LIMIT = 2**16  # bytes


def html(path: Path) -> str:
    """The file's text as HTML, escaped. UserError where it cannot be read, is no text, empty or too long."""
    try:
        data = path.read_bytes()
        text = data.decode()
    except OSError as error:
        raise UserError(f"--guidelines {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"--guidelines {path}: this is no text in UTF-8") from None
    if not text.strip() or len(data) > LIMIT:
        raise UserError(f"--guidelines {path}: a text of 1 to {LIMIT:,} bytes, not {len(data):,}")
    return MarkdownIt("zero").enable(["list", "emphasis"]).render(text)
