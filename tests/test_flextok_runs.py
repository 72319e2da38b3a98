"""FlexTok through the house's own trainer: draws, pairs, the loss, optimiser groups, resuming."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accelerate.state import AcceleratorState

from urepa.core import random_draws
from urepa.core.errors import UserError
from urepa.core.part_names import IMAGE, KEEP
from urepa.method.training_step import step_terms
from urepa.models.weight_files import trainable
from urepa.runs import checkpoint
from urepa.training.checks.combinations import check

Build = Callable[..., Any]
Compose = Callable[..., dict[str, Any]]


@pytest.fixture
def train(trainer_of: Build, small_flextok: list[str]) -> Build:
    """train(*overrides): a Trainer of the tiny FlexTok."""
    return lambda *overrides: trainer_of(*small_flextok, *overrides)


def steps(trainer: Any, first: int, last: int) -> None:
    for step in range(first, last):
        trainer.update(step, trainer.reader.read(step), with_tap_gradients=False)


def everything(trainer: Any) -> dict[str, torch.Tensor]:
    """Weights, their EMA and Adam's moments."""
    parameters = trainable(trainer.model)
    moments = checkpoint.optimizer_tensors(trainer.optimizer, parameters)
    parts = {"weights": parameters, "ema": trainer.ema.shadow, "optimizer": moments}
    return {f"{part}/{k}": v.detach().clone() for part, own in parts.items() for k, v in own.items()}


def test_a_sample_is_denoised_under_itself_and_what_is_kept_is_drawn_by_address(train: Build) -> None:
    reader = train("data.cfg_dropout=0").reader
    (batch,) = reader.read(3)
    assert torch.equal(batch.condition[IMAGE].tokens_BLD.transpose(1, 2).unflatten(2, (8, 8)), batch.x0)
    drawn = [random_draws.generator(0, "keep", 3, p).random() for p in range(8)]
    torch.testing.assert_close(batch.condition[KEEP].vector_BD[:, 0], torch.tensor(drawn))


@pytest.mark.slow
def test_arms_of_a_seed_share_what_is_kept_and_other_seeds_do_not(train: Build, small_flextok: list[str]) -> None:
    one, other = train("data.cfg_dropout=0"), train("data.cfg_dropout=0", "+ablation=flextok_no_dropout")
    (here,), (there,) = one.reader.read(1), other.reader.read(1)
    assert torch.equal(here.condition[KEEP].value, there.condition[KEEP].value)
    assert torch.equal(here.noise, there.noise)
    (elsewhere,) = train("data.cfg_dropout=0", "seed=1").reader.read(1)
    assert not torch.equal(here.condition[KEEP].value, elsewhere.condition[KEEP].value)


@pytest.mark.slow
def test_validation_keeps_by_the_sample_alone(train: Build) -> None:
    found = []
    for seed in (0, 1):
        batch = train(f"seed={seed}").validation.reader.read(0)
        found.append(dict(zip(batch.ids, batch.condition[KEEP].vector_BD[:, 0].tolist(), strict=True)))
    assert found[0] == found[1]
    assert found[0] == pytest.approx({name: random_draws.unit_interval("keep", name) for name in found[0]})


def test_a_step_is_the_flows_loss_less_the_cosine_and_the_projector_begins_above_zero(train: Build) -> None:
    trainer = train()
    (batch,) = trainer.reader.read(0)
    terms, output = step_terms(trainer.model, trainer.objective, trainer.loss, batch, 0, lambda x: x)
    t = batch.t_B.view(-1, 1, 1, 1)
    tokens, teacher = output.tokens["decoder_block_1"], batch.teacher_BND
    assert teacher is not None
    head = trainer.model.heads["decoder_block_1"]
    raw = head.project(output.features["decoder_block_1"].x_BND, batch.t_B)
    assert raw.abs().sum(dim=2).gt(0).all()
    map_BEhw = F.interpolate(
        raw.transpose(1, 2).unflatten(2, (4, 4)), size=(2, 2), mode="bilinear", align_corners=False
    )
    torch.testing.assert_close(tokens.x_BND, F.normalize(map_BEhw.flatten(2).transpose(1, 2), dim=-1))
    cosine = F.cosine_similarity(tokens.x_BND, teacher.float(), dim=-1).mean(1)
    assert not output.prediction_RCHW.any()  # the output head begins at zero
    flow = (batch.noise - batch.x0).pow(2).flatten(1).mean(1)
    torch.testing.assert_close(terms.total, (flow + 1.0 * (1 - cosine)).mean())
    x_t = (1 - t) * batch.x0 + t * batch.noise
    assert torch.equal(trainer.objective.corrupt(batch.x0, batch.noise, batch.t_B), x_t)


@pytest.mark.slow
def test_every_parameter_trains_in_one_group_at_its_own_rate(train: Build) -> None:
    trainer = train("optimizer=adamw_flextok_scratch", "optimizer.lr.backbone=2e-4", "optimizer.warmup_ratio=0")
    trainer.declared_optimizer.set_lr(trainer.optimizer, 0, 10)
    rates = {group["name"]: group["lr"] for group in trainer.optimizer.param_groups}
    assert rates == {"backbone": 2e-4, "head": 1e-4}
    grouped = [id(p) for group in trainer.optimizer.param_groups for p in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(p) for p in trainer.model.parameters()}
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    steps(trainer, 0, 4)
    still = {name for name, p in trainer.model.named_parameters() if torch.equal(p, before[name])}
    assert still == set()


@pytest.mark.slow
def test_alignment_alone_reaches_the_encoder(train: Build) -> None:
    """Registers reach the patches before the tap once the decoder's gates are open."""
    trainer = train("loss.diffusion_fraction=0")
    steps(trainer, 0, 3)
    (batch,) = trainer.reader.read(3)
    terms, _ = step_terms(trainer.model, trainer.objective, trainer.loss, batch, 3, lambda x: x)
    terms.total.backward()
    assert trainer.model.backbone.encoder.registers.grad.any()
    assert all(not p.requires_grad for p in trainer.model.backbone.decoder.final_layer.parameters())


@pytest.mark.slow
def test_a_run_resumes_bit_for_bit(train: Build) -> None:
    whole = train()
    steps(whole, 0, 4)
    expected = everything(whole)
    AcceleratorState._reset_state(reset_partial_state=True)
    first = train()
    steps(first, 0, 2)
    first.save(2)
    found = checkpoint.newest(first.folder / "checkpoints")
    assert found is not None
    second = train()
    assert second.restore(found, None) == 2
    steps(second, 2, 4)
    assert {name: torch.equal(value, expected[name]) for name, value in everything(second).items()} == dict.fromkeys(
        expected, True
    )


@pytest.mark.fast(1)
@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["data.condition=label"], "is conditioned on image, image.keep, and the data's conditions have class"),
        (["optimizer=adamw_flextok"], "optimizer.lr.backbone=1e-06 is a rate for fine-tuning trained weights"),
        (["+loss.taps.decoder_block_9=1.0"], "no tap 'decoder_block_9'; it has decoder_block_0 to decoder_block_2"),
        (["lora=all_attention", "optimizer=adamw_lora"], "lora has no layers to adapt in FlexTok"),
    ],
)
def test_mistakes_are_said_before_the_first_step(
    compose: Compose, small_flextok: list[str], overrides: list[str], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        check(compose(*small_flextok, *overrides), [*small_flextok, *overrides])


def test_other_backbones_do_not_take_images(compose: Compose, small_sit: list[str]) -> None:
    with pytest.raises(UserError, match="choose a backbone of flextok, or other data"):
        check(compose(*small_sit, "data.condition=image"), [])


@pytest.mark.parametrize("experiment", ["flextok_celebahq", "flextok_imagenet", "flextok_smoke"])
def test_the_experiments_are_whole(compose: Compose, experiment: str) -> None:
    overrides = [f"+experiment={experiment}"]
    overrides += ["backbone.weights=FILE"] * (experiment == "flextok_celebahq")
    config = compose(*overrides)
    check(config, overrides)
    assert (config["loss"]["lambda_max"], config["loss"]["taps"]) == (1.0, {"decoder_block_1": 1.0})
    assert config["objective"]["draw"] == "lognormal"
