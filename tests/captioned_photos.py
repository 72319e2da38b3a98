"""Photographs of three shapes with captions, and the overrides of a run of a small NanoDiT on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

SHAPES = {"square": (90, 90), "wide": (78, 130), "tall": (130, 78)}
NAMED = {"china": "a temple", "flower": "a flower"}


def write_captioned_photos(root: Path, each: int) -> Path:
    """Writes crops of scikit-learn's china.jpg and flower.jpg with a caption each: ROOT/{china,flower}/SHAPE_NN.png and
    .txt, `each` of every shape in either folder."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(0)
    for name, photo in zip(NAMED, load_sample_images().images, strict=True):
        (root / name).mkdir(parents=True)
        for shape, (rows, columns) in SHAPES.items():
            for i in range(each):
                top, left = (
                    int(rng.integers(0, n - 2 * side)) for n, side in zip(photo.shape[:2], (rows, columns), strict=True)
                )
                crop = photo[top : top + 2 * rows, left : left + 2 * columns]
                where = "left" if left < photo.shape[1] // 3 else "right"
                Image.fromarray(crop).save(root / name / f"{shape}_{i:02d}.png", compress_level=1)
                (root / name / f"{shape}_{i:02d}.txt").write_text(f"{NAMED[name]}, {shape}, on the {where}\n")
    return root


def nanodit_overrides(images: Path, root: Path, clip: Path | None, *more: str) -> list[str]:
    """A run of the smoke experiment with caches in `root`; `clip`: a small CLIP in place of MiniLM."""
    data = [f"data.images={images}", f"data.root={root}", "data.validation_images=12", "data.test_images=6"]
    text = [] if clip is None else ["text_encoder@data.text_encoder=clip", f"data.text_encoder.model={clip}"]
    text += [] if clip is None else ["data.text_encoder.width=16", "data.text_encoder.length=12"]
    return ["+experiment=nanodit_smoke", *data, *text, "tracking=none", *more]


def write_nanodit_run(place: Path, compose: Any, *more: str) -> tuple[Path, list[str]]:
    """PLACE/outputs/seed0, a run of a NanoDiT of random weights with caches in PLACE/caches, and the overrides that
    describe its weights."""
    from captioned import LENGTH, clip_at
    from toy_runs import write_run

    clip_at(place)
    photos = write_captioned_photos(place / "photos", 7)
    sizes = ["backbone.depth=2", "backbone.width=32", "backbone.heads=2"]
    overrides = nanodit_overrides(photos, place / "caches", place / "clip", *sizes, "data.test_images=18", *more)
    clip = [one for one in overrides if "text_encoder" in one]
    assert f"data.text_encoder.length={LENGTH}" in clip
    shapes = ["data.num_classes=2", "data.buckets=[[64,64],[48,80],[80,48]]"]
    run = write_run(place / "outputs" / "seed0", compose(*overrides), 10)
    return run, ["+experiment=nanodit_smoke", *clip, *sizes, *shapes]
