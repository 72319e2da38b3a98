"""Mirror images: one draw per sample for image and teacher, in training only, and no other draw changes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from class_ids import ids_of
from earlier import without_digests

from urepa.core.errors import UserError
from urepa.core.types import Batch
from urepa.data.cache import Cache, mirrored_folder
from urepa.data.class_conditions import ClassConditions
from urepa.data.lists.samples import read_split
from urepa.data.reader import Layout, TrainingReader, ValidationReader
from urepa.data.stages import verify
from urepa.data.stages.encode import vae_encoder
from urepa.data.stages.image_archives import ImageArchive
from urepa.data.stores.lmdb_store import Part, StoreWriter
from urepa.method.objectives.ddpm_math import VelocityMath

OBJECTIVE = VelocityMath(0.00085, 0.012, "linear", 1000)


def reader(cache: Cache, *, layout: Layout | None = None, seed: int = 0) -> TrainingReader:
    cache = replace(cache, conditions=ClassConditions.withheld_with(0.5))
    return TrainingReader(cache, OBJECTIVE, Layout(8) if layout is None else layout, seed)


def joined(batches: list[Batch]) -> dict[str, Any]:
    tensors = {name: torch.cat([getattr(b, name) for b in batches]) for name in ("x0", "noise", "t_B", "teacher_BND")}
    return tensors | {
        "ids": [i for b in batches for i in b.ids],
        "classes": torch.cat([ids_of(b.condition, 3) for b in batches]),
    }


def same(one: dict[str, Any], other: dict[str, Any], *names: str) -> bool:
    return all(one[n] == other[n] if n == "ids" else torch.equal(one[n], other[n]) for n in names or one)


def by_orientation(batch: Batch) -> dict[bool, list[int]]:
    """Positions of the plain and of the mirrored samples."""
    mirrored = [i.endswith("/flip") for i in batch.ids]
    return {m: [i for i, is_m in enumerate(mirrored) if is_m is m] for m in (False, True)}


@pytest.fixture
def both(make_track: Callable[..., Any], teacher: Any) -> Any:
    """both(**changes): the batches of three steps with and without flips, and the track."""

    def read(**changes: Any) -> tuple[list[Batch], list[Batch], Any]:
        out = []
        for flip in (True, False):
            track = make_track(flip=flip, **changes)
            cache = track.open(teacher)
            out.append([reader(cache).read(step)[0] for step in range(3)])
            cache.close()
        return (*out, track)

    return read


# --- the pairs that reach the loss -------------------------------------------------------------------------


@pytest.mark.parametrize("unshuffle", [2, 1], ids=["for a U-Net", "for a SiT"])
@pytest.mark.parametrize("online", [False, True], ids=["cached", "online"])
def test_a_mirrored_image_comes_with_the_mirrored_images_tokens(both: Any, online: bool, unshuffle: int) -> None:
    """With mean colours of quarters as tokens, the mirrored image's tokens are known in closed form."""
    flipped, plain, track = both(online_teacher=online, unshuffle=unshuffle)
    seen = {False: 0, True: 0}
    for batch, usual in zip(flipped, plain, strict=True):
        assert batch.teacher_BND is not None
        assert usual.teacher_BND is not None
        images, before = (F.pixel_shuffle(x, track.settings.unshuffle) for x in (batch.x0, usual.x0))
        grids, grids_before = (x.float().unflatten(1, (2, 2)) for x in (batch.teacher_BND, usual.teacher_BND))
        for mirrored, at in by_orientation(batch).items():
            seen[mirrored] += len(at)
            assert torch.equal(images[at], before[at].flip(-1) if mirrored else before[at])
            expected = grids_before[at].flip(2) if mirrored else grids_before[at]
            torch.testing.assert_close(grids[at], expected, rtol=0, atol=1e-3)
        assert not torch.equal(batch.x0, usual.x0)
    assert min(seen.values()) > 5


