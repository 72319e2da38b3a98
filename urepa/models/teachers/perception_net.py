"""The image tower of Perception Encoder (Bolya et al. 2025, arXiv 2504.13181), of which transformers has no class, with
the parameter names of the files that its authors publish.

Read: the published code (facebookresearch/perception_models: core/vision_encoder/pe.py and config.py; rope.py in a copy
of it). The tower is a ViT with LayerNorms before and, in PE-Core, behind its blocks, learned positions that are
resampled bilinearly, and rotary positions: of a head's width the first half is rotated by the column, the second by the
row, in pairs of neighbours. With a class token rows and columns count from 1, and it is at 0. The attention pooling and
the text tower of the files are left out. From memory: towers that config.py of that version did not have (PE-Core-T,
PE-Core-S, smaller PE-Spatial) have heads of width 64. No published file was at hand.

Shapes: B batch, h/w grid of patches, N = h·w tokens and the class token, D width, A heads, E their width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from urepa.core.errors import UserError
from urepa.models.teachers.attention_net import RECORDING, attend
from urepa.models.teachers.dino.meta_dinov2 import heads
from urepa.models.teachers.vit_sizes import check_file
from urepa.models.weight_files import read_safetensors, read_torch

FAMILIES = {"pe": True, "pe_g": False}  # whether it has a class token
GIANT = 1536  # the width of the G towers, which have 16 heads
DEPTHS = {384: 12, 768: 12, 1024: 24, GIANT: 50}  # of PE-Core by width, for costs; 384 is from memory
HIDDEN = {GIANT: 8960}  # width within the MLPs, where it is not four times the width
THETA = 10_000.0
EPS = 1e-5
OTHERS = ("attn_pool.", "proj")  # of the tower: what follows the tokens
VISUAL = "visual."


def rotary_angles(grid: tuple[int, int], width: int, has_class: bool) -> Tensor:
    """The angle of each pair of values [N,E/2] of a head of width E; 0 for the class token, which comes first."""
    frequencies = THETA ** -(torch.arange(0, width // 2, 2).float() / (width // 2))
    first = 1.0 if has_class else 0.0
    rows, columns = torch.meshgrid(*(torch.arange(n).float() + first for n in grid), indexing="ij")
    angles = torch.cat([place.reshape(-1, 1) * frequencies for place in (columns, rows)], dim=1)
    return F.pad(angles, (0, 0, 1, 0)) if has_class else angles


def rotated(x_BANE: Tensor, angles_NF: Tensor) -> Tensor:
    """Each pair of neighbouring values turned by its angle, in fp32."""
    first, second = x_BANE.float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = angles_NF.cos(), angles_NF.sin()
    turned = torch.stack([first * cos - second * sin, second * cos + first * sin], dim=-1)
    return turned.flatten(-2).to(x_BANE.dtype)


class _Scale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x_BND: Tensor) -> Tensor:
        return x_BND * self.gamma


class _Attention(nn.Module):
    is_causal = False

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.count = count
        self.in_proj_weight = nn.Parameter(torch.randn(3 * width, width) * width**-0.5)
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x_BND: Tensor, angles_NF: Tensor) -> Tensor:
        fused = F.linear(x_BND, self.in_proj_weight, self.in_proj_bias)
        q_BANE, k_BANE, v_BANE = fused.unflatten(2, (3, self.count, -1)).permute(2, 0, 3, 1, 4)
        q_BANE, k_BANE = rotated(q_BANE, angles_NF), rotated(k_BANE, angles_NF)
        out_BNAE, _ = attend(self, q_BANE, k_BANE, v_BANE, None, dropout=0.0, scaling=q_BANE.shape[-1] ** -0.5)
        return self.out_proj(out_BNAE.flatten(2))


class _Block(nn.Module):
    def __init__(self, width: int, count: int, hidden: int, scaled: bool) -> None:
        super().__init__()
        self.attn = _Attention(width, count)
        self.ls_1, self.ls_2 = (_Scale(width) if scaled else nn.Identity() for _ in range(2))
        self.ln_1, self.ln_2 = (nn.LayerNorm(width, eps=EPS) for _ in range(2))
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, hidden), "c_proj": nn.Linear(hidden, width)})

    def forward(self, x_BND: Tensor, angles_NF: Tensor) -> Tensor:
        x_BND = x_BND + self.ls_1(self.attn(self.ln_1(x_BND), angles_NF))
        return x_BND + self.ls_2(self.mlp["c_proj"](F.gelu(self.mlp["c_fc"](self.ln_2(x_BND)))))


class PerceptionEncoder(nn.Module):
    """The tower, called as a model of the transformers library.

    Args:
        width, patch, depth, hidden: D, pixels, blocks, and the width within their MLPs.
        side: rows and columns of the learned positions.
        has_class: whether it has a class token. scaled: layer scales. normed: a LayerNorm behind the last block.
    """

    def __init__(
        self, width: int, patch: int, depth: int, hidden: int, side: int, has_class: bool, scaled: bool, normed: bool
    ) -> None:
        super().__init__()
        count = 16 if width == GIANT else heads(width, 64)
        self.config = SimpleNamespace(
            hidden_size=width, patch_size=patch, num_hidden_layers=depth, _attn_implementation=RECORDING
        )
        self.has_class, self.side, self.head_width = has_class, side, width // count
        self.conv1 = nn.Conv2d(3, width, patch, stride=patch, bias=False)
        if has_class:
            self.class_embedding = nn.Parameter(torch.zeros(width))
        self.positional_embedding = nn.Parameter(torch.zeros(has_class + side**2, width))
        self.ln_pre = nn.LayerNorm(width, eps=EPS)
        blocks = nn.ModuleList(_Block(width, count, hidden, scaled) for _ in range(depth))
        self.transformer = nn.ModuleDict({"resblocks": blocks})
        self.ln_post = nn.LayerNorm(width, eps=EPS) if normed else nn.Identity()

    def positions(self, grid: tuple[int, int]) -> Tensor:
        """The learned positions [N,D] of a grid."""
        if grid == (self.side, self.side):
            return self.positional_embedding
        of_class, of_patches = self.positional_embedding.split([int(self.has_class), self.side**2])
        square = of_patches.view(1, self.side, self.side, -1).permute(0, 3, 1, 2)
        resampled = F.interpolate(square, size=grid, mode="bilinear", align_corners=False)
        return torch.cat([of_class, resampled[0].flatten(1).T])

    def forward(self, pixels: Tensor, output_hidden_states: bool = False) -> SimpleNamespace:
        map_BDhw = self.conv1(pixels)
        grid = (map_BDhw.shape[2], map_BDhw.shape[3])
        x_BND = map_BDhw.flatten(2).transpose(1, 2)
        if self.has_class:
            x_BND = torch.cat([self.class_embedding.expand(len(x_BND), 1, -1).to(x_BND.dtype), x_BND], dim=1)
        x_BND = self.ln_pre(x_BND + self.positions(grid))
        angles_NF = rotary_angles(grid, self.head_width, self.has_class).to(pixels.device)
        states = [x_BND]
        for block in self.transformer["resblocks"].children():
            x_BND = block(x_BND, angles_NF)
            states += [x_BND] if output_hidden_states else []
        return SimpleNamespace(last_hidden_state=self.ln_post(x_BND), hidden_states=states)


def without_weights(family: str, width: int, patch: int, image_size: int) -> PerceptionEncoder:
    """The published PE-Core tower of this width with random weights. Raises UserError if there is none."""
    if width not in DEPTHS:
        known = ", ".join(map(str, DEPTHS))
        raise UserError(f"teacher.width={width}: no published Perception Encoder is that wide ({known})")
    hidden = HIDDEN.get(width, 4 * width)
    return PerceptionEncoder(width, patch, DEPTHS[width], hidden, image_size // patch, FAMILIES[family], False, True)


def load_perception(path: Path, family: str) -> PerceptionEncoder:
    """The tower of a file (`PE-Core-B16-224.pt`, or the same tensors as .safetensors), whose architecture is inferred
    from its names and shapes. Raises UserError if the file is missing, damaged or of another layout or family."""
    check_file(str(path))
    if not path.is_file():
        raise UserError(
            f"teacher.model={path}: for family={family} give the file that its authors publish, as PE-Core-B16-224.pt"
        )
    state = _tower(read_safetensors(path) if path.suffix == ".safetensors" else read_torch(path))
    needed = ("conv1.weight", "positional_embedding", "ln_pre.weight", "transformer.resblocks.0.mlp.c_fc.weight")
    if lacking := [name for name in needed if name not in state]:
        raise UserError(f"teacher.model={path} is not a file of Perception Encoder: it lacks {lacking[0]}")
    has_class = "class_embedding" in state
    if has_class != FAMILIES[family]:
        other = next(name for name, own in FAMILIES.items() if own == has_class)
        raise UserError(
            f"teacher.model={path} has {'a' if has_class else 'no'} class token; give teacher.family={other}"
        )
    width, _, patch, _ = state["conv1.weight"].shape
    blocks = {name.split(".")[2] for name in state if name.startswith("transformer.resblocks.")}
    network = PerceptionEncoder(
        width,
        patch,
        len(blocks),
        len(state["transformer.resblocks.0.mlp.c_fc.weight"]),
        math.isqrt(len(state["positional_embedding"]) - has_class),
        has_class,
        scaled="transformer.resblocks.0.ls_1.gamma" in state,
        normed="ln_post.weight" in state,
    )
    own = network.state_dict()
    odd = sorted(own.keys() ^ state.keys()) + [k for k in own if k in state and own[k].shape != state[k].shape]
    if odd:
        raise UserError(
            f"teacher.model={path} is not Perception Encoder as it is published: {len(odd)} of its weights differ by "
            f"name or shape (first: {odd[0]}); give a file of its authors"
        )
    network.load_state_dict(state)
    return network.float()


def _tower(stored: Any) -> dict[str, Tensor]:
    """The tower's weights by their names in it, without what follows the tokens."""
    for key in ("state_dict", "weights"):
        if isinstance(stored, Mapping) and isinstance(stored.get(key), Mapping):
            stored = stored[key]
            break
    named = {str(k).replace("module.", ""): v for k, v in stored.items()} if isinstance(stored, Mapping) else {}
    if any(name.startswith(VISUAL) for name in named):
        named = {k.removeprefix(VISUAL): v for k, v in named.items() if k.startswith(VISUAL)}
    return {k: v for k, v in named.items() if isinstance(v, Tensor) and not k.startswith(OTHERS)}
