"""From photographs to verified caches through the real SD, DINOv2 and CLIP code, killed and taken up again."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from photos import TRAIN, VAL, WIDTH
from records import records

from urepa.data.build import class_names
from urepa.data.cache import read_split
from urepa.data.encode import Output
from urepa.data.images import read_images
from urepa.data.reading import Store
from urepa.data.store import Part, StoreWriter
from urepa.errors import UserError


def copy_of(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "cache"))


def test_every_sample_has_a_latent_and_tokens(built: Path) -> None:
    rows = list(csv.DictReader((built / "train_200k.csv").open()))
    assert sorted(int(r["class_id"]) for r in rows) == [0] * (TRAIN // 2) + [1] * (TRAIN // 2)
    latents, tokens = Store(built / "vae_latents_lmdb"), Store(built / "dino_tokens_lmdb")
    assert latents.manifest["count"] == tokens.manifest["count"] == TRAIN + VAL == len(list(latents.keys()))
    assert (latents.shape, tokens.shape) == ((4, 8, 8), (16, WIDTH))
    assert tokens.manifest["teacher"]["weights_sha256"]


def test_latents_are_the_vaes_mode_times_its_factor(built: Path, material: Path) -> None:
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(material / "sd", subfolder="vae").eval()
    rows = [s for name in ("train_200k", "val_50k") for s in read_split(built / f"{name}.csv")]
    chosen, images = next(read_images(built, Part(), rows, 4, list))
    with torch.no_grad():
        expected = vae.encode(images.float() / 127.5 - 1).latent_dist.mode() * 0.18215
    stored = Store(built / "vae_latents_lmdb").read([s.key for s in chosen])
    assert np.allclose(stored, expected.numpy(), atol=2e-3)


def test_tokens_are_transformers_own(built: Path, material: Path) -> None:
    from transformers import Dinov2Model

    model = Dinov2Model.from_pretrained(material / "dino").eval()
    rows = [s for name in ("train_200k", "val_50k") for s in read_split(built / f"{name}.csv")]
    chosen, images = next(read_images(built, Part(), rows, 4, list))
    pixels = F.interpolate(images.float() / 255, size=(56, 56), mode="bicubic", antialias=True).clamp(0, 1)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = (pixels - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    with torch.no_grad():
        expected = F.normalize(model(pixels).last_hidden_state[:, 1:], dim=-1)
    stored = Store(built / "dino_tokens_lmdb").read([s.token_key for s in chosen])
    assert np.allclose(stored, expected.numpy(), atol=2e-3)


def test_prompts_are_clips_own_and_the_null_prompt_is_last(built: Path, material: Path) -> None:
    from transformers import CLIPTextModel, CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(material / "sd", subfolder="tokenizer")
    text = CLIPTextModel.from_pretrained(material / "sd", subfolder="text_encoder").eval()
    stored = torch.load(built / "clip_embeddings_1001.pt", weights_only=True)
    assert (tuple(stored.shape), stored.dtype) == ((3, 77, 16), torch.float16)
    for row, prompt in enumerate(("a photo of a temple", "a photo of a flower", "")):
        ids = tokenizer(prompt, padding="max_length", max_length=77, return_tensors="pt").input_ids
        with torch.no_grad():
            assert torch.allclose(stored[row].float(), text(ids)[0][0], atol=2e-3)
    assert len({stored[i].numpy().tobytes() for i in range(3)}) == 3


def test_imagenets_names_ship_with_the_package() -> None:
    names = class_names("imagenet")
    assert (len(names), names[0], names[1], names[999]) == (1000, "tench", "goldfish", "toilet tissue")


def test_the_mean_token_is_the_training_sets(built: Path) -> None:
    store = Store(built / "dino_tokens_lmdb")
    train = [f"{r['sample_id']}_mid" for r in csv.DictReader((built / "train_200k.csv").open())]
    expected = store.read(train).reshape(-1, WIDTH).mean(0)
    assert np.allclose(np.load(built / "dino_tokens_lmdb" / "mean_token.npy"), expected, atol=1e-3)


def test_a_smaller_track_is_a_subset(built: Path, build_of: Any, tmp_path: Path) -> None:
    build_of(tmp_path, f"data.train_images={TRAIN // 2}").run("manifest")
    small, large = (
        {r["sample_id"] for r in csv.DictReader((root / "train_200k.csv").open())} for root in (tmp_path, built)
    )
    assert len(small) == TRAIN // 2
    assert small < large


def test_where_no_images_are_kept_apart_the_validation_images_are_drawn(
    material: Path, build_of: Any, tmp_path: Path
) -> None:
    photos = f"data.images={material / 'photos' / 'train'}"
    with pytest.raises(UserError, match="no val or test folder: say how many to keep apart, data.val_images=N"):
        build_of(tmp_path, photos, "data.val_images=null").run("manifest")
    build_of(tmp_path, photos, "data.train_images=null", "data.val_images=10").run("manifest")
    train, val = (list(csv.DictReader((tmp_path / f"{n}.csv").open())) for n in ("train_200k", "val_50k"))
    assert (len(train), len(val)) == (TRAIN - 10, 10)
    assert sorted(int(r["class_id"]) for r in val) == [0] * 5 + [1] * 5
    assert len({r["sample_id"] for r in train + val}) == TRAIN
    assert val[0]["path"].startswith("china/")


def test_a_larger_track_goes_on_from_a_smaller_ones_caches(built: Path, build_of: Any, tmp_path: Path) -> None:
    """A- first, then A, in one folder: what is there stays, what is missing is made."""
    root, small = tmp_path / "cache", [f"data.train_images={TRAIN // 2}", "data.train=train_100k.csv"]
    for more in (small, []):
        for stage in ("manifest", "images", "latents", "tokens"):
            build_of(root, *more).run(stage)
    for more, count in ((small, TRAIN // 2), ([], TRAIN)):
        build = build_of(root, *more)
        build.run("verify")
        assert len(build.track.samples()["train"]) == count
    tokens = Store(root / "dino_tokens_lmdb")
    assert tokens.manifest["count"] == TRAIN + VAL == len(list(tokens.keys()))
    expected = np.load(built / "dino_tokens_lmdb" / "mean_token.npy")
    np.testing.assert_allclose(tokens.mean_token(), expected, atol=1e-4)
    with pytest.raises(UserError, match=f"train_200k.csv has {TRAIN} samples; data.train_images=8: give"):
        build_of(root, "data.train_images=8").run("manifest")


def test_a_stage_does_not_go_on_with_other_settings(built: Path, build_of: Any, tmp_path: Path) -> None:
    """Neither with a finished store nor with a begun one: half of its records would be another teacher's."""
    root = copy_of(built, tmp_path)
    other = ["teacher.family=dinov2_registers", "data.image_size=32"]
    for finished in (True, False):
        with pytest.raises(UserError, match="dino_tokens_lmdb was made differently .teacher.family: 'dinov2' there"):
            build_of(root, *other).run("tokens")
        with pytest.raises(UserError, match="images was made differently .image_size: 64 there, 32 here"):
            build_of(root, *other).run("images")
        with pytest.raises(UserError, match="parts: 1 there, 2 here"):
            build_of(root, part=Part(0, 2)).run("latents")
        if finished:
            (root / "dino_tokens_lmdb" / "manifest.json").unlink()
            (root / "vae_latents_lmdb" / "manifest.json").unlink()
    build_of(root).run("all")


