"""NanoDiT: a transformer over latent patches whose blocks attend to a context of text and an image's tokens.

Shapes: B batch, R rows of it, C channels, H/W latent, p patch, h/w grid of patches, N = h·w tokens, D width, A heads,
E = D/A width of a head, L text tokens, T patches of the image encoder, S = L + 1 + T context tokens, X text width, Y
width of the image encoder's vector, Z of its tokens.

Parameters of the inputs have the names of the description's model: text_proj, dino_proj, dino_patch_proj, null_dino,
null_dino_patch_token (docs/nanodit.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from urepa.core.backbone_protocols import ExpectedRange
from urepa.core.conditions import Condition
from urepa.core.errors import UserError
from urepa.core.part_names import CLS, PATCHES, TEXT
from urepa.core.types import Denoised, Tokens
from urepa.models.backbones.backbone_sizes import EXPORTED, sit_block
from urepa.models.backbones.sit_net import EPS, PatchEmbedder, TimeEmbedder, modulate, sine_cosine
from urepa.models.layers import linear
from urepa.models.register_layers import dense, run_block
from urepa.models.weight_files import read_safetensors, save_tensors

TIMES = 1000  # t in [0,1] is scaled by it before its sinusoids
NO_ADAPTERS = "lora has no layers to adapt in NanoDiT: give lora=none"
SPREAD = 0.02  # standard deviation of the learned nulls' initial values
MLP_RATIO = 4  # the inner width of an MLP divided by its width
OBSERVED = ("null_text", "null_dino")
OBSERVED_OF_PATCHES = ("dino_patch_proj", "null_dino_patch_token")
RMS = "train/prediction_rms"
# those of the description, for latents of unit variance
RANGES = (
    ExpectedRange("train/diffusion", 1.0, 1.5, 100),
    ExpectedRange(RMS, 1.0, 2.0, 100),
    ExpectedRange("grad_norm", None, 5.0, 100),
    ExpectedRange(RMS, 0.5, 3.0, 101, onwards=True),
)
PATCHES_LEARN = ExpectedRange("grad_norm/dino_patch_proj", 1e-9, None, 100, onwards=True)


class SelfAttention(nn.Module):
    """Attention among the latent's tokens, without biases."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = dense(width, 3 * width), dense(width, width)

    def forward(self, x_BND: Tensor) -> Tensor:
        q_BANE, k_BANE, v_BANE = self.qkv(x_BND).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        out_BANE = F.scaled_dot_product_attention(q_BANE, k_BANE, v_BANE)
        return self.proj(out_BANE.transpose(1, 2).flatten(2))


class CrossAttention(nn.Module):
    """Attention from the latent's tokens to the context, without biases."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.kv, self.proj = dense(width, width), dense(width, 2 * width), dense(width, width)

    def forward(self, x_BND: Tensor, context_BSD: Tensor, mask_BS: Tensor) -> Tensor:
        """`mask_BS` is True for context tokens that are attended to."""
        q_BANE = self.q(x_BND).unflatten(2, (self.heads, -1)).transpose(1, 2)
        k_BASE, v_BASE = self.kv(context_BSD).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        out_BANE = F.scaled_dot_product_attention(q_BANE, k_BASE, v_BASE, attn_mask=mask_BS[:, None, None])
        return self.proj(out_BANE.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Two linear layers without biases, and the tanh approximation of GELU between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = dense(width, MLP_RATIO * width), dense(MLP_RATIO * width, width)

    def forward(self, x_BND: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x_BND), approximate="tanh"))


class NanoDiTBlock(nn.Module):
    """Self-attention, cross-attention and MLP, each added to its input. The global vector g sets shift and scale of the
    LayerNorm before each; there are no gates. Shifts and scales are 0 at first."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width, elementwise_affine=False, eps=EPS) for _ in range(3))
        self.attn, self.cross_attn = SelfAttention(width, heads), CrossAttention(width, heads)
        self.mlp = FeedForward(width)
        modulation = nn.Linear(width, 6 * width, bias=False)
        nn.init.zeros_(modulation.weight)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), modulation)

    def forward(self, x_BND: Tensor, g_BD: Tensor, context_BSD: Tensor, mask_BS: Tensor) -> Tensor:
        shift1, scale1, shift2, scale2, shift3, scale3 = self.adaLN_modulation(g_BD).chunk(6, dim=1)
        x_BND = x_BND + self.attn(modulate(self.norm1(x_BND), shift1, scale1))
        x_BND = x_BND + self.cross_attn(modulate(self.norm2(x_BND), shift2, scale2), context_BSD, mask_BS)
        return x_BND + self.mlp(modulate(self.norm3(x_BND), shift3, scale3))


