"""The base class of backbones that read no files: their weights are random, and their condition is class ids."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from urepa.core.backbone_protocols import FoundWeights
from urepa.core.descriptions import CardFacts
from urepa.core.errors import UserError


class DrawnBackbone:
    """The base of such a declaration (`urepa.core.backbone_protocols.Backbone`)."""

    base: ClassVar[None] = None
    is_diffusers_unet: ClassVar[bool] = False
    build: Callable[..., Any]  # of the declaration

    def check_adapters(self, targets: str, blocks: str) -> None:
        raise UserError("lora has no layers to adapt in this backbone: give lora=none")

    def check_files(self) -> None:
        """No check: it needs no files."""

    def hub_files(self) -> dict[str, list[str]]:
        return {}

    def find_weights(self, path: Path) -> FoundWeights:
        raise UserError(f"checkpoint={path}: this backbone reads no published weights; give the run, run=FOLDER")

    def write_stand_ins(self, folder: Path, num_classes: int) -> dict[str, Any]:
        return {}

    def build_without_weights(
        self, *, latent_shape: tuple[int, int, int], num_classes: int, **of_condition: Any
    ) -> Any:
        return self.build(latent_shape=latent_shape, num_classes=num_classes, **of_condition)

    def model_card(self, facts: CardFacts) -> str:
        return "`urepa.load` opens the run of these weights; its config is below."

    def hub_metadata(self) -> dict[str, Any]:
        return {"tags": ["urepa"]}