@pytest.mark.fast(1)
@pytest.mark.parametrize("online", ["", "teacher", "latents", "teacher latents"])
def test_latents_and_tokens_are_the_networks_own_of_the_mirrored_photograph(
    built_with_flips: Path, material: Path, build_of: Any, online: str
) -> None:
    """Cached or computed online, as the training loop gets them."""
    build = build_of(built_with_flips, "data.flip=true", *(f"data.online_{what}=true" for what in online.split()))
    cache = build.track.open(build.teacher)
    (batch,) = next(reader(cache, layout=Layout(16)).stream(0, 1))
    cache.close()
    encode, _ = vae_encoder(str(material / "sd"), moments=False)
    photos = ImageArchive(built_with_flips)([i.removesuffix("/flip") for i in batch.ids])
    at = by_orientation(batch)
    assert min(map(len, at.values())) > 2
    photos[at[True]] = photos[at[True]].flip(-1)
    assert batch.teacher_BND is not None
    np.testing.assert_allclose(batch.x0, encode((photos * 255).round()), atol=2e-3)
    np.testing.assert_allclose(batch.teacher_BND.float(), build.teacher.tokens(photos).x_BND, atol=2e-3)


# --- the draw ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_flips_change_no_other_draw(both: Any) -> None:
    for flipped, plain in zip(*both()[:2], strict=True):
        assert [i.removesuffix("/flip") for i in flipped.ids] == plain.ids
        assert same(joined([flipped]), joined([plain]), "noise", "t_B", "classes")


@pytest.mark.slow
def test_a_run_without_flips_reads_the_same_beside_them(make_track: Callable[..., Any], teacher: Any) -> None:
    seen = []
    for flips in (False, True):
        if flips:
            make_track(flip=True).open(teacher).close()
        cache = make_track().open(teacher)
        seen.append([joined(reader(cache).read(step)) for step in range(3)])
        means = cache.mean_token()
        cache.close()
    assert all(same(a, b) for a, b in zip(*seen, strict=True))
    cache = make_track(flip=True).open(teacher)
    assert torch.equal(cache.mean_token(), means)
    cache.close()


@pytest.mark.slow
@pytest.mark.parametrize(("world", "accumulation"), [(2, 1), (2, 2), (8, 1)])
def test_every_layout_mirrors_the_same_samples(
    make_track: Callable[..., Any], teacher: Any, world: int, accumulation: int
) -> None:
    cache = make_track(flip=True).open(teacher)
    for step in (0, 4):
        parts = [reader(cache, layout=Layout(8, accumulation, rank, world)).read(step) for rank in range(world)]
        in_order = [parts[rank][micro] for micro in range(accumulation) for rank in range(world)]
        assert same(joined(in_order), joined(reader(cache).read(step)))
    cache.close()


@pytest.mark.slow
def test_half_of_the_samples_are_mirrored_and_not_the_same_ones_each_time(
    make_track: Callable[..., Any], teacher: Any
) -> None:
    cache = make_track(flip=True).open(teacher)
    steps = [reader(cache).read(step)[0].ids for step in range(60)]
    cache.close()
    assert len({tuple(i.endswith("/flip") for i in ids) for ids in steps}) > 40
    ids = [i for step in steps for i in step]
    assert np.mean([i.endswith("/flip") for i in ids]) == pytest.approx(0.5, abs=0.07)
    names = {i.removesuffix("/flip") for i in ids}
    assert {i.removesuffix("/flip") for i in ids if i.endswith("/flip")} == names == set(ids) & names


@pytest.mark.slow
def test_a_stream_reads_flips_into_its_own_memory(make_track: Callable[..., Any], teacher: Any) -> None:
    cache = make_track(flip=True).open(teacher)
    direct = [joined(reader(cache).read(step)) for step in range(7)]
    streamed = [joined(batches) for batches in reader(cache).stream(0, 7)]
    cache.close()
    assert all(same(a, b) for a, b in zip(streamed, direct, strict=True))


def test_validation_is_never_mirrored(make_track: Callable[..., Any], teacher: Any) -> None:
    read = []
    for flip in (True, False):
        cache = make_track(flip=flip).open(teacher)
        read.append(joined([ValidationReader(cache, OBJECTIVE, 3).read(i) for i in range(2)]))
        cache.close()
    assert same(*read)
    keys = set(make_track(flip=True).open(None).latents.mirror.keys())  # nor are there mirror images to read
    assert keys == {s.sample_id for s in cache.splits["train"]}


# --- what is there and what is not -------------------------------------------------------------------------


