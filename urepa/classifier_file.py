"""The file of a track's classifier, without torch: what it says of itself beside its weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open

from urepa.errors import UserError

NAME = "cifar_cnn.safetensors"  # below data.root
KIND = "urepa cifar_cnn"
COMMAND = "python -m urepa.train_classifier"


def metadata_of(file: Path) -> dict[str, str]:
    """The texts beside the tensors of a .safetensors file, by name. UserError where it is damaged or of another
    kind."""
    try:
        with safe_open(file, "np") as opened:
            found = opened.metadata()
    except SafetensorError as error:
        raise UserError(f"{file} is no whole safetensors file ({error}); copy it again, or delete it") from error
    return {} if found is None else dict(found)


def classifier_metadata(file: Path) -> dict[str, str]:
    """The same of a classifier's file: `kind`, `accuracy`, numbers of images and classes, digests, settings. UserError
    where it is another program's."""
    found = metadata_of(file)
    if found.get("kind") != KIND:
        raise UserError(f"{file} is not what `{COMMAND}` writes; give another file, or delete it")
    return found


def refuse_other(file: Path, expected: Mapping[str, object]) -> dict[str, str]:
    """The metadata of a classifier that is there. UserError that names in what it is not the one that is expected: it
    stays, as runs may have been measured with it."""
    there = classifier_metadata(file)
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
