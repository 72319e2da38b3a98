"""Base classes of backbones that are U-Nets in diffusers' files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from urepa.core.backbone_protocols import FoundWeights, WeightsKind
from urepa.core.descriptions import BackboneFacts, CardFacts, Formula
from urepa.core.files import read_json
from urepa.core.hub_names import is_hub_id
from urepa.core.part_names import LAYERS, POOLED
from urepa.models.backbones.backbone_sizes import KOHYA, LORA, RANDOM, check_unet_tap, unet_files
from urepa.models.diffusers_cards import captioned_card
from urepa.models.unet_families import FAMILIES, HUB_FILES, check_text_widths, check_unet_config

if TYPE_CHECKING:
    import torch

    from urepa.models.backbones.captioned_unet_net import CaptionedUNet


class PublishedUNet:
    """The base of such a declaration (`urepa.core.backbone_protocols.Backbone`)."""

    weights: str  # of the declaration
    noun: ClassVar[str] = "U-Net"
    is_diffusers_unet: ClassVar[bool] = True

    @property
    def base(self) -> str | None:
        return None if self.weights == RANDOM else self.weights

    def check(self, latent_shape: tuple[int, int, int]) -> None:
        """No check: sizes are compared when the weights are read."""

    def check_latents(self, shapes: Sequence[tuple[int, int, int]]) -> None:
        """No check: a U-Net takes every shape."""

    def check_tap(self, tap: str) -> None:
        check_unet_tap(tap)

    def check_grids(self, latent_shape: tuple[int, int, int], grids: Mapping[str, Sequence[int]]) -> None:
        """No check: the head raises an error when it is called if a tap's grid does not fit."""

    def check_adapters(self, targets: str, blocks: str) -> None:
        """No check: every choice of layers and blocks can be adapted."""

    def check_files(self) -> None:
        """No check: it needs no files besides the weights."""

    def hub_files(self) -> dict[str, list[str]]:
        return {self.weights: list(HUB_FILES)} if is_hub_id(self.weights) else {}

    def find_weights(self, path: Path) -> FoundWeights:
        if path.is_file():
            return FoundWeights(WeightsKind.lora, (path,))
        for name in (LORA, KOHYA):
            if (path / name).is_file():
                return FoundWeights(WeightsKind.lora, (path / name,))
        missing = f"neither {LORA} nor {KOHYA} nor unet/config.json nor config.json"
        return FoundWeights(WeightsKind.backbone, tuple(unet_files(path, missing)))

    def write_stand_ins(self, folder: Path, num_classes: int) -> dict[str, Any]:
        return {}

    def hub_metadata(self) -> dict[str, Any]:
        return {"library_name": "diffusers", "tags": ["urepa"]}


class PublishedTextUNet(PublishedUNet):
    """The base of a U-Net whose condition is a caption. `family` is a key of `urepa.models.unet_families.FAMILIES`."""

    gradient_checkpointing: bool  # of the declaration
    unused_parts: ClassVar[tuple[str, ...]] = (POOLED, LAYERS)  # parts that a condition may have besides
    family: ClassVar[str]
    title: ClassVar[str]  # as in "the U-Net of Stable Diffusion XL"
    condition: ClassVar[str]  # sentences that describe how it uses a caption

    def check_widths(self, widths: Mapping[str, int]) -> None:
        places = [Path(self.weights) / place / "config.json" for place in ("unet", ".")]
        config: Any = FAMILIES[self.family].architecture if self.weights == RANDOM else None
        if found := [file for file in places if file.is_file()]:
            config = read_json(found[0])
            check_unet_config(config, self.family, self.weights)
        if config is not None:  # that of a hub id is known once it is fetched
            check_text_widths(config, self.family, self.weights, widths)

    def build(
        self, *, latent_shape: tuple[int, int, int], num_classes: int, widths: Mapping[str, int] | None = None
    ) -> CaptionedUNet:
        import torch

        known: Any = {"latent_shape": latent_shape, "num_classes": num_classes, "widths": widths}
        return self.build_frozen(torch.float32, **known)

    def build_frozen(
        self,
        dtype: torch.dtype,
        *,
        latent_shape: tuple[int, int, int],
        num_classes: int,
        widths: Mapping[str, int] | None = None,
    ) -> CaptionedUNet:
        from urepa.models.backbones.captioned_unet_net import captioned_unet

        assert widths is not None, "the condition of its track is text"
        known: Any = {"latent_shape": latent_shape, "widths": widths, "dtype": dtype}
        return captioned_unet(self.weights, self.family, self.gradient_checkpointing, **known)

    def build_without_weights(
        self, *, latent_shape: tuple[int, int, int], num_classes: int, widths: Mapping[str, int] | None = None
    ) -> CaptionedUNet:
        """The architecture comes from a local folder's config.json; without one it is the published one."""
        from urepa.models.backbones.captioned_unet_net import captioned_unet_without_weights

        assert widths is not None, "the condition of its track is text"
        known: Any = {"latent_shape": latent_shape, "widths": widths}
        return captioned_unet_without_weights(self.weights, self.family, self.gradient_checkpointing, **known)

    def description(self, facts: BackboneFacts) -> list[str | Formula]:
        recomputed = " Its blocks are recomputed in the backward pass." if self.gradient_checkpointing else ""
        return [
            f"The backbone is the U-Net of {self.title}{facts.initial_weights(self.base)}, on latents of "
            f"{facts.x0_shape}. {self.condition}{recomputed}"
        ]

    def model_card(self, facts: CardFacts) -> str:
        return captioned_card(facts, self.base, FAMILIES[self.family].pipeline)
