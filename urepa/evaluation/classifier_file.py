"""The file of a track's classifier, without torch: what it says of itself beside its weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open

from urepa.core.errors import UserError

NAME = "cifar_cnn.safetensors"  # below data.root
KEY = "cifar_cnn"  # one text of JSON: safetensors writes several in an order of chance, and the file's digest is to be
# the same wherever the weights are
NEEDED = {"accuracy", "classes", "image_size"}  # by its readers
COMMAND = "python -m urepa.train_classifier"


def as_metadata(stated: Mapping[str, object]) -> dict[str, str]:
    """What a classifier's file states, as safetensors takes it."""
    return {KEY: json.dumps({key: str(value) for key, value in stated.items()}, sort_keys=True)}


def read_metadata(file: Path) -> dict[str, str]:
    """What a .safetensors file states beside its tensors, if it is a classifier's: `accuracy`, numbers of images and
    classes, digests, settings. Nothing of others. UserError where it is damaged."""
    try:
        with safe_open(file, "np") as opened:
            text = (opened.metadata() or {}).get(KEY, "{}")
        return {key: str(value) for key, value in json.loads(text).items()}
    except (SafetensorError, ValueError, AttributeError) as error:
        raise UserError(f"{file} is no whole safetensors file ({error}); copy it again, or delete it") from error


def read_classifier_metadata(file: Path) -> dict[str, str]:
    """The same; UserError if the file is not a classifier's."""
    stated = read_metadata(file)
    if not stated.keys() >= NEEDED:
        raise UserError(f"{file} is not what `{COMMAND}` writes; give another file, or delete it")
    return stated


def refuse_other(file: Path, expected: Mapping[str, object]) -> dict[str, str]:
    """What a classifier that is there states. UserError that names in what it is not the one that is expected: it
    stays, as runs may have been measured with it."""
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