def test_caches_outlive_the_images_that_could_not_be_read(build_of: Any, material: Path, tmp_path: Path) -> None:
    """images/ may go once the caches are there; what was skipped is remembered."""
    photos = Path(shutil.copytree(material / "photos", tmp_path / "photos"))
    bad = photos / "train" / "china" / "0003.png"
    bad.write_bytes(bad.read_bytes()[:300])
    build = build_of(tmp_path / "cache", f"data.images={photos}", "data.max_skipped=0.1")
    build.run("all")
    shutil.rmtree(tmp_path / "cache" / "images")
    cache = build.track.open(build.teacher)
    assert len(cache.splits["train"]) == TRAIN - 1
    cache.close()


def test_shards_make_the_same_records(built: Path, build_of: Any, tmp_path: Path) -> None:
    root = tmp_path / "cache"
    builds = [build_of(root, part=Part(i, 3)) for i in range(3)]
    for stage in ("manifest", "images", "latents", "tokens", "prompts"):
        for build in builds:
            build.run(stage)
    builds[0].run("verify")
    assert sorted(p.name for p in (root / "vae_latents_lmdb").glob("part-*")) == [f"part-{i}of3" for i in range(3)]
    ours, theirs = records(root), records(built)
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        if "lmdb/" in key and key != "dino_tokens_lmdb/mean_token.npy":  # other batches, other rounding
            a, b = (np.frombuffer(v, dtype=np.float32) for v in (value, theirs[key]))
            assert np.allclose(a, b, atol=2e-3), key


def test_a_second_writer_of_a_part_is_refused(tmp_path: Path) -> None:
    first = StoreWriter(tmp_path)
    hold = "import sys, pathlib, urepa.data.store as s; s.StoreWriter(pathlib.Path(sys.argv[1]))"
    second = subprocess.run([sys.executable, "-c", hold, str(tmp_path)], capture_output=True, text=True)
    assert second.returncode != 0
    assert "is being written by another process" in second.stderr
    first.close()
    assert subprocess.run([sys.executable, "-c", hold, str(tmp_path)], check=False).returncode == 0


def test_no_sample_is_encoded_twice(built: Path, build_of: Any, tmp_path: Path) -> None:
    """Stopped after every third batch; with flips, which the stage adds to a finished store."""
    root = tmp_path / "cache"
    root.mkdir()
    for name in ("images", "track.json", "train_200k.csv", "val_50k.csv"):
        copy = shutil.copytree if (built / name).is_dir() else shutil.copy
        copy(built / name, root / name)
    seen: list[torch.Tensor] = []

    def encode(images: torch.Tensor) -> np.ndarray:
        if len(seen) % 4 == 3:
            seen.append(torch.zeros(0))
            raise KeyboardInterrupt
        seen.append(images.flatten(1))
        return F.adaptive_avg_pool2d(images.float() / 255, 8)[:, [0, 1, 2, 0]].numpy()

    for more, wanted in (((), TRAIN + VAL), (("data.flip=true",), TRAIN)):
        build = build_of(root, *more)
        output = Output(build.track.latents, {"shape": [4, 8, 8], "dtype": "float16"})
        seen.clear()
        for _ in range(20):
            try:
                build._encode(output, encode)
                break
            except KeyboardInterrupt:
                continue
        images = torch.cat([x for x in seen if len(x)])
        assert len(images) == wanted == len(images.unique(dim=0))
    assert sorted(Store(root / "vae_latents_lmdb_flip").keys()) == sorted(
        r["sample_id"] for r in csv.DictReader((root / "train_200k.csv").open())
    )


# --- damage -----------------------------------------------------------------------------------------------


def test_a_truncated_store_is_an_error_before_the_first_read(built: Path, build_of: Any, tmp_path: Path) -> None:
    root = copy_of(built, tmp_path)
    data = root / "dino_tokens_lmdb" / "data.mdb"
    data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
    with pytest.raises(UserError, match="data.mdb is truncated"):
        build_of(root).track.open(build_of(root).teacher)


def test_a_missing_record_is_an_error_before_the_first_step(built: Path, build_of: Any, tmp_path: Path) -> None:
    import lmdb

    root = copy_of(built, tmp_path)
    with lmdb.open(str(root / "vae_latents_lmdb"), map_size=2**30) as env, env.begin(write=True) as txn:
        txn.delete(b"train_china_0003")
    with pytest.raises(UserError, match="lacks 1 of 80 records \\(first: 'train_china_0003'\\)"):
        build_of(root).track.open(None)


