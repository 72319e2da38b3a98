"""A folder of small photographs with captions, and a track over it whose text encoder is a small random CLIP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from photos import write_clip_text
from PIL import Image

from urepa.data.tracks.pixel_track import PixelTrack
from urepa.models.text_encoders.clip_text import CLIPText

LENGTH = 12
KINDS = ("red", "blue")
KEPT = {"padding": "masked", "null_text": "zeros"}  # what a CLIP was before it had these settings


def write_captioned(root: Path, each: int = 12) -> Path:
    """Writes ROOT/{red,blue}/*.png of 10x10, all different, with one or two captions each. Every third image has the
    same captions."""
    rng = np.random.default_rng(0)
    for name in KINDS:
        (root / name).mkdir(parents=True)
        for i in range(each):
            pixels = rng.integers(0, 256, (10, 10, 3), dtype=np.uint8)
            pixels[..., KINDS.index(name)] //= 2
            Image.fromarray(pixels).save(root / name / f"{i:03d}.png")
            lines = [f"a {name} {'abcdefgh'[i % 3]}"] + ([f"it is {name}"] if i % 2 else [])
            (root / name / f"{i:03d}.txt").write_text("\n".join(lines) + "\n")
    return root


def clip_at(folder: Path, **changes: Any) -> CLIPText:
    """The declaration of the small CLIP in FOLDER/clip; writes the CLIP if it does not exist."""
    place = folder / "clip"
    if not place.exists():
        write_clip_text(place, seed=0)
    return CLIPText(**({"model": str(place), "width": 16, "layer": -1, "length": LENGTH} | KEPT | changes))


def captioned_track(images: Path, root: Path, encoder: Any, **changes: Any) -> PixelTrack:
    """The settings of a track over such a folder at 8 px, as 12x4x4."""
    known: dict[str, Any] = {"name": "captions", "root": str(root), "source": "folder", "images": str(images)}
    known |= {"limit": None, "validation_images": 4, "test_images": 4, "channels": 3, "image_size": 8}
    known |= {"unshuffle": 2, "scale": 1.0, "num_classes": 2, "cfg_dropout": 0.1, "build_on_first_use": True}
    return PixelTrack(**(known | {"captions": "files", "text_encoder": encoder} | changes))


def overrides(images: Path, root: Path, clip: Path, *more: str) -> list[str]:
    """Overrides for a run on such a folder at 64 px, with caches in `root` and without evaluations."""
    text = ["data=captions", "text_encoder@data.text_encoder=clip", f"data.text_encoder.model={clip}"]
    text += ["data.text_encoder.width=16", f"data.text_encoder.length={LENGTH}", "backbone=text_unet"]
    data = [f"data.images={images}", f"data.root={root}", "data.validation_images=4", "data.test_images=4"]
    model = ["backbone.block_out_channels=[32,32]", "backbone.attention=[false,true]"]
    run = ["trainer.batch_size=4", "trainer.validation_group=2", "evaluation=none", "tracking=none"]
    return [*text, *data, *model, "backbone.cross_attention_dim=32", *run, *more]