def test_without_the_mirror_images_a_run_is_refused_with_the_command_that_makes_them(
    built: Path, built_with_flips: Path, build_of: Any, make_track: Callable[..., Any], teacher: Any
) -> None:
    build = build_of(built, "data.flip=true")
    words = f"no cache at .*vae_latents_lmdb_flip; make it with `python -m urepa.preprocess .*{built} data.flip=true`"
    with pytest.raises(UserError, match=words):
        build.track.open(build.teacher)
    make_track().open(teacher).close()
    with pytest.raises(UserError, match="no cache at .*latents_flip; run `python -m urepa.preprocess .*same data"):
        make_track(flip=True, build_on_first_use=False).open(teacher)
    plain = build_of(built_with_flips)
    cache = plain.track.open(plain.teacher)
    assert not cache.flips
    cache.close()


def test_mirror_images_of_another_teacher_are_refused(built_with_flips: Path, build_of: Any, tmp_path: Path) -> None:
    """The same name and size but other weights: the pairs would come from two teachers."""
    root = Path(shutil.copytree(built_with_flips, tmp_path / "cache", ignore=shutil.ignore_patterns("images")))
    file = root / "dino_tokens_lmdb_flip" / "manifest.json"
    manifest = json.loads(file.read_text())
    assert (manifest["flip"], manifest["teacher"]["flip"]) == ("horizontal", "horizontal")
    manifest["teacher"]["weights_sha256"] = "0" * 64
    file.write_text(json.dumps(manifest))
    build = build_of(root, "data.flip=true")
    with pytest.raises(UserError, match="lmdb_flip was made differently .teacher.weights_sha256: '000"):
        build.track.open(build.teacher)
    build_of(root).track.open(build.teacher).close()
    with pytest.raises(UserError, match="flip: 'horizontal' there, 'none' here"):
        build_of(root, "data.latents=vae_latents_lmdb_flip").track.open(None)


@pytest.mark.parametrize("unmirrored", ["latents", "tokens"])
def test_wrong_mirror_images_are_found(built_with_flips: Path, build_of: Any, tmp_path: Path, unmirrored: str) -> None:
    root = Path(shutil.copytree(built_with_flips, tmp_path / "cache"))
    build = build_of(root, "data.flip=true")
    store = {"latents": build.track.buckets[0].latents, "tokens": build.track.buckets[0].tokens}[unmirrored]
    shutil.copy(store / "data.mdb", mirrored_folder(store) / "data.mdb")
    without_digests(mirrored_folder(store))
    words = {"latents": "does not hold the mirror images", "tokens": "do not see the same field of view.*mirrored"}
    with pytest.raises(UserError, match=words[unmirrored]):
        build.run("verify")


@pytest.mark.slow
def test_a_small_tracks_flips_are_verified_too(
    make_track: Callable[..., Any], teacher: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    track = make_track(flip=True)
    cache = track.open(teacher)
    verify.verify("tiny", cache)
    assert "30 mirrored samples are whole" in capsys.readouterr().out
    cache.close()
    with StoreWriter(mirrored_folder(track.folder / "latents")) as writer:
        for s in read_split(track.folder / "train.csv"):
            writer.put([(s.sample_id, cache.x0([s])[0].numpy())])
    cache.close()
    without_digests(mirrored_folder(track.folder / "latents"))
    cache = track.open(teacher)
    with pytest.raises(UserError, match="latents_flip does not hold the mirror images of"):
        verify.verify("tiny", cache)
    cache.close()


@pytest.mark.slow
def test_flips_in_parts_and_adopted(built_with_flips: Path, build_of: Any, tmp_path: Path) -> None:
    sharded = tmp_path / "sharded"
    for stage in ("manifest", "images", "latents", "tokens"):
        for i in range(2):
            build_of(sharded, "data.flip=true", part=Part(i, 2)).run(stage)
    adopted = Path(shutil.copytree(built_with_flips, tmp_path / "adopted", ignore=shutil.ignore_patterns("images")))
    for name in ("manifest.json", "begun.json", "done.json"):
        for file in adopted.glob(f"*_lmdb*/{name}"):
            file.unlink()
    build_of(adopted, "data.flip=true").run("adopt")
    expected = []
    for root in (built_with_flips, sharded, adopted):
        build = build_of(root, "data.flip=true")
        cache = build.track.open(build.teacher)
        rows = [replace(s, mirrored=True) for s in cache.splits["train"]]
        expected.append((cache.x0(rows), cache.teacher_BND(rows)))
        cache.close()
    for x0, tokens in expected[1:]:
        torch.testing.assert_close(x0, expected[0][0], rtol=0, atol=2e-3)
        torch.testing.assert_close(tokens, expected[0][1], rtol=0, atol=2e-3)