def test_a_changed_csv_is_an_error(built: Path, build_of: Any, tmp_path: Path) -> None:
    root = copy_of(built, tmp_path)
    text = (root / "train_200k.csv").read_text()
    (root / "train_200k.csv").write_text(text.replace("train_china_0003,0", "train_china_0003,1"))
    with pytest.raises(UserError, match="train_200k.csv has changed"):
        build_of(root).track.open(None)


def test_another_teacher_or_size_refuses_and_names_both(built: Path, build_of: Any) -> None:
    build = build_of(built, "teacher.image_size=112", "teacher.family=dinov2_registers")
    with pytest.raises(UserError, match="family: 'dinov2' there, 'dinov2_registers' here.*image_size: 56 there, 112"):
        build.track.open(build.teacher)


def test_two_teachers_tokens_lie_side_by_side(built: Path, build_of: Any, tmp_path: Path) -> None:
    root = copy_of(built, tmp_path)
    first = root / "dino_tokens_lmdb"
    before = {p.name: p.read_bytes() for p in first.iterdir() if p.is_file() and not p.name.endswith("lock.mdb")}
    larger = ("teacher.image_size=112", "teacher.grid=[8,8]")
    for _ in ("whole", "begun"):
        with pytest.raises(UserError, match=r"was made differently.*image_size: 56 there, 112 here"):
            build_of(root, *larger).run("tokens")
        (first / "manifest.json").unlink(missing_ok=True)
    (first / "manifest.json").write_bytes(before["manifest.json"])
    second = build_of(root, *larger, "data.tokens=tokens_112")
    second.run("tokens")
    assert second.track.open(second.teacher).tokens.shape == (64, WIDTH)
    assert {name: (first / name).read_bytes() for name in before} == before


def test_a_finished_part_of_another_number_of_shards_does_not_count(built: Path, tmp_path: Path) -> None:
    root = copy_of(built, tmp_path)
    (root / "vae_latents_lmdb" / "manifest.json").unlink()
    with pytest.raises(UserError, match="no finished cache"):
        Store(root / "vae_latents_lmdb")


# --- adopting ---------------------------------------------------------------------------------------------


def test_caches_without_manifests_are_adopted(built: Path, build_of: Any, tmp_path: Path) -> None:
    root = copy_of(built, tmp_path)
    for name in ("vae_latents_lmdb", "dino_tokens_lmdb"):
        for file in ("manifest.json", "done.json", "mean_token.npy"):
            (root / name / file).unlink(missing_ok=True)
    (root / "track.json").unlink()
    build = build_of(root)
    with pytest.raises(UserError, match="no manifest.json"):
        build.track.open(build.teacher)
    build.run("adopt")
    cache = build.track.open(build.teacher)
    assert cache.tokens is not None
    assert cache.tokens.manifest["teacher"]["image_size"] == "unknown"
    assert cache.tokens.manifest["adopted"] is True
    mean = cache.mean_token()
    assert mean is not None
    assert np.allclose(mean, np.load(built / "dino_tokens_lmdb" / "mean_token.npy"), atol=1e-3)
    cache.close()


def test_damaged_caches_are_not_adopted(built: Path, build_of: Any, tmp_path: Path) -> None:
    root = copy_of(built, tmp_path)
    (root / "dino_tokens_lmdb" / "manifest.json").unlink()
    with StoreWriter(root / "dino_tokens_lmdb") as writer:
        writer.put([("train_china_0003_mid", np.ones((16, WIDTH)))])
    with pytest.raises(UserError, match="tokens of 'train_china_0003_mid' have length"):
        build_of(root).run("adopt")
    assert not (root / "dino_tokens_lmdb" / "manifest.json").exists()


# --- variants ---------------------------------------------------------------------------------------------


