"""Meta's DINOv2 and DINOv3, written after their modules, for state dicts with their names, in float64; and bicubic
resampling as a matrix. Nothing here uses the library or urepa.

Shapes: B batch, N tokens, D width, H heads, E width of a head, M trained rows and columns, n requested rows or
columns.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]

TRAINED = 37
EPS = {"dinov2": 1e-6, "dinov3": 1e-5}


def matrix(n: int, size: float, trained: int, antialias: bool) -> np.ndarray:
    """[n,M]: the weights of the trained positions for each of n positions, which have the total width `size`. Keys'
    kernel with a = −0.75; with antialiasing a = −0.5, as wide as a step, and normalised over the existing positions."""
    step, out = trained / size, np.zeros((n, trained))
    a, widen = (-0.5, max(step, 1.0)) if antialias else (-0.75, 1.0)
    for i in range(n):
        centre = (i + 0.5) * step - 0.5
        for j in range(int(np.floor(centre - 2 * widen)) - 1, int(np.ceil(centre + 2 * widen)) + 2):
            x = abs(j - centre) / widen
            if x <= 1:
                weight = (a + 2) * x**3 - (a + 3) * x**2 + 1
            elif x < 2:
                weight = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
            else:
                continue
            if not antialias:
                out[i, min(max(j, 0), trained - 1)] += weight  # the border goes on outside
            elif 0 <= j < trained:
                out[i, j] += weight
        out[i] /= out[i].sum()
    return out


def positions(rule: str, positions_1ND: Tensor, grid: tuple[int, int]) -> Tensor:
    """The rule's formula, which maps [1,1+M²,D] to [1,1+h·w,D]."""
    trained = round((positions_1ND.shape[1] - 1) ** 0.5)
    rows, columns = (
        torch.from_numpy(matrix(n, n + 0.1 if rule == "meta" else n, trained, rule == "timm")) for n in grid
    )
    table = positions_1ND[0, 1:].double().view(trained, trained, -1)
    patches = torch.einsum("hi,wj,ijd->hwd", rows, columns, table).flatten(0, 1)
    return torch.cat((positions_1ND[:, :1].double(), patches[None]), dim=1)


