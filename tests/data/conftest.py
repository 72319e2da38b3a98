"""A small track of photographs, built once."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from photos import TRAIN, VAL, overrides, write_dinov2, write_photos, write_sd

from urepa.data.stages.build import Build
from urepa.data.stores.lmdb_store import Part
from urepa.training.assembly import build_part


@pytest.fixture(scope="session")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs and small checkpoints."""
    root = tmp_path_factory.mktemp("material")
    write_photos(root / "photos", TRAIN, VAL)
    write_sd(root / "sd")
    write_dinov2(root / "dino")
    (root / "names.txt").write_text("temple\nflower\n")
    return root


@pytest.fixture
def build_of(material: Path, compose: Any) -> Any:
    """build_of(root, *more, part=Part()) -> Build"""

    def build(root: Path, *more: str, part: Part | None = None) -> Build:
        parts = compose(*overrides(material, root), *more, root="preprocess")
        return Build(build_part(parts["data"]), build_part(parts["teacher"]), Part() if part is None else part, batch=8)

    return build


@pytest.fixture(scope="session")
def built(material: Path, compose: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build that was not interrupted."""
    root = tmp_path_factory.mktemp("built") / "cache"
    parts = compose(*overrides(material, root), root="preprocess")
    Build(build_part(parts["data"]), build_part(parts["teacher"]), Part(), batch=8).run("all")
    return root


@pytest.fixture(scope="session")
def built_with_flips(built: Path, material: Path, compose: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The uninterrupted build, to which flips were added."""
    root = Path(shutil.copytree(built, tmp_path_factory.mktemp("flips") / "cache"))
    parts = compose(*overrides(material, root), "data.flip=true", root="preprocess")
    Build(build_part(parts["data"]), build_part(parts["teacher"]), Part(), batch=8).run("all")
    return root
