"""HiDream-I1's transformer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from urepa.core.declared_keys import SIZE, setting
from urepa.core.errors import UserError
from urepa.core.part_names import LAYERS, POOLED, TEXT
from urepa.models.published_transformer import PublishedTransformer

if TYPE_CHECKING:
    from urepa.models.backbones.hidream_net import HiDreamNetwork


@dataclass
class HiDream(PublishedTransformer):
    """HiDream-I1's transformer, a mixture of experts (HiDream-ai 2025, arXiv 2505.22705). It is conditioned on the
    frozen tokens of captions from T5, on those of every layer of a Llama, and on a pooled vector."""

    _target_: str = "urepa.models.backbones.hidream.HiDream"
    weights: str = setting('a hub id, a local diffusers folder, or "random"')
    gradient_checkpointing: bool = setting("recompute blocks in the backward pass: less memory, more time")
    num_layers: int = setting("number of double-stream blocks", ge=1, le=SIZE)
    num_single_layers: int = setting("number of single-stream blocks after them", ge=1, le=SIZE)
    num_attention_heads: int = setting("heads of attention in a block", ge=1, le=SIZE)
    llama_layers: list[int] = setting(
        "for each block, in order, the index of the layer in text.layers that it attends to", ge=0, le=SIZE
    )
    max_resolution: list[int] = setting("largest rows and columns of latents that are not square", ge=1, le=SIZE)
    family: ClassVar[str] = "hidream"
    title: ClassVar[str] = "HiDream-I1"
    condition_parts: ClassVar[tuple[str, ...]] = (TEXT, LAYERS, POOLED)
    condition: ClassVar[str] = (
        "The condition is a caption: its frozen tokens from one encoder are a second stream beside the image's, and "
        "each block also attends to those of a layer of a language model, padding included. Its pooled vector is "
        "embedded and added to the time embedding. If the caption is withheld, all are the data's null condition."
    )
    text_fields: ClassVar[Mapping[str, str]] = {"text_emb_dim": POOLED}
    network: ClassVar[str] = "HiDreamImageTransformer2DModel"
    published: ClassVar[Mapping[str, Any]] = {
        **{"patch_size": 2, "in_channels": 16, "out_channels": 16, "axes_dims_rope": (64, 32, 32)},
        "caption_channels": (4096, 4096),
    }
    block_counts: ClassVar[tuple[str, ...]] = ("num_layers", "num_single_layers")
    pipeline: ClassVar[str] = "HiDreamImagePipeline"
    usual_tap: ClassVar[str] = "block_16"  # a third of the depth: no published one was found

    def adapter(self) -> type[HiDreamNetwork]:
        from urepa.models.backbones.hidream_net import HiDreamNetwork

        return HiDreamNetwork

    def of_data(self, channels: int, widths: Mapping[str, int]) -> dict[str, Any]:
        return super().of_data(channels, widths) | {"caption_channels": (widths[TEXT], widths[LAYERS])}

    def text_widths(self, config: Mapping[str, Any]) -> dict[str, int]:
        both = config.get("caption_channels", ())
        return dict(zip((TEXT, LAYERS), both, strict=False)) | super().text_widths(config)

    def check(self, latent_shape: tuple[int, int, int]) -> None:
        super().check(latent_shape)
        if len(self.llama_layers) != self.blocks:
            raise UserError(
                f"backbone.llama_layers has {len(self.llama_layers)} numbers, and there are {self.blocks} blocks; give "
                "one of each"
            )
        _, height, width = latent_shape
        rows, columns = self.max_resolution
        if height != width and height * width > rows * columns:
            raise UserError(
                f"x0 of {height}x{width} is larger than backbone.max_resolution={list(self.max_resolution)}, the most "
                f"that this {self.noun} takes of what is not square; give smaller images"
            )
