"""A latent track of photographs with captions in three buckets, without class folders: the output of its stages, with
shards and after a kill, and what training reads (B samples, L positions)."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from flat_photos import BUCKETS, CAPTIONS, EACH, LENGTH, SHAPES, write_flat
from PIL import Image
from transformers import CLIPTextModel, CLIPTokenizer

from urepa.core.errors import UserError
from urepa.core.part_names import POOLED, TEXT
from urepa.data.bucketed_cache import BucketedCache
from urepa.data.reader import Layout, TrainingReader, ValidationReader
from urepa.data.stages.build import Build
from urepa.data.stores.lmdb_store import Part, StoreWriter
from urepa.data.stores.record_reading import Store
from urepa.data.tracks import caption_caches
from urepa.method.objectives.flow_math import FlowMath

OBJECTIVE = FlowMath("linear", "uniform")
CROPS = {"square": (0, 0, 100, 100), "lying": (0, 3, 140, 87), "standing": (3, 0, 93, 150)}  # by hand: left, top, ...
STAGES = ("manifest", "images", "latents", "tokens", "text")


@pytest.fixture(scope="session")
def opened(whole: Path, bucket_build: Callable[..., Build]) -> Any:
    """The build and its open cache."""
    build = bucket_build(whole)
    cache = build.track.open(build.teacher)
    yield build, cache
    cache.close()


def made(root: Path) -> dict[str, bytes]:
    """Every record of the stores, and the lists."""
    found = {str(p.relative_to(root)): p.read_bytes() for p in (*root.rglob("*.csv"), *root.glob("*.json*"))}
    for manifest in root.rglob("manifest.json"):
        store = Store(manifest.parent)
        found |= {f"{manifest.parent.name}/{k}": store.read([k]).tobytes() for k in sorted(store.keys())}
        store.close()
    return found


def shape_of(sample_id: str) -> str:
    return sample_id.split("_")[1]


# --- what is made -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_photograph_is_in_the_bucket_of_its_shape(opened: Any, whole: Path) -> None:
    _, cache = opened
    assert isinstance(cache, BucketedCache)
    counts = json.loads((whole / "buckets.json").read_text())["train.csv val.csv 64x64 48x80 80x48"]
    for bucket, shape, (name, (height, width)) in zip(cache.buckets, SHAPES, BUCKETS.items(), strict=True):
        ids = [s.sample_id for samples in bucket.splits.values() for s in samples]
        assert (bucket.bucket, len(ids), {shape_of(i) for i in ids}) == (name, EACH, {shape})
        assert counts[name] == {split: len(samples) for split, samples in bucket.splits.items()}
        assert bucket.latents.shape == (4, height // 8, width // 8)
        assert bucket.grids == {"": (height // 8, width // 8)}
        assert bucket.tokens[""].shape[0] == height * width // 64
    assert {s: len(rows) for s, rows in cache.splits.items()} == {"train": 3 * EACH - 8, "val": 8}
    assert {s.class_id for rows in cache.splits.values() for s in rows} == {0}
    assert cache.class_names == ["images"]


@pytest.mark.slow
def test_x0_is_the_vaes_of_pils_crop_and_resize(opened: Any, material: Path, flat_images: Path) -> None:
    _, cache = opened
    vae = AutoencoderKL.from_pretrained(material / "sd", subfolder="vae").eval()
    for bucket, shape in zip(cache.buckets, SHAPES, strict=True):
        sample, (height, width) = bucket.splits["train"][0], BUCKETS[bucket.bucket]
        image = (
            Image.open(flat_images / sample.path).crop(CROPS[shape]).resize((width, height), Image.Resampling.BICUBIC)
        )
        jpeg = io.BytesIO()
        image.save(jpeg, format="JPEG", quality=95)
        pixels = torch.from_numpy(np.asarray(Image.open(jpeg)).copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
        with torch.no_grad():
            expected = vae.encode(pixels).latent_dist.mode() * 0.18215
        torch.testing.assert_close(bucket.x0([sample]), expected, rtol=2e-3, atol=2e-4)


def test_captions_go_with_their_image(opened: Any, material: Path, flat_images: Path) -> None:
    """In training one of the image's captions, in validation the first: transformers' own output, in fp16."""
    _, cache = opened
    assert cache.buckets[0].text.count() == len(CAPTIONS)
    model = CLIPTextModel.from_pretrained(material / "sd" / "text_encoder").eval()
    tokenizer: Any = CLIPTokenizer.from_pretrained(material / "sd" / "tokenizer")

    def encoded(text: str) -> tuple[torch.Tensor, torch.Tensor]:
        ids = tokenizer([text], padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt")
        with torch.no_grad():
            out = model(ids.input_ids)  # padding is attended to, as in SD-1.5's pipeline
        return out.last_hidden_state[0], out.pooler_output[0]

    training, validation = TrainingReader(cache, OBJECTIVE, Layout(4), seed=0), ValidationReader(cache, OBJECTIVE, 2)
    for batch, first in ((training.read(0)[0], False), (training.read(1)[0], False), (validation.read(0), True)):
        assert set(batch.condition.parts) == {TEXT, POOLED}
        given = batch.condition.parts[TEXT].given_B.tolist()
        assert sum(given) >= 2
        for row, sample_id in ((row, sample_id) for row, sample_id in enumerate(batch.ids) if given[row]):
            texts = (flat_images / f"{sample_id.removeprefix('all_')}.txt").read_text().splitlines()
            own, pooled = (batch.condition.parts[name].value[row] for name in (TEXT, POOLED))
            assert any(
                torch.allclose(own, tokens, atol=2e-3) and torch.allclose(pooled, vector, atol=2e-3)
                for tokens, vector in map(encoded, texts[:1] if first else texts)
            ), sample_id


def test_verify_checks_every_bucket_and_the_captions(
    whole: Path, bucket_build: Callable[..., Build], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = Path(shutil.copytree(whole, tmp_path / "cache"))
    build = bucket_build(root)
    build.run("verify")
    said = capsys.readouterr().out
    assert all(f"cache/{name}: {EACH} samples are whole; tokens explain the latents" in said for name in BUCKETS)
    assert f"the records of {len(CAPTIONS) - 1} captions and the empty one are whole" in said
    for folder in ("48x80/vae_latents_lmdb", "text_sd_1_12_attended"):
        data = root / folder / "data.mdb"
        content, store = bytearray(data.read_bytes()), Store(root / folder)
        key = sorted(store.keys())[0]
        place = store.places([key])[0]
        store.close()
        content[place["offset"] + 4] ^= 0xFF
        data.write_bytes(bytes(content))
        with pytest.raises(UserError, match=f"{folder}.* has changed since it was written"):
            build.run("verify")
        with pytest.raises(UserError, match=f"{folder} did not pass the stage `verify`"):
            build.track.open(build.teacher)
        shutil.rmtree(root / folder)
        shutil.copytree(whole / folder, root / folder)


@pytest.mark.slow
def test_a_bucket_of_too_few_images_to_compare_fields_of_view_is_verified_without_that(
    bucket_build: Callable[..., Build], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "cache"
    build = bucket_build(root, images=write_flat(tmp_path / "few", 8))
    build.run("all")
    said = capsys.readouterr().out
    for name in BUCKETS:
        few = f"{name}: 8 samples are whole; whether latents and tokens see the same field of view was not checked: "
        (line,) = (line for line in said.splitlines() if few in line)
        assert re.fullmatch(r"there are [5-7] training samples, at least 8 are needed, with .*", line.split(few)[1])
    build.track.open(build.teacher).close()  # it can be trained on
    data = root / "48x80" / "dino_tokens_lmdb" / "data.mdb"
    content, store = bytearray(data.read_bytes()), Store(data.parent)
    content[store.places([sorted(store.keys())[0]])[0]["offset"] + 4] ^= 0xFF
    store.close()
    data.write_bytes(bytes(content))
    with pytest.raises(UserError, match=r"48x80/dino_tokens_lmdb.* has changed since it was written"):
        build.run("verify")


def test_the_stage_text_refuses_a_finished_store_of_another_width(
    whole: Path, bucket_build: Callable[..., Build]
) -> None:
    with pytest.raises(
        UserError, match=r"text_sd_1_12_\w+ was made differently \(width: 16 there, 24 here, .*\); choose"
    ):
        bucket_build(whole, "data.text_encoder.width=24").run("text")


# --- shards and kills ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_shards_make_the_same_records(whole: Path, bucket_build: Callable[..., Build], tmp_path: Path) -> None:
    root = tmp_path / "cache"
    builds = [bucket_build(root, part=Part(i, 2)) for i in range(2)]
    for stage in STAGES:
        for build in builds:
            build.run(stage)
    builds[1].run("verify")
    for store in ("80x48/vae_latents_lmdb", "64x64/dino_tokens_lmdb", "text_sd_1_12_attended"):
        assert sorted(p.name for p in (root / store).glob("part-*")) == ["part-0of2", "part-1of2"]
        assert len(list(Store(root / store).keys())) == len(list(Store(whole / store).keys()))  # none is in both
    ours, theirs = made(root), made(whole)
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        if "lmdb/" in key or "text_" in key:  # other batches, other rounding
            a, b = (np.frombuffer(v, dtype=np.float32) for v in (value, theirs[key]))
            np.testing.assert_allclose(a, b, atol=2e-3, err_msg=key)
        elif key != "track.json":
            assert value == theirs[key], key


@pytest.mark.slow
def test_a_killed_build_is_completed(
    whole: Path, bucket_build: Callable[..., Build], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped before every second transaction; in the end every record equals that of an uninterrupted build."""
    root, put, calls = tmp_path / "cache", StoreWriter.put, []
    monkeypatch.setattr(caption_caches, "CHUNK", 2)

    def sometimes(self: StoreWriter, *args: Any) -> None:
        calls.append(self.folder)
        if len(calls) % 2:
            raise KeyboardInterrupt
        put(self, *args)

    monkeypatch.setattr(StoreWriter, "put", sometimes)
    for _ in range(100):
        try:
            bucket_build(root).run("all")
            break
        except KeyboardInterrupt:
            continue
    ours, theirs = made(root), made(whole)
    assert ours.keys() == theirs.keys()
    assert sum("text_" in str(folder) for folder in calls) == 2 * -(-len(CAPTIONS) // 2)
    for key, value in ours.items():
        if key.startswith("text_"):  # other chunks, other rounding
            a, b = (np.frombuffer(v, dtype=np.float32) for v in (value, theirs[key]))
            np.testing.assert_allclose(a, b, atol=2e-3, err_msg=key)
        else:
            assert value == theirs[key], key


@pytest.mark.fast(1)
@pytest.mark.parametrize("lost", [["buckets.json"], ["buckets.json", "48x80/train.csv"], ["captions.jsonl"]])
def test_a_manifest_that_was_killed_is_completed(
    whole: Path, bucket_build: Callable[..., Build], tmp_path: Path, lost: list[str]
) -> None:
    root = tmp_path / "cache"
    bucket_build(root).run("manifest")
    before = made(root)
    for name in lost:
        (root / name).unlink()
    build = bucket_build(root)
    if "buckets.json" in lost:
        with pytest.raises(UserError, match=r"there is no .*buckets.json; run the stage `manifest` first"):
            build.run("images")
    build.run("manifest")
    assert made(root) == before


@pytest.mark.slow
def test_an_image_that_cannot_be_read_is_left_out_of_its_bucket(
    flat_images: Path, bucket_build: Callable[..., Build], tmp_path: Path
) -> None:
    images, root = Path(shutil.copytree(flat_images, tmp_path / "photos")), tmp_path / "cache"
    file = images / "lying_03.jpg"
    file.write_bytes(file.read_bytes()[:2000])
    bucket_build(root, images=images).run("manifest")
    with pytest.raises(UserError, match=r"^in bucket 48x80: 1 of 16 images cannot be read .first: lying_03.jpg"):
        bucket_build(root, "data.max_skipped=0", images=images).run("images")
    build = bucket_build(root, "data.max_skipped=0.1", images=images)
    for stage in ("images", "latents"):
        build.run(stage)
    assert Store(root / "48x80" / "vae_latents_lmdb").manifest["count"] == EACH - 1
    assert sum(len(rows) for rows in build.track.samples().values()) == 3 * EACH - 1


# --- what training reads ------------------------------------------------------------------------------------


def test_online_encoders_get_the_same_images(opened: Any, whole: Path, bucket_build: Callable[..., Build]) -> None:
    _, cache = opened
    build = bucket_build(whole, "data.online_latents=true", "data.online_teacher=true")
    online = build.track.open(build.teacher)
    for cached, asked in zip(cache.buckets, online.buckets, strict=True):
        samples = cached.splits["train"][:3]
        assert asked.bucket == cached.bucket
        torch.testing.assert_close(asked.x0(samples), cached.x0(samples), rtol=2e-3, atol=1e-3)
        torch.testing.assert_close(
            asked.teacher_BND(samples), cached.teacher_BND(samples).float(), rtol=2e-3, atol=2e-3
        )
    online.close()


def test_copies_on_the_nodes_disk_are_read(
    opened: Any, whole: Path, bucket_build: Callable[..., Build], tmp_path: Path
) -> None:
    _, cache = opened
    build = bucket_build(whole, f"data.stage_to={tmp_path}")
    staged = build.track.open(build.teacher)
    for one, other in zip(staged.buckets, cache.buckets, strict=True):
        folders = [one.latents.folder, one.tokens[""].folder, one.text.folder]
        assert all(tmp_path in folder.parents for folder in folders)
        assert torch.equal(one.x0(other.splits["val"]), other.x0(other.splits["val"]))
    assert staged.content() == cache.content()
    staged.close()


@pytest.mark.slow
def test_each_bucket_has_mirror_images_and_moments(
    whole: Path, bucket_build: Callable[..., Build], tmp_path: Path
) -> None:
    root = tmp_path / "cache"
    shutil.copytree(whole, root, ignore=shutil.ignore_patterns("*_lmdb"))
    build = bucket_build(root, "data.flip=true", "data.moments=true")
    for stage in ("latents", "tokens", "verify", "digest"):
        build.run(stage)
    cache = build.track.open(build.teacher)
    assert cache.flips
    for bucket, (height, width) in zip(cache.buckets, BUCKETS.values(), strict=True):
        assert bucket.latents.shape == (2, 4, height // 8, width // 8)
        assert bucket.latents.mirror.count() == len(bucket.splits["train"])
        sample = bucket.splits["train"][0]
        plain, mirrored = (
            bucket.teacher_BND([s])[0].unflatten(0, bucket.grids[""]) for s in (sample, replace(sample, mirrored=True))
        )
        torch.testing.assert_close(mirrored, plain.flip(1), rtol=2e-3, atol=2e-3)
    cache.close()
