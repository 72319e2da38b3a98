"""A small masked autoencoder (He et al. 2022, arXiv 2111.06377), and its encoder as a teacher.

The encoder sees the visible patches alone. The decoder puts a learned mask token in the place of the others and
predicts the pixels of all patches, normalised by each patch's mean and deviation; the loss counts the masked ones. As
in the paper positions are sines and cosines and are not learned. There is no class token. transformers' ViTMAE
resamples positions at other sizes than the training's; here they are computed, and the file has the encoder alone.

Shapes: B images, S image size, N patches, K visible ones, p side of a patch, P = 3p² its values, D and E widths of the
encoder and the decoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from urepa.core.types import Tokens
from urepa.models.backbones.sit_net import MLP, Attention, PatchEmbedder, sine_cosine
from urepa.models.layers import linear, unit_length
from urepa.models.teachers.own_mae_sizes import HEAD, check_own_mae, check_weights, stored_name, weights_digest
from urepa.models.teachers.rectangle_sizes import map_size, proportional_grid
from urepa.models.teachers.token_sizes import length_facts
from urepa.models.weight_files import read_safetensors

DECODER_WIDTH, DECODER_DEPTH, DECODER_HEAD = 96, 2, 32  # E, blocks, width of an attention head as in the paper
EPS = 1e-6  # of a patch's variance, and of LayerNorms, as in the published code
SPREAD = 0.02  # standard deviation of the mask token's initial values


class Block(nn.Module):
    """A block of a ViT: attention and an MLP, each after a LayerNorm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=EPS), nn.LayerNorm(width, eps=EPS)
        self.attn, self.mlp = Attention(width, heads, qk_norm=False), MLP(width)

    def forward(self, x_BND: Tensor) -> Tensor:
        x_BND = x_BND + self.attn(self.norm1(x_BND))
        return x_BND + self.mlp(self.norm2(x_BND))


