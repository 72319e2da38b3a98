"""Captions as text: finding their column in a source, decoding, and stripping white space.

A caption is not normalised: characters are not composed or decomposed (NFC, NFD), and control characters are left to
the text encoder's tokenizer. A NUL is refused: a text with one is nearly always UTF-16 without a byte order mark.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from urepa.core.errors import UserError
from urepa.core.escaping import printable
from urepa.data.sources.source_image import SourceImage

USUAL = ("text", "caption", "captions")  # names of columns and keys
LINE_ENDS = re.compile(r"\r\n|\r|\n")  # str.splitlines would also split at characters that belong to a text
UTF16 = (b"\xff\xfe", b"\xfe\xff")  # byte order marks
SHOWN = 20  # names of columns in a message


def clean(text: str, where: str) -> str:
    """The text, stripped of white space. Raises UserError for a lone surrogate, which JSON can contain, and for a
    NUL."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: {text!a} is not valid Unicode; correct it") from error
    if "\0" in text:
        raise UserError(f"{where} has a NUL character, as in UTF-16 without a byte order mark; correct it")
    return text.strip()


def decode(content: bytes, where: str) -> str:
    """A file's text, without a byte order mark. Raises UserError if it is neither UTF-8 nor marked as UTF-16."""
    encoding = "utf-16" if content.startswith(UTF16) else "utf-8-sig"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{where} is not {encoding.upper().removesuffix('-SIG')} text ({error}); save it as UTF-8"
        ) from error


def lines(content: str, where: str) -> list[str]:
    """The texts of a file with one per line, without empty lines."""
    return [text for line in LINE_ENDS.split(content) if (text := clean(line, where))]


def find_column(there: Sequence[str], asked: str | None, where: str) -> str:
    """The name of the column or key that holds the captions. Raises UserError if there is none, or if it is ambiguous.

    Args:
        asked: data.caption_column; None: the one column with a usual name.
    """
    named = ", ".join(printable(str(name)) for name in list(there)[:SHOWN]) + (", ..." if len(there) > SHOWN else "")
    if asked is not None:
        if asked not in there:
            raise UserError(f"{where} has no {asked} (data.caption_column); there are: {named}")
        return asked
    found = [name for name in there if name in USUAL]
    if len(found) != 1:
        what = f"has {' and '.join(found)}" if found else f"has none of {', '.join(USUAL)}"
        raise UserError(f"{where} {what}; name the captions' column with data.caption_column=NAME; there are: {named}")
    return found[0]


def captions_of(rows: Sequence[SourceImage], column: str | None) -> dict[str, list[str]]:
    """The captions that a source stores with its images, by sample id, stripped of white space. Raises UserError if an
    image has no caption or an empty one, and for values that are not text."""
    found: dict[str, list[str]] = {}
    without: list[str] = []
    for row in rows:
        assert row.captions is not None, "checked by PixelTrack.check"
        texts = _as_texts(row.captions(column), row.path)
        if not texts:
            without.append(row.path)
        elif not all(texts):
            raise UserError(f"{printable(row.path)} has an empty caption; write one, or take the image away")
        found[row.name] = texts
    if without:
        raise UserError(
            f"{printable(without[0])} has no caption ({len(without)} of {len(rows)} images have none); give each one, "
            "or take those images away"
        )
    return found


def _as_texts(value: object, where: str) -> list[str]:
    if value is None:
        return []
    several: Iterable[object] = value if isinstance(value, list | tuple) else [value]
    texts = []
    for text in several:
        if not isinstance(text, str):
            raise UserError(
                f"{printable(where)}: a caption is {printable(repr(text))[:60]}, not text; name the column of the "
                "texts with data.caption_column=NAME"
            )
        texts.append(clean(text, printable(where)))
    return texts
