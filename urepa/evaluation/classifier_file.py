"""The metadata in the file of a track's classifier, read without torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from urepa.core import weights_metadata
from urepa.core.errors import UserError

NAME = "cifar_cnn.safetensors"  # relative to data.root
KEY = "cifar_cnn"  # of its metadata (`urepa.core.weights_metadata`)
NEEDED = {"accuracy", "classes", "image_size"}  # required entries
COMMAND = "python -m urepa.train_classifier"


def as_metadata(stated: Mapping[str, object]) -> dict[str, str]:
    """A classifier's metadata in the form that safetensors stores."""
    return weights_metadata.as_metadata(KEY, stated)


def read_metadata(file: Path) -> dict[str, str]:
    """The metadata of a .safetensors file if it is a classifier's, else {}: `accuracy`, numbers of images and classes,
    digests, settings. Raises UserError if the file is damaged."""
    return weights_metadata.read_metadata(file, KEY)


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
    differing = weights_metadata.differing_facts(there, expected)
    if differing:
        raise UserError(
            f"{file} is a classifier of other settings or images ({differing}); give out=FILE for another, "
            "or delete that one"
        )
    return there
