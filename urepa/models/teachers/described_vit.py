"""A vision transformer whose input sides and whose choice of tokens are settings: NanoDiT's description has both
differently from the model (docs/nanodit.md)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from urepa.core.comparability import ALIGNMENT
from urepa.core.declared_keys import SIZE, setting
from urepa.core.descriptions import number
from urepa.core.errors import UserError
from urepa.models.teachers.vit import ViT
from urepa.models.teachers.vit_sizes import check_cls, nearest_multiple

if TYPE_CHECKING:
    from urepa.models.teachers.described_vit_net import DescribedViTNetwork


@dataclass
class DescribedViT(ViT):
    """All patch tokens of a vision transformer's last layer, not pooled, for inputs of sides that need not be whole
    numbers of patches (the rest at the right and at the bottom is cut), and from any token on."""

    _target_: str = "urepa.models.teachers.described_vit.DescribedViT"
    multiple: int = setting(
        "each side of the input is the nearest multiple of it, in pixels", 14, ge=1, le=SIZE, alters=ALIGNMENT
    )
    image_side: int = setting("side of a square image of the track, in pixels", 1024, ge=1, le=SIZE, alters=ALIGNMENT)
    leading: int = setting(
        "tokens before the first one that is taken: the class token and registers; with fewer, some of these take the "
        "place of the last patches",
        5,
        ge=1,
        le=SIZE,
        alters=ALIGNMENT,
    )

    alters: ClassVar[tuple[str, ...]] = ALIGNMENT

    def check(self) -> None:
        side = self.image_size // self.patch
        size = nearest_multiple(self.image_side, self.multiple)
        if self.image_size != size or list(self.grid) != [side, side]:
            raise UserError(
                f"teacher: image_size={self.image_size} must be {size}, the multiple of {self.multiple} nearest to "
                f"image_side={self.image_side}, and grid={list(self.grid)} all its whole patches of {self.patch} "
                f"pixels, [{side},{side}]"
            )
        if self.positions is not None:
            raise UserError("teacher.positions has no effect here; give teacher.positions=null")
        if self.block is not None:
            raise UserError("teacher.block has no effect here: tokens are the last layer's; give teacher.block=null")
        check_cls(str(self.family), self.cls_weight)

    def stored_as(self) -> dict[str, Any]:
        known = super().stored_as()
        return known | {"model": f"{known['model']}-{self.multiple}px-from{self.leading}"}

    def grid_at(self, shape: Sequence[int], side: int) -> tuple[int, int]:
        rows, columns = (
            nearest_multiple(length * self.image_side / side, self.multiple) // self.patch for length in shape
        )
        return rows, columns

    def build(self) -> DescribedViTNetwork:
        from urepa.models.teachers.described_vit_net import DescribedViTNetwork

        return DescribedViTNetwork(self)

    def description(self) -> str:
        return (
            f"{super().description()} The input's sides are the multiples of {number(self.multiple)} pixels nearest to "
            f"those of the cut image, of which a square one has {number(self.image_side)}; tokens are taken from index "
            f"{self.leading} on."
        )
