"""SiT with REPA through the project's own trainer: the terms of a step, pairs, resuming, and flips."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

import urepa
from urepa.core.errors import UserError
from urepa.costs.estimate import Device, plan
from urepa.method.training_step import step_terms
from urepa.models.weight_files import trainable
from urepa.runs import checkpoint
from urepa.runs.run_folder import RunFolder

Build = Callable[..., Any]
Compose = Callable[..., dict[str, Any]]


@pytest.fixture
def train(trainer_of: Build, small_sit: list[str]) -> Build:
    """train(*overrides): a Trainer of the tiny SiT."""

    def train(*overrides: str) -> Any:
        other_head = any(o.startswith("head=") for o in overrides)
        return trainer_of(*(o for o in small_sit if not (other_head and o.startswith("head."))), *overrides)

    return train


def weights(trainer: Any, part: str) -> dict[str, torch.Tensor]:
    return {k: v.detach().clone() for k, v in trainer.model.named_parameters() if k.startswith(part)}


def steps(trainer: Any, first: int, last: int) -> None:
    for step in range(first, last):
        trainer.update(step, trainer.reader.read(step), with_tap_gradients=False)


def everything(trainer: Any) -> dict[str, torch.Tensor]:
    """Weights, their EMA and Adam's moments."""
    parameters = trainable(trainer.model)
    moments = checkpoint.optimizer_tensors(trainer.optimizer, parameters)
    parts = {"weights": parameters, "ema": trainer.ema.shadow, "optimizer": moments}
    return {f"{part}/{k}": v.detach().clone() for part, own in parts.items() for k, v in own.items()}


@pytest.mark.slow
def test_a_step_is_the_flows_loss_less_half_the_cosine(train: Build) -> None:
    trainer = train()
    steps(trainer, 0, 2)  # away from the zeros at the start
    (batch,) = trainer.reader.read(2)
    assert batch.t_B.dtype == torch.float32
    assert 0 <= batch.t_B.min() < batch.t_B.max() <= 1
    terms, output = step_terms(trainer.model, trainer.objective, trainer.loss, batch, 2, lambda x: x)
    t = batch.t_B.view(-1, 1, 1, 1)
    denoised = trainer.model.backbone((1 - t) * batch.x0 + t * batch.noise, batch.t_B, batch.condition, ("block_3",))
    diffusion = F.mse_loss(denoised.prediction_RCHW, batch.noise - batch.x0)
    projected = trainer.model.heads["block_3"].layers(denoised.features["block_3"].x_BND)
    cosine = F.cosine_similarity(projected, batch.teacher_BND.float(), dim=-1).mean()
    torch.testing.assert_close(terms.total, diffusion + 0.5 * (1 - cosine))
    assert terms.manifold > 0  # logged, not trained on
    assert output.tokens["block_3"].grid == (4, 4)


@pytest.mark.slow
def test_spatial_normalisation_changes_the_target_alone(train: Build) -> None:
    rows, tokens = {}, {}
    for override in ("loss.spatial_norm=null", "loss.spatial_norm=0.6"):
        trainer = train(override)
        (batch,) = trainer.reader.read(0)
        terms, output = step_terms(trainer.model, trainer.objective, trainer.loss, batch, 0, lambda x: x)
        rows[override], tokens[override] = trainer.validate(0), output.tokens["block_3"].x_BND
        teacher = batch.teacher_BND.float()
        if "null" not in override:
            teacher = (teacher - 0.6 * teacher.mean(1, keepdim=True)) / (teacher.std(1, keepdim=True) + 1e-6)
        cosine = F.cosine_similarity(output.tokens["block_3"].x_BND, teacher, dim=-1).mean()
        torch.testing.assert_close(terms.means()["cosine"], cosine)
    assert torch.equal(*tokens.values())
    plain, normalised = rows.values()
    assert plain["val/diffusion"] == normalised["val/diffusion"]
    assert plain.keys() - normalised.keys() == {"floor/constant_token"}


@pytest.mark.slow
def test_alignment_weighs_samples_near_the_data_more(train: Build) -> None:
    """λ·2·(1 − t) of its token loss, in the training loss and in the validation's total; the reported token loss is the
    plain mean."""
    trainer = train("loss.time_power=1")
    (batch,) = trainer.reader.read(0)
    terms, output = step_terms(trainer.model, trainer.objective, trainer.loss, batch, 0, lambda x: x)
    token_B = 1 - F.cosine_similarity(output.tokens["block_3"].x_BND, batch.teacher_BND.float(), dim=-1).mean(1)
    torch.testing.assert_close(terms.per_sample["token"], token_B)
    pulled = (2 * (1 - batch.t_B) * token_B).mean()
    torch.testing.assert_close(terms.total, terms.per_sample["diffusion"].mean() + 0.5 * pulled, rtol=1e-4, atol=0)
    row, reader = trainer.validate(0), trainer.validation.reader
    weighted = []
    for batch in map(reader.read, range(len(reader.groups))):
        terms, _ = step_terms(trainer.model.eval(), trainer.objective, trainer.loss, batch, 0, lambda x: x)
        weighted.append(2 * (1 - batch.t_B) * terms.per_sample["token"])
    expected = row["val/diffusion"] + 0.5 * torch.cat(weighted).mean().item()
    assert row["val/total"] == pytest.approx(expected, rel=1e-4)
    plain = train("loss.time_power=0").validate(0)
    assert plain.keys() == row.keys()
    assert {k for k in row if row[k] != plain[k]} == {"val/total"}


@pytest.mark.slow
def test_a_time_conditioned_head_trains_resumes_and_is_evaluated(train: Build) -> None:
    plain = train()
    first = weights(plain, "heads.")
    trainer = train("head._target_=urepa.method.heads.time_mlp.TimeMLP")
    before = weights(trainer, "heads.")
    assert all(torch.equal(before[k], v) for k, v in first.items())
    steps(trainer, 0, 2)
    trainer.save(2)
    steps(trainer, 2, 4)
    whole = weights(trainer, "")
    assert all(not torch.equal(whole[k], v) for k, v in before.items())  # the time's layers too
    found = checkpoint.newest(trainer.folder / "checkpoints")
    trainer = train("head._target_=urepa.method.heads.time_mlp.TimeMLP")
    assert trainer.restore(found, None) == 2
    steps(trainer, 2, 4)
    assert all(torch.equal(v, whole[k]) for k, v in weights(trainer, "").items())
    (batch,) = trainer.reader.read(0)
    noised = trainer.objective.corrupt(batch.x0, batch.noise, batch.t_B)
    aligned = trainer.model.eval()(noised, batch.t_B, batch.condition)
    tapped = aligned.features["block_3"]
    head = trainer.model.heads["block_3"]
    again, otherwise = (head(tapped, t, tapped.grid).x_BND for t in (batch.t_B, 1 - batch.t_B))
    assert torch.equal(again, aligned.tokens["block_3"].x_BND)
    assert not torch.allclose(again, otherwise)


@pytest.mark.slow
def test_after_the_stop_training_continues_without_the_teacher(train: Build) -> None:
    trainer = train("schedule.stop_step=2")
    assert [trainer.loss.lam(step) for step in (0, 1, 2, 9)] == [0.5, 0.5, 0.0, 0.0]
    asked, read = [], trainer.reader.cache.tokens[""].tensor
    trainer.reader.cache.tokens[""].tensor = lambda keys, raw=None: asked.append(len(keys)) or read(keys, raw)
    steps(trainer, 0, 2)
    assert asked == [8, 8]
    (batch,) = trainer.reader.read(2)
    assert batch.teacher_BND is None
    terms, output = step_terms(trainer.model, trainer.objective, trainer.loss, batch, 2, lambda x: x)
    torch.testing.assert_close(terms.total, F.mse_loss(output.prediction_RCHW, batch.noise - batch.x0))
    gradients = dict(
        zip(weights(trainer, ""), torch.autograd.grad(terms.total, trainer.model.parameters()), strict=True)
    )
    assert all((g == 0).all() for name, g in gradients.items() if name.startswith("heads."))
    update = trainer.update(2, [batch], with_tap_gradients=True)
    assert {"train/diffusion", "train/total"} <= (row := trainer.log(3, update)).keys()
    assert "train/token" not in row
    assert row["train/lambda"] == 0
    assert asked == [8, 8]
    assert trainer.validate(3)["val/total"] == trainer.validate(3)["val/diffusion"]


@pytest.mark.slow
def test_the_first_steps_are_those_of_a_run_that_does_not_stop(train: Build) -> None:
    ends = []
    for override in ("schedule.stop_step=2", "schedule.stop_step=null"):
        trainer = train(override)
        steps(trainer, 0, 2)
        ends.append(weights(trainer, ""))
    assert all(torch.equal(ends[0][k], ends[1][k]) for k in ends[1])


@pytest.mark.slow
def test_a_run_resumed_before_at_or_after_the_stop_ends_the_same(train: Build) -> None:
    overrides = ("schedule.stop_step=2", "trainer.keep_last=3")
    trainer = train(*overrides)
    saved = {}
    for step in (1, 2, 3):
        steps(trainer, step - 1, step)
        trainer.save(step)
        saved[step] = checkpoint.newest(trainer.folder / "checkpoints")
    steps(trainer, 3, 4)
    whole = everything(trainer)
    for step, found in saved.items():
        trainer = train(*overrides)
        assert trainer.restore(found, None) == step
        steps(trainer, step, 4)
        ended = everything(trainer)
        assert ended.keys() == whole.keys()
        assert all(torch.equal(v, whole[k]) for k, v in ended.items()), step


@pytest.mark.slow
def test_a_step_in_bf16(train: Build) -> None:
    """As accelerate prepares it: the backbone's products in bf16; its sums, the heads, losses and gradients in fp32."""
    plain = train()
    steps(plain, 0, 2)  # away from the zeros at the start
    (batch,) = plain.reader.read(2)
    expected, reference = plain.forward(batch, 2)
    AcceleratorState._reset_state(reset_partial_state=True)
    Accelerator(cpu=True, mixed_precision="bf16")  # of the process: the next one has it too
    trainer = train("trainer.precision=bf16")
    trainer.model.load_state_dict(plain.model.state_dict())
    (batch,) = trainer.reader.read(2)
    inner = []
    for layer in (trainer.model.backbone.blocks[3].mlp.fc1, trainer.model.heads["block_3"].layers[0]):
        layer.register_forward_hook(lambda module, x, out: inner.append(out.dtype))
    terms, output = trainer.forward(batch, 2)
    assert inner == [torch.bfloat16, torch.float32]
    assert output.features["block_3"].x_BND.dtype == torch.float32
    assert output.tokens["block_3"].x_BND.dtype == terms.total.dtype == torch.float32
    assert {v.dtype for v in terms.per_sample.values()} == {torch.float32}
    assert terms.total.isfinite()
    tokens, theirs = output.tokens["block_3"].x_BND, reference.tokens["block_3"].x_BND
    assert 0 < (tokens - theirs).abs().max() < 0.02
    for name, value in expected.means().items():
        torch.testing.assert_close(terms.means()[name], value, rtol=0.01, atol=1e-3)
    before = weights(trainer, "")
    assert trainer.update(2, [batch], with_tap_gradients=True).norms["all"].isfinite()
    after = weights(trainer, "")
    assert all(after[k].dtype == torch.float32 and after[k].isfinite().all() for k in before)
    assert all(not torch.equal(after[k], v) for k, v in before.items() if k.endswith("weight") and "y_emb" not in k)


LORA = ("lora=all_attention", "optimizer=adamw_lora")


@pytest.mark.slow
def test_lora_on_a_sit_trains_adapters_and_head_alone(train: Build, sit_file: Path) -> None:
    trainer = train(*LORA, f"backbone.weights={sit_file}")
    before = weights(trainer, "")
    steps(trainer, 0, 3)
    moved = {k for k, v in weights(trainer, "").items() if not torch.equal(v, before[k])}
    assert moved
    assert all("lora_" in k or k.startswith("heads.") for k in moved)
    assert any("lora_A" in k for k in moved)


@pytest.mark.slow
def test_a_loras_file_gives_the_trained_model_again(
    train: Build, compose: Compose, small_sit: list[str], sit_file: Path
) -> None:
    """From a run's folder: only base weights and the adapters' are read, and W + α/r·B·A equals the trained weights."""
    overrides = (*LORA, "lora.rank=4", "lora.alpha=16", f"backbone.weights={sit_file}")
    trainer = train(*overrides)
    steps(trainer, 0, 3)
    trainer.save(3)
    RunFolder(trainer.folder).store_config(compose(*small_sit, *overrides))
    stored = checkpoint.require(trainer.folder).tensors("ema")
    assert all("lora_" in k or k.startswith("heads.") for k in stored)
    assert sum("lora_" in k for k in stored) == 2 * 2 * 4  # A and B of qkv and proj in each of four blocks
    opened = urepa.load(trainer.folder, device="cpu")
    (batch,) = trainer.reader.read(3)
    inputs = (batch.x0, batch.t_B, batch.condition)
    with torch.no_grad(), trainer.ema.use_averages():
        trained = trainer.model.eval()(*inputs)
    with torch.no_grad():
        again = opened.model(*inputs)
    assert torch.equal(again.prediction_RCHW, trained.prediction_RCHW)
    assert torch.equal(again.tokens["block_3"].x_BND, trained.tokens["block_3"].x_BND)
    base = load_file(sit_file)
    for name in ("blocks.0.attn.qkv", "blocks.3.attn.proj"):
        a, b = (stored[f"backbone.{name}.lora_{x}.default.weight"] for x in "AB")
        base[f"{name}.weight"] += 16 / 4 * b @ a
        merged = opened.model.backbone.get_submodule(name)
        merged.merge()
        torch.testing.assert_close(merged.base_layer.weight, base[f"{name}.weight"])


@pytest.mark.fast(1)
@pytest.mark.parametrize("lora", ["mid_attention", "mid_attention_conv", "mid_attention_16"])
def test_adapters_of_a_unet_are_refused(train: Build, sit_file: Path, lora: str) -> None:
    with pytest.raises(UserError, match=r"lora.targets=\w+ lora.blocks=mid: a transformer has neither .* lora=all_att"):
        train(f"lora={lora}", "optimizer=adamw_lora", f"backbone.weights={sit_file}")


@pytest.mark.slow
def test_training_lowers_both_losses(train: Build) -> None:
    """On one repeated batch both terms decrease."""
    trainer = train("optimizer.warmup_ratio=0", "optimizer.final_ratio=1")
    batches = trainer.reader.read(0)
    first = trainer.update(0, batches, with_tap_gradients=True).terms.means()
    for step in range(1, 100):
        last = trainer.update(step, batches, with_tap_gradients=False).terms.means()
    assert float(first["diffusion"]) == pytest.approx(float((batches[0].noise - batches[0].x0).square().mean()))
    assert last["diffusion"] < 0.3 * first["diffusion"]
    assert last["token"] < 0.5 * first["token"]


@pytest.mark.slow
def test_the_controls_backbone_is_that_of_lambda_zero(train: Build, small_sit: list[str]) -> None:
    trainer = train("loss.lambda_max=0")
    steps(trainer, 0, 3)
    lambda_0 = weights(trainer, "backbone")
    trainer = train("loss=none")
    assert not trainer.model.heads
    steps(trainer, 0, 3)
    none = weights(trainer, "backbone")
    assert lambda_0.keys() == none.keys()
    assert all(torch.equal(lambda_0[k], none[k]) for k in none)


@pytest.mark.slow
def test_a_resumed_run_ends_where_an_undisturbed_one_does(train: Build) -> None:
    trainer = train()
    steps(trainer, 0, 2)
    trainer.save(2)
    steps(trainer, 2, 4)
    whole = weights(trainer, "")
    found = checkpoint.newest(trainer.folder / "checkpoints")
    trainer = train()
    assert trainer.restore(found, None) == 2
    steps(trainer, 2, 4)
    assert all(torch.equal(v, whole[k]) for k, v in weights(trainer, "").items())


def test_validation_reports_times_in_tenths(train: Build) -> None:
    row = train().validate(0)
    assert 0 < row["val/diffusion"] == pytest.approx(row["floor/zero_predictor"])  # it predicts 0 as yet
    bins = [k for k in row if k.startswith("val/diffusion_by_t/")]
    assert len(bins) >= 6
    assert all(0 <= float(k.split("/")[2][:3]) < 1 for k in bins)


@pytest.mark.slow
def test_half_of_the_batch_may_have_a_diffusion_term(train: Build) -> None:
    trainer = train("loss.diffusion_fraction=0.5")
    terms = trainer.update(0, trainer.reader.read(0), with_tap_gradients=False).terms
    assert {k: len(v) for k, v in terms.per_sample.items()} == {"diffusion": 4, "token": 8}
    trainer = train("loss.diffusion_fraction=0")
    assert not trainer.model.backbone.final_layer.linear.weight.requires_grad
    trainer.update(0, trainer.reader.read(0), with_tap_gradients=False)


@pytest.mark.slow
def test_an_unsuitable_grid_is_reported(train: Build) -> None:
    trainer = train("backbone.patch=2", "head=conv")
    steps(trainer, 0, 1)
    with pytest.raises(UserError, match=r"the tap has 8x8 tokens and the teacher 4x4"):
        train("backbone.patch=2")  # before the first step


@pytest.mark.slow
def test_a_plan_gives_the_cost_of_repa(compose: Compose) -> None:
    planned = plan(compose("+experiment=repa_imagenet256", "backbone=sit_b2"), Device("x", "cuda", 1e15, 141e9))
    by_part = planned.counted.parameters
    assert list(by_part) == ["embedding", "blocks", "output", "head"]
    assert sum(n["all"] for part, n in by_part.items() if part != "head") == 130_303_504
    # a token's dense products a block: 12·D² with the MLP, and attention's 2·N·D; adaLN's 6·D² once a sample
    width, tokens, depth = 768, 256, 12
    products = depth * (tokens * (12 * width**2 + 2 * tokens * width) + 6 * width**2)
    assert planned.flops("forward")["blocks"] == pytest.approx(256 * 2 * products, rel=1e-6)
    assert planned.flops("backward")["blocks"] == pytest.approx(2 * 256 * 2 * products, rel=1e-6)
