"""The settings of a track for conditions that have an image's tokens besides its caption, without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

from urepa.core.descriptions import number
from urepa.core.errors import UserError
from urepa.core.part_names import CLS, PATCHES
from urepa.data.lists.paths import tokens_name
from urepa.models.teachers.rectangle_sizes import Grid, grid_for

NO_IMAGE_TOKENS = "data={name} has no data.image_encoder, so there are no image tokens to make; leave that stage out"
EXAMPLE = "{text+image: 0.1, image: 0.3, text: 0.05}"


class PatchStatistics(Enum):
    cls = "cls"
    patches = "patches"


class ImageTokenSettings:
    """Base class for declarations of tracks that have these keys."""

    image_encoder: Any  # `urepa.core.protocols.OneTeacher`; None where conditions have no image
    dropout: Mapping[str, float]
    patch_statistics: Any  # a `PatchStatistics`
    shuffle_patches: bool
    captions: Any
    flip: bool
    cfg_dropout: float
    image_size: int

    def check_image_tokens(self) -> None:
        """Raises UserError if the keys are inconsistent."""
        if self.image_encoder is None:
            idle = {"dropout": bool(self.dropout), "shuffle_patches": self.shuffle_patches}
            idle["patch_statistics"] = self.has_own_patch_statistics
            for key in (key for key, is_set in idle.items() if is_set):
                raise UserError(
                    f"data.{key} has no effect without data.image_encoder; give +teacher@data.image_encoder=NAME too"
                )
            return
        if not hasattr(self.image_encoder, "stored_as"):
            raise UserError("data.image_encoder is several teachers; give one, teacher@data.image_encoder=NAME")
        if self.captions is None:
            raise UserError("data.image_encoder is for conditions of a caption and an image; give data.captions too")
        if self.flip:
            raise UserError("data.flip=true has no image tokens of mirrored images; give data.flip=false")
        if not self.dropout:
            raise UserError(f"data.image_encoder needs data.dropout, as +data.dropout='{EXAMPLE}'")
        if getattr(self.image_encoder, "whiten", False):
            raise UserError(
                "data.image_encoder.whiten has no effect: image tokens are standardised by data.patch_statistics; give "
                "data.image_encoder.whiten=false"
            )
        self.image_encoder.check()

    def check_image_given(self, given: Sequence[str]) -> None:
        """Raises UserError for a key that `data.dropout` replaces."""
        if self.image_encoder is not None and "data.cfg_dropout" in given:
            raise UserError("data.cfg_dropout has no effect with data.image_encoder; give data.dropout instead")

    @property
    def has_own_patch_statistics(self) -> bool:
        """Whether patches are standardised by their own mean and deviation."""
        return str(self.patch_statistics).rpartition(".")[2] == PatchStatistics.patches.value

    @property
    def image_widths(self) -> dict[str, int]:
        """The widths of a condition's parts of an image."""
        encoder = self.image_encoder
        return {} if encoder is None else {CLS: encoder.width, PATCHES: encoder.width}

    def image_grid(self, size: tuple[int, int]) -> Grid:
        """Rows and columns of the patches of images of this size in pixels."""
        return grid_for(self.image_encoder, size, self.image_size)

    def image_tokens_name(self, size: tuple[int, int]) -> str:
        """The name of the folder of the image tokens of images of this size."""
        known = self.image_encoder.stored_as()
        name = tokens_name(known["model"], known["image_size"], self.image_grid(size), known.get("positions"))
        return f"image_{name}"

    def describe_image_tokens(self) -> str:
        """How a condition's image is made and what is withheld, to append to a description; empty without images."""
        if self.image_encoder is None:
            return ""
        by = "their own" if self.has_own_patch_statistics else "the vectors'"
        order = " Each sample's patches are in a random order, drawn anew at each update." * self.shuffle_patches
        drops = ", ".join(f"{name} {number(p)}" for name, p in self.dropout.items())
        return (
            " The condition's image is the whole cut image as another network sees it: a vector and patch tokens, "
            f"standardised over the training set, patches by {by} mean and deviation.{order} In training one draw a "
            f"sample withholds parts together, with the probabilities {drops}. The network is described as a teacher: "
            f"{self.image_encoder.description()}"
        )
