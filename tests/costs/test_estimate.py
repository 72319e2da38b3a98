"""A plan, compared with the description's numbers, a real step, a real optimiser and a measurement's file."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sd import SMALL, write_unet

from urepa.core.errors import UserError
from urepa.costs.counting import Flops, SavedBytes
from urepa.costs.estimate import Device, count, example, plan
from urepa.method.training_step import step_terms
from urepa.plan import flops as flops_table
from urepa.training.assembly import build_loss, build_model, build_part, speed_up
from urepa.training.trainer_settings import Settings

H200 = Device("H200", "cuda", 790e12, 141e9)
CPU = Device("cpu", "cpu", None, None)
MIB, GIB = 2**20, 2**30

Compose = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def track_a(compose: Compose, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The plan of the description's run, made without weights, prompts, images or caches."""
    config = compose("+experiment=track_a", f"data.root={tmp_path_factory.mktemp('empty') / 'nothing'}")
    return plan(config, H200)


@pytest.mark.slow
def test_parameters_are_counted_by_part(track_a: Any) -> None:
    by_part = track_a.counted.parameters
    unet = sum(by_part[part]["all"] for part in ("down", "mid", "up"))
    assert unet == 859_520_964 + 155_648
    assert by_part["mid"] == {"all": 97_038_080 + 155_648, "trainable": 155_648}
    assert by_part["head"] == {"all": 2_360_320, "trainable": 2_360_320}
    assert by_part["down"]["trainable"] == by_part["up"]["trainable"] == 0


@pytest.mark.slow
def test_flops_are_the_documented_ones(track_a: Any) -> None:
    forward, backward = ({p: n / 128e9 for p, n in track_a.flops(d).items()} for d in ("forward", "backward"))
    for part, gigaflops in (("down", 249.2), ("mid", 12.1), ("up", 541.7), ("head", 0.3)):
        assert forward[part] == pytest.approx(gigaflops, rel=0.01)
    assert sum(forward.values()) == pytest.approx(803.6, rel=1e-3)
    # 621.6 without the gradients of cross-attention's keys and values, which fused kernels compute needlessly
    assert sum(backward.values()) == pytest.approx(621.6, rel=5e-3)
    assert backward["up"] == pytest.approx(613.7, rel=5e-3)
    assert backward["down"] == 0
    assert track_a.flops_per_step == pytest.approx(182.4e12, rel=2e-3)
    assert track_a.floor_step_s == pytest.approx(0.231, rel=2e-3)
    training = track_a.flops_per_step * 62_480 / H200.flops_per_s / 3600
    assert training == pytest.approx(4.0, rel=0.01)
    validation = 21 * 50_000 * 803.6e9 / H200.flops_per_s / 3600
    assert track_a.floor_hours == pytest.approx(training + validation, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("fraction", "gigaflops", "milliseconds"), [(0, 269.6, 44), (0.25, 558, 90)])
def test_a_fraction_of_the_diffusion_term_spares_the_decoder(
    track_a: Any, compose: Compose, fraction: float, gigaflops: float, milliseconds: float
) -> None:
    planned = plan(compose("+experiment=track_a", f"loss.diffusion_fraction={fraction}"), H200)
    assert planned.flops_per_step / 128e9 == pytest.approx(gigaflops, rel=3e-3)
    assert planned.floor_step_s * 1e3 == pytest.approx(milliseconds, abs=0.6)
    for direction in ("forward", "backward"):
        whole, part = track_a.flops(direction), planned.flops(direction)
        assert part["up"] == pytest.approx(fraction * whole["up"])
        assert all(part[name] == whole[name] for name in ("down", "mid", "head"))
    assert planned.validation_flops == track_a.validation_flops  # validation always sees the whole term


