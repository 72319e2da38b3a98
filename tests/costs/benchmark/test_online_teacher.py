"""The step with an online teacher equals this project's step except for the source of its tokens, and its row counts
the teacher."""

from __future__ import annotations

import itertools
import mmap
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from photos import WIDTH, write_dinov2
from torch import Tensor

from urepa.bench import run, table
from urepa.core.errors import UserError
from urepa.core.teacher_names import ALONE
from urepa.core.types import Tokens
from urepa.costs.benchmark.loops import BenchLoops, Loop
from urepa.costs.benchmark.online_teacher import RandomImages
from urepa.costs.benchmark.timing import measure
from urepa.costs.benchmark.what_can_be_timed import check_bench
from urepa.data.cache import mean_token_file
from urepa.data.stores.lmdb_store import write_store
from urepa.data.stores.record_reading import Store
from urepa.models.teachers.vit_net import ViTNetwork
from urepa.training.checks.combinations import check

BENCH = {"steps": 2, "rounds": 1, "batches": 2, "against": "online", "parts": False, "workers": 1, "folder": "."}
SIZE = 4  # of a batch
SAMPLES = (f"trainer.batch_size={SIZE}", f"trainer.validation_group={SIZE}")
BenchOf = Callable[..., BenchLoops]


@pytest.fixture(params=["u-net", "sit"])
def architecture(request: pytest.FixtureRequest, small_run: list[str], small_sit: list[str]) -> list[str]:
    return small_run if request.param == "u-net" else small_sit


@pytest.fixture
def bench_of(compose: Callable[..., dict[str, Any]], tmp_path: Path) -> Iterator[BenchOf]:
    """bench_of(*overrides) -> BenchLoops"""
    made: list[BenchLoops] = []

    def build(*overrides: str) -> BenchLoops:
        place = tmp_path / f"bench{len(made)}"
        place.mkdir()
        config = compose(*overrides) | {"bench": BENCH}
        check(config, [])
        AcceleratorState._reset_state(reset_partial_state=True)
        precision = "bf16" if config["trainer"]["precision"] == "bf16" else "no"
        made.append(BenchLoops(config, place, Accelerator(cpu=True, mixed_precision=precision)))
        return made[-1]

    yield build
    for bench in made:
        bench.trainer.reader.cache.close()
    AcceleratorState._reset_state(reset_partial_state=True)


def store_the_teachers_own(bench: BenchLoops, folder: Path) -> None:
    """The stores contain the teacher's tokens, in fp16, of the images that the online loop uses. From now on the
    teacher rounds its tokens to fp16, so that both loops have equal ones."""
    own_tokens = bench.teacher.tokens

    def rounded(images_B3HW: Tensor) -> Tokens:
        tokens = own_tokens(images_B3HW)
        return replace(tokens, x_BND=tokens.x_BND.half().float())

    bench.teacher.tokens = rounded
    samples = bench.track.samples
    side = bench.teacher.image_size
    pixels = RandomImages(samples, side)
    keys = [s.key for s in samples]
    groups = [keys[i : i + SIZE] for i in range(0, len(keys), SIZE)]  # a kernel may round by the size of its batch
    images = [Tokens(pixels.tensor(group), (side, side)).to_map() for group in groups]
    tokens = torch.cat([bench.teacher.tokens(images_B3SS.float() / 255).x_BND for images_B3SS in images])
    records = zip(keys, tokens.numpy(), strict=True)
    write_store(folder, records, {}, lambda: mean_token_file(np.ones(tokens.shape[-1])))
    reader = bench.trainer.reader
    reader.cache = replace(reader.cache, tokens={ALONE: Store(folder)})


def steps_of(
    bench: BenchLoops, loop: Loop, steps: int, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[float], list[Tensor]]:
    """The total losses of a loop's steps, and the weights after them."""
    totals: list[float] = []
    update = bench.trainer.update

    def watched(*arguments: Any, **named: Any) -> Any:
        done = update(*arguments, **named)
        totals.append(done.terms.total.item())
        return done

    monkeypatch.setattr(bench.trainer, "update", watched)
    with loop.inside():
        for _ in range(steps):
            loop.step()
    return totals, [p.detach() for p in bench.trainer.model.parameters()]


