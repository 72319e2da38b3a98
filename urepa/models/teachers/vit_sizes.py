"""Checks of a ViT's sizes and of its rule for positions, used by settings and networks, without torch."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from pathlib import Path

from urepa.core.errors import UserError
from urepa.models.teachers.token_sizes import named_raw

# The rows and columns on which a family's learned positions were trained, where libraries resample them differently
# (`urepa.models.teachers.dino.dinov2_positions`). With registers they agree; DINOv3 has rotary positions.
NATIVE = {"dinov2": 37}
AUTHORS_FILES = (".pth", ".pth.tar")  # how files end that are converted when they are read
FILES = (*AUTHORS_FILES, ".pt", ".safetensors")  # the last two are of Perception Encoder
WITHOUT_CLS = ("siglip", "ijepa", "pe_g")  # families whose only tokens are those of patches


class Positions(Enum):
    meta = "meta"
    timm = "timm"
    transformers = "transformers"


def check_vit(family: str, image_size: int, patch: int, grid: Sequence[int], positions: str | None) -> None:
    """Raises UserError if a ViT's sizes are inconsistent, or if its rule for positions has no effect."""
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


def nearest_multiple(length: float, multiple: int) -> int:
    """The multiple of `multiple` nearest to `length` (halves up), and at least `multiple`."""
    return max(1, int(length / multiple + 0.5)) * multiple


def resamples(family: str, image_size: int, patch: int) -> bool:
    """Whether learned positions are resampled, by the rule in `teacher.positions`."""
    return resamples_map(family, (image_size // patch, image_size // patch))


def resamples_map(family: str, patches: tuple[int, int]) -> bool:
    """As `resamples`, for an image with these rows and columns of patches."""
    return family in NATIVE and patches != (NATIVE[family], NATIVE[family])


def model_name(model: str) -> str:
    """The model's name in token stores: the last part of a path or a hub id, without a revision."""
    return Path(model).name.partition("@")[0]


def stored_name(model: str, unit_length: bool, cls_weight: float, block: int | None = None) -> str:
    """The model's name in token stores, with what its tokens are beside the last layer's patch tokens of unit
    length."""
    layer = "" if block is None else f"-block{block}"
    mixed = f"-cls{cls_weight:g}" if cls_weight else ""
    return named_raw(f"{model_name(model)}{layer}{mixed}", unit_length)


def check_cls(family: str, cls_weight: float) -> None:
    """Raises UserError if a family without a class token is asked to add it."""
    if cls_weight and family in WITHOUT_CLS:
        raise UserError(
            f"teacher.cls_weight={cls_weight:g}: teacher.family={family} has no class token; give teacher.cls_weight=0"
        )


def check_file(model: str) -> None:
    """Raises UserError if `model` names a file of its authors that does not exist."""
    if model.endswith(FILES) and not Path(model).is_file():
        raise UserError(f"teacher.model={model} does not exist")
