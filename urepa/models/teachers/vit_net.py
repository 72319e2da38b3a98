"""Vision transformers as teachers: DINO, DINOv2, DINOv3, CLIP, SigLIP, MAE, I-JEPA, MoCo-v3 of the transformers
library, and Perception Encoder (`perception_net`).

Shapes: B batch, P prefix tokens (CLS, registers), N patch tokens, D width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from urepa.core import progress
from urepa.core.errors import UserError
from urepa.core.hub_names import download_failure, resolve
from urepa.core.types import Attention, Tokens
from urepa.models.layers import unit_length
from urepa.models.teachers import perception_net
from urepa.models.teachers.attention_net import recorded_attention
from urepa.models.teachers.dino import plain_vit_files
from urepa.models.teachers.dino.dinov2_positions import resample_by
from urepa.models.teachers.rectangle_sizes import map_size, proportional_grid
from urepa.models.teachers.token_sizes import length_facts
from urepa.models.teachers.vit_sizes import AUTHORS_FILES, check_cls, check_vit, resamples, resamples_map, stored_name

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
OPENAI = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@dataclass(frozen=True)
class Family:
    """What the models of a family share. `resizes`: whether they adapt their positions to the image size by default.
    `options`: arguments of their class. `model_class` is "" where transformers has none."""

    model_class: str
    normalisation: tuple[tuple[float, ...], tuple[float, ...]]
    cls_tokens: int
    resizes: bool
    options: Mapping[str, Any] = field(default_factory=dict)


FAMILIES = {
    "dinov2": Family("Dinov2Model", IMAGENET, 1, True),
    "dinov2_registers": Family("Dinov2WithRegistersModel", IMAGENET, 1, True),
    "dinov3": Family("DINOv3ViTModel", IMAGENET, 1, True),
    "clip": Family("CLIPVisionModel", OPENAI, 1, False),
    "siglip": Family("SiglipVisionModel", HALF, 0, False),
    "mae": Family("ViTMAEModel", IMAGENET, 1, False),
    "dino": Family("ViTModel", IMAGENET, 1, False, {"add_pooling_layer": False}),  # its files have no pooler
    "mocov3": Family("ViTModel", IMAGENET, 1, False, {"add_pooling_layer": False}),
    "ijepa": Family("IJepaModel", IMAGENET, 0, False, {"add_pooling_layer": False}),
    "pe": Family("", HALF, 1, True),
    "pe_g": Family("", HALF, 0, True),
}

# Layers of the published ViTs (S, B, L, H, g) by width; all have heads of width 64
LAYERS = {384: 12, 768: 12, 1024: 24, 1280: 32, 1536: 40}


class ViTNetwork:
    """The patch tokens of the last layer or of an earlier block, average-pooled from the patches' grid to `grid` and
    normalised to unit length.

    The description takes the first 1,296 of DINOv2's 37x37 tokens and views them as 36x36, which shears the
    image; here all of them are used (docs/errata.md).

    Args:
        family: a key of FAMILIES.
        model: a hub id, a local folder, or the authors' own file (`urepa.models.teachers.dino`).
        image_size: pixels, a multiple of `patch`; 518 gives DINOv2 37x37 tokens.
        patch: pixels. grid: rows and columns after pooling. width: D. The three are settings, so that heads
            can be built from a cache alone; they are checked when the network is loaded.
        positions: the rule by which family=dinov2 resamples its learned positions to other grids than 37x37 patches, a
            key of `urepa.models.teachers.dino.dinov2_positions.RULES`. At 37x37 nothing is resampled, and only "meta",
            the default in conf/, is allowed; in the other families only None.
        unit_length: whether tokens are normalised; else they are as the last layer gives them, averaged by pooling.
        cls_weight: the class token times this is added to each patch token, before pooling.
        block: the block whose output is taken, counted from 0, without the network's last LayerNorm; None: the last,
            with it.
        whiten: whether the track whitens the tokens on reading (`urepa.data.whitening`).
    """

    def __init__(
        self,
        family: str,
        model: str,
        image_size: int,
        patch: int,
        grid: list[int],
        width: int,
        positions: str | None = None,
        *,
        unit_length: bool = True,
        cls_weight: float = 0.0,
        block: int | None = None,
        whiten: bool = False,
    ) -> None:
        check_vit(family, image_size, patch, grid, positions)
        check_cls(family, cls_weight)
        self.unit_length, self.cls_weight, self.block, self.whiten = unit_length, cls_weight, block, whiten
        self.family, self.model, self.image_size, self.patch = family, model, image_size, patch
        self.grid, self.width = (grid[0], grid[1]), width
        self.resamples, self.positions = resamples(family, image_size, patch), positions

    def grid_at(self, shape: Sequence[int], side: int) -> tuple[int, int]:
        """Rows and columns of tokens for an image of `shape`, if a square image of `side` has `grid`."""
        return proportional_grid(self.grid, shape, side)

    def manifest(self, grid: tuple[int, int] | None = None) -> dict[str, Any]:
        """The facts that its tokens depend on and that are known without the weights; `positions` only if these are
        resampled.

        Args:
            grid: of the tokens; None: that of a square image.
        """
        is_resampled = self.resamples if grid is None else resamples_map(self.family, self._map_of(grid))
        positions = {"positions": self.positions} if is_resampled else {}
        mixed = {"cls_weight": self.cls_weight} if self.cls_weight else {}
        layer = {} if self.block is None else {"block": self.block}
        return (
            positions
            | length_facts(self.unit_length)
            | mixed
            | layer
            | {
                "family": self.family,
                "model": stored_name(self.model, self.unit_length, self.cls_weight, self.block),
                "image_size": self.image_size,
                "grid": list(self.grid if grid is None else grid),
                "width": self.width,
                "crop": "center",
                "flip": "none",
            }
        )

    @property
    def is_local(self) -> bool:
        """Whether `model` is a file or folder on this disk."""
        return Path(self.model).exists()

    def weights_sha256(self) -> str:
        """The SHA-256 of the loaded weights, independent of the file's format."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.network.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    @cached_property
    def network(self) -> Any:
        """The frozen encoder, in fp32."""
        import transformers

        progress.hide_loading()
        family = FAMILIES[self.family]
        network: Any
        if self.family in perception_net.FAMILIES:
            network = perception_net.load_perception(Path(self.model), self.family)
        elif self.model.endswith(AUTHORS_FILES) and self.family in plain_vit_files.FAMILIES:
            network = plain_vit_files.load_plain(Path(self.model), self.family)
        elif self.model.endswith(AUTHORS_FILES):
            from urepa.models.teachers.dino.meta_files import load_meta

            network = load_meta(Path(self.model), self.family)
        else:
            try:
                name, revision = resolve(self.model)
                network = getattr(transformers, family.model_class).from_pretrained(
                    name, use_safetensors=True, dtype=torch.float32, revision=revision, **family.options
                )
            except OSError as error:
                raise UserError(
                    f"teacher.model={self.model} could not be loaded ({download_failure(error, self.model)}); "
                    "or give a local folder"
                ) from error
        config = network.config
        if (config.hidden_size, config.patch_size) != (self.width, self.patch):
            raise UserError(
                f"teacher.model={self.model} has width {config.hidden_size} and patches of {config.patch_size}; "
                f"teacher.width={self.width} and teacher.patch={self.patch} say otherwise"
            )
        last = config.num_hidden_layers - 1
        if self.block is not None and self.block > last:
            raise UserError(f"teacher.block={self.block}: the last block of teacher.model={self.model} is {last}")
        return self._freeze(network)

    def build_without_weights(self) -> Any:
        """Builds the network from its architecture alone, on the meta device, to count costs: no weights are read or
        fetched. The architecture is that of a local folder, or of the published model of this width. Also replaces
        `network`."""
        import transformers

        if self.family in perception_net.FAMILIES:
            tower = perception_net.without_weights(self.family, self.width, self.patch, self.image_size)
            self.network = self._freeze(tower)
            return self.network
        family = FAMILIES[self.family]
        network_class = getattr(transformers, family.model_class)
        if Path(self.model).is_dir():
            config = network_class.config_class.from_pretrained(self.model)
        elif self.width not in LAYERS:
            known = ", ".join(map(str, LAYERS))
            raise UserError(f"teacher.width={self.width}: no published ViT is that wide ({known}); give a local folder")
        else:
            config = network_class.config_class(
                hidden_size=self.width,
                num_hidden_layers=LAYERS[self.width],
                num_attention_heads=self.width // 64,
                intermediate_size=4 * self.width,
                patch_size=self.patch,
                image_size=self.image_size,
            )
            if self.width == 1536:  # DINOv2-g alone
                config.use_swiglu_ffn = True
        self.network = self._freeze(network_class(config, **family.options))
        return self.network

    def _freeze(self, network: Any) -> Any:
        if self.family == "mae":
            network.config.mask_ratio = 0.0  # its default drops three quarters of the patches
        if self.positions is not None:
            resample_by(self.positions, network.embeddings)
        return network.eval().requires_grad_(False)

    def _map_of(self, grid: tuple[int, int]) -> tuple[int, int]:
        """The rows and columns of patches that are pooled to a grid."""
        return map_size(grid, self.grid, self.image_size // self.patch)

    @torch.inference_mode()
    def tokens(self, images_B3HW: Tensor, grid: tuple[int, int] | None = None) -> Tokens:
        """RGB in [0,1], of any size, to Tokens [B,N,D]. Images are resized to a square, or to the proportions of `grid`
        with tokens as large as on the square; positions are then resampled, by the rule `positions` if there is
        one. The class token is added to each, `cls_weight` times; they have unit length unless they are raw."""
        vector_BD, tokens = self.states(images_B3HW, grid)
        if self.cls_weight:  # the same for every patch, so the order of this and of pooling does not matter
            tokens = replace(tokens, x_BND=tokens.x_BND + self.cls_weight * vector_BD[:, None])
        return unit_length(tokens) if self.unit_length else replace(tokens, x_BND=tokens.x_BND.contiguous())

    @torch.inference_mode()
    def tokens_and_attention(
        self, images_B3HW: Tensor, blocks: Sequence[int], grid: tuple[int, int] | None = None
    ) -> tuple[Tokens, dict[int, Attention]]:
        """As `tokens`, with the attention of these blocks among patches, by block. Raises UserError for a block that
        does not exist."""
        with recorded_attention(self.network) as seen:
            tokens = self.tokens(images_B3HW, grid)
        if missing := [block for block in blocks if not 0 <= block < len(seen)]:
            raise UserError(
                f"loss.attention: the teacher {self.model} has {len(seen)} blocks, counted from 0, and none with the "
                f"number {missing[0]}"
            )
        prefix = self._prefix
        return tokens, {block: seen[block].map(lambda x_BANE: x_BANE[:, :, prefix:].float()) for block in blocks}

    def attention_grid(self, grid: tuple[int, int] | None = None) -> tuple[int, int]:
        """Rows and columns of the patches, from which tokens on this grid are pooled."""
        return self._map_of(self.grid if grid is None else grid)

    @property
    def _prefix(self) -> int:
        """The number of class and register tokens, which precede the patches."""
        return FAMILIES[self.family].cls_tokens + getattr(self.network.config, "num_register_tokens", 0)

    @property
    def vector(self) -> str:
        """What `states` gives beside the tokens: "cls", the class token, or "mean" in a family without one."""
        return "cls" if FAMILIES[self.family].cls_tokens else "mean"

    @torch.inference_mode()
    def states(self, images_B3HW: Tensor, grid: tuple[int, int] | None = None) -> tuple[Tensor, Tokens]:
        """As `tokens`, but not of unit length, preceded by the class token [B,D], or the mean of all patches in a
        family without one. Registers are left out."""
        family, grid = FAMILIES[self.family], self.grid if grid is None else grid
        rows, columns = self._map_of(grid)
        size = (rows * self.patch, columns * self.patch)
        images = F.interpolate(images_B3HW, size=size, mode="bicubic", align_corners=False, antialias=True)
        mean, std = (torch.tensor(x, device=images.device).view(3, 1, 1) for x in family.normalisation)
        pixels = (images.clamp(0, 1) - mean) / std
        options: dict[str, Any] = {} if family.resizes else {"interpolate_pos_encoding": True}
        if self.family == "mae":  # it shuffles patches by sorting this noise; ascending values keep the order
            options["noise"] = torch.arange(rows * columns, device=pixels.device).float().expand(len(pixels), -1)
        if self.block is not None:
            options["output_hidden_states"] = True
        network = self.network.to(pixels.device)
        with torch.autocast("cuda", torch.bfloat16, enabled=pixels.is_cuda):
            output = network(pixels, **options)
        # the first of the hidden states are the embeddings
        hidden_BND = output.last_hidden_state if self.block is None else output.hidden_states[self.block + 1]
        patches = Tokens(hidden_BND[:, self._prefix :].float(), (rows, columns))
        vector_BD = hidden_BND[:, 0].float() if family.cls_tokens else patches.x_BND.mean(1)
        return vector_BD, Tokens.from_map(F.adaptive_avg_pool2d(patches.to_map(), grid))
