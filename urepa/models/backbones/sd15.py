"""Stable Diffusion 1.5's U-Net."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from urepa.core.declared_keys import setting
from urepa.core.descriptions import BackboneFacts, CardFacts, Formula, number
from urepa.models.backbones.backbone_sizes import check_prompts
from urepa.models.diffusers_cards import diffusers_card
from urepa.models.published_unet import PublishedUNet

if TYPE_CHECKING:
    import torch

    from urepa.models.backbones.unet_net import UNet

PROMPTS = "prompts.pt"


@dataclass
class SD15(PublishedUNet):
    """Stable Diffusion 1.5's U-Net (Rombach et al. 2022, arXiv 2112.10752), conditioned on the frozen text embeddings
    of the classes' prompts."""

    _target_: str = "urepa.models.backbones.sd15.SD15"
    weights: str = setting('a hub id, a local diffusers folder, or "random"')
    prompts: str = setting("the .pt file of text embeddings, with the null prompt last")
    gradient_checkpointing: bool = setting("recompute blocks in the backward pass: less memory, more time")
    family: ClassVar[str] = "sd15"

    def check_files(self) -> None:
        check_prompts(Path(self.prompts))

    def write_stand_ins(self, folder: Path, num_classes: int) -> dict[str, Any]:
        from urepa.models.backbones.sd15_net import write_random_prompts

        write_random_prompts(folder / PROMPTS, num_classes)
        return {"prompts": str(folder / PROMPTS)}

    def build(self, *, latent_shape: tuple[int, int, int], num_classes: int) -> UNet:
        from urepa.models.backbones.sd15_net import sd15

        known = {"latent_shape": latent_shape, "num_classes": num_classes}
        return sd15(self.weights, self.prompts, self.gradient_checkpointing, **known)  # type: ignore[arg-type]

    def build_frozen(self, dtype: torch.dtype, *, latent_shape: tuple[int, int, int], num_classes: int) -> UNet:
        from urepa.models.backbones.sd15_net import sd15

        return sd15(
            *(self.weights, self.prompts, self.gradient_checkpointing),
            latent_shape=latent_shape,
            num_classes=num_classes,
            dtype=dtype,
        )

    def build_without_weights(self, *, latent_shape: tuple[int, int, int], num_classes: int) -> UNet:
        """The architecture comes from a local folder's config.json; without one it is SD-1.5's. The prompts are not
        read."""
        from urepa.models.backbones.sd15_net import sd15_without_weights

        known = {"latent_shape": latent_shape, "num_classes": num_classes}
        return sd15_without_weights(self.weights, self.gradient_checkpointing, **known)  # type: ignore[arg-type]

    def description(self, facts: BackboneFacts) -> list[str | Formula]:
        recomputed = " Its blocks are recomputed in the backward pass." if self.gradient_checkpointing else ""
        return [
            f"The backbone is the U-Net of Stable Diffusion 1.5{facts.initial_weights(self.base)}, on latents of "
            f"{facts.x0_shape}. The condition is the frozen text embedding of a class's prompt, one of "
            f"{number(facts.num_classes)}, or of the null prompt.{recomputed}"
        ]

    def model_card(self, facts: CardFacts) -> str:
        return diffusers_card(facts, self.base)
