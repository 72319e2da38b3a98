"""The bytes of a record of latents or tokens: fp16, or int8 in groups of 128 values with an fp16 scale each.

Shapes: R records, B bytes of a record, G groups of its last dimension, S values of a group.
"""

from __future__ import annotations

import numpy as np
import torch

GROUP = 128  # values that share a scale in int8


def encode(value: np.ndarray, dtype: str) -> bytes:
    """A record's bytes. Raises ValueError for values that fp16 cannot hold."""
    half = np.ascontiguousarray(value, dtype=np.float16)
    if not np.isfinite(half).all():
        raise ValueError("the record has values that are not finite in fp16")
    if dtype == "float16":
        return half.tobytes()
    groups_RG = np.asarray(value, dtype=np.float32).reshape(-1, GROUP)
    scale_R = (np.abs(groups_RG).max(1, keepdims=True) / 127).astype(np.float16)
    safe = np.where(scale_R == 0, 1, scale_R).astype(np.float32)
    codes = np.clip(np.rint(groups_RG / safe), -127, 127).astype(np.int8)
    return scale_R.tobytes() + codes.tobytes()


def decode(raw_RB: np.ndarray, shape: tuple[int, ...], dtype: str) -> torch.Tensor:
    """Records' bytes [R,B] as a tensor [R, *shape]: fp16 as a view, int8 as float32."""
    records = len(raw_RB)
    if dtype == "float16":
        return torch.from_numpy(raw_RB.view(np.float16)).view(records, *shape)
    groups = int(np.prod(shape)) // GROUP
    scale_RG1 = raw_RB[:, : 2 * groups].view(np.float16).astype(np.float32)[..., None]
    codes_RGS = raw_RB[:, 2 * groups :].view(np.int8).reshape(records, groups, GROUP)
    return torch.from_numpy(codes_RGS * scale_RG1).view(records, *shape)


def record_bytes(shape: tuple[int, ...], dtype: str) -> int:
    """The bytes of a record."""
    values = int(np.prod(shape))
    return 2 * values if dtype == "float16" else values + 2 * (values // GROUP)
