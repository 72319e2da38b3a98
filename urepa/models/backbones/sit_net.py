"""SiT: a transformer over latent patches, conditioned by adaLN-Zero (Ma et al. 2024, arXiv 2401.08740; Peebles & Xie
2023, arXiv 2212.09748). Its parameters have the names of the published checkpoints.

Shapes: B batch, R rows of it, C channels, H/W latent, p patch, h/w grid of patches, N = h·w tokens, D width, A heads,
E = D/A width of a head, S sinusoid.

diffusers has no SiT: its DiT embeds time and class in each block and has other parameter names and no taps. The
published repositories are not installable packages.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from urepa.core.conditions import CLASS, Condition, Part
from urepa.core.types import Attention as Attended
from urepa.core.types import Denoised, Tokens
from urepa.models.backbones.backbone_sizes import EXPORTED, check_transformer_adapters, sit_block
from urepa.models.backbones.sit_published_net import to_published
from urepa.models.layers import linear
from urepa.models.time_embedding import SINUSOID, sinusoid
from urepa.models.weight_files import save_tensors

EPS = 1e-6  # of the LayerNorms without weights
SPREAD = 0.02  # standard deviation of the embeddings' initial values


def sine_cosine(grid: tuple[int, int], width: int) -> Tensor:
    """Fixed sine-cosine positions [1,N,D] in row-major order: the column's sines and cosines, then the row's."""
    frequencies = 10_000 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    rows, columns = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid), indexing="ij")
    angles = [place.reshape(-1, 1) * frequencies for place in (columns, rows)]
    parts = [part for angle in angles for part in (angle.sin(), angle.cos())]
    return torch.cat(parts, dim=1).float()[None]


def modulate(x_BND: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x·(1 + scale) + shift, with the same shift and scale [B,D] for all tokens of a sample, or with each token's
    [B,N,D]."""
    return x_BND * (1 + of_tokens(scale)) + of_tokens(shift)


def of_tokens(vector: Tensor) -> Tensor:
    """A sample's vector [B,D] for all of its tokens [B,1,D], or that of each token [B,N,D]."""
    return vector[:, None] if vector.ndim == 2 else vector


def modulation(width: int, parts: int) -> nn.Sequential:
    """A layer from the condition to `parts` vectors, initialised to output 0."""
    linear = nn.Linear(width, parts * width)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(nn.SiLU(), linear)


class PatchEmbedder(nn.Module):
    """Embeds p×p patches as tokens, in row-major order."""

    def __init__(self, channels: int, patch: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, stride=patch)
        nn.init.xavier_uniform_(self.proj.weight.view(width, -1))
        assert self.proj.bias is not None
        nn.init.zeros_(self.proj.bias)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.proj(x_BCHW).flatten(2).transpose(1, 2)


class TimeEmbedder(nn.Module):
    """Embeds t in [0,1] as a vector."""

    def __init__(self, width: int) -> None:
        super().__init__()
        first, last = linear(SINUSOID, width), linear(width, width)
        for layer in (first, last):
            nn.init.normal_(layer.weight, std=SPREAD)
        self.mlp = nn.Sequential(first, nn.SiLU(), last)

    def forward(self, t_B: Tensor) -> Tensor:
        return self.mlp(sinusoid(t_B))


class ClassEmbedder(nn.Module):
    """An embedding with a row for each class, followed by the null row."""

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(num_classes + 1, width)
        nn.init.normal_(self.embedding_table.weight, std=SPREAD)

    def forward(self, classes: Part) -> Tensor:
        ids_B = classes.where_given(classes.ids_B, self.embedding_table.num_embeddings - 1)
        return self.embedding_table(ids_B)


