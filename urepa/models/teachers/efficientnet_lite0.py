"""EfficientNet-Lite0, with weights from a package that is installed with this one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from urepa.core.comparability import ALIGNMENT
from urepa.core.declared_keys import SIZE, setting
from urepa.core.descriptions import number, shape
from urepa.core.protocols import OneTeacher
from urepa.core.teacher_names import ALONE
from urepa.models.teachers.efficientnet_sizes import LITE0, check_efficientnet, model_name
from urepa.models.teachers.rectangle_sizes import proportional_grid
from urepa.models.teachers.token_sizes import WHITE_WORDS, WHITEN, length_in_words

if TYPE_CHECKING:
    from urepa.models.teachers.efficientnet_net import EfficientNetLite0Network


@dataclass
class EfficientNetLite0:
    """A feature map of EfficientNet-Lite0, average-pooled."""

    _target_: str = "urepa.models.teachers.efficientnet_lite0.EfficientNetLite0"
    image_size: int = setting(
        "side of the image that the network sees, pixels; a multiple of 32", ge=1, le=SIZE, alters=ALIGNMENT
    )
    grid: list[int] = setting("rows and columns of tokens after pooling", ge=1, le=SIZE, alters=ALIGNMENT)
    stride: int = setting(
        "pixels per cell of the feature map: 8, 16, or 32 for the last map", ge=1, le=SIZE, alters=ALIGNMENT
    )

    unit_length: bool = setting(
        "whether tokens are normalised to unit length; false: as the network gives them", True, alters=ALIGNMENT
    )
    whiten: bool = setting(WHITEN, False, alters=ALIGNMENT)

    alters: ClassVar[tuple[str, ...]] = ALIGNMENT
    network: ClassVar[str] = "efficientnet-lite0"
    title: ClassVar[str] = "EfficientNet-Lite0"
    weights_in_words: ClassVar[str] = "its ImageNet-1K weights"
    maps: ClassVar[dict[int, tuple[int, int]]] = LITE0

    @property
    def width(self) -> int:
        return self.maps[self.stride][1]

    def members(self) -> dict[str, OneTeacher]:
        return {ALONE: self}

    def check(self) -> None:
        check_efficientnet(self.image_size, self.grid, self.stride)

    def check_files(self) -> None:
        """No check: its weights are in an installed package."""

    def stored_as(self) -> dict[str, Any]:
        return {"model": model_name(self.network, self.stride, self.unit_length), "image_size": self.image_size}

    def grid_at(self, shape: Sequence[int], side: int) -> tuple[int, int]:
        return proportional_grid(self.grid, shape, side)

    def hub_files(self) -> dict[str, list[str]]:
        return {}

    def build(self) -> EfficientNetLite0Network:
        from urepa.models.teachers.efficientnet_net import EfficientNetLite0Network

        return EfficientNetLite0Network(self.image_size, self.grid, self.stride, self.unit_length, self.whiten)

    def description(self) -> str:
        size, stride = self.image_size, self.stride
        side, which = size // stride, "last map" if stride == 32 else f"last map at stride {stride}"
        return (
            f"The teacher is {self.title} with {self.weights_in_words}, frozen. Images are resized to {size}×{size} "
            f"pixels (bicubic); its {which} of {side}×{side} is average-pooled to {shape(self.grid)} tokens of width "
            f"{number(self.width)}{length_in_words(self.unit_length)}." + (WHITE_WORDS if self.whiten else "")
        )
