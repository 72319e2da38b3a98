"""Names on the Hugging Face hub: `owner/name` or, pinned, `owner/name@revision`."""

from __future__ import annotations

from pathlib import Path

# the repository that spec 000 names has left the hub
ALIASES = {"runwayml/stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5"}


def resolve(name: str) -> tuple[str, str]:
    """A hub id and its revision ("main" unless pinned); a local folder stays what it is."""
    if Path(name).exists():
        return name, "main"
    plain, _, revision = name.partition("@")
    return ALIASES.get(plain, plain), revision if revision else "main"


def is_hub_id(name: str) -> bool:
    """Does the name mean a repository, not something on this disk?"""
    return not Path(name).exists() and not name.startswith((".", "/")) and name.count("/") == 1
