"""From photographs to verified caches through the real SD, DINOv2 and CLIP code, killed and taken up again."""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from photos import WIDTH, write_dinov2, write_photos, write_sd

from urepa.assembly import make
from urepa.data import verify
from urepa.data.build import Build, class_names
from urepa.data.cache import Sample
from urepa.data.images import read_images
from urepa.data.reading import Store
from urepa.data.store import Part, StoreWriter, write_store
from urepa.errors import UserError

TRAIN, VAL = 64, 16


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos and checkpoints."""
    root = tmp_path_factory.mktemp("material")
    write_photos(root / "photos", TRAIN, VAL)
    write_sd(root / "sd")
    write_dinov2(root / "dino")
    (root / "names.txt").write_text("temple\nflower\n")
    return root


def overrides(material: Path, root: Path) -> list[str]:
    return [
        "data=track_a",
        f"data.root={root}",
        f"data.images={material / 'photos'}",
        f"data.train_images={TRAIN}",
        f"data.val_images={VAL}",
        "data.image_size=64",
        f"data.vae={material / 'sd'}",
        f"data.text={material / 'sd'}",
        f"data.class_names={material / 'names.txt'}",
        "data.latent_shape=[4,8,8]",
        "data.num_classes=2",
        f"teacher.model={material / 'dino'}",
        "teacher.image_size=56",
        "teacher.grid=[4,4]",
        f"teacher.width={WIDTH}",
    ]


@pytest.fixture
def build_of(material: Path, compose: Any) -> Any:
    """build_of(root, *more, part=Part()) -> Build"""

    def build(root: Path, *more: str, part: Part | None = None) -> Build:
        parts = compose(*overrides(material, root), *more, root="preprocess")
        return Build(make(parts["data"]), make(parts["teacher"]), Part() if part is None else part, batch=8)

    return build


@pytest.fixture(scope="module")
def built(material: Path, compose: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed build."""
    root = tmp_path_factory.mktemp("built") / "cache"
    parts = compose(*overrides(material, root), root="preprocess")
    Build(make(parts["data"]), make(parts["teacher"]), Part(), batch=8).run("all")
    return root


def copy_of(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "cache"))


def records(root: Path) -> dict[str, bytes]:
    """Every record of both stores, and the finished files beside them."""
    out: dict[str, bytes] = {}
    for name in ("vae_latents_lmdb", "dino_tokens_lmdb"):
        store = Store(root / name)
        keys = sorted(store.keys())
        out |= {f"{name}/{k}": store.read([k]).tobytes() for k in keys}
        store.close()
    for file in ("train_200k.csv", "val_50k.csv", "dino_tokens_lmdb/mean_token.npy"):
        out[file] = (root / file).read_bytes()
    prompts = torch.load(root / "clip_embeddings_1001.pt", weights_only=True)
    out["prompts"] = prompts.numpy().tobytes()
    return out


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
    rows = [Sample(r["sample_id"], 0, "", "train") for r in csv.DictReader((built / "train_200k.csv").open())]
    ids, images = next(read_images(built, Part(), rows, 4))
    with torch.no_grad():
        expected = vae.encode(images.float() / 127.5 - 1).latent_dist.mode() * 0.18215
    stored = Store(built / "vae_latents_lmdb").read(ids)
    assert np.allclose(stored, expected.numpy(), atol=2e-3)


