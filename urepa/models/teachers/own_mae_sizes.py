"""The sizes and the file of a masked autoencoder that `urepa.train_encoder` trains, without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from urepa.core import weights_metadata
from urepa.core.errors import UserError
from urepa.core.hashing import file_sha256
from urepa.models.teachers.token_sizes import named_raw

NAME = "own_mae.safetensors"  # relative to data.root
KEY = "own_mae"  # of its metadata (`urepa.core.weights_metadata`)
COMMAND = "python -m urepa.train_encoder"
MISSING = "missing"  # in place of a file's digest; no store has that name
HEAD = 64  # width of an attention head of the encoder, as in ViTs


@dataclass(frozen=True)
class EncoderSettings:
    """What the encoder of one file is and how it is trained; each is an entry of the file's metadata."""

    image_size: int
    patch: int
    width: int
    depth: int
    mask_ratio: float
    learning_rate: float
    epochs: int
    seed: int

    @property
    def patches(self) -> int:
        """The patches of an image."""
        return (self.image_size // self.patch) ** 2

    @property
    def visible(self) -> int:
        """The patches of an image that the encoder sees in training."""
        return round(self.patches * (1 - self.mask_ratio))

    def check(self) -> None:
        """Raises UserError if the sizes do not fit together."""
        if self.image_size % self.patch:
            raise UserError(
                f"patch_size={self.patch} does not divide the images' side of {self.image_size} pixels; give a divisor"
            )
        if self.width % HEAD:
            raise UserError(f"width={self.width}: give a multiple of {HEAD}")
        if self.patch == 1:
            raise UserError("patch_size=1: the pixels of a patch are normalised by their deviation; give 2 or more")
        if not 1 <= self.visible < self.patches:
            raise UserError(
                f"mask_ratio={self.mask_ratio:g} leaves {self.visible} of {self.patches} patches visible; give one "
                "that leaves 1 or more and masks 1 or more"
            )


def check_own_mae(image_size: int, patch: int, grid: Sequence[int], width: int, depth: int, block: int | None) -> None:
    """Raises UserError if a teacher's settings do not fit together."""
    side = image_size // patch
    if image_size % patch or len(grid) != 2 or not all(1 <= g <= side for g in grid):
        raise UserError(
            f"teacher: image_size={image_size} must be a multiple of its patch of {patch} pixels, and "
            f"grid={list(grid)} two numbers of at most image_size/{patch}"
        )
    if width % HEAD:
        raise UserError(f"teacher.width={width}: give a multiple of {HEAD}")
    if block is not None and block >= depth:
        raise UserError(f"teacher.block={block}: the last block of teacher.depth={depth} is {depth - 1}")


def read_encoder_metadata(file: Path) -> dict[str, str]:
    """The metadata of an encoder's file. Raises UserError if the file is missing, damaged or not an encoder's."""
    if not file.is_file():
        raise UserError(
            f"there is no {file}: teacher=own_mae needs an encoder of the track's own images; make it with "
            f"`{COMMAND} data=NAME` and this run's data overrides, or give its path, teacher.weights=FILE"
        )
    stated = weights_metadata.read_metadata(file, KEY)
    if not stated.keys() >= EncoderSettings.__dataclass_fields__.keys():
        raise UserError(f"{file} is not what `{COMMAND}` writes; give another file, or delete it")
    return stated


def check_weights(file: Path, sizes: Mapping[str, int]) -> None:
    """Raises UserError if there is no encoder's file, or one of other sizes than a teacher's settings."""
    stated = read_encoder_metadata(file)
    if weights_metadata.differing_facts(stated, sizes):
        own = " ".join(f"teacher.{name}={stated[name]}" for name in sizes)
        given = ", ".join(f"teacher.{name}={value}" for name, value in sizes.items())
        raise UserError(f"{file} is an encoder of other sizes than {given}; give {own}")


def refuse_other(file: Path, expected: Mapping[str, object]) -> dict[str, str]:
    """The metadata of an existing encoder. Raises UserError with the differences if it is not the expected one. It is
    not overwritten, because runs may be aligned to it."""
    there = read_encoder_metadata(file)
    if differing := weights_metadata.differing_facts(there, expected):
        raise UserError(
            f"{file} is an encoder of other settings or images ({differing}); give out=FILE for another, or delete "
            "that one"
        )
    return there


def weights_digest(file: Path) -> str:
    """SHA-256 of the file; MISSING if it is not there."""
    return file_sha256(file) if file.is_file() else MISSING


def stored_name(digest: str, unit_length: bool, block: int | None) -> str:
    """The model's name in token stores: other weights, another block and raw tokens have stores of their own."""
    layer = "" if block is None else f"-block{block}"
    return named_raw(f"own_mae-{digest[:12]}{layer}", unit_length)
