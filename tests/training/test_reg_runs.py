"""Runs of REG in a trainer's own updates, weights of 0, resuming, what is logged, samples and the plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from class_ids import of_ids

from urepa.core.errors import UserError
from urepa.costs.estimate import Device, plan
from urepa.method.ddpm_sampling import sample_images
from urepa.method.losses.no_loss_math import DiffusionOnly
from urepa.models.backbones.class_token_sit_net import ClassTokenSiTNetwork
from urepa.models.backbones.sit import SiT
from urepa.runs import checkpoint
from urepa.runs.metrics import read_rows

Build = Callable[..., Any]
WIDTH = 1280  # of EfficientNet-Lite0's last map
REG = ("loss=reg", f"backbone.class_token={WIDTH}")
SHORT = ("trainer.max_steps=6", "trainer.checkpoint_every=3", "trainer.validate_every=6", "trainer.log_every=1")


class OnlyDiffusion(DiffusionOnly):
    """loss=none, with the class token in the state."""

    has_class_token = True


@pytest.fixture
def run(small_sit: list[str], trainer_of: Build) -> Build:
    """run(*overrides): a Trainer of the small SiT with `loss=reg`."""
    own = [o for o in small_sit if not o.startswith("loss.")]
    return lambda *overrides: trainer_of(*own, *SHORT, *REG, "loss.warmup_steps=0", *overrides)


def train(trainer: Any, last: int = 6) -> None:
    for step, batches in enumerate(trainer.reader.stream(0, last)):
        trainer.update(step, batches, with_tap_gradients=False)


def weights(trainer: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer.model.backbone.named_parameters()}


@pytest.mark.slow
def test_at_weights_of_0_the_backbone_is_that_of_the_diffusion_term_bit_for_bit(run: Build) -> None:
    """`loss=none` itself has no teacher and so no class token: the same network and input are trained with its loss,
    without clipping. The norm of all gradients is a sum in another order where the class token's output has gradients
    of 0 than where it has none."""
    ends = []
    for off, alone in ((True, False), (True, True), (False, False)):
        trainer = run("trainer.clip_norm=1e9", *(("loss.lambda_max=0", "loss.class_weight=0") if off else ()))
        if alone:
            trainer.loss = OnlyDiffusion()
        train(trainer)
        ends.append(weights(trainer))
    off, none, on = ends
    assert all(torch.equal(off[key], none[key]) for key in none)
    assert any(not torch.equal(on[key], none[key]) for key in none)
    assert not off["final_layer.linear_cls.weight"].any()
    assert on["final_layer.linear_cls.weight"].any()


@pytest.mark.slow
def test_the_class_token_is_in_the_total_and_a_run_resumes_bit_for_bit(run: Build) -> None:
    whole = run("loss.class_weight=0.25")
    whole.fit(0)
    kept = {part: {k: x.clone() for k, x in tensors.items()} for part, tensors in whole.tensors().items()}
    rows = {row["step"]: row for row in read_rows(whole.metrics.path)}
    last = rows[6]
    by_hand = last["val/diffusion"] + 0.25 * last["val/class_token"] + 0.5 * last["val/token"]
    assert last["val/total"] == pytest.approx(by_hand, rel=1e-6)
    of_training = last["train/diffusion"] + 0.25 * last["train/class_token"] + 0.5 * last["train/token"]
    assert last["train/total"] == pytest.approx(of_training, rel=1e-6)
    assert last["train/class_token"] > 0
    assert last["tap/block_1/grad_diffusion"] > 0, "the tap is on the way to the prediction"
    again = run("loss.class_weight=0.25")
    again.metrics.path.write_text((whole.folder / "metrics.jsonl").read_text())
    again.fit(again.restore(checkpoint._open(whole.folder / "checkpoints" / "step_00000003"), None))
    for part, tensors in again.tensors().items():
        assert all(torch.equal(x, kept[part][key]) for key, x in tensors.items()), part
    resumed = {row["step"]: row for row in read_rows(again.metrics.path)}[6]
    assert resumed["val/class_token"] == last["val/class_token"]


@pytest.mark.slow
def test_pictures_of_a_run_are_its_samples(run: Build, capsys: pytest.CaptureFixture[str]) -> None:
    """There is no class token for images that are noised for a picture of tokens."""
    trainer = run("trainer.look_every=6", "trainer.look_share=1.0")
    trainer.fit(0)
    assert [file.name for file in (trainer.folder / "look").iterdir()] == ["step_00000006.png"]
    assert "takes a class token with each image, and there is none" in capsys.readouterr().out


def test_the_images_metrics_are_the_images_alone(run: Build) -> None:
    """The mean over the image's values; another class token's prediction changes none of them."""
    trainer = run()
    before = trainer.validate(0)
    backbone: ClassTokenSiTNetwork = trainer.model.backbone
    for module in (backbone.final_layer.linear_cls,):
        with torch.no_grad():
            module.bias.fill_(7.0)
    trainer.ema.shadow["backbone.final_layer.linear_cls.bias"].fill_(7.0)
    after = trainer.validate(0)
    assert after["val/class_token"] > before["val/class_token"] + 10
    for key in ("val/diffusion", "val/x0_error", "floor/zero_predictor", "val/token"):
        assert after[key] == before[key], key


@pytest.mark.slow
def test_data_noise_and_times_are_those_of_other_arms(run: Build, small_sit: list[str], trainer_of: Build) -> None:
    ours = run().reader.read(3)[0]
    theirs = trainer_of(*small_sit, *SHORT).reader.read(3)[0]
    assert ours.ids == theirs.ids
    for name in ("x0", "noise", "t_B"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
    assert theirs.class_noise_BE11 is None
    assert ours.class_noise_BE11 is not None
    assert ours.class_noise_BE11.shape == (8, WIDTH, 1, 1)
    flat = ours.class_noise_BE11.flatten()
    assert abs(float(flat.mean())) < 0.05
    assert abs(float(flat.std()) - 1) < 0.05
    assert not torch.equal(flat[: ours.noise.numel()], ours.noise.flatten()[: len(flat)]), "noise of its own"


def test_a_run_samples_images_and_exports_what_can_be_loaded(run: Build, tmp_path: Path) -> None:
    trainer = run()
    train(trainer, 3)
    backbone, images = trainer.model.eval().backbone, [(0, 0), (1, 0), (1, 1)]
    how: dict[str, Any] = {"sampler": None, "steps": 3, "guidance": 2.0, "seed": 0}

    def samples(network: Any, chosen: list[tuple[int, int]]) -> torch.Tensor:
        condition = of_ids(torch.tensor([class_id for class_id, _ in chosen]), 10)
        return sample_images(network, trainer.objective, chosen, (1, 16, 16), condition, **how)

    x0 = samples(backbone, images)
    assert x0.shape == (3, 1, 16, 16)
    torch.testing.assert_close(samples(backbone, images[2:])[0], x0[2], atol=1e-5, rtol=1e-4)
    backbone.export(tmp_path)
    declared = SiT(
        weights=str(tmp_path), patch=4, depth=4, width=32, heads=2, qk_norm=False, positions="sincos", class_token=WIDTH
    )
    assert backbone.patch == 4
    loaded = declared.build(latent_shape=(1, 16, 16), num_classes=10)
    assert torch.equal(samples(loaded.eval(), images), x0)
    with pytest.raises(UserError, match="denoises a class token of 1280 values: give backbone.class_token=1280"):
        replace(declared, class_token=0).build(latent_shape=(1, 16, 16), num_classes=10)


@pytest.mark.slow
def test_the_plan_counts_the_token(small_sit: list[str], compose: Build) -> None:
    """One token of 17 in the blocks, and the layers of its own."""
    device = Device("H200", "cuda", 790e12, 141e9)
    own = [o for o in small_sit if not o.startswith("loss.")]
    with_token, without = (plan(compose(*own, *more), device).counted for more in (REG, ("loss=repa_early",)))
    assert 17 / 16 < with_token.step.forward["blocks"] / without.step.forward["blocks"] < (17 / 16) ** 2 + 1e-3
    d, e = 32, WIDTH
    own_parameters = (e * d + d) + 2 * d + (d * e + e)
    total = [sum(part["all"] for part in one.parameters.values()) for one in (with_token, without)]
    assert total[0] - total[1] == own_parameters
    assert with_token.forward_per_sample > without.forward_per_sample
