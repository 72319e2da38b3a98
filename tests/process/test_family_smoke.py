"""A small random network of every published family of transformers and captioned U-Nets, trained by one sweep on the
same photographs with captions, in one comparison."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from flat_photos import write_flat
from smoke_families import BACKBONES
from workspace import Workspace, ended

OF_FLUX = {"Flux", "Chroma", "OvisImage"}  # their objective draws the same times


@pytest.mark.slow
def test_one_sweep_trains_every_family_and_one_report_compares_them(work: Workspace) -> None:
    write_flat(work.folder / "photos" / "scenes", 6)
    given = ["+experiment=family_smoke", f"backbone={','.join(BACKBONES)}", f"data.images={work.folder / 'photos'}"]
    given += ["data.validation_images=4", "data.test_images=4", f"data.root={work.folder / 'caches'}"]
    given += ["trainer.max_steps=2", "trainer.batch_size=4", "trainer.validation_group=2", "trainer.validate_every=2"]
    given += ["trainer.checkpoint_every=2", "trainer.threads=1", "evaluation.denoising.images=4", "tracking=none"]
    done = ended(["-m", "urepa.train", "-m", *given], work.folder)
    assert done.returncode == 0, done.stderr
    done = ended(["-m", "urepa.compare", "runs=outputs", "out=report.json"], work.folder)
    assert done.returncode == 0, done.stderr
    report = json.loads((work.folder / "report.json").read_text())
    assert report["apart"] == []
    check_cells({arm["label"].removeprefix("backbone=").partition(",")[0]: arm["cells"] for arm in report["arms"]})


def check_cells(cells: dict[str, dict[str, Any]]) -> None:
    """Every family has an error at given noise. Means over a family's own times are compared only where these are drawn
    alike; the first family is the baseline."""
    assert len(cells) == 13
    for own in cells.values():
        assert own["final/x0_error"]["n"] == 1
        assert math.isfinite(own["final/x0_error"]["mean"])
    assert next(iter(cells)) in OF_FLUX
    assert {name for name, own in cells.items() if own["val/x0_error"]["n"]} == OF_FLUX
    assert all("objective." in cells[name]["val/x0_error"]["why"] for name in cells.keys() - OF_FLUX)