class Attention(nn.Module):
    """Self-attention with torch's fused kernels; with `qk_norm`, a LayerNorm per head is applied to queries and
    keys. What it attends by is appended to `attended`."""

    def __init__(self, width: int, heads: int, qk_norm: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = linear(width, 3 * width), linear(width, width)
        self.q_norm, self.k_norm = (nn.LayerNorm(width // heads) if qk_norm else nn.Identity() for _ in range(2))

    def forward(self, x_BND: Tensor, attended: list[Attended] | None = None) -> Tensor:
        q_BANE, k_BANE, v_BANE = self.qkv(x_BND).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q_BANE, k_BANE = self.q_norm(q_BANE), self.k_norm(k_BANE)
        if attended is not None:
            attended.append(Attended(q_BANE, k_BANE, q_BANE.shape[-1] ** -0.5))
        out_BANE = F.scaled_dot_product_attention(q_BANE, k_BANE, v_BANE)
        return self.proj(out_BANE.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Two linear layers with four times the width between them, and the tanh approximation of GELU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = linear(width, 4 * width), linear(4 * width, width)

    def forward(self, x_BND: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x_BND), approximate="tanh"))


class SiTBlock(nn.Module):
    """Attention and MLP. The condition sets the shift and scale of the LayerNorm before each and the gate after it.
    Initialised as the identity."""

    def __init__(self, width: int, heads: int, qk_norm: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=EPS)
        self.attn = Attention(width, heads, qk_norm)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=EPS)
        self.mlp = MLP(width)
        self.adaLN_modulation = modulation(width, 6)

    def forward(self, x_BND: Tensor, c_BD: Tensor, attended: list[Attended] | None = None) -> Tensor:
        """The condition is a sample's [B,D], or each token's [B,N,D]. `attended` gets the block's queries and keys."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(c_BD).chunk(6, dim=-1)
        x_BND = x_BND + of_tokens(gate1) * self.attn(modulate(self.norm1(x_BND), shift1, scale1), attended)
        return x_BND + of_tokens(gate2) * self.mlp(modulate(self.norm2(x_BND), shift2, scale2))


class FinalLayer(nn.Module):
    """Maps tokens to patches; initialised to output 0."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(width, elementwise_affine=False, eps=EPS)
        self.linear = nn.Linear(width, outputs)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.adaLN_modulation = modulation(width, 2)

    def forward(self, x_BND: Tensor, c_BD: Tensor) -> Tensor:
        return self.linear(modulate(self.norm_final(x_BND), *self.adaLN_modulation(c_BD).chunk(2, dim=-1)))


class SiTNetwork(nn.Module):
    """The transformer. Taps: `block_k`, the output of block k, counted from 0; depth 8 in REPA is `block_7`.

    With fixed positions x_t may have any rows and columns that are multiples of p, also others than `latent_shape` and
    at every step: a patch gets the sines and cosines of its row and column, counted from 0.

    Args:
        latent_shape: C, H, W. patch: p, which divides H and W. width: D, a multiple of 4 and of `heads`.
        positions: added to the embedded patches: "sincos", fixed sine-cosine positions, or "learned", initialised with
            N(0, 0.02²).
    """

    stages = ("embedding", "blocks", "output")
    regions = ("SiTBlock",)
    takes_token_times = True  # `forward` takes a time for each token too

    def __init__(
        self,
        latent_shape: tuple[int, int, int],
        num_classes: int,
        patch: int,
        depth: int,
        width: int,
        heads: int,
        qk_norm: bool,
        positions: str,
    ) -> None:
        super().__init__()
        channels, height, columns = latent_shape
        self.patch, self.width, self.grid = patch, width, (height // patch, columns // patch)
        self.patch_values = channels * patch**2
        self.x_embedder = PatchEmbedder(channels, patch, width)
        self.t_embedder = TimeEmbedder(width)
        self.y_embedder = ClassEmbedder(num_classes, width)
        self.blocks = nn.ModuleList(SiTBlock(width, heads, qk_norm) for _ in range(depth))
        self.final_layer = FinalLayer(width, channels * patch**2)
        self.positions = positions
        self.pos_embed: Tensor  # [1,N,D], with its name in the published checkpoints
        if positions == "learned":  # drawn last, so that the other weights are those with fixed positions
            self.pos_embed = nn.Parameter(SPREAD * torch.randn(1, self.grid[0] * self.grid[1], width))
        else:
            self.register_buffer("pos_embed", sine_cosine(self.grid, width), persistent=False)
        self._positions: dict[tuple[int, int], Tensor] = {}  # for other grids that x_t had, by grid

    def index_of(self, tap: str) -> int:
        """The index of a tap's block. Raises UserError for a tap that does not exist."""
        return sit_block(tap, len(self.blocks))

    def tap_width(self, tap: str) -> int:
        """D, the same for every tap."""
        self.index_of(tap)
        return self.width

    def trains_before(self, tap: str) -> bool:
        """Whether something trainable precedes the tap. If not, the alignment term there trains only the head."""
        last = self.index_of(tap)
        parts = [self.x_embedder, self.t_embedder, self.y_embedder, *self.blocks[: last + 1]]
        return self.pos_embed.requires_grad or any(p.requires_grad for part in parts for p in part.parameters())

    def freeze_after(self, taps: tuple[str, ...]) -> None:
        """Freezes the parameters that no tap depends on: without a diffusion term they would have no gradient."""
        deepest = max(self.index_of(tap) for tap in taps)
        for part in (*self.blocks[deepest + 1 :], self.final_layer):
            part.requires_grad_(False)

    def lora_modules(self, targets: str, blocks: str) -> str:
        """A regular expression for the names of the modules to adapt. Raises UserError for modules that only a U-Net
        has."""
        check_transformer_adapters(targets, blocks)
        return r"blocks\.\d+\.attn\.(?:qkv|proj)"

    def add_adapter(self, config: Any) -> None:
        """Adds peft's adapters."""
        from peft import inject_adapter_in_model

        inject_adapter_in_model(config, self)

    def export(self, folder: Path) -> None:
        """Writes the weights in the layout of the published checkpoints. Adapters are merged into the weights, in
        place."""
        save_tensors(to_published(self), folder / EXPORTED)

    def stage_of(self, name: str) -> str:
        """The part of the network that has a module or parameter of this name: one of `stages`."""
        return {"blocks": "blocks", "final_layer": "output"}.get(name.partition(".")[0], "embedding")

    def forward(
        self,
        x_t: Tensor,
        t_B: Tensor,
        condition: Condition,
        taps: tuple[str, ...] = (),
        rows_R: Tensor | None = None,
        attention: tuple[str, ...] = (),
    ) -> Denoised:
        """x_t [B,C,H,W], t [B] in [0,1], or a time for each patch [B,h,w].

        rows_R [R] are the indices of the samples to predict (None: all). The blocks after the deepest tap process only
        these, and if there are none the forward stops there. Taps, and the queries and keys of the blocks of
        `attention`, always have the whole batch.
        """
        grid = self.grid_of(x_t)
        x_BND = self.x_embedder(x_t) + self.positions_of(grid)
        c_BD = self._conditioned(t_B, condition)
        x_RND, c_RD, states, by_tap = self._through_blocks(x_BND, c_BD, taps, rows_R, attention)
        features = {tap: Tokens(state_BND, grid) for tap, state_BND in states.items()}
        if len(x_RND) == 0:
            return Denoised(x_t[:0], features, by_tap)
        return Denoised(self._unpatchify(self.final_layer(x_RND, c_RD), grid), features, by_tap)

    def _through_blocks(
        self,
        x_BND: Tensor,
        c_BD: Tensor,
        taps: tuple[str, ...],
        rows_R: Tensor | None,
        attention: tuple[str, ...] = (),
    ) -> tuple[Tensor, Tensor, dict[str, Tensor], dict[str, Attended]]:
        """The tokens and conditions of the requested rows after the last block, or without rows after the deepest tap;
        the states [B,N,D] by tap; what the blocks of `attention` attend by."""
        tap_of = {self.index_of(tap): tap for tap in taps}
        attends = {self.index_of(tap): tap for tap in attention}
        deepest = max((*tap_of, *attends), default=-1)
        states: dict[str, Tensor] = {}
        attended: list[Attended] = []  # of the blocks of `attends`, in the order of the blocks
        for k, block in enumerate(self.blocks[: deepest + 1]):
            x_BND = block(x_BND, c_BD, attended) if k in attends else block(x_BND, c_BD)
            if k in tap_of:
                states[tap_of[k]], x_BND = self._tapped(x_BND)
        by_tap = {attends[k]: own for k, own in zip(sorted(attends), attended, strict=True)}
        if rows_R is not None:
            x_BND, c_BD = x_BND[rows_R], c_BD[rows_R]
        if len(x_BND) > 0:
            for block in self.blocks[deepest + 1 :]:
                x_BND = block(x_BND, c_BD)
        return x_BND, c_BD, states, by_tap

    def _tapped(self, x_BND: Tensor) -> tuple[Tensor, Tensor]:
        """The state that a tap hands out, and the tokens with which the pass goes on through it."""
        return x_BND, x_BND

    def grid_of(self, x_t: Tensor) -> tuple[int, int]:
        """Rows and columns of the patches of x_t."""
        return x_t.shape[2] // self.patch, x_t.shape[3] // self.patch

    def _conditioned(self, t_B: Tensor, condition: Condition) -> Tensor:
        """The condition of each sample [B,D], or of each token [B,N,D] where t has a time for each."""
        y_BD = self.y_embedder(condition[CLASS])
        if t_B.ndim == 1:
            return self.t_embedder(t_B) + y_BD
        t_BN = t_B.flatten(1)
        return self.t_embedder(t_BN.flatten()).unflatten(0, t_BN.shape) + y_BD[:, None]

    def positions_of(self, grid: tuple[int, int]) -> Tensor:
        """Positions [1,h·w,D] for x_t's grid of patches. Learned positions exist for one grid only."""
        if grid == self.grid:
            return self.pos_embed
        assert self.positions != "learned", f"positions were learned for {self.grid} patches, and x_t has {grid}"
        known = self._positions.get(grid)
        if known is None or (known.device, known.dtype) != (self.pos_embed.device, self.pos_embed.dtype):
            known = sine_cosine(grid, self.width).to(self.pos_embed)
            self._positions[grid] = known
        return known

    def _unpatchify(self, x_RNO: Tensor, grid: tuple[int, int]) -> Tensor:
        """Tokens of p·p·C values, channels last, to [R,C,H,W]."""
        patches = x_RNO.unflatten(2, (self.patch, self.patch, -1)).unflatten(1, grid)
        return patches.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