@pytest.mark.slow
@pytest.mark.parametrize(
    ("frozen", "channels_last", "a_sample", "copies"),
    [("fp32", "false", 648, 2), ("bf16", "false", 473, 0), ("bf16", "true", 473 + 30, 0)],
)
def test_activations_are_the_documented_ones(
    track_a: Any, compose: Compose, frozen: str, channels_last: str, a_sample: int, copies: int
) -> None:
    """648 MiB a sample in autocast over fp32, and the bf16 copies of the frozen weights that backward needs; 473
    with frozen weights in bf16. channels_last adds 30: diffusers asks for NCHW copies before each conv_shortcut."""
    given = (f"trainer.frozen={frozen}", f"trainer.channels_last={channels_last}")
    planned = plan(compose("+experiment=track_a", *given), H200)
    weights = copies * planned.counted.parameters["up"]["all"]
    assert planned.saved_bytes == pytest.approx(128 * a_sample * MIB + weights, rel=0.01)
    frozen_bytes = 859_520_964 * {"fp32": 4, "bf16": 2}[frozen]  # the norms' own weights stay in fp32
    assert planned.counted.weights["frozen weights"] == pytest.approx(frozen_bytes, rel=1e-3)
    assert planned.saved_bytes < planned.peak_bytes < H200.memory_bytes
    assert planned.fits


@pytest.mark.slow
def test_more_lora_costs_more_backward(track_a: Any, compose: Compose) -> None:
    everywhere = plan(compose("+experiment=track_a", "lora.blocks=all"), H200)
    assert sum(part["trainable"] for part in everywhere.counted.parameters.values()) == 1_594_368 + 2_360_320
    assert everywhere.flops("backward")["down"] > 250e9 * 128
    assert everywhere.saved_bytes > track_a.saved_bytes + 100 * 128 * MIB


@pytest.mark.slow
def test_a_small_memory_is_too_small(track_a: Any) -> None:
    assert track_a.fits is True
    assert replace(track_a, device=replace(H200, memory_bytes=60e9)).fits is False
    assert replace(track_a, device=CPU).fits is None


@pytest.mark.slow
def test_seeds_cost_the_same_and_are_counted_once(compose: Compose) -> None:
    a, b = (plan(compose("+experiment=track_a", f"seed={seed}"), H200) for seed in (1, 2))
    assert a.counted is b.counted


@pytest.mark.slow
def test_evaluations_cost_no_step_and_are_counted_once(compose: Compose, small_run: list[str]) -> None:
    a, b = (plan(compose(*small_run, f"evaluation={name}"), H200) for name in ("none", "spatial"))
    assert a.counted is b.counted
    config = compose(*small_run, "evaluation=spatial")
    config["evaluation"]["spatial"]["tap"] = "block_7"
    with pytest.raises(UserError, match="block_7"):
        plan(config, H200)


@pytest.mark.slow
def test_keys_that_are_not_counted_change_no_count(compose: Compose, small_run: list[str]) -> None:
    """Also with the value 0, at which a term could be expected to be skipped."""
    others = ("loss.lambda_max=0", "loss.warmup_steps=0", "data.cfg_dropout=0", "seed=3")
    own = [o for o in small_run if not o.startswith("loss.")]
    changed = compose(
        *own, *others, "objective.beta_end=0.02", "objective.beta_schedule=scaled_linear", "optimizer.lr.head=0"
    )
    assert count(changed, "cuda") == count(compose(*small_run), "cuda")


@pytest.mark.slow
def test_a_manifold_term_without_weight_has_no_backward_pass(compose: Compose, small_run: list[str]) -> None:
    whole, logged = (count(compose(*small_run, *more), "cuda").step for more in ((), ("loss.manifold_weight=0",)))
    assert whole.backward["loss"] > 0
    assert "loss" not in logged.backward
    assert logged.forward == whole.forward


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        [],
        ["loss=none"],
        ["loss.level=both", "+loss.taps.enc_last=1.0"],
        ["loss.diffusion_fraction=0.25", "trainer.channels_last=true"],
    ],
    ids=str,
)
def test_a_real_step_saves_what_is_planned(
    build_trainer: Callable[..., Any], compose: Compose, small_run: list[str], more: list[str]
) -> None:
    trainer = build_trainer(*more)
    trainer.prepared.train()
    with SavedBytes(trainer.model) as saved:
        trainer.forward(trainer.reader.read(0)[0], 0)
    given = [o for o in small_run if not ("loss=none" in more and o.startswith("loss."))]
    assert plan(compose(*given, *more), CPU).saved_bytes == pytest.approx(saved.total, rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        [],
        ["loss=none"],
        ["loss.diffusion_fraction=0.5"],
        ["lora=all_attention", "optimizer=adamw_lora", "lora.rank=4"],
    ],
    ids=str,
)
def test_a_real_step_of_a_sit_costs_what_is_planned(
    trainer_of: Callable[..., Any], compose: Compose, small_sit: list[str], sit_file: Path, more: list[str]
) -> None:
    """FLOPs forward and backward, saved bytes, and the optimiser's memory."""
    overrides = [*small_sit, f"backbone.weights={sit_file}", *more]
    trainer = trainer_of(*overrides)
    trainer.prepared.train()
    with Flops() as flops, SavedBytes(trainer.model) as saved:
        trainer.forward(trainer.reader.read(0)[0], 0)[0].total.backward()
    planned = plan(compose(*overrides), CPU)
    assert planned.flops_per_step == flops.total
    assert planned.saved_bytes == pytest.approx(saved.total, rel=0.01)
    in_training = sum(p.nbytes for group in trainer.optimizer.param_groups for p in group["params"])
    assert planned.counted.weights["optimiser"] == 2 * in_training


@pytest.mark.slow
def test_after_the_stop_a_step_costs_what_is_planned(
    trainer_of: Callable[..., Any], compose: Compose, small_sit: list[str]
) -> None:
    """As a real step after the stop. An online teacher is counted until the stop, and in every validation."""
    overrides = [*small_sit, "schedule.stop_step=4", "trainer.validate_every=3"]
    trainer = trainer_of(*overrides)
    trainer.prepared.train()
    counted = []
    for step in (3, 4):
        (batch,) = trainer.reader.read(step)
        with Flops() as flops:
            trainer.forward(batch, step)[0].total.backward()
        counted.append(flops.total)
    config = compose(*overrides)
    asking = config | {"data": config["data"] | {"online_teacher": True}}
    cached, online = plan(config, CPU), plan(asking, CPU)
    assert counted == [cached.flops_per_step, cached.flops_after_stop]
    assert cached.flops_after_stop < cached.flops_per_step  # the terms that are logged are products as well
    with Flops() as flops:
        build_part(config["teacher"]).tokens(torch.rand(1, 3, 16, 16))
    assert online.flops_per_step == counted[0] + 8 * flops.total
    assert online.flops_after_stop == counted[1]
    assert online.validation_flops - cached.validation_flops == 4 * 20 * flops.total
    assert online.run_flops == 4 * online.flops_per_step + 6 * counted[1] + online.validation_flops
    throughout = plan(asking | {"schedule": config["schedule"] | {"stop_step": None}}, CPU)
    assert throughout.run_flops == 10 * online.flops_per_step + online.validation_flops
    assert throughout.counted is online.counted
    measured = [row(device="cpu", tflops_per_s=0.05)]
    assert replace(online, measured=measured).expected_hours == pytest.approx(online.run_flops / 0.05e12 / 3600)
    last = flops_table(online).splitlines()[-1]
    assert last.split() == ["from", "step", "4", "on", f"{counted[1] / 1e12:.3f}"]
    assert "from step" not in flops_table(throughout)
    decay = {"_target_": "urepa.method.schedules.linear.Linear", "final": 0.0, "decay_steps": 4, "stop_step": None}
    decayed = plan(asking | {"schedule": decay}, CPU)
    assert (decayed.stop_step, decayed.run_flops) == (4, online.run_flops)
    assert plan(asking | {"schedule": decay | {"final": 0.1}}, CPU).run_flops == throughout.run_flops


@pytest.mark.slow
@pytest.mark.parametrize("switches", [("fp32", "false"), ("bf16", "false"), ("bf16", "true")], ids=str)
def test_a_real_step_of_track_a_in_bf16_saves_what_is_planned(
    compose: Compose, tmp_path: Path, switches: tuple[str, str]
) -> None:
    """A small U-Net of SD-1.5's kind with real weights, under the autocast that accelerate sets."""
    write_unet(tmp_path, **(SMALL | {"cross_attention_dim": 768}))
    torch.save(torch.zeros(1001, 77, 768), tmp_path / "prompts.pt")
    config = compose(
        "+experiment=track_a",
        f"backbone.weights={tmp_path}",
        f"backbone.prompts={tmp_path / 'prompts.pt'}",
        "data.latent_shape=[4,32,32]",
        "trainer.batch_size=4",
        "trainer.validation_group=4",
        "loss.diffusion_fraction=0.5",
        f"trainer.frozen={switches[0]}",
        f"trainer.channels_last={switches[1]}",
    )
    track, teacher, loss = build_part(config["data"]), build_part(config["teacher"]), build_loss(config)
    model, _ = build_model(config, track, teacher, loss)
    speed_up(model, Settings(**config["trainer"]), torch.device("cpu"))
    forward = torch.autocast("cpu", torch.bfloat16)(model.train().forward)
    objective = build_part(config["objective"])
    batch = example(track, teacher, objective, 4, 0.5)
    with SavedBytes(model) as saved:
        step_terms(forward, objective, loss, batch, 1, lambda x_BD: x_BD)
    assert plan(config, CPU).saved_bytes == pytest.approx(saved.total, rel=0.05)


@pytest.mark.slow
def test_the_optimisers_memory_is_adams(build_trainer: Callable[..., Any], compose: Compose, small_run: Any) -> None:
    trainer = build_trainer()
    trainer.update(0, trainer.reader.read(0), with_tap_gradients=False)
    states = trainer.optimizer.state.values()
    moments = sum(t.nbytes for state in states for name, t in state.items() if name != "step")
    weights = plan(compose(*small_run), CPU).counted.weights
    assert weights["optimiser"] == moments
    assert weights["EMA"] == sum(t.nbytes for t in trainer.ema.shadow.values())
    parameters = sum(p.nbytes for p in trainer.model.parameters())
    assert weights["trainable weights"] + weights["frozen weights"] == parameters


@pytest.mark.slow
def test_micro_batches_add_up(compose: Compose, small_run: list[str]) -> None:
    whole = plan(compose(*small_run, "loss.level=token"), CPU)
    parts = plan(compose(*small_run, "loss.level=token", "trainer.accumulation=4"), CPU)
    assert parts.flops_per_step == pytest.approx(whole.flops_per_step, rel=1e-3)
    assert parts.saved_bytes < whole.saved_bytes / 3


@pytest.mark.slow
def test_an_online_teacher_is_part_of_the_step(compose: Compose) -> None:
    """DINOv2-L at 518 px: 24 layers of 12·D² weights and attention over 1,370 tokens."""
    planned = plan(compose("+experiment=track_a", "data.online_teacher=true", "trainer.batch_size=2"), H200)
    tokens, width = 37 * 37 + 1, 1024
    layers = 24 * (2 * 12 * width**2 * tokens + 4 * tokens**2 * width)
    assert planned.flops("forward")["teacher"] == pytest.approx(2 * layers, rel=0.01)
    assert planned.counted.parameters["teacher"]["all"] == pytest.approx(304e6, rel=0.01)
    assert [cache.name for cache in planned.counted.caches] == ["latents", "prompts"]


@pytest.mark.slow
def test_a_network_built_without_weights_is_the_real_one(compose: Compose, small_run: list[str]) -> None:
    config = compose(*small_run)
    track, teacher, loss = build_part(config["data"]), build_part(config["teacher"]), build_loss(config)
    model, _ = build_model(config, track, teacher, loss)
    by_part = plan(config, CPU).counted.parameters
    assert sum(part["all"] for part in by_part.values()) == sum(p.numel() for p in model.parameters())
    read = sum(p.numel() for p in teacher._model.parameters())
    with torch.device("meta"):
        assert sum(p.numel() for p in build_part(config["teacher"]).build_without_weights().parameters()) == read


