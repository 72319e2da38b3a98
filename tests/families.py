"""Small random U-Nets of the families that diffusers publishes, their conditions, and their own pipelines around them.

Shapes: B batch, L positions, D width of a token, P width of the pooled vector.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from urepa.core.conditions import Condition, Part
from urepa.core.part_names import POOLED, TEXT
from urepa.models.backbones.captioned_unet_net import CaptionedUNet, captioned_unet

WIDTHS = {"sd15": {TEXT: 32, POOLED: 24}, "sdxl": {TEXT: 32, POOLED: 24}, "kolors": {TEXT: 40, POOLED: 40}}
SD: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (16, 32, 32),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "cross_attention_dim": 32,
    "attention_head_dim": (2, 4, 4),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
}
XL: dict[str, Any] = SD | {
    "transformer_layers_per_block": (1, 1, 2),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + 24,
}
KOLORS: dict[str, Any] = XL | {
    "encoder_hid_dim": 40,
    "encoder_hid_dim_type": "text_proj",
    "projection_class_embeddings_input_dim": 6 * 8 + 40,
}
ARCHITECTURES = {"sd15": SD, "sdxl": XL, "kolors": KOLORS}
LATENT = (4, 8, 16)  # a rectangle, 64x128 in pixels


def write_family(folder: Path, family: str, **changes: Any) -> Path:
    """Writes FOLDER/unet/{config.json,*.safetensors}, as in a pipeline's folder; `changes` are changes of its
    architecture."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    UNet2DConditionModel(**ARCHITECTURES[family] | changes).save_pretrained(folder / "unet")
    return folder


def backbone_of(folder: Path, family: str, **known: Any) -> CaptionedUNet:
    """The backbone of such a folder, in eval mode."""
    settings: dict[str, Any] = {"latent_shape": LATENT, "widths": WIDTHS[family]} | known
    return captioned_unet(str(folder), family, False, **settings).eval()


def texts(family: str, *lengths: int, seed: int = 1) -> Condition:
    """Captions with so many tokens each, padded to the longest."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    widths, count, most = WIDTHS[family], len(lengths), max(lengths)
    mask_BL = torch.arange(most) < torch.tensor(lengths)[:, None]
    tokens = Part.of(normal(count, most, widths[TEXT]), mask_BL)
    return Condition({TEXT: tokens, POOLED: Part.of(normal(count, widths[POOLED]))})


def added_to(family: str, condition: Condition, ids: list[int]) -> dict[str, Any]:
    """diffusers' added_cond_kwargs; none for SD-1.5."""
    pooled_BP = condition[POOLED].vector_BD
    added = {"text_embeds": pooled_BP, "time_ids": torch.tensor([ids] * len(pooled_BP), dtype=torch.float32)}
    return {} if family == "sd15" else {"added_cond_kwargs": added}


def pipeline_of(unet: Any, family: str, scheduler: Any, vae: Any) -> Any:
    """The family's own pipeline, without text encoders."""
    import diffusers

    if family == "sd15":
        parts = (vae, None, None, unet, scheduler, None, None)
        pipe = diffusers.StableDiffusionPipeline(*parts, requires_safety_checker=False)
    elif family == "sdxl":
        pipe = diffusers.StableDiffusionXLPipeline(
            *(vae, None, None, None, None, unet, scheduler), add_watermarker=False
        )
    else:
        from diffusers.pipelines.kolors.pipeline_kolors import KolorsPipeline  # diffusers' own asks for sentencepiece

        pipe = KolorsPipeline(vae, None, None, unet, scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe
