"""Runs of HASTE in a trainer's own updates, on a small SiT with a small ViT that runs during training: λ = 0, resuming,
the stop, what is logged, and mistakes in sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attending_vit
import pytest
import torch

from urepa.core.errors import UserError
from urepa.models.teachers.vit_net import ViTNetwork
from urepa.runs import checkpoint
from urepa.runs.metrics import read_rows

Build = Callable[..., Any]
PAIRS = ("loss.attention.block_0=1", "loss.attention.block_1=2")
SHORT = ("trainer.max_steps=6", "trainer.checkpoint_every=3", "trainer.validate_every=6", "trainer.log_every=1")


@pytest.fixture
def run(small_sit: list[str], trainer_of: Build, tmp_path_factory: pytest.TempPathFactory) -> Build:
    """run(*overrides): a Trainer of the small SiT with `loss=haste`, or another loss."""
    teacher = attending_vit.write(tmp_path_factory.mktemp("vit"))
    own = [o for o in small_sit if not o.startswith(("loss.", "teacher"))]

    def build(*overrides: str, loss: str = "haste") -> Any:
        if loss == "none":
            return trainer_of(*(o for o in own if not o.startswith("head.")), *SHORT, "loss=none", *overrides)
        return trainer_of(*own, *teacher, *SHORT, f"loss={loss}", *PAIRS, "loss.warmup_steps=0", *overrides)

    return build


def train(trainer: Any, first: int = 0, last: int = 6) -> None:
    for step, batches in enumerate(trainer.reader.stream(first, last), first):
        trainer.update(step, batches, with_tap_gradients=False)


def weights(trainer: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer.model.backbone.named_parameters()}


@pytest.mark.slow
@pytest.mark.parametrize("qk_norm", ["false", "true"])
def test_at_a_lambda_of_0_the_backbone_is_that_without_the_loss_bit_for_bit(run: Build, qk_norm: str) -> None:
    ends = []
    for loss, more in (("haste", ("loss.lambda_max=0",)), ("none", ()), ("haste", ())):
        trainer = run(f"backbone.qk_norm={qk_norm}", *more, loss=loss)
        train(trainer)
        ends.append(weights(trainer))
    off, none, on = ends
    assert all(torch.equal(off[key], none[key]) for key in none)
    assert any(not torch.equal(on[key], none[key]) for key in none)


@pytest.mark.slow
def test_attention_is_in_the_total_and_resumes_bit_for_bit(run: Build) -> None:
    whole = run("loss.attention_weight=0.5")
    whole.fit(0)
    kept = {part: {k: x.clone() for k, x in tensors.items()} for part, tensors in whole.tensors().items()}
    rows = {row["step"]: row for row in read_rows(whole.metrics.path)}
    alignment = rows[6]["val/token"] + 0.5 * rows[6]["val/attention"]
    assert rows[6]["val/total"] == pytest.approx(rows[6]["val/diffusion"] + 0.5 * alignment, rel=1e-6)
    assert rows[6]["train/attention"] > 0
    again = run("loss.attention_weight=0.5")
    again.metrics.path.write_text((whole.folder / "metrics.jsonl").read_text())
    again.fit(again.restore(checkpoint._open(whole.folder / "checkpoints" / "step_00000003"), None))
    for part, tensors in again.tensors().items():
        assert all(torch.equal(x, kept[part][key]) for key, x in tensors.items()), part
    last = {row["step"]: row for row in read_rows(again.metrics.path)}[6]
    assert last["val/attention"] == rows[6]["val/attention"]


def test_after_the_stop_the_teacher_does_not_run(run: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = run("schedule.stop_step=3")
    images: list[int] = []
    tokens = ViTNetwork.tokens

    def counted(self: ViTNetwork, images_B3HW: torch.Tensor, grid: Any = None) -> Any:
        images.append(len(images_B3HW))
        return tokens(self, images_B3HW, grid)

    monkeypatch.setattr(ViTNetwork, "tokens", counted)
    terms = []
    for step, batches in enumerate(trainer.reader.stream(0, 6)):
        terms.append(trainer.update(step, batches, with_tap_gradients=False).terms.per_sample.keys())
    assert images == [8, 8, 8], "once for each of the three batches before the stop"
    assert ["attention" in own for own in terms] == [True] * 3 + [False] * 3
    assert "val/attention" in trainer.validate(6), "validations still measure it"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("loss.attention.block_1=3",), "has 3 blocks, counted from 0, and none with the number 3"),
        (("loss.attention_heads=3",), "backbone and teacher both have 2 heads"),
        (("teacher.image_size=112",), "the teacher's 8x8 patches with that among the backbone's 4x4 tokens"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_before_step_0(run: Build, overrides: tuple[str, ...], words: str) -> None:
    with pytest.raises(UserError, match=words):
        run(*overrides)
