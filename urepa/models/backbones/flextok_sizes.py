"""Checks of `flextok`'s sizes and taps, without torch."""

from __future__ import annotations

from collections.abc import Sequence

from urepa.core.errors import UserError

NO_ADAPTERS = "lora has no layers to adapt in FlexTok: give lora=none"


def decoder_block(tap: str, depth: int) -> int:
    """The index, below `depth`, of the block whose output is the tap `decoder_block_K`. Raises UserError for other
    taps."""
    names = [f"decoder_block_{k}" for k in range(depth)]
    if tap not in names:
        raise UserError(f"this backbone has no tap '{tap}'; it has {names[0]} to {names[-1]}; give a loss of one")
    return names.index(tap)


def check_patches(patch: int, latent_shape: Sequence[int]) -> None:
    """Raises UserError if the patch size does not divide the latent [C,H,W]."""
    _, height, columns = latent_shape
    if height % patch or columns % patch:
        raise UserError(
            f"backbone.patch={patch} does not divide the {height}x{columns} latent; give another one or another "
            "data.image_size"
        )


def check_width(name: str, width: int, head_dim: int) -> None:
    """Raises UserError if a width is not a multiple of the head width and of 4, which the positions need. `name`: the
    width's key."""
    if width % head_dim or width % 4:
        raise UserError(f"backbone.{name}={width}: give a multiple of 4 and of backbone.head_dim={head_dim}")


def check_levels(levels: Sequence[int]) -> None:
    """Raises UserError if there are no levels or one is below 2."""
    if not levels or min(levels) < 2:
        raise UserError(f"backbone.levels={list(levels)}: give one or more integers, each at least 2, as [8,8,8,5,5,5]")
