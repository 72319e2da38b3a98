"""EfficientNet-Lite2, with weights from a package that is installed with this one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from urepa.models.teachers.efficientnet_lite0 import EfficientNetLite0
from urepa.models.teachers.efficientnet_sizes import LITE2

if TYPE_CHECKING:
    from urepa.models.teachers.efficientnet_net import EfficientNetLite2Network


@dataclass
class EfficientNetLite2(EfficientNetLite0):
    """A feature map of EfficientNet-Lite2, average-pooled."""

    _target_: str = "urepa.models.teachers.efficientnet_lite2.EfficientNetLite2"

    network: ClassVar[str] = "efficientnet-lite2"
    title: ClassVar[str] = "EfficientNet-Lite2"
    maps: ClassVar[dict[int, tuple[int, int]]] = LITE2

    def build(self) -> EfficientNetLite2Network:
        from urepa.models.teachers.efficientnet_net import EfficientNetLite2Network

        return EfficientNetLite2Network(self.image_size, self.grid, self.stride, self.unit_length, self.whiten)
