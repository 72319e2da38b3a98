"""The paths of a track's caches and the errors for missing ones, without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from urepa.core.errors import UserError

NOTHING_ELSE: Mapping[str, str] = {}


def is_finished(store: Path) -> bool:
    """Whether the store is finished."""
    return (store / "manifest.json").is_file()


def tokens_name(model: str, image_size: int, grid: Sequence[int], rule: str | None) -> str:
    """The name of the folder of a teacher's tokens beside a small track's latents: model, size and grid, and the rule
    for resampling positions where tokens depend on it. The rule `transformers` has no suffix: it was once the only
    one."""
    suffix = "" if rule in (None, "transformers") else f"_{rule}"
    return f"tokens_{model}_{image_size}_{'x'.join(map(str, grid))}{suffix}"


def no_cache_error(path: Path, remake: str) -> UserError:
    """The error for a missing list or cache; `remake` says how to make it."""
    return UserError(f"there is no cache at {path}; {remake}, or give data.root=FOLDER")


def no_list_error(path: Path) -> UserError:
    """The error for a stage that needs the track's lists if they are missing."""
    return UserError(f"there is no {path}; run the stage `manifest` first")


def lost_list_error(path: Path, remake: str) -> UserError:
    """The error for caches whose lists are missing."""
    return UserError(f"there is no {path}; put it back, or {remake}")


def unfinished_error(store: Path, remake: str) -> UserError:
    """The error for digests of a store that is not finished."""
    return UserError(f"{store} is not a finished cache: {remake}, or take it in with stage=adopt")


def remake_pixels_text(name: str) -> str:
    """The command that makes a small track's caches."""
    return f"run `python -m urepa.preprocess data={name}` with the same data overrides"


def remake_latents_text(
    name: str, images: str, root: str, flip: bool, online_teacher: bool, online_latents: bool, more: Mapping[str, Any]
) -> str:
    """The command that makes a LatentTrack's caches; `more`: other keys of `data`, quoted for a shell."""
    switches = {"flip": flip, "online_teacher": online_teacher, "online_latents": online_latents}
    given = "".join(f" data.{key}=true" for key, on in switches.items() if on)
    given += "".join(f" data.{key}={value}" for key, value in more.items() if value is not None)
    command = f"python -m urepa.preprocess data={name} data.images={images} data.root={root}{given}"
    return f"make it with `{command}` and the same other settings of data and teacher"
