"""DINOv2's learned positions, resampled to another grid than they were trained on. There are three rules, which give
different tokens.

Shapes: M rows and columns of the trained grid (37 in the published models), h/w those of the new grid, N tokens, D
width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Grid = tuple[int, int]

OFFSET = 0.1  # Meta adds this to the new size, which shifts the sampling points


def meta(table_1DMM: Tensor, grid: Grid) -> Tensor:
    """Meta's own code for models without registers (github.com/facebookresearch/dinov2, vision_transformer.py,
    interpolate_pos_encoding): bicubic by the factor (n + 0.1)/M, sample i at (i + 1/2)·M/(n + 0.1) − 1/2."""
    factors = [(n + OFFSET) / trained for n, trained in zip(grid, table_1DMM.shape[2:], strict=True)]
    return F.interpolate(table_1DMM, scale_factor=factors, mode="bicubic")


def timm(table_1DMM: Tensor, grid: Grid) -> Tensor:
    """timm's resample_abs_pos_embed, which REPA's code calls (github.com/sihyun-yu/REPA, utils.py): bicubic to the
    size n with antialiasing, sample i at (i + 1/2)·M/n − 1/2."""
    return F.interpolate(table_1DMM, size=grid, mode="bicubic", antialias=True)


def transformers(table_1DMM: Tensor, grid: Grid) -> Tensor:
    """The transformers library's rule (Dinov2Embeddings.interpolate_pos_encoding): as `timm`, without antialiasing."""
    return F.interpolate(table_1DMM, size=grid, mode="bicubic")


RULES: dict[str, Callable[[Tensor, Grid], Tensor]] = {"meta": meta, "timm": timm, "transformers": transformers}


def resample(positions_1ND: Tensor, grid: Grid, rule: str) -> Tensor:
    """Positions of the class token and of M² patches [1,1+M²,D], resampled to [1,1+h·w,D] by a key of RULES in fp32.
    Returned unchanged if `grid` is the trained grid."""
    trained = round((positions_1ND.shape[1] - 1) ** 0.5)
    if grid == (trained, trained):
        return positions_1ND
    table_1DMM = positions_1ND[:, 1:].unflatten(1, (trained, trained)).permute(0, 3, 1, 2)
    patches_1Dhw = RULES[rule](table_1DMM.float(), grid).to(positions_1ND.dtype)
    return torch.cat((positions_1ND[:, :1], patches_1Dhw.flatten(2).transpose(1, 2)), dim=1)


def resample_by(rule: str, embeddings: Any) -> None:
    """Makes a transformers Dinov2Embeddings resample by this rule. Its weights do not change."""
    embeddings.interpolate_pos_encoding = partial(_interpolate, embeddings, rule)


def _interpolate(embeddings: Any, rule: str, tokens_BND: Tensor, height: int, width: int) -> Tensor:
    """Replaces Dinov2Embeddings.interpolate_pos_encoding, with its arguments; sizes are in pixels."""
    patch = embeddings.patch_size
    return resample(embeddings.position_embeddings, (height // patch, width // patch), rule)