def state(kind: str, width: int, gated: bool, registers: int = 0, trained: int = TRAINED, head: int = 64) -> State:
    """Random weights of two blocks, under Meta's names, with Meta's shapes."""
    generator = torch.Generator().manual_seed(3)

    def draw(*shape: int, scale: float = 0.3, around: float = 0.0) -> Tensor:
        return around + scale * torch.randn(*shape, generator=generator)

    patch, hidden = (14, 24) if kind == "dinov2" else (16, 40)
    if kind == "dinov2":  # ViT-g's own rounding of two thirds of 4·D, and a plain MLP's 4·D
        hidden = (int(4 * width * 2 / 3) + 7) // 8 * 8 if gated else 4 * width
    out = {"cls_token": draw(1, 1, width), "mask_token": draw(1, width)}
    out |= {"patch_embed.proj.weight": draw(width, 3, patch, patch, scale=0.05), "patch_embed.proj.bias": draw(width)}
    if kind == "dinov2":
        out["pos_embed"] = draw(1, 1 + trained**2, width, scale=1.0)
    else:
        out["rope_embed.periods"] = (100 ** (torch.arange(head // 4) / (head // 4))).bfloat16().float()  # as rounded
    if registers:
        out["register_tokens" if kind == "dinov2" else "storage_tokens"] = draw(1, registers, width)
    for block in ("blocks.0", "blocks.1"):
        out |= {f"{block}.norm{i}.weight": draw(width, around=1.0) for i in (1, 2)}
        out |= {f"{block}.norm{i}.bias": draw(width) for i in (1, 2)}
        out |= {f"{block}.attn.qkv.weight": draw(3 * width, width), f"{block}.attn.qkv.bias": draw(3 * width)}
        out |= {f"{block}.attn.proj.weight": draw(width, width), f"{block}.attn.proj.bias": draw(width)}
        out |= {f"{block}.ls{i}.gamma": draw(width) for i in (1, 2)}
        layers = {"fc1": (hidden, width), "fc2": (width, hidden)}
        if gated:
            first = {"w12": (2 * hidden, width)} if kind == "dinov2" else dict.fromkeys(("w1", "w2"), (hidden, width))
            layers = first | {"w3": (width, hidden)}
        for name, (rows, columns) in layers.items():
            out |= {f"{block}.mlp.{name}.weight": draw(rows, columns), f"{block}.mlp.{name}.bias": draw(rows)}
        if kind == "dinov3":
            out[f"{block}.attn.qkv.bias_mask"] = torch.tensor([1.0, 0.0, 1.0]).repeat_interleave(width)
    return out | {"norm.weight": draw(width, around=1.0), "norm.bias": draw(width)}


def tokens(weights: State, pixels_B3HW: Tensor, heads: int, positions_1ND: Tensor | None = None) -> Tensor:
    """The patch tokens [B,N,D] that Meta's forward_features returns as x_norm_patchtokens. DINOv2 uses positions of the
    images' grid; DINOv3 rotates queries and keys."""
    w = {name: tensor.double() for name, tensor in weights.items()}
    kind = "dinov3" if "rope_embed.periods" in w else "dinov2"
    patch = w["patch_embed.proj.weight"].shape[-1]
    map_BDhw = F.conv2d(pixels_B3HW.double(), w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=patch)
    batch, width, grid = len(map_BDhw), map_BDhw.shape[1], map_BDhw.shape[2:]
    x = torch.cat((w["cls_token"].expand(batch, -1, -1), map_BDhw.flatten(2).transpose(1, 2)), dim=1)
    if positions_1ND is not None:
        x = x + positions_1ND
    extra = w.get("register_tokens", w.get("storage_tokens", torch.zeros(1, 0, width).double()))
    x = torch.cat((x[:, :1], extra.expand(batch, -1, -1), x[:, 1:]), dim=1)
    prefix = 1 + extra.shape[1]

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (width,), w[f"{name}.weight"], w[f"{name}.bias"], EPS[kind])

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"] * w.get(f"{name}.bias_mask", 1.0))

    for block in sorted({name.rsplit(".attn")[0] for name in w if ".attn." in name}):
        qkv = linear(norm(x, f"{block}.norm1"), f"{block}.attn.qkv").view(batch, -1, 3, heads, width // heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each [B,H,N,E]
        if kind == "dinov3":
            q, k = (_turned(one, prefix, w["rope_embed.periods"], *grid) for one in (q, k))
        attention = (q @ k.transpose(-1, -2) / (width // heads) ** 0.5).softmax(dim=-1) @ v
        x = x + w[f"{block}.ls1.gamma"] * linear(attention.transpose(1, 2).flatten(2), f"{block}.attn.proj")
        x = x + w[f"{block}.ls2.gamma"] * _mlp(norm(x, f"{block}.norm2"), f"{block}.mlp", w, linear)
    return norm(x, "norm")[:, prefix:]


def _mlp(x: Tensor, name: str, w: State, linear) -> Tensor:
    if f"{name}.fc1.weight" in w:
        return linear(F.gelu(linear(x, f"{name}.fc1")), f"{name}.fc2")
    if f"{name}.w12.weight" in w:
        gate, value = linear(x, f"{name}.w12").chunk(2, dim=-1)
    else:
        gate, value = linear(x, f"{name}.w1"), linear(x, f"{name}.w2")
    return linear(F.silu(gate) * value, f"{name}.w3")


def _turned(x_BHNE: Tensor, prefix: int, periods: Tensor, rows: int, columns: int) -> Tensor:
    """For patches alone: the first and third quarters of a head rotate with the row, the others with the column, each
    pair (e, e + E/2) by 2π·c/period, with c from −1 to 1 between the images' edges."""
    y = 2 * (torch.arange(rows).double() + 0.5) / rows - 1
    x = 2 * (torch.arange(columns).double() + 0.5) / columns - 1
    coordinates = torch.stack((y[:, None].expand(-1, columns), x[None].expand(rows, -1)), dim=-1).flatten(0, 1)
    angle = (2 * torch.pi * coordinates[:, :, None] / periods).flatten(1)  # [N,E/2]
    first, second = x_BHNE[:, :, prefix:].chunk(2, dim=-1)
    turned = (first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin())
    return torch.cat((x_BHNE[:, :, :prefix], torch.cat(turned, dim=-1)), dim=2)
