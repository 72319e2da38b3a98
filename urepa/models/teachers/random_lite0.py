"""EfficientNet-Lite0 with random weights: the control of what a teacher has learned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from urepa.core.comparability import ALIGNMENT
from urepa.core.declared_keys import COUNT, setting
from urepa.core.descriptions import number
from urepa.models.teachers.efficientnet_lite0 import EfficientNetLite0
from urepa.models.teachers.efficientnet_sizes import model_name

if TYPE_CHECKING:
    from urepa.models.teachers.control_teachers_net import RandomLite0Network


@dataclass
class RandomLite0(EfficientNetLite0):
    """A feature map of EfficientNet-Lite0 with random weights, average-pooled."""

    _target_: str = "urepa.models.teachers.random_lite0.RandomLite0"
    weights_seed: int = setting("the seed of its weights, the same in all runs", 0, ge=0, le=COUNT, alters=ALIGNMENT)

    network: ClassVar[str] = "efficientnet-lite0-random"
    title: ClassVar[str] = "EfficientNet-Lite0"
    weights_in_words: ClassVar[str] = "random weights"

    def stored_as(self) -> dict[str, Any]:
        named = f"{self.network}-{self.weights_seed}"
        return super().stored_as() | {"model": model_name(named, self.stride, self.unit_length)}

    def build(self) -> RandomLite0Network:
        from urepa.models.teachers.control_teachers_net import RandomLite0Network

        facts = (self.image_size, self.grid, self.stride, self.unit_length, self.whiten)
        return RandomLite0Network(*facts, self.weights_seed)

    def description(self) -> str:
        return f"{super().description()} Its weights are drawn from the seed {number(self.weights_seed)}."
