"""Vision transformers: DINO, DINOv2, DINOv3, CLIP, SigLIP, MAE, I-JEPA, MoCo-v3 of the transformers library, and
Perception Encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar

from urepa.core.comparability import ALIGNMENT
from urepa.core.declared_keys import LARGEST, SIZE, setting
from urepa.core.descriptions import number, shape
from urepa.core.hub_names import is_hub_id
from urepa.core.protocols import OneTeacher
from urepa.core.teacher_names import ALONE
from urepa.models.teachers.rectangle_sizes import proportional_grid
from urepa.models.teachers.token_sizes import WHITE_WORDS, WHITEN, length_in_words
from urepa.models.teachers.vit_sizes import Positions, check_cls, check_file, check_vit, resamples, stored_name

if TYPE_CHECKING:
    from urepa.models.teachers.vit_net import ViTNetwork

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
    dino = "dino"
    ijepa = "ijepa"
    mocov3 = "mocov3"
    pe = "pe"
    pe_g = "pe_g"


@dataclass
class ViT:
    """The patch tokens of a vision transformer's last layer, or of an earlier block, average-pooled."""

    _target_: str = "urepa.models.teachers.vit.ViT"
    family: Family = setting("the network's architecture and preprocessing", alters=ALIGNMENT)
    model: str = setting(
        "a hub id, a local folder, or the authors' file (DINO, DINOv2, DINOv3, MoCo-v3, PE); its last part is recorded",
        alters=ALIGNMENT,
    )
    image_size: int = setting(
        "side of the image that the network sees, pixels; a multiple of patch", ge=1, le=SIZE, alters=ALIGNMENT
    )
    patch: int = setting("side of a patch, pixels", ge=1, le=SIZE, alters=ALIGNMENT)
    grid: list[int] = setting("rows and columns of tokens after pooling", ge=1, le=SIZE, alters=ALIGNMENT)
    width: int = setting("width of a token", ge=1, le=SIZE, alters=ALIGNMENT)
    positions: Positions | None = setting(
        "rule that resamples DINOv2's positions at sizes other than 518 px; null in the other families",
        None,
        alters=ALIGNMENT,
    )

    unit_length: bool = setting(
        "whether tokens are normalised to unit length; false: as the network gives them", True, alters=ALIGNMENT
    )
    cls_weight: float = setting(
        "the class token times this is added to each patch token; 0: it is not used",
        0.0,
        ge=0,
        le=LARGEST,
        alters=ALIGNMENT,
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
    attention_maps: ClassVar[bool] = True  # urepa.core.attention_protocols.AttendingTeacher

    def members(self) -> dict[str, OneTeacher]:
        return {ALONE: self}

    def check(self) -> None:
        check_vit(str(self.family), self.image_size, self.patch, self.grid, self._rule())
        check_cls(str(self.family), self.cls_weight)

    def check_files(self) -> None:
        check_file(self.model)

    def stored_as(self) -> dict[str, Any]:
        is_resampled = resamples(str(self.family), self.image_size, self.patch)
        rule = {"positions": self._rule()} if is_resampled else {}
        return {
            "model": stored_name(self.model, self.unit_length, self.cls_weight, self.block),
            "image_size": self.image_size,
        } | rule

    def grid_at(self, shape: Sequence[int], side: int) -> tuple[int, int]:
        return proportional_grid(self.grid, shape, side)

    def hub_files(self) -> dict[str, list[str]]:
        return {self.model: ["config.json", "model.safetensors"]} if is_hub_id(self.model) else {}

    def build(self) -> ViTNetwork:
        from urepa.models.teachers.vit_net import ViTNetwork

        return ViTNetwork(
            *(str(self.family), self.model, self.image_size, self.patch, self.grid, self.width, self._rule()),
            unit_length=self.unit_length,
            cls_weight=self.cls_weight,
            block=self.block,
            whiten=self.whiten,
        )

    def description(self) -> str:
        size, side, rule = self.image_size, self.image_size // self.patch, self._rule()
        positions = ""
        layer = "last layer" if self.block is None else f"block {self.block} (counted from 0)"
        mixed = f" The class token times {number(self.cls_weight)} is added to each." if self.cls_weight else ""
        if rule is not None and resamples(str(self.family), size, self.patch):
            positions = f" Its learned positions are resampled from 37×37 {RULES[rule]}."
        return (
            f"The teacher is {self.model} (family {self.family}), frozen. Images are resized to {size}×{size} pixels "
            f"(bicubic); all {side}×{side} patch tokens of its {layer}, without class and register tokens, are "
            f"average-pooled to {shape(self.grid)} tokens of width "
            f"{number(self.width)}{length_in_words(self.unit_length)}."
            f"{mixed}{positions}{WHITE_WORDS if self.whiten else ''}"
        )

    def _rule(self) -> str | None:
        return None if self.positions is None else str(self.positions)
