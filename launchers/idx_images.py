"""Writes the images of an IDX file (the format of MNIST, Fashion-MNIST and KMNIST) as PNG files in class folders.

    python -m launchers.idx_images IMAGES LABELS FOLDER

IMAGES has grey images [N,H,W], LABELS a class for each [N], both of unsigned bytes, gzip-compressed or not. The
command writes FOLDER/CLASS/NUMBER.png: CLASS is the label, NUMBER the position in the file. FOLDER must not exist; it
is written completely or not at all. For `data.source=folder data.images=DIR` the folders are DIR/train and DIR/test.

IDX: two zero bytes, the type of the values (8: unsigned bytes), the number of dimensions, the dimensions as 32-bit
big-endian integers, the values.

Shapes: N images, H rows, W columns.
"""

from __future__ import annotations

import gzip
import os
import shutil
import struct
import sys
import zlib
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import IO, cast
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray
from omegaconf import OmegaConf
from PIL import Image

from urepa.config.command_schemas import IdxImages
from urepa.config.help import HELP, help_text
from urepa.core import progress, safe_output
from urepa.core.errors import UserError
from urepa.core.files import check_folder_target, sync_folder
from urepa.core.one_line_errors import one_line_mistakes

USAGE = "python -m launchers.idx_images IMAGES LABELS FOLDER"
UNSIGNED_BYTES = 8  # the code of this type of values
GZIP = b"\x1f\x8b"
IMAGES, LABELS = ("images", 3), ("labels", 1)  # what a file holds, and its number of dimensions


def read_idx(file: Path, kind: tuple[str, int]) -> NDArray[np.uint8]:
    """The values of an IDX file of unsigned bytes, in its shape. `kind`: what it holds, and its number of dimensions.
    Raises UserError if it is not such a file, or is truncated or too long."""
    if not file.is_file():
        raise UserError(f"there is no file {file}; give the file of {kind[0]}: {USAGE}")
    with open(file, "rb") as raw:
        is_compressed = raw.read(len(GZIP)) == GZIP
    with gzip.open(file, "rb") if is_compressed else open(file, "rb") as opened:
        try:
            return _read(cast(IO[bytes], opened), file, kind)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise UserError(f"{file} is damaged ({error}); copy it again") from error


def _read(opened: IO[bytes], file: Path, kind: tuple[str, int]) -> NDArray[np.uint8]:
    name, dimensions = kind
    head = opened.read(4)
    if len(head) < 4 or head[:2] != b"\0\0":
        raise UserError(
            f"{file} is not an IDX file, which begins with two zero bytes, a type and a number of dimensions"
        )
    if head[2] != UNSIGNED_BYTES:
        raise UserError(f"{file} has values of type 0x{head[2]:02x}; {name} are unsigned bytes, type 0x08")
    if head[3] != dimensions:
        raise UserError(f"{file} has {head[3]} dimensions; {name} have {dimensions}: {USAGE}")
    sizes = opened.read(4 * dimensions)
    if len(sizes) < 4 * dimensions:
        raise UserError(f"{file} is truncated: it ends within its dimensions; copy it again")
    shape = struct.unpack(f">{dimensions}I", sizes)
    if 0 in shape:
        raise UserError(f"{file} has no {name}: its shape is {'x'.join(map(str, shape))}")
    values = opened.read()
    if len(values) != prod(shape):
        sizes_text = "x".join(map(str, shape))
        raise UserError(
            f"{file} has {len(values):,} values, but its shape {sizes_text} has {prod(shape):,}; copy it again"
        )
    return np.frombuffer(values, np.uint8).reshape(shape)


def write_class_folders(images_file: Path, labels_file: Path, folder: Path) -> dict[str, int]:
    """Writes FOLDER/CLASS/NUMBER.png. Class names and numbers are padded with zeros to equal lengths, so that their
    alphabetical order is that of the numbers. Returns the number of images by class. Raises UserError, and writes
    nothing, if a file cannot be read, if the two files have other numbers of images, or if the folder exists."""
    if os.path.lexists(folder):
        raise UserError(f"{folder} exists already; give a new folder, or delete it")
    check_folder_target("FOLDER", folder)
    images_NHW, labels_N = read_idx(images_file, IMAGES), read_idx(labels_file, LABELS)
    if len(images_NHW) != len(labels_N):
        raise UserError(
            f"{images_file} has {len(images_NHW):,} images and {labels_file} {len(labels_N):,} labels; give files that "
            "belong together"
        )
    widths = len(str(labels_N.max())), len(str(len(labels_N) - 1))
    names = [f"{label:0{widths[0]}d}" for label in labels_N.tolist()]
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{uuid4().hex}.tmp")
    try:
        for name in set(names):
            (temporary / name).mkdir(parents=True)
        with progress.bar(names, desc="writing", unit="image", leave=False, disable=not sys.stderr.isatty()) as each:
            for number, name in enumerate(each):
                Image.fromarray(images_NHW[number]).save(temporary / name / f"{number:0{widths[1]}d}.png")
        os.rename(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    sync_folder(folder.parent)
    return {name: names.count(name) for name in sorted(set(names))}


def main(arguments: Sequence[str]) -> None:
    """Writes the images and prints how many each class has."""
    if len(arguments) != 3 or any(argument.startswith("-") for argument in arguments):
        raise UserError(f"give two files and a folder: {USAGE}")
    counts = write_class_folders(*map(Path, arguments))
    listed = ", ".join(f"{name}: {count:,}" for name, count in counts.items())
    print(f"written: {arguments[2]}, {sum(counts.values()):,} images in {len(counts)} classes ({listed})")


if __name__ == "__main__":
    safe_output.make_output_safe()
    if HELP & set(sys.argv):
        print(help_text("idx_images", OmegaConf.structured(IdxImages)))
        sys.exit(0)
    with one_line_mistakes():
        main(sys.argv[1:])