class Output(nn.Module):
    """LayerNorm, a linear layer to patches, and a 3×3 convolution of the latent that is 0 at first."""

    def __init__(self, width: int, channels: int, patch: int) -> None:
        super().__init__()
        self.patch = patch
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.linear = linear(width, channels * patch**2)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv.weight)
        assert self.conv.bias is not None
        nn.init.zeros_(self.conv.bias)

    def forward(self, x_BND: Tensor, grid: tuple[int, int]) -> Tensor:
        """[B,C,H,W]; a token's values are those of its patch, channels last."""
        patches = self.linear(self.norm(x_BND)).unflatten(2, (self.patch, self.patch, -1)).unflatten(1, grid)
        return self.conv(patches.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3))


class NanoDiTNetwork(nn.Module):
    """The transformer. Taps: `block_k`, the output of block k, counted from 0.

    x_t may have any rows and columns that are multiples of p, also others at every step, and the context any number of
    text and image tokens. Withheld parts are replaced by learned nulls before their projections: one token for all text
    positions, one vector, one token for all patches; all these positions are attended to.

    Args:
        latent_shape: C, H, W. patch: p. width: D, a multiple of 4 and of `heads`.
        widths: X, Y, Z.
        cls: where the encoder's vector goes: "both", "adaln" or "context".
        cls_with_time: whether the vector's token in the context has the time's embedding added.
        patches: whether the context has the encoder's tokens.
        patch_positions: whether sine-cosine positions are added to them.
        recompute: whether blocks are computed again in the backward pass.
    """

    stages = ("embedding", "blocks", "output")
    regions = ("NanoDiTBlock",)

    def __init__(
        self,
        latent_shape: tuple[int, int, int],
        patch: int,
        depth: int,
        width: int,
        heads: int,
        widths: tuple[int, int, int],
        cls: str,
        cls_with_time: bool,
        patches: bool,
        patch_positions: bool,
        recompute: bool,
    ) -> None:
        super().__init__()
        text_width, cls_width, patch_width = widths
        self.patch, self.width, self.recompute = patch, width, recompute
        self.cls, self.cls_with_time, self.patch_positions = cls, cls_with_time, patch_positions
        self.x_embedder = PatchEmbedder(latent_shape[0], patch, width)
        self.t_embedder = TimeEmbedder(width)
        self.text_proj, self.null_text = linear(text_width, width), _null(text_width)
        self.dino_proj, self.null_dino = linear(cls_width, width), nn.Parameter(SPREAD * torch.randn(1, cls_width))
        if patches:
            self.dino_patch_proj, self.null_dino_patch_token = linear(patch_width, width), _null(patch_width)
        self.has_patches = patches
        self.observed = (*OBSERVED, *OBSERVED_OF_PATCHES) if patches else OBSERVED
        self.ranges = (*RANGES, PATCHES_LEARN) if patches else RANGES
        self.blocks = nn.ModuleList(NanoDiTBlock(width, heads) for _ in range(depth))
        self.output = Output(width, latent_shape[0], patch)
        self._positions: dict[tuple[tuple[int, int], torch.device], Tensor] = {}

    def index_of(self, tap: str) -> int:
        """The index of a tap's block. Raises UserError for a tap that does not exist."""
        return sit_block(tap, len(self.blocks))

    def tap_width(self, tap: str) -> int:
        """D, the same for every tap."""
        self.index_of(tap)
        return self.width

    def trains_before(self, tap: str) -> bool:
        """Whether something trainable precedes the tap."""
        last = self.index_of(tap)
        after = [f"blocks.{k}." for k in range(last + 1, len(self.blocks))] + ["output."]
        named = self.named_parameters()
        return any(p.requires_grad for name, p in named if not name.startswith(tuple(after)))

    def freeze_after(self, taps: tuple[str, ...]) -> None:
        """Freezes the parameters that no tap depends on."""
        deepest = max(self.index_of(tap) for tap in taps)
        for part in (*self.blocks[deepest + 1 :], self.output):
            part.requires_grad_(False)

    def lora_modules(self, targets: str, blocks: str) -> str:
        """Raises UserError: adapters on random weights would train nothing."""
        raise UserError(NO_ADAPTERS)

    def add_adapter(self, config: Any) -> None:
        """Raises UserError, as `lora_modules`."""
        raise UserError(NO_ADAPTERS)

    def export(self, folder: Path) -> None:
        """Writes the weights."""
        save_tensors(self.state_dict(), folder / EXPORTED)

    def read_values(self, files: Sequence[Path]) -> dict[str, Tensor]:
        """The values of all parameters in an export's file, by name."""
        (file,) = files
        return read_safetensors(file)

    def stage_of(self, name: str) -> str:
        """The part of the network that has a module or parameter of this name: one of `stages`."""
        first = name.partition(".")[0]
        return first if first in ("blocks", "output") else "embedding"

    def forward(
        self,
        x_t: Tensor,
        t_B: Tensor,
        condition: Condition,
        taps: tuple[str, ...] = (),
        rows_R: Tensor | None = None,
    ) -> Denoised:
        """x_t [B,C,H,W], t [B] in [0,1].

        rows_R [R] are the indices of the samples to predict (None: all). The blocks after the deepest tap process only
        these, and if there are none the forward stops there. Taps always have the whole batch.
        """
        tap_of = {self.index_of(tap): tap for tap in taps}
        deepest = max(tap_of, default=-1)
        features: dict[str, Tokens] = {}
        grid = x_t.shape[2] // self.patch, x_t.shape[3] // self.patch
        x_BND = self.x_embedder(x_t) + self.positions_of(grid, x_t.device)
        g_BD, context_BSD, mask_BS = self.global_and_context(t_B, condition)
        for k, block in enumerate(self.blocks[: deepest + 1]):
            x_BND = run_block(block, self.recompute, x_BND, g_BD, context_BSD, mask_BS)
            if k in tap_of:
                features[tap_of[k]] = Tokens(x_BND, grid)
        if rows_R is not None:
            if len(rows_R) == 0:
                return Denoised(x_t[:0], features)
            x_BND, g_BD, context_BSD, mask_BS = (x[rows_R] for x in (x_BND, g_BD, context_BSD, mask_BS))
        for block in self.blocks[deepest + 1 :]:
            x_BND = run_block(block, self.recompute, x_BND, g_BD, context_BSD, mask_BS)
        return Denoised(self.output(x_BND, grid), features)

    def global_and_context(self, t_B: Tensor, condition: Condition) -> tuple[Tensor, Tensor, Tensor]:
        """The vector g [B,D] of the modulations, the context [B,S,D] in the order text, vector, patches, and its mask
        [B,S]."""
        text, cls = condition[TEXT], condition[CLS]
        time_BD = self.t_embedder(TIMES * t_B)
        cls_BD = self.dino_proj(cls.where_given(cls.vector_BD.to(self.null_dino.dtype), self.null_dino))
        text_BLX = text.where_given(text.tokens_BLD.to(self.null_text.dtype), self.null_text)
        assert text.mask_BL is not None, "tokens have a mask"
        parts = [self.text_proj(text_BLX)]
        masks = [text.where_given(text.mask_BL, torch.ones_like(text.mask_BL))]
        if self.cls != "adaln":
            token_BD = cls_BD + time_BD if self.cls_with_time else cls_BD
            parts.append(token_BD[:, None])
        masks += [mask_of_all(part) for part in parts[1:]]
        if self.has_patches:
            parts.append(self._patches(condition))
            mask_BT = condition[PATCHES].mask_BL
            assert mask_BT is not None, "tokens have a mask"
            masks.append(mask_BT)
        g_BD = time_BD if self.cls == "context" else cls_BD + time_BD
        return g_BD, torch.cat(parts, dim=1), torch.cat(masks, dim=1)

    def cross_attentions(self) -> list[CrossAttention]:
        """The cross-attention of each block."""
        return [block.cross_attn for block in self.blocks]  # type: ignore[misc]

    def context_lengths(self, condition: Condition) -> dict[str, int]:
        """The number of tokens in the context of each part of the condition, in their order."""
        lengths = {TEXT: condition[TEXT].tokens_BLD.shape[1]}
        if self.cls != "adaln":
            lengths[CLS] = 1
        if self.has_patches:
            lengths[PATCHES] = condition[PATCHES].tokens_BLD.shape[1]
        return lengths

    def _patches(self, condition: Condition) -> Tensor:
        """The image encoder's tokens, projected: [B,T,D]."""
        patches = condition[PATCHES]
        assert patches.grid is not None, "an image's tokens have a grid"
        own_BTZ = patches.tokens_BLD.to(self.null_dino_patch_token.dtype)
        tokens_BTD = self.dino_patch_proj(patches.where_given(own_BTZ, self.null_dino_patch_token))
        if not self.patch_positions:
            return tokens_BTD
        return tokens_BTD + self.positions_of(patches.grid, tokens_BTD.device)

    def positions_of(self, grid: tuple[int, int], device: torch.device) -> Tensor:
        """Fixed sine-cosine positions [1,h·w,D] of a grid's rows and columns, counted from 0."""
        if (grid, device) not in self._positions:
            self._positions[grid, device] = sine_cosine(grid, self.width).to(device)
        return self._positions[grid, device]


def _null(width: int) -> nn.Parameter:
    """One learned token [1,1,width], which broadcasts to any number of positions."""
    return nn.Parameter(SPREAD * torch.randn(1, 1, width))


def mask_of_all(tokens_BLD: Tensor) -> Tensor:
    """A mask [B,L] with which all tokens count."""
    return torch.ones(tokens_BLD.shape[:2], dtype=torch.bool, device=tokens_BLD.device)
