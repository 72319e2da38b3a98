"""Where a track's caches lie and what is said where they are missing, without torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from urepa.core.errors import UserError


def is_finished(store: Path) -> bool:
    """Does it count?"""
    return (store / "manifest.json").is_file()


def tokens_name(model: str, image_size: int, grid: Sequence[int], rule: str | None) -> str:
    """The folder of a teacher's tokens beside a small track's latents: by model, size and grid, and by the rule of its
    positions where tokens rest on it. `transformers` has the name without, as stores had when it was the only one."""
    suffix = "" if rule in (None, "transformers") else f"_{rule}"
    return f"tokens_{model}_{image_size}_{'x'.join(map(str, grid))}{suffix}"


def no_cache_error(path: Path, remake: str) -> UserError:
    """What is raised where a list or a cache is missing; `remake` says how to make it."""
    return UserError(f"there is no cache at {path}; {remake}, or give data.root=FOLDER")


def no_list_error(path: Path) -> UserError:
    """What is raised where a stage lacks the lists of a track."""
    return UserError(f"there is no {path}; run the stage `manifest` first")


def lost_list_error(path: Path, remake: str) -> UserError:
    """What is raised where the lists that caches were made from are gone."""
    return UserError(f"there is no {path}; put it back, or {remake}")


def unfinished_error(store: Path, remake: str) -> UserError:
    """What is raised where a store is to have digests and is not whole."""
    return UserError(f"{store} is no finished cache: {remake}, or take it in with stage=adopt")


def remake_pixels_text(name: str) -> str:
    """How a small track's caches are made."""
    return f"run `python -m urepa.preprocess data={name}` with the same data overrides"


def remake_latents_text(
    name: str, images: str, root: str, flip: bool, online_teacher: bool, online_latents: bool
) -> str:
    """The same of a LatentTrack."""
    switches = {"flip": flip, "online_teacher": online_teacher, "online_latents": online_latents}
    given = "".join(f" data.{key}=true" for key, on in switches.items() if on)
    return f"make it with `python -m urepa.preprocess data={name} data.images={images} data.root={root}{given}`"
