"""A NanoDiT with patches that starts from one without them, by real commands: what is new, that nothing else is, and
the jump of the validation loss."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from captioned_photos import nanodit_overrides, write_captioned_photos
from photos import write_clip_text
from safetensors.torch import load_file
from torch import Tensor
from workspace import Workspace, one_line_error

from urepa.core.conditions import Condition, Part
from urepa.core.part_names import PATCHES
from urepa.method.training_step import AlignedModel
from urepa.models.weight_files import trainable

pytestmark = pytest.mark.long
NEW = {"backbone.dino_patch_proj.weight", "backbone.dino_patch_proj.bias", "backbone.null_dino_patch_token"}
ALLOW = "warm_start.allow_missing=[backbone.dino_patch_proj.*,backbone.null_dino_patch_token]"  # of nanodit_warm
STEPS = 8
SIZES = ("backbone.depth=2", "backbone.width=32", "backbone.heads=2", "trainer.batch_size=4", "trainer.threads=1")


@pytest.fixture(scope="module")
def overrides(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    here = tmp_path_factory.mktemp("nanodit")
    photos, clip = write_captioned_photos(here / "photos", 6), write_clip_text(here / "clip")
    lengths = (f"trainer.max_steps={STEPS}", f"trainer.validate_every={STEPS}", f"trainer.checkpoint_every={STEPS}")
    return nanodit_overrides(photos, here / "caches", clip, *SIZES, *lengths, "optimizer.lr.backbone=3e-3")


@pytest.fixture(scope="module")
def both(make_workspace: Callable[[], Workspace], overrides: list[str]) -> tuple[Path, Path, str]:
    """The run on vectors alone, the run with patches that starts from it, and what the second one printed."""
    here = make_workspace()
    here.train(*overrides, "+ablation=nanodit_cls_only", bare=True)
    (old,) = here.folder.glob("outputs/*cls_only*/seed0")
    there = make_workspace()
    done = there.train(*overrides, f"warm_start.checkpoint={old}", ALLOW, bare=True)
    (new,) = there.folder.glob("outputs/*/seed0")
    return old, new, done.stdout


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_only_the_allowed_parameters_are_new(both: tuple[Path, Path, str]) -> None:
    old, new, said = both
    names = {run: set(load_file(run / f"checkpoints/step_{STEPS:08d}/ema.safetensors")) for run in (old, new)}
    assert names[new] - names[old] == NEW
    assert names[old] <= names[new]
    assert f"{len(names[old])} parameters copied; 3 new (" in said


def test_the_jump_is_reported_before_the_first_update(both: tuple[Path, Path, str]) -> None:
    old, new, said = both
    first, before = rows(new)[0], rows(old)[-1]["val/diffusion"]
    assert first["step"] == 0
    assert first["val/diffusion"] != before
    jump = f"is {first['val/diffusion']:.4f}; that of {old} at its end is {before:.4f}"
    assert f"step 0: the validation diffusion loss {jump}" in said


def test_without_the_new_tokens_the_first_prediction_is_the_old_ones(
    both: tuple[Path, Path, str], overrides: list[str], trainer_of: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also for withheld parts, whose nulls are the old ones; the patches are masked out, then attended to."""
    old, _, _ = both
    ema = load_file(old / f"checkpoints/step_{STEPS:08d}/ema.safetensors")
    found: dict[str, Tensor] = {}
    for name, more in (("old", ["+ablation=nanodit_cls_only"]), ("new", [])):
        trainer = trainer_of(*overrides, *more)
        own = trainable(trainer.model)
        with torch.no_grad():
            for key, value in ema.items():
                own[key].copy_(value)
        batch = trainer.validation.reader.read(0)
        x_t = trainer.objective.corrupt(batch.x0, batch.noise, batch.t_B)
        condition = batch.condition.drop({"image": torch.arange(len(x_t)) == 1, "text": torch.arange(len(x_t)) == 2})
        for kind, given in (("masked", masked(condition)), ("open", condition)):
            found[f"{name} {kind}"] = predicted(trainer.model, x_t, batch.t_B, given)
    torch.testing.assert_close(found["new masked"], found["old open"], rtol=1e-4, atol=1e-5)
    assert (found["new open"] - found["old open"]).abs().max() > 1e-3


def masked(condition: Condition) -> Condition:
    """The same without any patch to attend to."""
    own = condition[PATCHES]
    assert own.mask_BL is not None
    part = Part(own.value, own.given_B, torch.zeros_like(own.mask_BL), grid=own.grid)
    return Condition(dict(condition.parts) | {PATCHES: part})


def predicted(model: AlignedModel, x_t: Tensor, t_B: Tensor, condition: Condition) -> Tensor:
    with torch.no_grad():
        prediction: Tensor = model.eval().backbone(x_t, t_B, condition).prediction_RCHW
    return prediction


def test_a_start_that_allows_nothing_is_refused(
    both: tuple[Path, Path, str], work: Workspace, overrides: list[str]
) -> None:
    old, _, _ = both
    said = one_line_error(work.train(*overrides, f"warm_start.checkpoint={old}", code=1, bare=True))
    assert "3 missing there (backbone.dino_patch_proj.bias" in said
