"""The feature maps of EfficientNets and checks of sizes, used by settings and networks, without torch."""

from __future__ import annotations

from collections.abc import Sequence

from urepa.core.errors import UserError
from urepa.models.teachers.token_sizes import named_raw

# By stride: the last block whose map has this stride, and the map's channels. Stride 32 is the convolution after the
# last block.
LITE0 = {8: (4, 40), 16: (10, 112), 32: (15, 1280)}
LITE2 = {8: (6, 48), 16: (14, 120), 32: (20, 1280)}


def check_efficientnet(image_size: int, grid: Sequence[int], stride: int) -> None:
    """Raises UserError if an EfficientNet-Lite cannot have this size in pixels, this stride of the map or these rows
    and columns of tokens."""
    if stride not in LITE0:
        raise UserError(f"teacher.stride={stride}: give one of {', '.join(map(str, LITE0))}")
    if image_size % 32 or image_size < 32:
        raise UserError(f"teacher.image_size={image_size}: give a multiple of 32")
    native = image_size // stride
    if len(grid) != 2 or not all(1 <= g <= native for g in grid):
        raise UserError(
            f"teacher.grid={list(grid)}: at {image_size} px and stride {stride} this teacher has {native}x{native} "
            "tokens to pool from; give two numbers up to that"
        )


def model_name(network: str, stride: int, unit_length: bool = True) -> str:
    """The model's name in token stores; the last map has no suffix, as it was once the only one."""
    return named_raw(network if stride == 32 else f"{network}-s{stride}", unit_length)
