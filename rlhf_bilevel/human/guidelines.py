"""The labelling guidelines that the label page shows: a small part of Markdown, as safe HTML."""

from __future__ import annotations

from pathlib import Path

from markdown_it import MarkdownIt

from rlhf_bilevel.errors import UserError

MAX_BYTES = 2**16


def read(path: Path) -> str:
    """The text of the file ``path``.

    UserError if the file cannot be read, is not UTF-8, is empty, or has more than MAX_BYTES bytes.
    """
    try:
        data = path.read_bytes()
        text = data.decode()
    except OSError as error:
        raise UserError(f"--guidelines {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"--guidelines {path}: the file is not text in UTF-8") from None
    if not text.strip() or len(data) > MAX_BYTES:
        raise UserError(f"--guidelines {path}: the text must have 1 to {MAX_BYTES:,} bytes, not {len(data):,}")
    return text


def html(text: str) -> str:
    """The text as HTML: headings, paragraphs, lists and emphasis. All else, HTML and links included, is plain text.

    The largest heading is an h3: the page has an h1, and the guidelines an h2.
    """
    markdown = MarkdownIt("zero").enable(["heading", "lheading", "list", "emphasis"])
    tokens = markdown.parse(text)
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(6, int(token.tag[1]) + 2)}"
    return markdown.renderer.render(tokens, markdown.options, {})
