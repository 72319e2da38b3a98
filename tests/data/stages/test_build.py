"""From photographs to verified caches with the real SD, DINOv2 and CLIP code, killed and resumed."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from photos import TRAIN, VAL, WIDTH
from records import records

from urepa.core.errors import UserError
from urepa.data.lists.classes import class_names
from urepa.data.lists.samples import read_split
from urepa.data.sources.source_identity import Listing
from urepa.data.stages.encode import Output
from urepa.data.stages.image_archives import part_folder, read_images
from urepa.data.stores.lmdb_store import Part, StoreWriter, only_writer
from urepa.data.stores.record_reading import Store


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
    stored = Store(built / "dino_tokens_lmdb").read([s.key for s in chosen])
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
    train = [r["sample_id"] for r in csv.DictReader((built / "train_200k.csv").open())]
    expected = store.read(train).reshape(-1, WIDTH).mean(0)
    assert np.allclose(np.load(built / "dino_tokens_lmdb" / "mean_token.npy"), expected, atol=1e-3)


def test_a_smaller_track_is_a_subset(built: Path, build_of: Any, tmp_path: Path) -> None:
    build_of(tmp_path, f"data.train_images={TRAIN // 2}").run("manifest")
    small, large = (
        {r["sample_id"] for r in csv.DictReader((root / "train_200k.csv").open())} for root in (tmp_path, built)
    )
    assert len(small) == TRAIN // 2
    assert small < large


def test_without_a_validation_folder_the_validation_images_are_drawn(
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


def test_a_class_without_images_is_refused(build_of: Any, tmp_path: Path) -> None:
    """Its folder would not be counted, so every later class would get its number and its name."""
    with pytest.raises(UserError, match=r"the images have 2 classes; data.num_classes=3"):
        build_of(tmp_path, "data.num_classes=3", "data.val_images=15").run("manifest")
    assert not (tmp_path / "train_200k.csv").exists()


@pytest.mark.slow
def test_a_larger_track_goes_on_from_a_smaller_ones_caches(built: Path, build_of: Any, tmp_path: Path) -> None:
    """First A-, then A, in one folder: existing records stay, missing ones are made."""
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
    squares = [i for zip_file in root.glob("images/part-*/*.zip") for i in zipfile.ZipFile(zip_file).namelist()]
    assert len(squares) == len(set(squares)) == TRAIN + VAL  # none is decoded twice
    build_of(root, *small).run("tokens")  # again, and the store is still the larger track's
    assert Store(root / "dino_tokens_lmdb").manifest["count"] == TRAIN + VAL
    a_chunk = min(root.glob("images/part-*/*.zip"))
    a_chunk.unlink()
    build_of(root).run("images")
    assert {f"{s.sample_id}.jpg" for s in build_of(root)._listed_samples()} <= {
        i for file in root.glob("images/part-*/*.zip") for i in zipfile.ZipFile(file).namelist()
    }
    with pytest.raises(UserError, match=f"train_200k.csv has {TRAIN} samples; data.train_images=8: give"):
        build_of(root, "data.train_images=8").run("manifest")


@pytest.mark.slow
def test_another_source_of_images_is_refused_and_a_moved_one_is_not(
    material: Path, build_of: Any, tmp_path: Path
) -> None:
    """Both sources have the wanted ids; one has an additional image, and in another the images are in the other
    class."""
    root, photos = tmp_path / "cache", material / "photos"
    build_of(root, f"data.train_images={TRAIN - 4}").run("manifest")
    more = Path(shutil.copytree(photos, tmp_path / "more"))
    shutil.copy(more / "train/china/0003.png", more / "train/china/9999.png")
    with pytest.raises(
        UserError, match=r"more is not what the caches in .* made from \(1 added \(train/china/9999.png"
    ):
        build_of(root, f"data.images={more}", f"data.train_images={TRAIN - 4}").run("images")
    (root / "source_files.npz").rename(tmp_path / "source_files.npz")  # older ones have none
    with pytest.raises(
        UserError, match=r"more is not what the lists in .* chosen from \(count: 80 there, 81 here, list"
    ):
        build_of(root, f"data.images={more}", f"data.train_images={TRAIN - 4}").run("images")
    with pytest.raises(UserError, match="is not what the lists in"):  # nor for a second list beside the first
        build_of(root, f"data.images={more}", "data.train=train_100k.csv").run("manifest")
    assert not (root / "images" / "part-0of1").exists()
    (tmp_path / "source_files.npz").rename(root / "source_files.npz")
    moved = Path(shutil.copytree(photos, tmp_path / "moved"))
    build_of(root, f"data.images={moved}", f"data.train_images={TRAIN - 4}").run("images")
    record = json.loads((root / "track.json").read_text())
    assert record["source"].keys() == {"source", "count", "listing_sha256", "suffixes"}
    hub = Listing("hub", "owner/one@main", {})
    with pytest.raises(UserError, match="name: owner/one there, owner/two here"):
        Listing("hub", "owner/two", {}).refuse_other(hub.facts(), root)


def test_a_second_list_leaves_the_firsts_files_as_they_are(build_of: Any, tmp_path: Path) -> None:
    build_of(tmp_path).run("manifest")
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(UserError, match=r"val_50k.csv holds other samples than the 8 .*; give data.val=OTHER.csv"):
        build_of(tmp_path, "data.train=train_100k.csv", "data.train_images=8", "data.val_images=8").run("manifest")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_list_that_was_lost_is_not_replaced_by_another(material: Path, build_of: Any, tmp_path: Path) -> None:
    root, photos = tmp_path / "cache", Path(shutil.copytree(material / "photos", tmp_path / "photos"))
    build_of(root, f"data.images={photos}", "data.train_images=8").run("manifest")
    record = json.loads((root / "track.json").read_text())
    (root / "track.json").write_text(json.dumps({"csv_sha256": record["csv_sha256"]}))  # as older ones are
    (root / "source_files.npz").unlink()
    for line in (root / "train_200k.csv").read_text().splitlines()[1:]:
        (photos / line.split(",")[2]).unlink()
    (root / "train_200k.csv").unlink()
    with pytest.raises(UserError, match="train_200k.csv has changed since the caches were made from it"):
        build_of(root, f"data.images={photos}", "data.train_images=8").run("manifest")
    assert json.loads((root / "track.json").read_text())["csv_sha256"] == record["csv_sha256"]


@pytest.mark.slow
def test_a_part_that_is_done_with_a_smaller_track_does_not_finish_a_larger_one(build_of: Any, tmp_path: Path) -> None:
    root, small = tmp_path / "cache", [f"data.train_images={TRAIN // 2}", "data.train=train_100k.csv"]
    counts = []
    for more in (small, []):
        for i in range(2):
            build = build_of(root, *more, part=Part(i, 2))
            for stage in ("manifest", "images", "latents"):
                build.run(stage)
            file = root / "vae_latents_lmdb" / "manifest.json"
            counts.append(json.loads(file.read_text())["count"] if file.exists() else None)
    assert counts == [None, TRAIN // 2 + VAL, TRAIN // 2 + VAL, TRAIN + VAL]


def test_a_damaged_file_of_squares_is_reported_in_one_sentence(built: Path, build_of: Any, tmp_path: Path) -> None:
    root = Path(shutil.copytree(built, tmp_path / "cache", ignore=shutil.ignore_patterns("*_lmdb")))
    (file,) = root.glob("images/part-*/*.zip")
    file.write_bytes(file.read_bytes()[:1000])
    build = build_of(root, "data.online_teacher=true", "data.online_latents=true")
    words = f"{file} is damaged .*; delete it and run the stage `images` again"
    with pytest.raises(UserError, match=words):
        build.track.open(build.teacher)
    for stage in ("images", "latents"):
        with pytest.raises(UserError, match=words):
            build_of(root).run(stage)


@pytest.mark.slow
def test_a_stage_does_not_continue_with_other_settings(built: Path, build_of: Any, tmp_path: Path) -> None:
    """Neither with a finished store nor with a half-built one, whose first records would be of another teacher."""
    root = copy_of(built, tmp_path)
    other = ["teacher.family=dinov2_registers", "teacher.positions=null", "data.image_size=32"]
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


@pytest.mark.slow
def test_caches_are_valid_after_their_images_are_deleted(build_of: Any, material: Path, tmp_path: Path) -> None:
    """images/ may be deleted once the caches exist; which images were skipped is recorded."""
    photos = Path(shutil.copytree(material / "photos", tmp_path / "photos"))
    bad = photos / "train" / "china" / "0003.png"
    bad.write_bytes(bad.read_bytes()[:300])
    build = build_of(tmp_path / "cache", f"data.images={photos}", "data.max_skipped=0.1")
    build.run("all")
    shutil.rmtree(tmp_path / "cache" / "images")
    cache = build.track.open(build.teacher)
    assert len(cache.splits["train"]) == TRAIN - 1
    cache.close()


@pytest.mark.slow
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
        if "lmdb/" in key and not key.endswith(".npy"):  # other batches, other rounding
            a, b = (np.frombuffer(v, dtype=np.float32) for v in (value, theirs[key]))
            assert np.allclose(a, b, atol=2e-3), key


@pytest.mark.slow
def test_a_second_writer_of_a_part_is_refused(tmp_path: Path) -> None:
    first = StoreWriter(tmp_path)
    hold = "import sys, pathlib, urepa.data.stores.lmdb_store as s; s.StoreWriter(pathlib.Path(sys.argv[1]))"
    second = subprocess.run([sys.executable, "-c", hold, str(tmp_path)], capture_output=True, text=True)
    assert second.returncode != 0
    assert "is being written by another process" in second.stderr
    first.close()
    assert subprocess.run([sys.executable, "-c", hold, str(tmp_path)], check=False).returncode == 0


def test_a_second_writer_of_images_is_refused(build_of: Any, tmp_path: Path) -> None:
    build = build_of(tmp_path)
    build.run("manifest")
    folder = part_folder(tmp_path, Part())
    with only_writer(folder), pytest.raises(UserError, match="is being written by another process"):
        build.run("images")
    leftover = folder / ".images-00000.zip.0.tmp"  # of a writer that was killed
    leftover.touch()
    build.run("images")
    assert not leftover.exists()


@pytest.mark.slow
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
        output = Output(build.track.buckets[0].latents, {"shape": [4, 8, 8], "dtype": "float16"})
        seen.clear()
        for _ in range(20):
            try:
                build._encode(build.track.buckets[0], output, encode)
                break
            except KeyboardInterrupt:
                continue
        images = torch.cat([x for x in seen if len(x)])
        assert len(images) == wanted == len(images.unique(dim=0))
    assert sorted(Store(root / "vae_latents_lmdb_flip").keys()) == sorted(
        r["sample_id"] for r in csv.DictReader((root / "train_200k.csv").open())
    )


def test_a_finished_part_of_another_number_of_shards_does_not_count(built: Path, tmp_path: Path) -> None:
    root = copy_of(built, tmp_path)
    (root / "vae_latents_lmdb" / "manifest.json").unlink()
    with pytest.raises(UserError, match="not a finished cache"):
        Store(root / "vae_latents_lmdb")


@pytest.mark.slow
def test_parts_that_run_all_stages_leave_verifying_to_the_last(
    build_of: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(2):
        build_of(tmp_path / "cache", part=Part(i, 2)).run("all")
        said = capsys.readouterr().out
        assert ("other parts are not finished yet" in said) is (i == 0)
        assert (f"{TRAIN + VAL} samples are whole" in said) is (i == 1)


@pytest.mark.slow
def test_finished_images_need_no_source(built: Path, build_of: Any, tmp_path: Path) -> None:
    root = copy_of(built, tmp_path)
    build_of(root, f"data.images={tmp_path / 'gone'}", "data.flip=true").run("all")
    assert (root / "dino_tokens_lmdb_flip" / "manifest.json").exists()