# --- against a measurement -----------------------------------------------------------------------------------


def row(**changes: Any) -> dict[str, Any]:
    return {
        "path": "urepa",
        "step_s": 0.5,
        "images_per_s": 256.0,
        "tflops_per_s": 365.4,
        "peak_memory_bytes": 90 * GIB,
        "data_wait_share": 0.0,
        "saved_bytes_per_sample": 650 * MIB,
        "device": "NVIDIA H200",
        "batch_size": 128,
    } | changes


def write(path: Path, rows: Any) -> Path:
    path.write_text(json.dumps(rows))
    return path


@pytest.mark.slow
def test_nothing_is_expected_without_a_measurement(track_a: Any) -> None:
    assert track_a.expected_hours is None
    assert track_a.as_dict()["gpu_hours_expected"] is None


@pytest.mark.slow
def test_expected_hours_come_from_this_projects_loop_at_this_batch_size(compose: Compose, tmp_path: Path) -> None:
    rows = [row(path="documented", tflops_per_s=90.0), row(batch_size=32, tflops_per_s=200.0), row()]
    planned = plan(compose("+experiment=track_a"), H200, write(tmp_path / "bench.json", rows))
    assert planned.expected_hours == pytest.approx(planned.floor_hours * 790 / 365.4)
    only_small = plan(compose("+experiment=track_a"), H200, write(tmp_path / "small.json", rows[:2]))
    assert only_small.expected_hours == pytest.approx(planned.floor_hours * 790 / 200)
    # several benches in one file: the one that counted as many FLOPs
    quarter = row(step_s=0.15, tflops_per_s=300.0)
    benches = {"quarter": {"rows": [quarter]}, "full": {"rows": [row()]}, "compiled": {"why": "took too long"}}
    file = write(tmp_path / "benches.json", benches)
    of_all = plan(compose("+experiment=track_a"), H200, file)
    assert of_all.expected_hours == planned.expected_hours
    assert [of_all.is_same_step(r) for r in of_all.measured] == [False, True]
    no_own = plan(compose("+experiment=track_a"), H200, write(tmp_path / "theirs.json", rows[:1]))
    assert no_own.expected_hours is None


@pytest.mark.slow
def test_a_device_without_a_rate_has_no_floor_but_can_be_measured(
    compose: Compose, small_run: list[str], tmp_path: Path
) -> None:
    planned = plan(compose(*small_run), CPU, write(tmp_path / "b.json", [row(device="cpu", tflops_per_s=0.05)]))
    assert planned.floor_hours is None
    assert planned.expected_hours == pytest.approx(planned.run_flops / 0.05e12 / 3600)


@pytest.mark.fast(1)
@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([row(device="cpu")], "was measured on cpu, not on H200"),
        ([{"records": "tokens", "per_s": 3}], "does not hold the steps"),
        ([], "does not hold the steps"),
        (None, "there is no such file"),
    ],
)
def test_a_file_that_is_no_measurement_of_this_device(
    compose: Compose, small_run: list[str], tmp_path: Path, content: Any, words: str
) -> None:
    file = tmp_path / "bench.json" if content is None else write(tmp_path / "bench.json", content)
    with pytest.raises(UserError, match=words):
        plan(compose(*small_run), H200, file)


@pytest.mark.slow
def test_an_architecture_is_read_from_a_local_folder(compose: Compose, tmp_path: Path) -> None:
    small = [f"backbone.weights={write_unet(tmp_path, **SMALL)}", "data.latent_shape=[4,8,8]"]
    for file in (tmp_path / "unet").glob("*.safetensors"):
        file.unlink()  # weights are not read
    by_part = plan(compose("+experiment=track_a", *small), H200).counted.parameters
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        expected = sum(p.numel() for p in UNet2DConditionModel(**SMALL).parameters())
    adapters = by_part["mid"]["trainable"]
    assert sum(by_part[part]["all"] for part in ("down", "mid", "up")) == expected + adapters
    assert adapters > 0
