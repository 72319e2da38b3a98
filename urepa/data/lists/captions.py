"""The captions of a track's samples, beside its lists.

FOLDER/captions.jsonl: one line {"id": SAMPLE_ID, "captions": [TEXT, ...]} per sample. Prompts made from the class names
are in FOLDER/captions_classes.jsonl.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from urepa.core.errors import UserError
from urepa.core.files import write_whole
from urepa.data.lists.samples import Samples

Captions = Mapping[str, Sequence[str]]  # by sample id
PROMPT = "a photo of a {}"  # the caption made from a class name
EMPTY = ""  # the empty caption; no image has it


def write_captions(file: Path, captions: Captions) -> None:
    """Writes the file, whole or not at all."""
    lines = (json.dumps({"id": sample_id, "captions": list(texts)}) for sample_id, texts in captions.items())
    write_whole(file, "".join(f"{line}\n" for line in lines))


def read_written(file: Path) -> dict[str, tuple[str, ...]]:
    """Reads what `write_captions` wrote. Raises UserError if the file is damaged."""
    try:
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        return {str(row["id"]): tuple(map(str, row["captions"])) for row in rows}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{file} is damaged ({error}); put it back, or delete it on a machine that has the images"
        ) from error


def caption_key(text: str) -> str:
    """The key of a caption's record: its digest."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def distinct(captions: Iterable[Sequence[str]]) -> Iterator[str]:
    """Every caption once, the empty one first, then in the order of the samples."""
    yield from dict.fromkeys([EMPTY, *(text for texts in captions for text in texts)])


def as_rows(texts: Iterable[str]) -> Samples:
    """Captions as the rows of a list, with their keys as sample ids, so that a store of captions is made and checked
    like every other store."""
    return Samples.of_rows((caption_key(text), 0, text, "train") for text in texts)
