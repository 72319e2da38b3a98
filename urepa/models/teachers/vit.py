"""Vision transformers of the transformers library: DINOv2, DINOv3, CLIP, SigLIP, MAE."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from urepa.core.descriptions import number, shape
from urepa.core.errors import UserError
from urepa.core.hub_names import is_hub_id
from urepa.core.protocols import OneTeacher
from urepa.core.settings import SIZE, setting
from urepa.core.teacher_names import ALONE

if TYPE_CHECKING:
    from urepa.models.teachers.vit_net import ViTNetwork

# Rows and columns that a family's learned positions were trained on, where libraries differ in how they resample them
# to others (`urepa.models.teachers.dino.dinov2_positions`). With registers they do not, and DINOv3 has rotary ones.
NATIVE = {"dinov2": 37}
RULES = {
    "meta": "as Meta's code does (bicubic, by the factor (n + 0.1)/37)",
    "timm": "as timm and REPA's code do (bicubic, to the size, with antialiasing)",
    "transformers": "as the transformers library does (bicubic, to the size, without antialiasing)",
}


class Family(Enum):
    dinov2 = "dinov2"
    dinov2_registers = "dinov2_registers"
    dinov3 = "dinov3"
    clip = "clip"
    siglip = "siglip"
    mae = "mae"


class Positions(Enum):
    meta = "meta"
    timm = "timm"
    transformers = "transformers"


@dataclass
class ViT:
    """The patch tokens of a vision transformer's last layer, average-pooled."""

    _target_: str = "urepa.models.teachers.vit.ViT"
    family: Family = setting("whose network and preprocessing")
    model: str = setting("a hub id, a local folder, or Meta's own .pth of DINOv2 or DINOv3; its last part is recorded")
    image_size: int = setting("side of the image that the network sees, pixels; a multiple of patch", ge=1, le=SIZE)
    patch: int = setting("side of a patch, pixels", ge=1, le=SIZE)
    grid: list[int] = setting("rows and columns of tokens after pooling", ge=1, le=SIZE)
    width: int = setting("width of a token", ge=1, le=SIZE)
    positions: Positions | None = setting(
        "whose resampling of DINOv2's positions off 518 px; null in the other families", None
    )

    def members(self) -> dict[str, OneTeacher]:
        return {ALONE: self}

    def check(self) -> None:
        check_vit(str(self.family), self.image_size, self.patch, self.grid, self._rule())

    def check_files(self) -> None:
        check_file(self.model)

    def stored_as(self) -> dict[str, Any]:
        is_resampled = resamples(str(self.family), self.image_size, self.patch)
        rule = {"positions": self._rule()} if is_resampled else {}
        return {"model": model_name(self.model), "image_size": self.image_size} | rule

    def hub_files(self) -> dict[str, list[str]]:
        return {self.model: ["config.json", "model.safetensors"]} if is_hub_id(self.model) else {}

    def build(self) -> ViTNetwork:
        from urepa.models.teachers.vit_net import ViTNetwork

        return ViTNetwork(
            str(self.family), self.model, self.image_size, self.patch, self.grid, self.width, self._rule()
        )

    def description(self) -> str:
        size, side, rule = self.image_size, self.image_size // self.patch, self._rule()
        positions = ""
        if rule is not None and resamples(str(self.family), size, self.patch):
            positions = f" Its learned positions are resampled from 37×37 {RULES[rule]}."
        return (
            f"The teacher is {self.model} (family {self.family}), frozen. Images are resized to {size}×{size} pixels "
            f"(bicubic); all {side}×{side} patch tokens of its last layer, without class and register tokens, are "
            f"average-pooled to {shape(self.grid)} tokens of width {number(self.width)}, each of unit length."
            f"{positions}"
        )

    def _rule(self) -> str | None:
        return None if self.positions is None else str(self.positions)


def check_vit(family: str, image_size: int, patch: int, grid: Sequence[int], positions: str | None) -> None:
    """UserError where a ViT's sizes do not fit together, or its rule of positions has no effect."""
    side = image_size // patch
    if image_size % patch or len(grid) != 2 or not all(1 <= g <= side for g in grid):
        raise UserError(
            f"teacher: image_size={image_size} must be a multiple of its patch of {patch} pixels, and "
            f"grid={list(grid)} two numbers of at most image_size/{patch}"
        )
    rules = [rule.value for rule in Positions]
    if family not in NATIVE:
        if positions is not None:
            raise UserError(
                f"teacher.positions={positions} has no effect with teacher.family={family}: the choice is DINOv2's "
                "without registers; give teacher.positions=null"
            )
    elif positions is None:
        raise UserError(f"teacher.family={family} needs teacher.positions, one of {', '.join(rules)}")
    elif positions not in rules:
        raise UserError(f"teacher.positions={positions}: give one of {', '.join(rules)}")
    elif not resamples(family, image_size, patch) and positions != "meta":
        raise UserError(
            f"teacher.positions={positions} has no effect at teacher.image_size={image_size}, {family}'s native size, "
            "where nothing is resampled; leave it at meta"
        )


def resamples(family: str, image_size: int, patch: int) -> bool:
    """Are learned positions resampled, by a rule that is chosen?"""
    return NATIVE.get(family) not in (None, image_size // patch)


def model_name(model: str) -> str:
    """What a ViT's tokens are named by: the last part of a path or a hub id, without a revision."""
    return Path(model).name.partition("@")[0]


def check_file(model: str) -> None:
    """UserError where a ViT's model is Meta's own file, and it is not there."""
    if model.endswith(".pth") and not Path(model).is_file():
        raise UserError(f"teacher.model={model} does not exist")
