"""Layers of transformers over image patches and registers: pre-norm blocks without biases, with normalised queries and
keys and a gated MLP.

Shapes: B batch, S tokens of a sequence, D width, A heads, E = D/A width of a head.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True)
class Sizes:
    """Sizes of a transformer: depth, width D, width E of a head, inner width of an MLP divided by D, and the epsilon of
    the LayerNorms, which have no weights."""

    depth: int
    width: int
    head_dim: int
    mlp_ratio: float
    eps: float

    @property
    def hidden(self) -> int:
        """The inner width of an MLP."""
        return int(self.mlp_ratio * self.width)


def dense(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer without a bias, initialised Xavier-uniform."""
    layer = nn.Linear(inputs, outputs, bias=False)
    nn.init.xavier_uniform_(layer.weight)
    return layer


def norm(x: Tensor, eps: float) -> Tensor:
    """LayerNorm without weights, computed in fp32 and returned in the input's type."""
    return F.layer_norm(x.float(), x.shape[-1:], eps=eps).to(x.dtype)


class Attention(nn.Module):
    """Self-attention with normalised queries and keys, whose products are scaled by 8/E, which is 1/√E at E = 64."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        width = sizes.width
        self.heads, self.scale, self.eps = width // sizes.head_dim, 8 / sizes.head_dim, sizes.eps
        self.qkv, self.proj = dense(width, 3 * width), dense(width, width)

    def forward(self, x_BSD: Tensor, mask_SS: Tensor | None = None) -> Tensor:
        """`mask_SS` is True where the row's token attends to the column's; None: all tokens attend to all."""
        q_BASE, k_BASE, v_BASE = self.qkv(x_BSD).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        out_BASE = F.scaled_dot_product_attention(
            norm(q_BASE, self.eps), norm(k_BASE, self.eps), v_BASE, attn_mask=mask_SS, scale=self.scale
        )
        return self.proj(out_BASE.transpose(1, 2).flatten(2))


class GatedMLP(nn.Module):
    """(SiLU(x·gate) * x·up)·down."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.gate, self.up = dense(sizes.width, sizes.hidden), dense(sizes.width, sizes.hidden)
        self.down = dense(sizes.hidden, sizes.width)

    def forward(self, x_BSD: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x_BSD)) * self.up(x_BSD))


def causal_last_mask(patches: int, registers: int) -> Tensor:
    """The mask [S,S] of patches followed by registers, True where the row's token attends to the column's: patches
    attend to all patches and no register, a register to all patches, itself and the registers before it."""
    tokens = patches + registers
    sees_SS = torch.ones(tokens, tokens, dtype=torch.bool).tril()
    sees_SS[:patches, :patches] = True
    return sees_SS


def run_block(block: nn.Module, recompute: bool, *inputs: Tensor) -> Tensor:
    """A block's output. With `recompute` its activations are not stored but computed again in the backward pass."""
    if recompute and torch.is_grad_enabled():
        output: Tensor = checkpoint(block, *inputs, use_reentrant=False)
        return output
    output = block(*inputs)
    return output