@pytest.mark.slow
def test_losses_and_weights_are_those_of_our_loop_bit_for_bit(
    bench_of: BenchOf, architecture: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = []
    for name in ("ours", "online"):
        bench = bench_of(*architecture, *SAMPLES)
        torch.manual_seed(0)  # of the teacher's random weights
        loops = {"online": bench.online_loop()}  # its teacher answers for both
        store_the_teachers_own(bench, tmp_path / name)
        loops["ours"] = bench.training_loop()
        runs.append(steps_of(bench, loops[name], 4, monkeypatch))
    (stored, weights), (asked, same_weights) = runs
    assert stored == asked
    assert len(set(stored)) == 4
    assert all(torch.equal(a, b) for a, b in zip(weights, same_weights, strict=True))


@pytest.mark.slow
def test_the_plain_loop_trains_the_same_loss(bench_of: BenchOf, architecture: list[str]) -> None:
    """After λ's warm-up its total loss equals this project's on the same batch, and its average follows the weights."""
    bench = bench_of(*architecture, *SAMPLES, "loss.manifold_weight=3", "loss.warmup_steps=0")
    plain, trainer = bench.plain_loop(), bench.trainer
    batches = next(plain.data)
    terms, _ = trainer.forward(batches[0].to(torch.device("cpu")), 0)
    loop: Any = plain.update.__self__  # type: ignore[attr-defined]
    torch.testing.assert_close(loop.total(batches[0]), terms.total)
    before = {name: p.detach().clone() for name, p in loop.parameters.items()}
    plain.update(batches)
    decay = trainer.settings.ema_decay
    assert any(not torch.equal(before[name], p) for name, p in loop.parameters.items())
    for name, p in loop.parameters.items():
        torch.testing.assert_close(loop.shadow[name], decay * before[name] + (1 - decay) * p.detach())


def dinov2_flops(layers: int, width: int, patches: int, patch: int) -> int:
    """FLOPs of a forward pass of one image, two per multiply-add: the patch embedding, then in each layer four
    projections, attention and an MLP of four times the width, with the CLS token."""
    n = patches + 1
    layer = 4 * 2 * n * width**2 + 2 * 2 * n**2 * width + 2 * 2 * n * width * 4 * width
    return 2 * patches * 3 * patch**2 * width + layers * layer


@pytest.mark.slow
@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_teacher_runs_once_per_step_and_its_flops_count(
    compose: Callable[..., dict[str, Any]],
    small_sit: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    accumulation: int,
) -> None:
    own = [o for o in small_sit if not o.startswith("teacher.")]
    teacher = [f"teacher.model={write_dinov2(tmp_path / 'dino')}", "teacher.image_size=56", "teacher.grid=[4,4]"]
    teacher += ["teacher=dinov2_s", f"teacher.width={WIDTH}", f"trainer.accumulation={accumulation}"]
    times = ["bench.against=online", "bench.steps=2", "bench.rounds=2", "bench.batches=2", f"bench.folder={tmp_path}"]
    asked: list[int] = []
    tokens = ViTNetwork.tokens

    def watched(self: ViTNetwork, images_B3HW: Tensor) -> Tokens:
        asked.append(len(images_B3HW))
        return tokens(self, images_B3HW)

    monkeypatch.setattr(ViTNetwork, "tokens", watched)
    AcceleratorState._reset_state(reset_partial_state=True)
    rows = run(compose(*own, *teacher, *SAMPLES, *times, root="bench"))
    online, ours = rows
    assert [row["path"] for row in rows] == ["online teacher", "urepa"]
    steps = 2 + 2 * 2  # two of them not timed
    assert asked == [SIZE // accumulation] * accumulation * steps
    assert online["flops"] - ours["flops"] == SIZE * dinov2_flops(2, WIDTH, 16, 14)
    assert ours["of"]["online teacher"] == pytest.approx(ours["step_s"] / online["step_s"])
    assert "faults" in table(rows).splitlines()[1]
    assert table(rows).splitlines()[2].split()[-1] == "1.00x"


@pytest.mark.slow
def test_minor_faults_are_counted_per_step() -> None:
    """Each page of fresh shared memory causes one fault."""
    pages = 2000
    model = torch.nn.Linear(1, 1)

    def touch(_: None) -> None:
        with mmap.mmap(-1, pages * mmap.PAGESIZE) as memory:
            for page in range(pages):
                memory[page * mmap.PAGESIZE] = 1

    loop = Loop("touches", itertools.repeat(None), touch)
    (row,) = measure([loop], model, 1, torch.device("cpu"), steps=5, rounds=3)
    assert pages <= row["minor_faults_per_step"] < 1.2 * pages


@pytest.mark.slow
def test_without_a_teacher_the_online_loop_is_refused(
    compose: Callable[..., dict[str, Any]], small_run: list[str]
) -> None:
    own = [o for o in small_run if not o.startswith("loss.")]
    with pytest.raises(
        UserError, match=r"bench\.against=online runs the teacher in every step, and this loss has none"
    ):
        check_bench(compose(*own, "loss=none") | {"bench": BENCH})
