"""A plan over buckets, compared with the plans of each bucket alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aspects import bucketed, write_aspects

from urepa.config.declared import declaration_of
from urepa.core.errors import UserError
from urepa.costs.benchmark.random_data import SyntheticTrack, settings_like
from urepa.costs.benchmark.what_can_be_timed import check_bench
from urepa.costs.bucket_costs import mean_of
from urepa.costs.estimate import Device, plan
from urepa.data.stores.disk_sizes import lmdb_bytes
from urepa.plan import buckets as buckets_table
from urepa.reports.description.markdown_and_latex import as_markdown
from urepa.reports.description.methodology import methodology
from urepa.reports.description.subject import subject_of
from urepa.training.assembly import build_part
from urepa.training.checks.inputs import check_run_inputs

CPU = Device("cpu", "cpu", None, None)
Compose = Callable[..., dict[str, Any]]
COUNTS = {"64x64": {"train": 14, "val": 4, "test": 1}, "32x64": {"train": 6, "val": 2, "test": 3}}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, compose: Compose) -> dict[str, Any]:
    """The plans of a folder cut to one of the shapes and to squares without buckets, and the folder."""
    place = tmp_path_factory.mktemp("aspects")
    images = write_aspects(place / "images", 10, 5)
    plans = {
        name: plan(compose(*bucketed(images, place, buckets=buckets)), CPU)
        for name, buckets in (("64x64", "[[64,64]]"), ("32x64", "[[32,64]]"), ("", "null"))
    }
    return {"images": images, **plans}


@pytest.mark.slow
def test_one_bucket_of_squares_costs_what_squares_cost(alone: dict[str, Any]) -> None:
    assert alone["64x64"].as_dict() == alone[""].as_dict()


@pytest.mark.slow
def test_without_lists_the_mean_is_unweighted(alone: dict[str, Any], compose: Compose, tmp_path: Path) -> None:
    square, lying = alone["64x64"], alone["32x64"]
    both = plan(compose(*bucketed(alone["images"], tmp_path)), CPU)
    for direction in ("forward", "backward"):
        for part, n in both.flops(direction).items():
            assert n == pytest.approx((square.flops(direction)[part] + lying.flops(direction)[part]) / 2, abs=1)
    assert both.peak_bytes == square.peak_bytes > lying.peak_bytes
    assert both.saved_bytes == square.saved_bytes
    assert both.counted.reader_bytes == square.counted.reader_bytes > lying.counted.reader_bytes
    assert both.counted.caches == square.counted.caches  # as if all were the largest
    assert both.counted.samples == {"train": 20, "val": 6, "test": 4}
    table = buckets_table(both)
    assert "unweighted, as no list says yet what each has; memory is that of 64x64" in table
    assert both.as_dict()["flops_are"] == "the mean over the buckets"
    assert both.as_dict()["buckets"]["32x64"]["samples"] is None


@pytest.mark.slow
def test_with_lists_the_mean_is_weighted_by_steps(alone: dict[str, Any], compose: Compose, tmp_path: Path) -> None:
    """14 and 6 images in batches of 4 make 3 steps and 1 step."""
    square, lying = alone["64x64"], alone["32x64"]
    config = compose(*bucketed(alone["images"], tmp_path))
    folder = declaration_of(config["data"]).folder
    folder.mkdir(parents=True)
    (folder / "buckets.json").write_text(json.dumps(COUNTS))
    both = plan(config, CPU)
    assert both.flops_per_step == pytest.approx((3 * square.flops_per_step + lying.flops_per_step) / 4, abs=20)
    a_sample = (4 * square.counted.forward_per_sample + 2 * lying.counted.forward_per_sample) / 6
    assert both.counted.forward_per_sample == pytest.approx(a_sample, abs=1)
    latents, tokens = both.counted.caches
    bytes_of = {name: [c.record_bytes for c in alone[name].counted.caches] for name in COUNTS}
    for place, size in enumerate((latents, tokens)):
        assert size.records == 30
        assert size.record_bytes == bytes_of["64x64"][place]
        assert size.disk_bytes == lmdb_bytes(19, bytes_of["64x64"][place]) + lmdb_bytes(11, bytes_of["32x64"][place])
    assert "weighted by their steps" in buckets_table(both)
    text = as_markdown("x", methodology(subject_of(config, both), ""))
    assert "| 64×64 | 48×16×16 | 8×8 | 14 |" in text
    assert "| 32×64 | 48×8×16 | 4×8 | 6 |" in text
    assert "epochs of 4 updates" in text
    assert "on x0 of 48×16×16 or 48×8×16" in text
    assert "| mid | 8×8 or 4×8, 32 | 8×8 or 4×8, 112 | 1 |" in text
    assert "Each global batch comes from one bucket" in text
    assert "holds for a square image" in text
    with pytest.raises(UserError, match=r"32x64 has 6; leave them out \(data.buckets='\[\[64,64\]\]'\)"):
        check_run_inputs(compose(*bucketed(alone["images"], tmp_path, "trainer.batch_size=8")), tmp_path / "run")


@pytest.mark.slow
def test_the_text_of_a_plan_without_buckets_names_none(alone: dict[str, Any], compose: Compose, tmp_path: Path) -> None:
    config = compose(*bucketed(alone["images"], tmp_path, buckets="null"))
    text = as_markdown("x", methodology(subject_of(config, alone[""]), "")).split("## Settings")[0]
    assert "bucket" not in text
    assert "The central square at 64×64 pixels" in text
    assert "square image" not in text


def test_means_are_to_the_nearest_whole_number() -> None:
    assert mean_of([1, 2], [1, 1]) == 2
    assert mean_of([10, 20], [3, 1]) == 13  # 12.5
    assert mean_of([10, 20], [None, None]) == 15


@pytest.mark.slow
def test_bench_times_the_largest_bucket(alone: dict[str, Any], compose: Compose, tmp_path: Path) -> None:
    config = compose(*bucketed(alone["images"], tmp_path, buckets="[[32,64],[96,64]]"))
    track, teacher = build_part(config["data"]), build_part(config["teacher"])
    like = settings_like(track, tmp_path, 4, teacher)
    assert (like["latent_shape"], like["grid"]) == ([48, 24, 16], [12, 8])
    random = SyntheticTrack(**like)
    random.write(teacher)
    cache = random.open(teacher)
    tokens = cache.teachers(random.samples[:2])[""]
    assert (tokens.grid, tuple(tokens.x_BND.shape)) == ((12, 8), (2, 96, teacher.width))
    cache.close()
    bench = {"against": "online", "parts": False}
    with pytest.raises(UserError, match="bench.against=online times a step over squares"):
        check_bench(config | {"bench": bench})
    check_bench(config | {"bench": bench | {"against": "plain"}})
