"""The fast step equals the description's step: staged and plain forward passes bit for bit, the description's loop to
fp32 rounding."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forks
import pytest
import torch
from accelerate import Accelerator
from class_ids import ids_of
from sd import SMALL, write_unet
from torch import Tensor

from urepa.core.errors import UserError
from urepa.core.types import Batch
from urepa.costs.benchmark.description_loop import DocumentedLoop
from urepa.costs.benchmark.loops import BenchLoops, HookedUNet, replace_attribute, use_nchw
from urepa.costs.benchmark.timing import measure
from urepa.costs.benchmark.what_can_be_timed import check_bench
from urepa.costs.estimate import Device, plan
from urepa.method.training_step import step_terms
from urepa.training.checks.combinations import check

pytestmark = pytest.mark.long

BENCH = {"steps": 1, "rounds": 1, "batches": 2, "against": "documented", "parts": True, "workers": 2, "folder": "."}
TINY = ("trainer.batch_size=4", "trainer.validation_group=4", "loss.warmup_steps=3")


def small_sd(folder: Path) -> tuple[str, ...]:
    """Track A on a small U-Net of SD-1.5's kind."""
    return (
        "+experiment=track_a",
        f"backbone.weights={write_unet(folder / 'weights', **(SMALL | {'cross_attention_dim': 768}))}",
        "data.latent_shape=[4,32,32]",  # 1x1 maps in the middle would leave GroupNorm two values to normalise
        "teacher.grid=[4,4]",
        "teacher.width=24",
        "trainer.precision=fp32",
        "trainer.batch_size=4",
        "trainer.validation_group=4",
        "loss.warmup_steps=3",
    )


@pytest.fixture
def bench_of(compose: Callable[..., dict[str, Any]], tmp_path: Path) -> Any:
    """bench_of(*overrides) -> BenchLoops"""
    made: list[BenchLoops] = []

    def build(*overrides: str) -> BenchLoops:
        place = tmp_path / f"bench{len(made)}"
        place.mkdir()
        config = compose(*overrides) | {"bench": BENCH}
        check(config, [])
        made.append(BenchLoops(config, place, Accelerator(cpu=True)))
        return made[-1]

    yield build
    for bench in made:
        bench.trainer.reader.cache.close()


def flat(gradients: list[Tensor | None]) -> Tensor:
    return torch.cat([g.flatten() for g in gradients if g is not None])


def own_loss(bench: BenchLoops, batch: Batch, step: int) -> Tensor:
    trainer = bench.trainer
    return step_terms(trainer.model, trainer.objective, trainer.loss, batch, step, lambda x: x)[0].total


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tiny", pytest.param("sd", marks=pytest.mark.slow)])
@pytest.mark.parametrize("objective", ["ddpm_v", "ddpm_eps_scaled"])
def test_gradients_are_those_of_the_documents_loop(bench_of: Any, tmp_path: Path, kind: str, objective: str) -> None:
    """Same weights, data, noise and timesteps in two implementations, with channels_last as in track A."""
    bench: BenchLoops = bench_of(*(TINY if kind == "tiny" else small_sd(tmp_path)), f"objective={objective}")
    assert bench.trainer.settings.channels_last == (kind == "sd")
    model = bench.trainer.model
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # as trained ones: zeros would hide the adapters' A
            torch.nn.init.normal_(parameter, std=0.02)
    other = bench.build_model()
    other.load_state_dict(model.state_dict())
    documented = DocumentedLoop(bench.config, other, torch.nn.Module(), torch.device("cpu"))
    for step in (0, 2, 5):
        batch = bench.trainer.reader.read(step)[0]
        assert batch.teacher_BND is not None
        theirs = documented.loss(
            batch.x0,
            batch.noise,
            batch.t_B,
            ids_of(batch.condition, bench.track.num_classes),
            batch.teacher_BND.float(),
            step,
        )
        ours = own_loss(bench, batch, step)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=0)
        a, b = (
            flat(list(torch.autograd.grad(loss, [p for p in m.parameters() if p.requires_grad], allow_unused=True)))
            for loss, m in ((ours, model), (theirs, other))
        )
        assert a.shape == b.shape
        assert b.norm() > 0
        assert (a - b).norm() / b.norm() < 1e-4


def losses_of(bench: BenchLoops, steps: int) -> tuple[list[float], dict[str, Tensor]]:
    """The total losses of the first updates, and the weights after them."""
    totals = []
    for step in range(steps):
        update = bench.trainer.update(step, bench.trainer.reader.read(step), with_tap_gradients=step % 5 == 0)
        totals.append(update.terms.total.item())
    weights = {n.replace("backbone.backbone", "backbone"): p for n, p in bench.trainer.model.named_parameters()}
    bench.trainer.reader.cache.close()
    return totals, weights


@pytest.mark.slow
@pytest.mark.parametrize("taps", ["mid", "all"])
def test_twenty_staged_steps_are_the_plain_ones_bit_for_bit(bench_of: Any, taps: str) -> None:
    more = () if taps == "mid" else ("+loss.taps.enc_last=1", "+loss.taps.dec_first=0.5")
    runs = []
    for plain in (False, True):
        bench: BenchLoops = bench_of(*TINY, *more, "trainer.clip_norm=0.5")
        if plain:
            bench.trainer.model.backbone = HookedUNet(bench.trainer.model.backbone)
        runs.append(losses_of(bench, 20))
    (staged, ours), (plain_totals, theirs) = runs
    assert staged == plain_totals
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert staged[0] != staged[-1]