class Encoder(nn.Module):
    """The blocks over visible patches."""

    def __init__(self, patch: int, width: int, depth: int) -> None:
        super().__init__()
        self.patch, self.width = patch, width
        self.embed = PatchEmbedder(3, patch, width)
        self.blocks = nn.ModuleList(Block(width, width // HEAD) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=EPS)

    def forward(self, images_B3HW: Tensor, visible_BK: Tensor | None = None, block: int | None = None) -> Tensor:
        """RGB in [0,1], of sides that are multiples of the patch, to tokens [B,K,D].

        Args:
            visible_BK: indices of the patches that it sees, row by row; None: all of them.
            block: the block whose output is returned, counted from 0; None: the last, after the LayerNorm.
        """
        grid = (images_B3HW.shape[2] // self.patch, images_B3HW.shape[3] // self.patch)
        x = self.embed(images_B3HW * 2 - 1) + sine_cosine(grid, self.width).to(images_B3HW.device)
        if visible_BK is not None:
            x = x.gather(1, visible_BK[..., None].expand(-1, -1, self.width))
        for number, one in enumerate(self.blocks):
            x = one(x)
            if number == block:
                return x
        return self.norm(x)


class Decoder(nn.Module):
    """From the visible patches' tokens to the pixels of all patches."""

    def __init__(self, patch: int, width: int) -> None:
        super().__init__()
        self.embed = linear(width, DECODER_WIDTH)
        self.mask_token = nn.Parameter(SPREAD * torch.randn(1, 1, DECODER_WIDTH))
        heads = DECODER_WIDTH // DECODER_HEAD
        self.blocks = nn.Sequential(*(Block(DECODER_WIDTH, heads) for _ in range(DECODER_DEPTH)))
        self.norm = nn.LayerNorm(DECODER_WIDTH, eps=EPS)
        self.pixels = linear(DECODER_WIDTH, 3 * patch**2)

    def forward(self, encoded_BKD: Tensor, visible_BK: Tensor, grid: tuple[int, int]) -> Tensor:
        """Pixels [B,N,P] of the patches on `grid`."""
        seen_BKE = self.embed(encoded_BKD)
        hidden_BNE = self.mask_token.expand(len(seen_BKE), grid[0] * grid[1], -1)
        x_BNE = hidden_BNE.scatter(1, visible_BK[..., None].expand_as(seen_BKE), seen_BKE)
        x_BNE = x_BNE + sine_cosine(grid, DECODER_WIDTH).to(x_BNE.device)
        return self.pixels(self.norm(self.blocks(x_BNE)))


class MaskedAutoencoder(nn.Module):
    """Encoder and decoder; `forward` gives the masked loss."""

    def __init__(self, patch: int, width: int, depth: int) -> None:
        super().__init__()
        self.encoder = Encoder(patch, width, depth)
        self.decoder = Decoder(patch, width)

    def forward(self, images_B3SS: Tensor, visible_BK: Tensor) -> Tensor:
        """RGB in [0,1] and the indices of the visible patches to each image's masked loss [B]."""
        patch, side = self.encoder.patch, images_B3SS.shape[-1] // self.encoder.patch
        predicted_BNP = self.decoder(self.encoder(images_B3SS, visible_BK), visible_BK, (side, side))
        return masked_loss(predicted_BNP, normalised_patches(images_B3SS, patch), visible_BK)


def normalised_patches(images_B3SS: Tensor, patch: int) -> Tensor:
    """The pixels in [-1,1] of each patch [B,N,P], less the patch's mean, divided by its deviation (unbiased, as in the
    published code). Their order is channel, row, column."""
    pixels_BNP = F.pixel_unshuffle(images_B3SS * 2 - 1, patch).flatten(2).transpose(1, 2)
    variance_BN1, mean_BN1 = torch.var_mean(pixels_BNP, dim=-1, keepdim=True)
    return (pixels_BNP - mean_BN1) / (variance_BN1 + EPS).sqrt()


def masked_loss(predicted_BNP: Tensor, target_BNP: Tensor, visible_BK: Tensor) -> Tensor:
    """The mean squared error over the values of the masked patches, for each image [B]."""
    errors_BN = (predicted_BNP.float() - target_BNP.float()).square().mean(-1)
    masked_BN = torch.ones_like(errors_BN).scatter(1, visible_BK, 0.0)
    return (errors_BN * masked_BN).sum(1) / masked_BN.sum(1)


class OwnMAENetwork:
    """The encoder with nothing masked, with weights from the file of `urepa.train_encoder`.

    Positions are computed for the patches at hand, so at another size than in training a patch gets the sines and
    cosines of its own row and column. Those beyond the training's grid were never trained.

    Args:
        weights: the file.
        image_size: pixels, a multiple of `patch`. grid: rows and columns after pooling.
        patch, width, depth: as in the file, which is checked when the network is loaded.
        block: the block whose output is taken, counted from 0, without the last LayerNorm; None: the last, with it.
        unit_length: whether tokens are normalised. whiten: whether the track whitens them on reading.
    """

    is_local = True  # its weights are in a file on this disk
    vector = "mean"  # what `states` gives beside the tokens

    def __init__(
        self,
        weights: str,
        image_size: int,
        patch: int,
        grid: list[int],
        width: int,
        depth: int,
        *,
        unit_length: bool = True,
        block: int | None = None,
        whiten: bool = False,
    ) -> None:
        check_own_mae(image_size, patch, grid, width, depth, block)
        self.weights, self.image_size, self.patch = Path(weights), image_size, patch
        self.grid, self.width, self.depth = (grid[0], grid[1]), width, depth
        self.unit_length, self.block, self.whiten = unit_length, block, whiten

    def weights_sha256(self) -> str:
        """The SHA-256 of the file. Raises UserError if it is missing."""
        self._check()
        return self._digest

    @cached_property
    def _digest(self) -> str:
        return weights_digest(self.weights)

    def _check(self) -> None:
        check_weights(self.weights, {"patch": self.patch, "width": self.width, "depth": self.depth})

    def grid_at(self, shape: Sequence[int], side: int) -> tuple[int, int]:
        """Rows and columns of tokens for an image of `shape`, if a square image of `side` has `grid`."""
        return proportional_grid(self.grid, shape, side)

    def manifest(self, grid: tuple[int, int] | None = None) -> dict[str, Any]:
        """The facts that its tokens depend on.

        Args:
            grid: of the tokens; None: that of a square image.
        """
        layer = {} if self.block is None else {"block": self.block}
        return (
            length_facts(self.unit_length)
            | layer
            | {
                "model": stored_name(self._digest, self.unit_length, self.block),
                "weights_sha256": self._digest,
                "image_size": self.image_size,
                "grid": list(self.grid if grid is None else grid),
                "width": self.width,
                "crop": "none",
                "flip": "none",
            }
        )

    @cached_property
    def _encoder(self) -> Encoder:
        self._check()
        encoder = Encoder(self.patch, self.width, self.depth)
        encoder.load_state_dict(read_safetensors(self.weights))
        return encoder.eval().requires_grad_(False)

    def build_without_weights(self) -> Encoder:
        """Builds the encoder from its sizes alone, to count costs: no file is read. Also replaces the network."""
        self._encoder = Encoder(self.patch, self.width, self.depth).eval().requires_grad_(False)
        return self._encoder

    @torch.inference_mode()
    def tokens(self, images_B3HW: Tensor, grid: tuple[int, int] | None = None) -> Tokens:
        """RGB in [0,1], of any size, to Tokens [B,N,D], of unit length unless they are raw. Images are resized to a
        square, or to the proportions of `grid` with tokens as large as on the square."""
        tokens = self.states(images_B3HW, grid)[1]
        return unit_length(tokens) if self.unit_length else replace(tokens, x_BND=tokens.x_BND.contiguous())

    @torch.inference_mode()
    def states(self, images_B3HW: Tensor, grid: tuple[int, int] | None = None) -> tuple[Tensor, Tokens]:
        """As `tokens`, but not of unit length, preceded by the mean of all patches [B,D]."""
        grid = self.grid if grid is None else grid
        rows, columns = map_size(grid, self.grid, self.image_size // self.patch)
        size, images = (rows * self.patch, columns * self.patch), images_B3HW.float()
        if images.shape[-2:] != size:
            images = F.interpolate(images, size=size, mode="bicubic", align_corners=False, antialias=True)
        encoder = self._encoder.to(images.device)
        patches = Tokens(encoder(images.clamp(0, 1), block=self.block), (rows, columns))
        return patches.x_BND.mean(1), Tokens.from_map(F.adaptive_avg_pool2d(patches.to_map(), grid))
