"""The encoder of a small masked autoencoder that was trained on images of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from urepa.core.comparability import ALIGNMENT
from urepa.core.declared_keys import SIZE, setting
from urepa.core.descriptions import number, shape
from urepa.core.protocols import OneTeacher
from urepa.core.teacher_names import ALONE
from urepa.models.teachers.own_mae_sizes import (
    check_own_mae,
    check_weights,
    read_encoder_metadata,
    stored_name,
    weights_digest,
)
from urepa.models.teachers.rectangle_sizes import proportional_grid
from urepa.models.teachers.token_sizes import WHITE_WORDS, WHITEN, length_in_words

if TYPE_CHECKING:
    from urepa.models.teachers.own_mae_net import OwnMAENetwork


@dataclass
class OwnMAE:
    """The patch tokens of an encoder of `urepa.train_encoder`, which sees all patches, average-pooled."""

    _target_: str = "urepa.models.teachers.own_mae.OwnMAE"
    weights: str = setting("the file that `python -m urepa.train_encoder` wrote", alters=ALIGNMENT)
    image_size: int = setting(
        "side of the image that the network sees, pixels; a multiple of patch", ge=1, le=SIZE, alters=ALIGNMENT
    )
    patch: int = setting("side of a patch, pixels, as in the file", ge=1, le=SIZE, alters=ALIGNMENT)
    grid: list[int] = setting("rows and columns of tokens after pooling", ge=1, le=SIZE, alters=ALIGNMENT)
    width: int = setting("width of a token, as in the file", ge=1, le=SIZE, alters=ALIGNMENT)
    depth: int = setting("number of blocks, as in the file", ge=1, le=SIZE, alters=ALIGNMENT)

    unit_length: bool = setting(
        "whether tokens are normalised to unit length; false: as the network gives them", True, alters=ALIGNMENT
    )
    block: int | None = setting(
        "the block whose output is taken, counted from 0, before the last LayerNorm; null: the last, after it",
        None,
        ge=0,
        le=SIZE,
        alters=ALIGNMENT,
    )
    whiten: bool = setting(WHITEN, False, alters=ALIGNMENT)

    alters: ClassVar[tuple[str, ...]] = ALIGNMENT

    def members(self) -> dict[str, OneTeacher]:
        return {ALONE: self}

    def check(self) -> None:
        check_own_mae(self.image_size, self.patch, self.grid, self.width, self.depth, self.block)

    def check_files(self) -> None:
        check_weights(Path(self.weights), {"patch": self.patch, "width": self.width, "depth": self.depth})

    def stored_as(self) -> dict[str, Any]:
        digest = weights_digest(Path(self.weights))
        return {"model": stored_name(digest, self.unit_length, self.block), "image_size": self.image_size}

    def grid_at(self, shape: Sequence[int], side: int) -> tuple[int, int]:
        return proportional_grid(self.grid, shape, side)

    def hub_files(self) -> dict[str, list[str]]:
        return {}

    def build(self) -> OwnMAENetwork:
        from urepa.models.teachers.own_mae_net import OwnMAENetwork

        return OwnMAENetwork(
            *(self.weights, self.image_size, self.patch, self.grid, self.width, self.depth),
            unit_length=self.unit_length,
            block=self.block,
            whiten=self.whiten,
        )

    def description(self) -> str:
        size, patch, side = self.image_size, self.patch, self.image_size // self.patch
        layer = "last block" if self.block is None else f"block {self.block} (counted from 0)"
        trained = ""
        if (file := Path(self.weights)).is_file():
            told = read_encoder_metadata(file)
            trained = (
                f" It was trained for {number(int(told['epochs']))} epochs on {number(int(told['train_images']))} "
                f"images (list {told['train_samples'][:10]}), with {100 * float(told['mask_ratio']):g} % of their "
                "patches masked."
            )
        return (
            "The teacher is the encoder of a masked autoencoder (He et al., arXiv 2111.06377) that was trained on "
            f"images of one's own alone, frozen: {self.depth} blocks of width {number(self.width)} over "
            f"{patch}×{patch} patches.{trained} Images are resized to {size}×{size} pixels (bicubic); all "
            f"{side}×{side} patch tokens of its {layer} are average-pooled to {shape(self.grid)} tokens of width "
            f"{number(self.width)}{length_in_words(self.unit_length)}.{WHITE_WORDS if self.whiten else ''}"
        )
