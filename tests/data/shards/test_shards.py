"""Shards of latents, image tokens and captions: into a track's stores and back, bit for bit, and what is refused."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shard_folders
import torch
from shard_folders import BUCKETS, EACH, LENGTH, WIDTH, encoder_at, images_of, npy, over, samples_of, write_bucket

from urepa.config.declared import declaration_of
from urepa.core.errors import UserError
from urepa.core.files import read_json
from urepa.data.lists.bucket_shapes import bucket_sizes
from urepa.data.lists.captions import EMPTY, caption_key
from urepa.data.shards.layout import ShardSizes, bucket_folder
from urepa.data.stages.exchange import Exchange
from urepa.data.stages.latent_statistics import channel_statistics
from urepa.data.stages.vae_config import LatentScaling
from urepa.data.stores.record_reading import Store

IMAGE_TOKENS = "image_tokens_efficientnet-lite0-s16_128_{}x{}"


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shard_folders.write_photographs(tmp_path_factory.mktemp("shards") / "photographs")


@pytest.fixture(scope="module")
def samples(photographs: Path) -> dict[str, list[dict[str, np.ndarray]]]:
    """The right arrays of each bucket's samples."""
    images = {name: images_of(photographs, name) for name in BUCKETS}
    return {name: samples_of(own, encoder_at(own)) for name, own in images.items()}


