"""Captions in files beside the images of a folder.

NAME.txt beside NAME.jpg has one caption per line. A metadata.jsonl or metadata.csv, in a class folder or in a folder
above it up to the images' root, has `file_name` (relative to its own folder) and `text`, the format of an image folder
in Hugging Face `datasets`. An image has several captions if it has several rows, or if `text` is a list.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from urepa.core.errors import UserError
from urepa.core.escaping import printable
from urepa.data.sources.caption_text import LINE_ENDS, clean, decode, lines
from urepa.data.sources.image_folder import suffix_of
from urepa.data.sources.source_image import SourceImage

METADATA = ("metadata.jsonl", "metadata.csv")
SUFFIXES = frozenset({".txt", ".jsonl", ".csv"})  # of files that are read for captions
HOW = "give each a NAME.txt beside it, or a row of metadata.jsonl or metadata.csv (file_name, text)"


def read_captions(root: Path, rows: Sequence[SourceImage]) -> dict[str, list[str]]:
    """The captions of a folder's images, by sample id, each stripped of white space. Raises UserError if an image has
    no caption, an empty one, or captions in two places, and for a file that cannot be read as text."""
    of_path: dict[str, list[str]] = {}
    for folder in _folders(rows):
        for path, texts in _beside(root, folder):
            of_path.setdefault(path, []).extend(texts)
    texts_of = _text_files(root, rows)
    found: dict[str, list[str]] = {}
    without: list[str] = []
    for row in rows:
        listed, beside = of_path.get(row.path), texts_of.get(row.name)
        if listed is not None and beside is not None:
            raise UserError(
                f"{printable(row.path)} has captions in {printable(beside.name)} and in a metadata file; keep one of "
                "the two"
            )
        captions = listed if beside is None else read_lines(beside)
        if captions is None:
            without.append(row.path)
        elif not captions or not all(captions):
            where = (
                f"{printable(beside.name)} has no text" if beside is not None else "its text in the metadata is empty"
            )
            raise UserError(f"{printable(row.path)} has an empty caption: {where}; write one, or take the image away")
        else:
            found[row.name] = captions
    if without:
        raise UserError(
            f"{printable(without[0])} has no caption ({len(without)} of {len(rows)} images have none); {HOW}, or give "
            "data.captions=classes for prompts of the classes' names"
        )
    return found


def _folders(rows: Sequence[SourceImage]) -> list[PurePosixPath]:
    """The images' folders and all folders above them up to the root, relative to the root."""
    own = {PurePosixPath(row.path).parent for row in rows}
    return sorted(own | {above for folder in own for above in folder.parents})


def _text_files(root: Path, rows: Sequence[SourceImage]) -> dict[str, Path]:
    """The text file beside each image that has one, by sample id."""
    names: dict[PurePosixPath, dict[str, str]] = {}
    found = {}
    for row in rows:
        path = PurePosixPath(row.path)
        if path.parent not in names:
            files = sorted(file.name for file in (root / path.parent).iterdir() if suffix_of(file.name) == ".txt")
            names[path.parent] = {Path(name).stem: name for name in files}
        name = names[path.parent].get(path.stem)
        if name is not None:
            found[row.name] = root / path.parent / name
    return found


def _beside(root: Path, folder: PurePosixPath) -> Iterator[tuple[str, list[str]]]:
    """The images' paths below the root and their captions, from a folder's metadata file. Raises UserError if the
    folder has two metadata files."""
    there = [root / folder / name for name in METADATA if (root / folder / name).is_file()]
    if len(there) > 1:
        raise UserError(f"{root / folder} has {' and '.join(METADATA)}; keep one of the two")
    for file in there:
        rows = _json_rows(file) if file.suffix == ".jsonl" else _csv_rows(file)
        for place, name, texts in rows:
            plain = [clean(text, f"{file}, {place}") for text in texts if isinstance(text, str)]
            if not isinstance(name, str) or len(plain) < len(texts):
                raise UserError(f"{file}, {place}: file_name and text are not both text; correct that row")
            yield str(folder / name.replace("\\", "/")), plain


def _json_rows(file: Path) -> Iterator[tuple[str, object, list[object]]]:
    for number, line in enumerate(LINE_ENDS.split(_text(file)), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{file}, line {number} is not valid JSON ({error}); correct it") from error
        if not isinstance(row, dict) or not {"file_name", "text"} <= row.keys():
            raise UserError(f"{file}, line {number} has no file_name and text; give both")
        yield f"line {number}", row["file_name"], row["text"] if isinstance(row["text"], list) else [row["text"]]


def _csv_rows(file: Path) -> Iterator[tuple[str, object, list[object]]]:
    reader = csv.DictReader(io.StringIO(_text(file), newline=""))
    if not {"file_name", "text"} <= set(reader.fieldnames or ()):
        raise UserError(f"{file} has no columns file_name and text; give both")
    for number, row in enumerate(reader, 1):
        yield f"row {number}", row["file_name"], [row["text"]]


def read_lines(file: Path) -> list[str]:
    """The texts of a file with one per line, without empty lines. Raises UserError if it is not a text file."""
    return lines(_text(file), str(file))


def _text(file: Path) -> str:
    return decode(file.read_bytes(), str(file))
