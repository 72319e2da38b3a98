"""Overrides for short runs of every family of the study `families`, on small photographs with captions."""

from __future__ import annotations

from pathlib import Path

import yaml

from urepa.cli import CONF

STUDY = yaml.safe_load((Path(CONF) / "study" / "families.yaml").read_text())
BACKBONES = [own.removeprefix("backbone=") for (own,) in STUDY["arms"].values()]


def overrides(photos: Path, caches: Path) -> list[str]:
    """Of a run of 4 images a step at 32 px, without the backbone."""
    data = ["data.image_size=32", "data.validation_images=4", "data.test_images=4", "data.num_classes=1"]
    trainer = ["trainer.max_steps=4", "trainer.batch_size=4", "trainer.validation_group=2", "trainer.validate_every=4"]
    given = ["+experiment=family_smoke", f"data.images={photos}", f"data.root={caches}", *data, *trainer]
    return [*given, "trainer.checkpoint_every=2", "trainer.threads=1", "evaluation=none", "tracking=none"]
