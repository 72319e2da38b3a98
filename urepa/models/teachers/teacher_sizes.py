"""Which sizes the teachers take, without torch: what their constructors refuse, said before it loads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from urepa.config.part_schemas import Positions
from urepa.core.errors import UserError

# Rows and columns that a family's learned positions were trained on, where libraries differ in how they resample them
# to others (`urepa.models.teachers.dinov2_positions`). With registers they do not, and DINOv3 has rotary ones.
NATIVE = {"dinov2": 37}


# Of EfficientNet-Lite0 and -Lite2, by stride: the last block whose map has it, and that map's channels. At 32 it is the
# convolution behind the last block.
LITE0 = {8: (4, 40), 16: (10, 112), 32: (15, 1280)}
LITE2 = {8: (6, 48), 16: (14, 120), 32: (20, 1280)}


def check_efficientnet(image_size: int, grid: Sequence[int], stride: int) -> None:
    """UserError where the size in pixels, the stride of the map or the rows and columns of tokens are none that
    an EfficientNet-Lite has."""
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


def check_vit(family: str, image_size: int, patch: int, grid: Sequence[int], positions: str | None) -> None:
    """UserError where a ViT's sizes do not fit together, or its rule of positions has no effect."""
    side = image_size // patch
    if image_size % patch or len(grid) != 2 or not all(1 <= g <= side for g in grid):
        raise UserError(
            f"teacher: image_size={image_size} must be a multiple of its patch of {patch} pixels, and "
            f"grid={list(grid)} two numbers of at most image_size/{patch}"
        )
    rules = [rule.value for rule in Positions]
    if family not in NATIVE:
        if positions is not None:
            raise UserError(
                f"teacher.positions={positions} has no effect with teacher.family={family}: the choice is DINOv2's "
                "without registers; give teacher.positions=null"
            )
    elif positions is None:
        raise UserError(f"teacher.family={family} needs teacher.positions, one of {', '.join(rules)}")
    elif positions not in rules:
        raise UserError(f"teacher.positions={positions}: give one of {', '.join(rules)}")
    elif not resamples(family, image_size, patch) and positions != "meta":
        raise UserError(
            f"teacher.positions={positions} has no effect at teacher.image_size={image_size}, {family}'s native size, "
            "where nothing is resampled; leave it at meta"
        )


def resamples(family: str, image_size: int, patch: int) -> bool:
    """Are learned positions resampled, by a rule that is chosen?"""
    return NATIVE.get(family) not in (None, image_size // patch)


def model_name(model: str) -> str:
    """What a ViT's tokens are named by: the last part of a path or a hub id, without a revision."""
    return Path(model).name.partition("@")[0]


def check_file(model: str) -> None:
    """UserError where a ViT's model is Meta's own file, and it is not there."""
    if model.endswith(".pth") and not Path(model).is_file():
        raise UserError(f"teacher.model={model} does not exist")