@pytest.mark.slow
def test_mid_only_steps_have_the_full_forwards_gradients_bit_for_bit(bench_of: Any, tmp_path: Path) -> None:
    """A small SD-1.5 without a diffusion term: stopping after the middle block, compared with the full forward pass."""
    bench: BenchLoops = bench_of(*small_sd(tmp_path), "loss.diffusion_fraction=0")
    model = bench.trainer.model
    batch = bench.trainer.reader.read(5)[0]
    trains = [p for p in model.parameters() if p.requires_grad]
    stopped = torch.autograd.grad(own_loss(bench, batch, 5), trains)
    model.backbone = HookedUNet(model.backbone)
    whole = torch.autograd.grad(own_loss(bench, batch, 5), trains)
    assert all(torch.equal(a, b) for a, b in zip(stopped, whole, strict=True))
    assert flat(list(whole)).norm() > 0


@pytest.mark.slow
def test_experiments_unlike_the_description_cannot_be_compared_with_it(bench_of: Any) -> None:
    with pytest.raises(UserError, match=r"bench\.against=documented"):
        bench_of(*TINY, "loss.level=token").description_loop()


@pytest.mark.slow
def test_a_sits_step_is_timed_alone(
    bench_of: Any, compose: Callable[..., dict[str, Any]], small_sit: list[str]
) -> None:
    """The description's loop and its parts exist only for a U-Net; the counts of a real step equal the plan's."""
    bench: BenchLoops = bench_of(*small_sit)
    with pytest.raises(
        UserError, match=r"bench\.against=documented needs the description's settings: .* a DDPM objective"
    ):
        bench.description_loop()
    with pytest.raises(UserError, match=r"bench\.parts times the parts of a U-Net's step"):
        check_bench(compose(*small_sit) | {"bench": BENCH})
    (row,) = measure([bench.training_loop()], bench.trainer.model, 8, torch.device("cpu"), steps=1, rounds=1)
    planned = plan(compose(*small_sit), Device("CPU", "cpu", None, None))
    assert row["flops"] == planned.flops_per_step
    assert planned.is_same_step(row)
    assert row["saved_bytes_per_sample"] == pytest.approx(planned.saved_bytes / 8, rel=0.01)


@pytest.mark.slow
def test_the_command_reports_ratios_of_one_run(tmp_path: Path) -> None:
    command = ["trainer.batch_size=4", "trainer.validation_group=4", "trainer.threads=1", "bench.against=documented"]
    command += ["bench.parts=true", "bench.steps=2", "bench.rounds=3", "bench.batches=2", "bench.workers=1"]
    done = forks.run(["-m", "urepa.bench", *command, "out=rows.json"], tmp_path)
    assert done.returncode == 0, done.stderr
    rows = {row["path"]: row for row in json.loads((tmp_path / "rows.json").read_text())}
    assert list(rows) == ["documented", "urepa", "without stages", "deepcopy EMA", "documented reader"]
    ours, documented = rows["urepa"], rows["documented"]
    assert ours["of"]["documented"] == pytest.approx(ours["step_s"] / documented["step_s"])
    assert ours["step_s"] == sorted(ours["steps_s"])[1]
    assert ours["flops"] == documented["flops"] == rows["without stages"]["flops"] > 1e9
    assert ours["tflops_per_s"] == pytest.approx(ours["flops"] / ours["step_s"] / 1e12)
    assert all(name in done.stdout for name in rows)
    assert not list(tmp_path.glob(".bench-*"))


@pytest.mark.slow
@pytest.mark.usefixtures("room_for_sd15")
def test_sd15s_own_architecture_agrees_too(bench_of: Any) -> None:
    """At batch 2 and 16x16 latents: staged bit for bit as plain, and the description's loop to fp32 rounding."""
    bench: BenchLoops = bench_of(
        "+experiment=track_a",
        "backbone.weights=random",
        "data.latent_shape=[4,16,16]",
        "trainer.precision=fp32",
        "trainer.batch_size=2",
        "trainer.validation_group=2",
        "loss.warmup_steps=0",
    )
    model = bench.trainer.model
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    trains = [p for p in model.parameters() if p.requires_grad]
    batch = bench.trainer.reader.read(0)[0]
    staged_loss = own_loss(bench, batch, 0)
    staged = torch.autograd.grad(staged_loss, trains)
    with replace_attribute(model, "backbone", HookedUNet):
        plain_loss = own_loss(bench, batch, 0)
        plain = torch.autograd.grad(plain_loss, trains)
    assert torch.equal(staged_loss, plain_loss)
    assert all(torch.equal(a, b) for a, b in zip(staged, plain, strict=True))
    with use_nchw(model):  # the same weights serve the description's loop
        documented = DocumentedLoop(bench.config, model, torch.nn.Module(), torch.device("cpu"))
        assert batch.teacher_BND is not None
        loss = documented.loss(
            batch.x0,
            batch.noise,
            batch.t_B,
            ids_of(batch.condition, bench.track.num_classes),
            batch.teacher_BND.float(),
            0,
        )
        theirs = flat(list(torch.autograd.grad(loss, trains)))
    assert (flat(list(staged)) - theirs).norm() / theirs.norm() < 1e-4