def test_tokens_are_transformers_own(built: Path, material: Path) -> None:
    from transformers import Dinov2Model

    model = Dinov2Model.from_pretrained(material / "dino").eval()
    rows = [Sample(r["sample_id"], 0, "", "train") for r in csv.DictReader((built / "train_200k.csv").open())]
    ids, images = next(read_images(built, Part(), rows, 4))
    pixels = F.interpolate(images.float() / 255, size=(56, 56), mode="bicubic", antialias=True).clamp(0, 1)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = (pixels - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    with torch.no_grad():
        expected = F.normalize(model(pixels).last_hidden_state[:, 1:], dim=-1)
    stored = Store(built / "dino_tokens_lmdb").read([f"{i}_mid" for i in ids])
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


@pytest.mark.parametrize("stage", ["latents", "tokens"])
def test_finished_batches_are_not_made_again(built: Path, build_of: Any, tmp_path: Path, stage: str) -> None:
    root = copy_of(built, tmp_path)
    build = build_of(root)
    calls = []

    def never(images: torch.Tensor) -> np.ndarray:
        calls.append(len(images))
        raise AssertionError("a finished batch was encoded again")

    from urepa.data import encode

    store = {"latents": build.track.latents, "tokens": build.track.tokens}[stage]
    suffix = {"latents": "", "tokens": "_mid"}[stage]
    encode.encode_part(stage, root, store, Part(), build._samples(), never, 8, suffix=suffix)
    assert calls == []


@pytest.mark.slow
def test_a_build_killed_at_random_moments_equals_an_undisturbed_one(
    built: Path, material: Path, tmp_path: Path
) -> None:
    """UREPA_BUILD_KILLS sets how many kills (3 by default), spread over the time that a build takes."""
    root = tmp_path / "cache"
    command = [sys.executable, "-m", "urepa.preprocess", *overrides(material, root), "batch_size=8"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    seed = random.SystemRandom().randrange(2**32)
    print(f"kill seed {seed}")
    moments, kills = random.Random(seed), int(os.environ.get("UREPA_BUILD_KILLS", "3"))
    for _ in range(kills):
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(moments.uniform(2.0, 9.0))
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    ours, theirs = records(root), records(built)
    assert ours.keys() == theirs.keys()
    assert [k for k in ours if ours[k] != theirs[k]] == []


@pytest.mark.slow
def test_training_runs_on_the_built_caches(built: Path, material: Path, tmp_path: Path) -> None:
    """200 steps of track A on what the stages made of photographs."""
    command = [sys.executable, "-m", "urepa.train", "+experiment=track_a", f"data.root={built}"]
    command += [o for o in overrides(material, built)[2:] if not o.startswith("data.images")]
    command += [
        f"backbone.weights={material / 'sd'}",
        "tracking=none",
        "trainer.precision=fp32",
        "trainer.max_steps=200",
    ]
    command += ["trainer.batch_size=8", "trainer.validation_group=8", "loss.warmup_steps=20"]
    command += ["optimizer.lr.head=1e-3", "trainer.ema_decay=0.9"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (summary,) = tmp_path.glob("outputs/*/seed42/summary.json")
    written = json.loads(summary.read_text())
    assert written["step"] == 200
    assert written["data"]["samples"] == {"train": TRAIN, "val": VAL}
    assert written["metrics"]["val/total"] < 3


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


def test_a_finished_part_of_another_number_of_shards_does_not_count(built: Path, tmp_path: Path) -> None:
    root = copy_of(built, tmp_path)
    (root / "vae_latents_lmdb" / "manifest.json").unlink()
    with pytest.raises(UserError, match="no finished cache"):
        Store(root / "vae_latents_lmdb")


# --- the field of view ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def views(material: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """64x64 "latents" (the photographs' colours at an eighth of 512 px) and tokens at 37x37."""
    from urepa.data.photos import square
    from urepa.data.sources import SOURCES
    from urepa.teachers.vit import ViT

    folder = tmp_path_factory.mktemp("views")
    write_photos(folder / "photos", 96, 2)
    rows = [row for row in SOURCES["folder"](str(folder / "photos")) if row.split == "train"]
    images = torch.stack([torch.from_numpy(np.array(square(row.load(), 512))) for row in rows])
    images = images.permute(0, 3, 1, 2).float() / 255
    write_dinov2(folder / "dino", side=37)
    teacher = ViT("dinov2", str(folder / "dino"), 518, 14, [37, 37], WIDTH)
    fine = torch.cat([teacher.tokens(chunk).to_map() for chunk in images.split(16)])
    return {"x0": F.adaptive_avg_pool2d(images, 64), "tokens": fine, "images": images, "teacher": teacher}


def check(folder: Path, x0: torch.Tensor, map_SDhw: torch.Tensor) -> list[verify.Finding]:
    ids = [f"s{i:03d}" for i in range(len(x0))]
    tokens = F.normalize(F.adaptive_avg_pool2d(map_SDhw, 16).flatten(2).mT, dim=-1)
    write_store(folder / "l", zip(ids, x0.numpy(), strict=True), {})
    write_store(folder / "t", ((f"{i}_mid", t) for i, t in zip(ids, tokens.numpy(), strict=True)), {})
    samples = [Sample(i, 0, "", "train") for i in ids]
    return verify.spatial_check(Store(folder / "l"), Store(folder / "t"), samples, (16, 16))


def test_caches_of_the_same_view_pass(views: dict[str, Any], tmp_path: Path) -> None:
    findings = check(tmp_path, views["x0"], views["tokens"])
    assert findings[0].name == "as stored"
    r2 = {f.name: f.r2 for f in findings}
    assert all(r2["as stored"] > 1.5 * r2[other] for other in ("mirrored", "transposed", "of another sample"))


@pytest.mark.parametrize("fault", ["sheared", "mirrored", "shifted", "other samples"])
def test_caches_of_another_view_are_caught(views: dict[str, Any], tmp_path: Path, fault: str) -> None:
    x0, tokens = views["x0"], views["tokens"]
    if fault == "sheared":  # spec 000 §3.3: the first 1,296 of 1,369 tokens viewed as 36x36
        tokens, expected = tokens.flatten(2)[:, :, :1296].unflatten(2, (36, 36)), "sheared as 36x36"
    elif fault == "mirrored":
        teacher = views["teacher"]
        tokens = torch.cat([teacher.tokens(chunk.flip(-1)).to_map() for chunk in views["images"].split(16)])
        expected = "mirrored"
    elif fault == "shifted":  # a crop that lies 32 pixels further right
        x0, expected = torch.roll(x0, 4, -1), "shifted"
    else:
        tokens, expected = tokens.roll(-1, 0), "of another sample|as stored"
    with pytest.raises(UserError, match=f"do not see the same field of view.*({expected})"):
        check(tmp_path, x0, tokens)


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


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_samples(material: Path, tmp_path: Path) -> None:
    """Peak memory of each stage over 200 and over 2,000 images: 88 MB of pixels more, were they kept."""
    peaks: dict[int, list[int]] = {}
    for count in (200, 2000):
        photos = write_photos(tmp_path / str(count), count, 2)
        command = [sys.executable, "-c", MEASURE, *overrides(material, tmp_path / f"cache{count}"), "batch_size=8"]
        command += [f"data.images={photos}", f"data.train_images={count}", "data.val_images=2"]
        done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        peaks[count] = json.loads(done.stdout.splitlines()[-1])
    print(f"peak memory after manifest, images, latents, tokens: {peaks} KiB")
    growth = [many - few for few, many in zip(peaks[200], peaks[2000], strict=True)]
    assert max(growth) < 25 * 1024, peaks


MEASURE = """
import json, pathlib, sys
from hydra import compose, initialize_config_dir
from urepa.assembly import make
from urepa.data.build import Build
from urepa.data.store import Part
from urepa.doors import CONF, prepare
from urepa.runs import plain
prepare()
with initialize_config_dir(CONF, version_base="1.3"):
    parts = plain(compose("preprocess", sys.argv[1:]))
build = Build(make(parts["data"]), make(parts["teacher"]), Part(), parts["batch_size"])
peaks = []
for stage in ("manifest", "images", "latents", "tokens"):
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    build.run(stage)
    peaks.append(int(pathlib.Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]))
print(json.dumps(peaks))
"""
