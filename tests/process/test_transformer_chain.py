"""REPA's experiments on SD3, Flux, Sana and PixArt with small random networks, from photographs with captions to
reports: every command, in the experiments' precision and buckets."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from flat_photos import write_flat
from photos import WIDTH, write_dinov2
from safetensors import safe_open
from transformers_tiny import declared_of, write_pipeline
from workspace import Workspace, ended

pytestmark = pytest.mark.long

TAPS = {"sd3": "block_8", "flux": "block_8", "sana": "block_10", "pixart": "block_10"}
LATENTS = {"sd3": [16, 16, 16], "flux": [16, 16, 16], "sana": [8, 4, 4], "pixart": [4, 16, 16]}
PROMPT = "a red cat"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs of three shapes with captions, and a DINOv2."""
    root = tmp_path_factory.mktemp("chain")
    write_flat(root / "images", 24)
    write_dinov2(root / "dino")
    return root


def overrides(place: Path, case: str) -> list[str]:
    """The experiment on photographs of 128 px and two rectangles, with networks in PLACE/CASE."""
    own = write_pipeline(place / case, case)
    latents = "[" + ",".join(map(str, LATENTS[case])) + "]"
    given = [f"+experiment=repa_{case}", f"data.images={place / 'images'}", f"data.root={place / case / 'caches'}"]
    given += ["data.val_images=24", "data.image_size=128", f"data.latent_shape={latents}", *own]
    given += [f"teacher.model={place / 'dino'}", "teacher.image_size=56", "teacher.grid=[4,4]"]
    given += [f"teacher.width={WIDTH}", f"~loss.taps.{TAPS[case]}", "+loss.taps.block_1=1.0"]
    given += ["trainer.max_steps=2", "trainer.batch_size=4", "trainer.validation_group=2", "trainer.validate_every=2"]
    return [*given, "trainer.checkpoint_every=2", "trainer.threads=1", "tracking=none"]


def checked(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def test_every_family_from_photographs_to_reports(work: Workspace, place: Path) -> None:
    written = {case: overrides(place, case) for case in TAPS}
    for case, given in written.items():
        parts = [o for o in given if o.startswith(("data.", "teacher."))]
        checked(ended(["-m", "urepa.preprocess", f"data={case}_captions", *parts], work.folder))
        planned = checked(ended(["-m", "urepa.plan", *given], work.folder))
        assert "peak, without workspaces" in planned
        described = checked(ended(["-m", "urepa.describe", *given], work.folder))
        assert f"the transformer of {declared_of(case).title}" in described
        checked(ended(["-m", "urepa.train", *given], work.folder))
        (run,) = [run for run in work.runs() if f"repa_{case}" in run.parent.name]
        assert json.loads((run / "summary.json").read_text())["step"] == 2
        few = ["evaluation.alignment.images=8", "evaluation.alignment.neighbours=3"]
        asked = [f"run='{run}'", "tracking=none", "evaluation=alignment", *few]
        checked(ended(["-m", "urepa.evaluate", *asked], work.folder))
        made = work.folder / f"made_{case}"
        asked = [f"run='{run}'", f"prompt={PROMPT}", "n=1", "steps=2", f"out={made}"]
        checked(ended(["-m", "urepa.generate", *asked], work.folder))
        assert len(list((made / "images").glob("*.png"))) == 1
        out = work.folder / f"export_{case}"
        checked(ended(["-m", "urepa.export", f"run='{run}'", f"out={out}"], work.folder))
        (file, *_) = declared_of(case).find_weights(out).files
        with safe_open(file, "pt") as tensors:
            assert any("lora" in name for name in tensors.keys())  # noqa: SIM118
    checked(ended(["-m", "urepa.train", *written["sd3"], "loss.lambda_max=0"], work.folder))
    checked(ended(["-m", "urepa.compare", "runs=outputs", "experiment=repa_sd3", "out=sd3.json"], work.folder))
    arms = json.loads((work.folder / "sd3.json").read_text())["arms"]
    assert len(arms) == 2
    assert all(arm["cells"]["val/x0_error"]["n"] == 1 for arm in arms)
    checked(ended(["-m", "urepa.compare", "runs=outputs", "out=all.json"], work.folder))
    report = json.loads((work.folder / "all.json").read_text())
    assert len(report["arms"]) == 2  # of SD3, which has most steps: latents of other VAEs are not comparable
    reasons = {one["run"].partition(",")[0]: one["reason"] for one in report["apart"]}
    assert reasons.keys() == {"repa_flux", "repa_sana", "repa_pixart"}
    assert all(reason.startswith("another validation set or protocol: data.") for reason in reasons.values())
