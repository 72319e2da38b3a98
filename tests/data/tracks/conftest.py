"""Caches of latents of photographs with captions in three buckets, built once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flat_photos import MeanColours, captioned_latents, listed, write_flat

from urepa.data.stages.build import Build
from urepa.data.stores.lmdb_store import Part
from urepa.training.assembly import build_part


@pytest.fixture(scope="session")
def flat_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_flat(tmp_path_factory.mktemp("flat") / "photos")


@pytest.fixture(scope="session")
def bucket_build(material: Path, flat_images: Path, compose: Callable[..., Any]) -> Callable[..., Build]:
    """bucket_build(root, *overrides, part=Part(), images=PHOTOS)"""

    def build(root: Path, *more: str, part: Part | None = None, images: Path = flat_images) -> Build:
        parts = compose(*captioned_latents(material, images, root), listed(), *more, root="preprocess")
        return Build(build_part(parts["data"]), MeanColours(), Part() if part is None else part, batch=8)

    return build


@pytest.fixture(scope="session")
def whole(bucket_build: Callable[..., Build], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build that was not interrupted."""
    root = tmp_path_factory.mktemp("whole") / "cache"
    bucket_build(root).run("all")
    return root
