"""Settings, plans and a run of a latent track with captions and buckets, and a folder without class folders."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from aspects import MODEL, TEACHER
from captioned import captioned_track, clip_at
from flat_photos import CAPTIONS, EACH, captioned_latents, listed
from omegaconf.errors import InterpolationResolutionError
from PIL import Image

from urepa.config.declared import declaration_of
from urepa.core.errors import UserError
from urepa.costs.estimate import Device, plan
from urepa.data.sources import source_changes
from urepa.data.sources.image_sources import SOURCES
from urepa.data.sources.source_identity import Listing
from urepa.data.stages.build import Build
from urepa.data.stores.lmdb_store import Part
from urepa.reports.description.markdown_and_latex import as_markdown
from urepa.reports.description.methodology import methodology
from urepa.reports.description.subject import subject_of
from urepa.training.assembly import build_part
from urepa.training.checks.combinations import check
from urepa.training.checks.inputs import check_preprocess

CPU = Device("cpu", "cpu", None, None)
Compose = Callable[..., dict[str, Any]]
RUN = ("backbone=text_unet", *MODEL, *TEACHER, "trainer.batch_size=4", "trainer.validation_group=2")


# --- settings -----------------------------------------------------------------------------------------------


@pytest.mark.fast(1)
@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.text=x", "data.text is for the classes' prompts, and here conditions are captions"),
        ("data.prompts=x.pt", "data.prompts has no effect with data.captions"),
        ("data.captions=null", "data.text_encoder has no effect without data.captions"),
        ("data.text_encoder=null", "data.captions=files needs a text encoder"),
        ("data.source=cifar_binary", "data.captions needs data.source=folder or parquet or webdataset or hub"),
        ("data.caption_column=text", "data.caption_column has no effect without"),
        ("data.buckets=[[64,64],[48,84]]", r"\[48,84\] is not a multiple of data.image_size/data.latent_shape\[1\]=8"),
        ("data.buckets=squares", "give auto, or 1 to 16 pairs"),
        ("data.latent_shape=[4,8,10]", "data.buckets needs data.latent_shape=.* to be that of a square"),
        ("backbone=tiny_unet", "is conditioned on class, and the data's conditions have text, text.pooled"),
    ],
)
def test_incompatible_keys_are_refused(
    compose: Compose, material: Path, flat_images: Path, tmp_path: Path, override: str, said: str
) -> None:
    given = [*captioned_latents(material, flat_images, tmp_path), listed(), *RUN, "data.num_classes=1"]
    check(compose(*given), given)
    with pytest.raises(UserError, match=said):
        check(compose(*given, override), [*given, override])


def test_stages_that_do_not_apply_are_refused(
    compose: Compose, material: Path, flat_images: Path, tmp_path: Path
) -> None:
    given = [*captioned_latents(material, flat_images, tmp_path), *TEACHER]
    with pytest.raises(UserError, match="stage=adopt takes in squares with classes; leave data.buckets and data.capt"):
        check_preprocess(compose(*given, "stage=adopt", root="preprocess"))
    with pytest.raises(UserError, match=r"no .*/train.csv; run the stage `manifest` first"):
        check_preprocess(compose(*given, "stage=text", root="preprocess"))
    with pytest.raises(UserError, match="data=cifar10_256 has no captions, so there is nothing to encode"):
        check_preprocess(compose("data=cifar10_256", f"data.root={tmp_path}", "stage=text", root="preprocess"))
    classes = ["data.captions=null", "data.text_encoder=null"]
    with pytest.raises(UserError, match=r"has neither CLASS/\* nor train/CLASS/\*"):
        check_preprocess(compose(*given, *classes, "stage=manifest", root="preprocess"))


@pytest.mark.slow
def test_classes_are_counted_where_nothing_else_is_missing(
    compose: Compose, material: Path, flat_images: Path, whole: Path, tmp_path: Path
) -> None:
    given = captioned_latents(material, flat_images, tmp_path)
    assert compose(*given)["data"]["num_classes"] == 1
    assert compose(*captioned_latents(material, tmp_path / "gone", whole))["data"]["num_classes"] == 1
    classes = [f"data.images={material / 'photos'}", "data.source=folder"]
    assert compose(*given, *classes)["data"]["num_classes"] == 2
    without = [word for word in given if "text_encoder.model" not in word]
    with pytest.raises(InterpolationResolutionError, match="data.text_encoder.model must be given"):
        compose(*without, "text_encoder@data.text_encoder=t5")


@pytest.mark.slow
def test_other_buckets_in_a_folder_are_refused(bucket_build: Callable[..., Build], tmp_path: Path) -> None:
    bucket_build(tmp_path).run("manifest")
    two = "data.buckets=[[64,64],[48,80]]"
    with pytest.raises(UserError, match="64x64/train.csv holds other samples than the .* give another data.root for"):
        bucket_build(tmp_path, two).run("manifest")
    wide = "data.buckets=[[64,64],[48,80],[80,48],[16,128]]"
    with pytest.raises(UserError, match=r"no training image is nearest in aspect to 16x128 of data.buckets; give data"):
        bucket_build(tmp_path / "wide", wide).run("manifest")
    assert not (tmp_path / "wide").exists()


def test_a_bucket_that_fills_no_batch_is_refused(
    compose: Compose, material: Path, flat_images: Path, whole: Path
) -> None:
    track = declaration_of(compose(*captioned_latents(material, flat_images, whole), listed())["data"])
    track.check_inputs(8)
    with pytest.raises(UserError, match="fewer training images than trainer.batch_size=17 would never be trained on"):
        track.check_inputs(17)


# --- plans and words ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_plan_includes_buckets_and_captions(
    compose: Compose, material: Path, flat_images: Path, whole: Path, tmp_path: Path
) -> None:
    before, after = (
        plan(compose(*captioned_latents(material, flat_images, root), listed(), *RUN), CPU).counted
        for root in (tmp_path, whole)
    )
    counts = json.loads((whole / "buckets.json").read_text())["train.csv val.csv 64x64 48x80 80x48"]
    for counted in (before, after):
        assert counted.samples == {"train": 3 * EACH - 8, "val": 8}
        assert [one.latent_shape for one in counted.buckets.values()] == [(4, 8, 8), (4, 6, 10), (4, 10, 6)]
        assert [cache.name for cache in counted.caches] == ["latents", "tokens", "text"]
    assert [one.samples for one in before.buckets.values()] == [None] * 3
    assert {name: one.samples for name, one in after.buckets.items()} == counts
    assert [cache.records for cache in before.caches] == [3 * EACH, 3 * EACH, 3 * EACH + 1]
    assert [cache.records for cache in after.caches] == [3 * EACH, 3 * EACH, len(CAPTIONS)]


@pytest.mark.slow
def test_the_description_of_buckets_and_captions(
    compose: Compose, material: Path, flat_images: Path, tmp_path: Path
) -> None:
    config = compose(*captioned_latents(material, flat_images, tmp_path), listed(), *RUN)
    text = as_markdown("x", methodology(subject_of(config, plan(config, CPU)), ""))
    assert (
        "Largest central rectangles of the nearest aspect ratio, resized once to 64×64 or 48×80 or 80×48 pixels,"
        in text
    )
    assert "to latents of 4×8×8 or 4×6×10 or 4×10×6 (its posterior's mode, times its scaling factor)" in text
    assert "Each global batch comes from one bucket" in text
    assert "Each update draws one of an image's captions" in text
    assert "A training sample loses its caption with probability 0.1" in text


# --- a run --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_text_backbone_trains_on_two_buckets(
    compose: Compose, trainer_of: Callable[..., Any], material: Path, flat_images: Path, tmp_path: Path
) -> None:
    buckets = "data.buckets=[[64,64],[48,80]]"  # standing images are nearer to the square
    given = [*captioned_latents(material, flat_images, tmp_path / "cache"), buckets]
    parts = compose(*given, *TEACHER, root="preprocess")
    build = Build(build_part(parts["data"]), build_part(parts["teacher"]), Part(), batch=8)
    for stage in ("manifest", "images", "latents", "tokens", "text"):
        build.run(stage)
    trainer = trainer_of(*given, *RUN, "trainer.precision=fp32")
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    shapes = []
    for step in range(6):
        batches = trainer.reader.read(step)
        shapes.append(tuple(batches[0].x0.shape[1:]))
        if step < 3:
            assert torch.isfinite(trainer.update(step, batches, with_tap_gradients=False).terms.total)
    assert set(shapes) == {(4, 8, 8), (4, 6, 10)}
    assert {len(bucket.splits["train"]) + len(bucket.splits["val"]) for bucket in trainer.reader.cache.buckets} == {
        EACH,
        2 * EACH,
    }
    changed = [name for name, p in trainer.model.named_parameters() if not torch.equal(p, before[name])]
    assert any("attn2" in name for name in changed), "attention to the captions trains"


# --- a folder without class folders -------------------------------------------------------------------------


def write_loose(root: Path) -> Path:
    rng = np.random.default_rng(0)
    (root / "raw").mkdir(parents=True)
    for i in range(14):
        Image.fromarray(rng.integers(0, 256, (10, 10, 3), dtype=np.uint8)).save(root / f"{i:02d}.png")
    rows = [{"file_name": f"{i:02d}.png", "text": "a " + "abcdefghijklmn"[i]} for i in range(14)]
    (root / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def test_loose_images_are_one_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_loose(tmp_path / "photos")
    rows = list(SOURCES["folder"](str(root)))
    found = [(row.name, row.class_id, row.split, row.path) for row in rows]
    assert found == [(f"all_{i:02d}", 0, "all", f"{i:02d}.png") for i in range(14)]
    Listing("folder", str(root), {}).print_left_out(0, "", frozenset({".jsonl"}))
    assert capsys.readouterr().out == "left out: 1 nested folder\n"
    source_changes.record("folder", str(root), tmp_path / "caches")
    moved = Path(shutil.move(root, tmp_path / "moved"))
    assert source_changes.changes("folder", str(moved), tmp_path / "caches") is None
    shutil.copy(moved / "00.png", moved / "99.png")
    assert source_changes.changes("folder", str(moved), tmp_path / "caches") == "1 added (99.png)"
    (moved / "cat").mkdir()
    shutil.move(moved / "99.png", moved / "cat")
    assert [row.path for row in SOURCES["folder"](str(moved))] == ["cat/99.png"]  # class folders go first


def test_a_small_track_accepts_loose_images_only_with_captions(tmp_path: Path) -> None:
    root, clip = write_loose(tmp_path / "photos"), clip_at(tmp_path)
    settings = captioned_track(root, tmp_path / "root", clip, num_classes=1)
    assert settings.count_classes() == 1
    settings.check_inputs(4)
    cache = settings.build().open(None)
    assert {split: len(rows) for split, rows in cache.splits.items()} == {"train": 6, "val": 4, "test": 4}
    (sample,) = (s for rows in cache.splits.values() for s in rows if s.sample_id == "all_03")
    assert cache.conditions.captions[sample.sample_id] == ("a d",)
    assert settings.build().source_changes() is None
    cache.close()
    for changes in ({"captions": None, "text_encoder": None}, {"captions": "classes"}):
        other = captioned_track(root, tmp_path / "other", clip, num_classes=1, **changes)
        with pytest.raises(UserError, match=r"has neither CLASS/\* nor train/CLASS/\*"):
            other.check_inputs(4)