def test_moments_are_sampled_by_address(build_of: Any, tmp_path: Path) -> None:
    from urepa import draws

    root = tmp_path / "cache"
    build = build_of(root, "data.moments=true")
    for stage in ("manifest", "images", "latents"):
        build.run(stage)
    cache = build.track.open(None)
    samples = cache.splits["train"][:2]
    mean, std = torch.from_numpy(cache.latents.read([s.sample_id for s in samples])).unbind(1)
    assert torch.equal(cache.x0(samples), mean)
    drawn = [cache.x0(samples, [draws.generator(s, "posterior", 0, p) for p in range(2)]) for s in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    noise = torch.stack([draws.normal((4, 8, 8), draws.generator(0, "posterior", 0, p)) for p in range(2)])
    assert torch.allclose(drawn[0], mean + std * noise)
    cache.close()


def test_an_online_teacher_gives_the_tokens_that_a_cache_would(built: Path, build_of: Any) -> None:
    cached, online = build_of(built), build_of(built, "data.online_teacher=true")
    stored, asked = cached.track.open(cached.teacher), online.track.open(online.teacher)
    samples = stored.splits["train"][:5]
    ours, theirs = asked.teacher_BND(samples), stored.teacher_BND(samples)
    assert ours is not None
    assert theirs is not None
    assert torch.allclose(ours, theirs.float(), atol=2e-3)
    means = [cache.mean_token() for cache in (asked, stored)]
    assert torch.allclose(means[0], means[1], atol=2e-3)
    for cache in (stored, asked):
        cache.close()


def test_a_track_for_an_online_teacher_has_no_tokens(
    build_of: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build_of(tmp_path / "cache", "data.online_teacher=true", "data.flip=true").run("all")
    assert {p.name for p in (tmp_path / "cache").glob("*_lmdb*")} == {"vae_latents_lmdb", "vae_latents_lmdb_flip"}
    said = capsys.readouterr().out
    assert f"{TRAIN + VAL} latents are whole" in said
    assert f"{TRAIN} mirrored latents are whole" in said


def test_parts_that_run_all_stages_leave_verifying_to_the_last(
    build_of: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(2):
        build_of(tmp_path / "cache", part=Part(i, 2)).run("all")
        said = capsys.readouterr().out
        assert ("other parts are still being made" in said) is (i == 0)
        assert (f"{TRAIN + VAL} samples are whole" in said) is (i == 1)


def test_finished_images_need_no_source(built: Path, build_of: Any, tmp_path: Path) -> None:
    root = copy_of(built, tmp_path)
    build_of(root, f"data.images={tmp_path / 'gone'}", "data.flip=true").run("all")
    assert (root / "dino_tokens_lmdb_flip" / "manifest.json").exists()


def test_staged_caches_are_checked_copies_that_are_made_once(built: Path, build_of: Any, tmp_path: Path) -> None:
    root = copy_of(built, tmp_path)
    build = build_of(root, f"data.stage_to={tmp_path / 'local'}")
    for _ in range(2):
        cache = build.track.open(build.teacher)
        assert cache.latents.folder.is_relative_to(tmp_path / "local")
        staged = cache.x0(cache.splits["train"][:3])
        cache.close()
        copies = {f: f.stat().st_mtime_ns for f in (tmp_path / "local").rglob("data.mdb")}
        assert len(copies) == 2
    own = build_of(root)
    cache = own.track.open(None)
    assert torch.equal(cache.x0(cache.splits["train"][:3]), staged)
    cache.close()
    again = build.track.open(build.teacher)
    again.close()
    assert {f: f.stat().st_mtime_ns for f in copies} == copies
    os.utime(root / "vae_latents_lmdb" / "data.mdb")  # a source that has changed is copied anew
    build.track.open(build.teacher).close()
    changed = [f for f in copies if f.stat().st_mtime_ns != copies[f]]
    assert [f.parent.name for f in changed] == ["vae_latents_lmdb"]
