"""EfficientNet-Lite0 with its tokens in a random order: the control of where tokens belong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from urepa.models.teachers.efficientnet_lite0 import EfficientNetLite0

if TYPE_CHECKING:
    from urepa.models.teachers.control_teachers_net import ShuffledLite0Network


@dataclass
class ShuffledLite0(EfficientNetLite0):
    """A feature map of EfficientNet-Lite0, average-pooled, whose tokens are permuted in each image."""

    _target_: str = "urepa.models.teachers.shuffled_lite0.ShuffledLite0"

    network: ClassVar[str] = "efficientnet-lite0-shuffled"

    def build(self) -> ShuffledLite0Network:
        from urepa.models.teachers.control_teachers_net import ShuffledLite0Network

        return ShuffledLite0Network(self.image_size, self.grid, self.stride, self.unit_length, self.whiten)

    def description(self) -> str:
        return (
            f"{super().description()} In each image the tokens are permuted in space, in an order that depends only on "
            "the image's pixels."
        )
