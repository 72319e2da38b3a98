"""The metadata in the file of a track's classifier, read without torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open

from urepa.core.errors import UserError

NAME = "cifar_cnn.safetensors"  # relative to data.root
KEY = "cifar_cnn"  # all metadata is one JSON text: safetensors writes several texts in random order, which would change
# the file's digest
NEEDED = {"accuracy", "classes", "image_size"}  # required entries
COMMAND = "python -m urepa.train_classifier"


def as_metadata(stated: Mapping[str, object]) -> dict[str, str]:
    """A classifier's metadata in the form that safetensors stores."""
    return {KEY: json.dumps({key: str(value) for key, value in stated.items()}, sort_keys=True)}


def read_metadata(file: Path) -> dict[str, str]:
    """The metadata of a .safetensors file if it is a classifier's, else {}: `accuracy`, numbers of images and classes,
    digests, settings. Raises UserError if the file is damaged."""
    try:
        with safe_open(file, "np") as opened:
            text = (opened.metadata() or {}).get(KEY, "{}")
        return {key: str(value) for key, value in json.loads(text).items()}
    except (SafetensorError, ValueError, AttributeError) as error:
        raise UserError(f"{file} is not a complete safetensors file ({error}); copy it again, or delete it") from error


def read_classifier_metadata(file: Path) -> dict[str, str]:
    """The metadata of a classifier's file. Raises UserError if the file is not a classifier's."""
    stated = read_metadata(file)
    if not stated.keys() >= NEEDED:
        raise UserError(f"{file} is not what `{COMMAND}` writes; give another file, or delete it")
    return stated


def refuse_other(file: Path, expected: Mapping[str, object]) -> dict[str, str]:
    """The metadata of an existing classifier. Raises UserError with the differences if it is not the expected one. It
    is not overwritten, because runs may have been measured with it."""
    there = read_classifier_metadata(file)
    differing = [
        f"{key}: {there.get(key, 'unknown')} there, {value} here"
        for key, value in expected.items()
        if there.get(key) != str(value)
    ]
    if differing:
        raise UserError(
            f"{file} is a classifier of other settings or images ({'; '.join(differing)}); give out=FILE for another, "
            "or delete that one"
        )
    return there
