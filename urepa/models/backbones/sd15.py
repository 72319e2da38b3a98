"""Stable Diffusion 1.5's U-Net."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from urepa.core.backbone_protocols import FoundWeights, WeightsKind
from urepa.core.declared_keys import setting
from urepa.core.descriptions import BackboneFacts, CardFacts, Formula, number
from urepa.core.hub_names import is_hub_id
from urepa.models.backbones.backbone_sizes import KOHYA, LORA, RANDOM, check_prompts, check_unet_tap, unet_files
from urepa.models.diffusers_cards import diffusers_card

if TYPE_CHECKING:
    from urepa.models.backbones.unet_net import UNet

PROMPTS = "prompts.pt"


@dataclass
class SD15:
    """Stable Diffusion 1.5's U-Net (Rombach et al. 2022, arXiv 2112.10752), conditioned on the frozen text embeddings
    of the classes' prompts."""

    _target_: str = "urepa.models.backbones.sd15.SD15"
    weights: str = setting('a hub id, a local diffusers folder, or "random"')
    prompts: str = setting("the .pt file of text embeddings, the null prompt last")
    gradient_checkpointing: bool = setting("recompute blocks in the backward pass: less memory, more time")
    family: ClassVar[str] = "sd15"
    noun: ClassVar[str] = "U-Net"
    is_diffusers_unet: ClassVar[bool] = True

    @property
    def base(self) -> str | None:
        return None if self.weights == RANDOM else self.weights

    def check(self, latent_shape: tuple[int, int, int]) -> None:
        """The files of the weights have its sizes, which are compared when they are read."""

    def check_latents(self, shapes: Sequence[tuple[int, int, int]]) -> None:
        """A U-Net takes any."""

    def check_tap(self, tap: str) -> None:
        check_unet_tap(tap)

    def check_grids(self, latent_shape: tuple[int, int, int], grids: Mapping[str, Sequence[int]]) -> None:
        """Taps have grids of their own: the head says which does not fit, when it is called."""

    def check_adapters(self, targets: str, blocks: str) -> None:
        """Its middle block and its convolutions can be adapted, and random weights too."""

    def check_files(self) -> None:
        check_prompts(Path(self.prompts))

    def hub_files(self) -> dict[str, list[str]]:
        files = ["unet/config.json", "unet/*.safetensors", "unet/*.safetensors.index.json"]
        return {self.weights: files} if is_hub_id(self.weights) else {}

    def find_weights(self, path: Path) -> FoundWeights:
        if path.is_file():
            return FoundWeights(WeightsKind.lora, (path,))
        for name in (LORA, KOHYA):
            if (path / name).is_file():
                return FoundWeights(WeightsKind.lora, (path / name,))
        missing = f"neither {LORA} nor {KOHYA} nor unet/config.json nor config.json"
        return FoundWeights(WeightsKind.backbone, tuple(unet_files(path, missing)))

    def write_stand_ins(self, folder: Path, num_classes: int) -> dict[str, Any]:
        from urepa.models.backbones.sd15_net import write_random_prompts

        write_random_prompts(folder / PROMPTS, num_classes)
        return {"prompts": str(folder / PROMPTS)}

    def build(self, *, latent_shape: tuple[int, int, int], num_classes: int) -> UNet:
        from urepa.models.backbones.sd15_net import sd15

        known = {"latent_shape": latent_shape, "num_classes": num_classes}
        return sd15(self.weights, self.prompts, self.gradient_checkpointing, **known)  # type: ignore[arg-type]

    def build_without_weights(self, *, latent_shape: tuple[int, int, int], num_classes: int) -> UNet:
        """The architecture is that of a local folder's config.json, else SD-1.5's own; the prompts have no values."""
        from urepa.models.backbones.sd15_net import sd15_without_weights

        known = {"latent_shape": latent_shape, "num_classes": num_classes}
        return sd15_without_weights(self.weights, self.gradient_checkpointing, **known)  # type: ignore[arg-type]

    def description(self, facts: BackboneFacts) -> list[str | Formula]:
        recomputed = " Its blocks are computed again in the backward pass." if self.gradient_checkpointing else ""
        return [
            f"The backbone is the U-Net of Stable Diffusion 1.5{facts.initial_weights(self.base)}, on latents of "
            f"{facts.x0_shape}. The condition is the frozen text embedding of a class's prompt, one of "
            f"{number(facts.num_classes)}, or of the null prompt.{recomputed}"
        ]

    def model_card(self, facts: CardFacts) -> str:
        return diffusers_card(facts, self.base)

    def hub_metadata(self) -> dict[str, Any]:
        return {"library_name": "diffusers", "tags": ["urepa"]}