@pytest.fixture(scope="module")
def shards(samples: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("right") / "shards"
    for name, own in samples.items():
        write_bucket(root, name, own)
    return root


@pytest.fixture
def exchange(compose: Callable[..., Any], photographs: Path, tmp_path: Path) -> Callable[..., Exchange]:
    """exchange(webdataset, *overrides, root=tmp_path/"root"): the stages of a track."""

    def made(webdataset: Path | None, *more: str, root: Path = tmp_path / "root") -> Exchange:
        parts = compose(*over(photographs, root, *more), root="preprocess")
        given = None if webdataset is None else str(webdataset)
        declared = declaration_of(parts["data"]), declaration_of(parts["teacher"])
        return Exchange(*declared, given, 5, "encoder", 8)

    return made


def records(root: Path) -> dict[str, bytes]:
    """Every record of every store, and the lists."""
    found = {str(p.relative_to(root)): p.read_bytes() for p in (*root.rglob("*.csv"), *root.rglob("captions.jsonl"))}
    for file in root.rglob("manifest.json"):
        store = Store(file.parent)
        found |= {
            f"{file.parent.relative_to(root)}/{k}": store.tensor([k]).numpy().tobytes() for k in list(store.keys())
        }
        store.close()
    return found


# --- sizes --------------------------------------------------------------------------------------------------


def test_the_documented_buckets_have_as_many_patches_as_the_backbone_has_tokens(compose: Callable[..., Any]) -> None:
    parts = compose("data=nanodit", "data.images=x", "data.num_classes=1", root="preprocess")
    track = declaration_of(parts["data"])
    track.check()
    sizes = ShardSizes.of(track, Exchange(track, declaration_of(parts["teacher"]), None, None, None, 1).encoder)
    grids = {"1024x1024": (64, 64), "832x1216": (52, 76), "768x1280": (48, 80), "704x1344": (44, 84)}
    for name, grid in grids.items():
        height, width = name.split("x")
        assert sizes.grids[name] == grid
        assert sizes.grids[f"{width}x{height}"] == grid[::-1]
        assert sizes.shape("dinov3_patches.npy", name) == (grid[0] * grid[1], 1024)
        assert sizes.latents[name] == (16, 2 * grid[0], 2 * grid[1])  # patches of 2x2 latents
    assert sizes.patch == 16
    assert [512 + 1 + sizes.grids[name][0] * sizes.grids[name][1] for name in grids] == [4609, 4465, 4353, 4209]
    assert len(sizes.buckets) == 7
    assert all(side % 16 == 0 for size in bucket_sizes(track.buckets, 1024).values() for side in size)


# --- in and out ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_shards_fill_the_stores(exchange: Callable[..., Exchange], shards: Path, samples: Any) -> None:
    own = exchange(shards)
    own.run("read_shards")
    track = own.track.build()
    lists = track.samples()
    assert {split: len(rows) for split, rows in lists.items()} == {"train": 3 * EACH - 6, "val": 6}
    assert own.track.bucket_counts().keys() == BUCKETS.keys()
    text = Store(own.track.text_folder)
    assert text.count() == 3 * EACH + 1  # and the empty caption, of zeros
    assert not text.read([caption_key(EMPTY)]).any()
    for bucket in track.buckets:
        height, width = bucket.size
        latents = Store(bucket.latents)
        tokens = Store(bucket.folder / IMAGE_TOKENS.format(height // 16, width // 16))
        assert tokens.shape == (1 + height * width // 256, WIDTH)
        for i, arrays in enumerate(samples[bucket.name]):
            key = f"{bucket.name}_{i:02d}"
            assert np.array_equal(latents.read([key])[0], arrays["vae.npy"].astype(np.float32))
            record = tokens.read([key])[0]
            assert np.array_equal(record[0], arrays["dinov3.npy"].astype(np.float32))
            assert np.array_equal(record[1:], arrays["dinov3_patches.npy"].astype(np.float32))
            caption = own.track.build().captions.written([])[key][0]
            assert caption == f"a picture {i} of {bucket.name}"
            record = text.read([caption_key(caption)])[0]
            assert np.array_equal(record[: LENGTH * 8], arrays["t5h.npy"].astype(np.float32).reshape(-1))
            assert np.array_equal(record[LENGTH * 8 :], arrays["t5m.npy"])
        sums = np.load(tokens.folder / "statistics.npy")
        train = tokens.read([s.sample_id for s in bucket.samples()["train"]]).astype(np.float64)
        assert sums[0] == len(train)
        np.testing.assert_allclose(sums[2 : 2 + WIDTH], train[:, 0].sum(0))
        np.testing.assert_allclose(sums[-WIDTH:], (train[:, 1:] ** 2).sum((0, 1)))


@pytest.mark.slow
def test_a_track_that_shards_filled_is_opened_for_training(exchange: Callable[..., Exchange], shards: Path) -> None:
    own = exchange(shards)
    own.run("read_shards")
    cache = own.track.build().open(None)
    assert [bucket.bucket for bucket in cache.buckets] == list(BUCKETS)
    for bucket in cache.buckets:
        batch = list(bucket.splits["train"][:2])
        assert tuple(bucket.x0(batch).shape[1:]) == own.track.shape_of(BUCKETS[bucket.bucket])
        assert bucket.conditions.of_samples(batch).parts["text"].value.shape == (2, LENGTH, 8)
    cache.close()


@pytest.mark.slow
def test_stores_written_as_shards_and_read_again_are_equal(
    exchange: Callable[..., Exchange], shards: Path, tmp_path: Path
) -> None:
    own = exchange(shards)
    own.run("read_shards")
    out = tmp_path / "out"
    exchange(out).run("write_shards")
    names = sorted(str(p.relative_to(out)) for p in out.rglob("*.tar"))
    assert "train/bucket_160x96/shard-000000.tar" in names  # columns x rows, five samples a shard
    for place, bucket in ((p, b) for b in own.track.build().buckets for p in out.glob(f"*/{bucket_folder(b.size)}")):
        count = len(bucket.samples()[place.parent.name])
        assert len(list(place.glob("*.tar"))) == -(-count // 5)
    again = tmp_path / "again"
    exchange(out, root=again).run("read_shards")
    before, after = records(tmp_path / "root"), records(again)
    assert before.keys() == after.keys()
    assert {name for name in before if before[name] != after[name]} == set()


@pytest.mark.slow
def test_an_export_that_was_killed_goes_on(exchange: Callable[..., Exchange], shards: Path, tmp_path: Path) -> None:
    exchange(shards).run("read_shards")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    exchange(whole).run("write_shards")
    shutil.copytree(whole, killed)
    manifest = killed / "manifest.json"
    manifest.rename(killed / "begun.json")
    lost = killed / "train" / "bucket_128x128" / "shard-000001.tar"
    lost.unlink()
    kept = killed / "train" / "bucket_128x128" / "shard-000000.tar"
    time = kept.stat().st_mtime_ns
    exchange(killed).run("write_shards")
    assert kept.stat().st_mtime_ns == time
    contents = [{p.relative_to(r): p.read_bytes() for p in r.rglob("*.*") if p.is_file()} for r in (whole, killed)]
    assert contents[0] == contents[1]
    with pytest.raises(UserError, match="killed is not empty; give a new folder"):
        exchange(killed).run("write_shards")


@pytest.mark.slow
def test_ids_with_dots_and_slashes_are_kept(exchange: Callable[..., Exchange], samples: Any, tmp_path: Path) -> None:
    def rename(key: str, members: dict[str, bytes]) -> None:
        members["json"] = json.dumps(json.loads(members["json"]) | {"id": f"a/{key}.jpg"}).encode()

    write_bucket(tmp_path / "in", "128x128", samples["128x128"], rename)
    exchange(tmp_path / "in").run("read_shards")
    exchange(tmp_path / "out").run("write_shards")
    exchange(tmp_path / "out", root=tmp_path / "again").run("read_shards")
    before, after = records(tmp_path / "root"), records(tmp_path / "again")
    assert "128x128/vae_latents_lmdb/a/128x128_00.jpg" in before
    assert before == after


@pytest.mark.slow
def test_latents_are_converted_to_the_scale_of_the_vae(
    exchange: Callable[..., Exchange], shards: Path, samples: Any, tmp_path: Path
) -> None:
    """The manifest says how the shards' latents are scaled, and data.vae's config how x0 is."""
    scaled = Path(shutil.copytree(shards, tmp_path / "scaled"))
    (scaled / "manifest.json").write_text(json.dumps({"latents": {"scaling_factor": 0.5, "shift_factor": 0.1}}))
    (tmp_path / "vae").mkdir()
    mean, std = [0.1, 0.2, 0.3, 0.4], [1.0, 2.0, 3.0, 4.0]
    config = {"_class_name": "AutoencoderKL", "latent_channels": 4, "scaling_factor": 1.0}
    (tmp_path / "vae" / "config.json").write_text(json.dumps(config | {"latents_mean": mean, "latents_std": std}))
    own = exchange(scaled, f"data.vae={tmp_path / 'vae'}")
    own.run("read_shards")
    bucket = own.track.build().buckets[0]
    x0 = samples["128x128"][0]["vae.npy"].astype(np.float64)
    z = x0 / 0.5 + 0.1
    expected = (z - np.array(mean)[:, None, None]) / np.array(std)[:, None, None]
    np.testing.assert_allclose(Store(bucket.latents).read(["128x128_00"])[0], expected, rtol=2e-3, atol=1e-3)
    assert Store(bucket.latents).manifest["latents_std"] == std
    own.track.build().open(None).close()  # its manifest is that of data.vae


# --- statistics ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_statistics_are_those_of_all_training_latents(
    exchange: Callable[..., Exchange], shards: Path, tmp_path: Path
) -> None:
    scaled = Path(shutil.copytree(shards, tmp_path / "scaled"))
    (scaled / "manifest.json").write_text(json.dumps({"latents": {"scaling_factor": 0.5, "shift_factor": 0.1}}))
    own = exchange(scaled)
    own.run("read_shards")
    exchange(None).run("statistics")
    root = Path(own.track.root)
    buckets = own.track.build().buckets
    values = [Store(b.latents).read([s.sample_id for s in b.samples()["train"]]) for b in buckets]
    flat = np.concatenate([v.transpose(1, 0, 2, 3).reshape(4, -1) for v in values], axis=1).astype(np.float64)
    found = read_json(root / "latent_statistics.json")
    np.testing.assert_allclose(found["x0"]["mean"], flat.mean(1))
    np.testing.assert_allclose(found["x0"]["std"], flat.std(1))
    config = read_json(root / "vae_normalised" / "config.json")
    scaling = LatentScaling.of(config, "vae")
    z = torch.from_numpy(flat / 0.5 + 0.1)[None, :, None]
    x0 = scaling.to_x0(z)
    np.testing.assert_allclose(x0.mean((0, 2, 3)), np.zeros(4), atol=1e-6)
    np.testing.assert_allclose(x0.std((0, 2, 3), correction=0), np.ones(4), atol=1e-6)
    again = exchange(scaled, f"data.vae={root / 'vae_normalised'}", root=tmp_path / "normalised")
    again.run("read_shards")
    latents = (Store(b.latents).read([s.sample_id for s in b.samples()["train"]]) for b in again.track.build().buckets)
    mean_C, std_C, count = channel_statistics(latents)
    assert count == 3 * EACH - 6
    np.testing.assert_allclose(mean_C, 0, atol=1e-3)
    np.testing.assert_allclose(std_C, 1, atol=1e-3)


# --- what is refused ----------------------------------------------------------------------------------------


def broken(name: str, content: Callable[[bytes], bytes | None]) -> Callable[[str, dict[str, bytes]], None]:
    """A change of one member of the sample number 3; None removes it."""

    def change(key: str, members: dict[str, bytes]) -> None:
        if key.endswith("_03"):
            after = content(members[name])
            members.pop(name)
            members |= {} if after is None else {name: after}

    return change


def with_facts(**facts: Any) -> Callable[[bytes], bytes]:
    return lambda content: json.dumps(json.loads(content) | facts).encode()


def mapped(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[bytes], bytes]:
    import io

    return lambda content: npy(change(np.load(io.BytesIO(content))))


def objects(content: bytes) -> bytes:
    return npy(np.array([{"a": 1}], dtype=object)) if content else pickle.dumps(1)


FAULTS = {
    "patches": (
        broken("dinov3_patches.npy", mapped(lambda x: x[:-1])),
        r"03.dinov3_patches.npy\] has the shape \[63,112\], not \[64,112\]: 128x128 has 8x8 patches of 16 pixels",
    ),
    "width": (broken("dinov3.npy", mapped(lambda x: x[:5])), r"03.dinov3.npy\] has the shape \[5\], not \[112\]"),
    "latent": (broken("vae.npy", mapped(lambda x: x[:, 1:])), r"vae.npy\] has the shape \[4,15,16\], not \[4,16,16\]"),
    "mask": (broken("t5m.npy", mapped(lambda x: x[1:])), r"t5m.npy\] has the shape \[5\], not \[6\]"),
    "mask values": (broken("t5m.npy", mapped(lambda x: x * 2)), "has other values than 0 and 1"),
    "mask type": (broken("t5m.npy", mapped(lambda x: x.astype(float))), "is of type float64; give one of bool, uint8"),
    "type": (broken("vae.npy", mapped(lambda x: x.astype(np.float64))), "is of type float64; give one of float16"),
    "nan": (broken("t5h.npy", mapped(lambda x: x * np.float16("nan"))), "t5h.npy.* not finite in fp16"),
    "large": (broken("vae.npy", mapped(lambda x: x.astype(np.float32) + 1e6)), "vae.npy.* not finite in fp16"),
    "pickle": (broken("vae.npy", objects), "vae.npy.* is not an .npy file of numbers .*allow_pickle=False"),
    "cut": (broken("vae.npy", lambda content: content[:90]), "vae.npy.* is not an .npy file of numbers"),
    "no caption": (broken("json", lambda _: b"{}"), "03.json.* has none of text, caption, captions"),
    "captions": (broken("json", with_facts(caption=["a", "b"])), "03.json.* must have one caption"),
    "not JSON": (broken("json", lambda _: b"{"), "03.json.* is not JSON"),
    "bucket": (
        broken("json", with_facts(aspect_bucket="96x160")),
        "says aspect_bucket '96x160', and lies in bucket_128",
    ),
    "class": (broken("json", with_facts(class_id=4)), "has the class_id 4; data.num_classes=1"),
    "id": (broken("json", with_facts(id="128x128_02")), "have the same id '128x128_02'; keep one"),
    "long id": (broken("json", with_facts(id="x" * 500)), "does not fit; give 1 to 400 printable bytes"),
    "equal captions": (broken("json", with_facts(caption="a picture 2 of 128x128")), "same caption and differ"),
    "missing": (broken("t5m.npy", lambda _: None), r"1 incomplete samples \(train 1 without t5m.npy; first: .*_03\]\)"),
}


@pytest.mark.fast(8)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_sample_is_refused(
    exchange: Callable[..., Exchange], samples: Any, tmp_path: Path, fault: str
) -> None:
    change, said = FAULTS[fault]
    write_bucket(tmp_path / "in", "128x128", samples["128x128"], change)
    with pytest.raises(UserError, match=said) as refused:
        exchange(tmp_path / "in", "data.max_skipped=0").run("read_shards")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "root" / "buckets.json").exists()


@pytest.mark.slow
def test_incomplete_samples_are_counted_by_split_and_member(
    exchange: Callable[..., Exchange], samples: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def drop(key: str, members: dict[str, bytes]) -> None:
        for number, names in ((1, ["vae.npy"]), (2, ["vae.npy", "t5h.npy"]), (5, ["dinov3_patches.npy"])):
            for name in names if key.endswith(f"_{number:02d}") else ():
                members.pop(name)

    write_bucket(tmp_path / "in" / "train", "128x128", samples["128x128"], drop)
    write_bucket(tmp_path / "in" / "val", "96x160", samples["96x160"], drop)
    counts = ["train 1 without dinov3_patches.npy, train 1 without t5h.npy, train 2 without vae.npy"]
    counts += ["val 1 without dinov3_patches.npy, val 1 without t5h.npy, val 2 without vae.npy"]
    said = rf"6 incomplete samples \({', '.join(counts)}; .*data.max_skipped=0.25"
    with pytest.raises(UserError, match=said):
        exchange(tmp_path / "in", "data.max_skipped=0.2").run("read_shards")
    own = exchange(tmp_path / "in", "data.max_skipped=0.25")
    own.run("read_shards")
    assert "left out: 6 incomplete samples" in capsys.readouterr().out
    assert {split: len(rows) for split, rows in own.track.build().samples().items()} == {"train": 9, "val": 9}


@pytest.mark.parametrize(
    ("manifest", "said"),
    [
        ({"crop": "center"}, r"manifest.json says that the image tokens are of a crop \('center'\)"),
        ({"latents": 0.5}, "manifest.json: its latents is a JSON float"),
        ({"latents": {"shift_factor": 1}}, r"its latents are not constants of a VAE \(KeyError\('scaling_factor'\)\)"),
        ({"image_encoder": {"crop": "center"}}, "manifest.json says that the image tokens are of a crop"),
        ({"patch": 14}, "manifest.json says patches of 14 pixels; those of data and teacher have 16"),
    ],
)
def test_shards_whose_manifest_says_another_view_are_refused(
    exchange: Callable[..., Exchange], samples: Any, tmp_path: Path, manifest: dict[str, Any], said: str
) -> None:
    write_bucket(tmp_path / "in", "128x128", samples["128x128"][:2])
    (tmp_path / "in" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=said):
        exchange(tmp_path / "in").run("read_shards")


@pytest.mark.slow
def test_folders_that_do_not_fit_are_refused(
    exchange: Callable[..., Exchange], shards: Path, samples: Any, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="bucket_160x96 is a bucket that data.buckets does not have .*add \\[96,160\\]"):
        exchange(shards, "data.buckets=[[128,128],[160,96]]").run("read_shards")
    with pytest.raises(UserError, match="is not a folder here"):
        exchange(tmp_path / "none").run("read_shards")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"has no bucket_WxH/\*.tar"):
        exchange(tmp_path / "empty").run("read_shards")
    with pytest.raises(UserError, match="the shards have no record of the empty caption"):
        exchange(shards, "data.text_encoder.null_text=empty").run("read_shards")
    with pytest.raises(UserError, match="are all for training: give data.val_images=N"):
        exchange(shards, "data.val_images=null").run("read_shards")
    with pytest.raises(UserError, match="give data.train_images=null"):
        exchange(shards, "data.train_images=4").run("read_shards")
    with pytest.raises(UserError, match="no moments; give data.moments=false"):
        exchange(shards, "data.moments=true").run("read_shards")
    exchange(shards).run("read_shards")
    with pytest.raises(UserError, match=r"train.csv and .*val.csv exist already; give another data.root"):
        exchange(shards).run("read_shards")


def test_a_member_that_leads_out_of_the_shard_is_refused(exchange: Callable[..., Exchange], tmp_path: Path) -> None:
    shard_folders.write_shard(tmp_path / "in" / "bucket_128x128" / "a.tar", [("../x.json", b"{}")])
    with pytest.raises(UserError, match=r"has a member ../x.json, which is not a path inside the shard"):
        exchange(tmp_path / "in").run("read_shards")
    assert not (tmp_path / "x.json").exists()
