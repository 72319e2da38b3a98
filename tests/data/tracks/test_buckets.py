"""Photographs of several shapes: the bucket of each, its crop, and the content of the caches."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from shapes import SHAPES, write_shapes

from urepa.core.errors import UserError
from urepa.data.bucketed_cache import BucketedCache
from urepa.data.lists.bucket_shapes import BUCKETS, bucket_sizes, check_bucket_list, cut_to_aspect, nearest
from urepa.data.sources.decoding import dimensions, read
from urepa.data.stages.verify import Fault, verify

LISTED = [[8, 8], [6, 10], [10, 6]]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight photographs of each shape in either class."""
    return write_shapes(tmp_path_factory.mktemp("shapes") / "photos", 8)


class Pooled:
    """A teacher of mean colours on a grid with the image's proportions; a square's grid is 4x4."""

    width, grid, image_size, is_local = 3, (4, 4), 8, True

    def grid_at(self, shape: Any, side: int) -> tuple[int, int]:
        return round(4 * shape[0] / side), round(4 * shape[1] / side)

    def manifest(self, grid: tuple[int, int] | None = None) -> dict[str, Any]:
        return {"model": "pooled", "image_size": 8, "grid": list(grid or self.grid), "width": 3}

    def tokens(self, images_B3HW: torch.Tensor, grid: tuple[int, int] | None = None) -> Any:
        from urepa.core.types import Tokens

        pooled = F.adaptive_avg_pool2d(images_B3HW, grid or self.grid)
        return Tokens(F.normalize(pooled.flatten(2).transpose(1, 2), dim=-1), grid or self.grid)


@pytest.fixture(scope="module")
def bucketed(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A track's caches and its open cache with tokens: 48 photographs in three buckets."""
    track = settings(photos, tmp_path_factory.mktemp("bucketed"), buckets=LISTED).build()
    cache = track.open(Pooled())
    yield track, cache
    cache.close()


def settings(images: Path, root: Path, **changes: Any) -> Any:
    from urepa.data.tracks.pixel_track import PixelTrack

    known: dict[str, Any] = {"name": "folder", "root": str(root), "source": "folder", "images": str(images)}
    known |= {"limit": None, "validation_images": 6, "test_images": 6, "channels": 3, "image_size": 8}
    known |= {"unshuffle": 2, "scale": 1.0, "num_classes": 2, "cfg_dropout": 0.1, "build_on_first_use": True}
    return PixelTrack(**(known | changes))


# --- shapes by numbers --------------------------------------------------------------------------------------


def test_auto_is_the_square_and_two_rectangles_of_nearly_its_pixels() -> None:
    sizes = bucket_sizes("auto", 64)
    assert sizes == {"64x64": (64, 64), "48x80": (48, 80), "80x48": (80, 48)}
    assert all(abs(h * w / 64**2 - 1) < 0.07 for h, w in sizes.values())
    assert bucket_sizes(None, 64) == {"": (64, 64)}


@pytest.mark.parametrize(
    ("size", "bucket"),
    [
        ((100, 100), 0),
        ((60, 100), 1),
        ((100, 60), 2),
        ((100, 128), 0),
        ((100, 130), 1),
        ((3000, 4000), 1),
        ((10, 900), 1),
    ],
)
def test_the_nearest_aspect_is_by_ratio(size: tuple[int, int], bucket: int) -> None:
    """Between 1 and 5/3 the middle is √(5/3) = 1.291."""
    assert nearest(size, [(64, 64), (48, 80), (80, 48)]) == bucket
    assert nearest(size[::-1], [(64, 64), (80, 48), (48, 80)]) == bucket


@pytest.mark.parametrize(
    ("size", "bucket", "cut"),
    [
        ((100, 100), (64, 64), (100, 100)),
        ((100, 150), (64, 64), (100, 100)),
        ((100, 150), (48, 80), (90, 150)),
        ((90, 200), (48, 80), (90, 150)),
        ((200, 90), (80, 48), (150, 90)),
        ((1, 5), (80, 48), (1, 1)),
    ],
)
def test_the_cut_is_the_largest_rectangle_of_the_aspect(size: Any, bucket: Any, cut: Any) -> None:
    assert cut_to_aspect(size, bucket) == cut


@pytest.mark.parametrize(
    ("buckets", "words"),
    [
        ("squares", "give auto, or 1 to 16 pairs"),
        ([], "give auto, or 1 to 16 pairs"),
        ([[64]], "give auto, or 1 to 16 pairs"),
        ([[64, 0]], "give auto, or 1 to 16 pairs"),
        ([[64, 64.0]], "give auto, or 1 to 16 pairs"),
        ([[64, True]], "give auto, or 1 to 16 pairs"),
        ([64, 64], "give auto, or 1 to 16 pairs"),
        ([[4 * i, 4] for i in range(1, 18)], "give auto, or 1 to 16 pairs"),
        ([[64, 64], [64, 64]], "names a bucket twice"),
        ([[64, 64], [48, 82]], r"\[48,82\] is not a multiple of data.unshuffle=4"),
    ],
)
def test_invalid_lists_of_buckets_are_refused(buckets: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        check_bucket_list(buckets, 64, 4, "data.unshuffle")


def test_auto_needs_sides_whose_quarters_divide(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="must be a multiple of 16"):
        check_bucket_list("auto", 72, 4, "data.unshuffle")
    with pytest.raises(UserError, match="data.buckets needs data.source=folder"):
        settings(photos, tmp_path, buckets="auto", source="cifar_binary").check()


# --- what is made -------------------------------------------------------------------------------------------


def test_every_photograph_is_in_the_bucket_of_its_shape(bucketed: Any) -> None:
    track, cache = bucketed
    assert isinstance(cache, BucketedCache)
    assert [bucket.bucket for bucket in cache.buckets] == ["8x8", "6x10", "10x6"]
    for bucket, shape in zip(cache.buckets, SHAPES, strict=True):
        ids = [s.sample_id for samples in bucket.splits.values() for s in samples]
        assert len(ids) == 16
        assert all(f"_{shape}_" in i for i in ids), "also those that EXIF turns"
    counts = json.loads((track.folder / BUCKETS).read_text())
    assert {split: sum(one[split] for one in counts.values()) for split in ("train", "val", "test")} == {
        "train": 36,
        "val": 6,
        "test": 6,
    }
    assert {s: len(samples) for s, samples in cache.splits.items()} == {"train": 36, "val": 6, "test": 6}


def test_shapes_from_headers_equal_those_of_the_decoded_images(photos: Path) -> None:
    for file in sorted(photos.rglob("*.png")):
        assert dimensions(file) == read(file).shape[:2]


def test_x0_is_the_central_rectangle_of_the_photograph(bucketed: Any, photos: Path) -> None:
    """With PIL alone: a central crop, then an antialiased bilinear resize, up to one grey level."""
    track, cache = bucketed
    for bucket, (height, width) in zip(cache.buckets, LISTED, strict=True):
        samples = bucket.splits["train"]
        images = track.to_rgb(cache.x0(samples))
        assert images.shape[1:] == (3, height, width)
        for sample, image in zip(samples, images, strict=True):
            whole = Image.fromarray(read(photos / sample.path))
            wide = min(whole.width, round(whole.height * width / height))
            high = min(whole.height, round(whole.width * height / width))
            left, top = (whole.width - wide) // 2, (whole.height - high) // 2
            expected = whole.crop((left, top, left + wide, top + high)).resize(
                (width, height), Image.Resampling.BILINEAR
            )
            found = (image.permute(1, 2, 0) * 255).numpy()
            assert np.abs(found - np.asarray(expected, dtype=np.float32)).max() < 1.1


def test_tokens_are_those_of_the_same_rectangle(bucketed: Any) -> None:
    track, cache = bucketed
    for bucket, grid in zip(cache.buckets, ((4, 4), (3, 5), (5, 3)), strict=True):
        tokens = cache.teachers(bucket.splits["train"])[""]
        assert tokens.grid == bucket.grids[""] == grid
        images = track.to_rgb(cache.x0(bucket.splits["train"]))
        torch.testing.assert_close(tokens.x_BND.float(), Pooled().tokens(images, grid).x_BND, atol=2e-3, rtol=0)


def test_the_mean_token_is_that_of_all_training_tokens(bucketed: Any) -> None:
    _, cache = bucketed
    every = torch.cat(
        [cache.teachers(bucket.splits["train"])[""].x_BND.flatten(0, 1).double() for bucket in cache.buckets]
    )
    torch.testing.assert_close(cache.mean_token(), every.mean(0).float(), atol=1e-3, rtol=0)


def test_samples_of_two_shapes_are_not_read_together(bucketed: Any) -> None:
    _, cache = bucketed
    mixed = [bucket.splits["train"][0] for bucket in cache.buckets[:2]]
    assert [cache.bucket_of(s) for s in mixed] == list(cache.buckets[:2])
    with pytest.raises(AssertionError, match="one shape"):
        cache.x0(mixed)


@pytest.mark.slow
def test_content_does_not_depend_on_the_folder_but_on_the_buckets(bucketed: Any, photos: Path, tmp_path: Path) -> None:
    _, cache = bucketed
    again = settings(photos, tmp_path / "again", buckets=LISTED).build().open(Pooled())
    assert again.content() == cache.content()
    assert again.fingerprint()["samples"] == cache.fingerprint()["samples"]
    others = settings(photos, tmp_path / "others", buckets=[[8, 8], [6, 10]]).build().open(Pooled())
    assert others.content()["samples"] == cache.content()["samples"]
    assert others.content()["latents"] != cache.content()["latents"]
    assert set(again.content()) == set(cache.content()) == {"samples", "latents", "latents.held_out", "tokens"}
    again.close()
    others.close()


def test_one_bucket_of_squares_has_the_records_of_a_track_without(photos: Path, tmp_path: Path) -> None:
    plain = settings(photos, tmp_path / "plain").build().open(Pooled())
    bucket = settings(photos, tmp_path / "bucket", buckets=[[8, 8]]).build().open(Pooled())
    assert bucket.bucket == "8x8"
    assert plain.content() == bucket.content()
    plain.close()
    bucket.close()


def test_a_bucket_without_training_images_is_refused_by_name(photos: Path, tmp_path: Path) -> None:
    track = settings(photos, tmp_path, buckets=[*LISTED, [4, 30]]).build()
    with pytest.raises(
        UserError, match=r"nearest in aspect to 4x30 of data.buckets; give data.buckets='\[\[8,8\],\[6,10\],"
    ):
        track.open(None)
    assert not list(tmp_path.rglob("manifest.json"))


def test_auto_leaves_out_a_bucket_that_has_no_photograph(photos: Path, tmp_path: Path) -> None:
    for file in (*photos.rglob("square_*"), *photos.rglob("lying_*")):
        target = tmp_path / "some" / file.relative_to(photos)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())
    track = settings(tmp_path / "some", tmp_path / "root", buckets="auto", image_size=16).build()
    cache = track.open(None)
    assert [bucket.bucket for bucket in cache.buckets] == ["16x16", "12x20"]
    cache.close()
    again = settings(tmp_path / "some", tmp_path / "root", buckets="auto", image_size=16, build_on_first_use=False)
    assert len(again.build().open(None).buckets) == 2


@pytest.mark.slow
def test_a_killed_build_is_completed(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between the seals of two buckets, it ends as an uninterrupted build."""
    from urepa.data.tracks.pixel_bucket_caches import PixelBucket

    def kill(bucket: PixelBucket, samples: Any, seal: Callable[..., None] = PixelBucket.seal_latents) -> None:
        if bucket.name == "6x10":
            raise KeyboardInterrupt
        seal(bucket, samples)

    whole = settings(photos, tmp_path / "whole", buckets=LISTED).build().open(Pooled())
    killed = settings(photos, tmp_path / "killed", buckets=LISTED).build()
    with monkeypatch.context() as patch:
        patch.setattr(PixelBucket, "seal_latents", kill)
        with pytest.raises(KeyboardInterrupt):
            killed.open(Pooled())
    cache = killed.open(Pooled())
    assert cache.content() == whole.content()
    cache.close()
    whole.close()


def test_a_teacher_of_squares_is_refused_before_anything_is_made(photos: Path, tmp_path: Path, teacher: Any) -> None:
    track = settings(photos, tmp_path / "root", buckets=LISTED).build()
    with pytest.raises(UserError, match="takes square images only, but some images are 6x10"):
        track.open(teacher)
    assert not (tmp_path / "root").exists()


# --- verify -------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("view", ["as stored", "mirrored", "shifted", "sheared"])
def test_verify_sees_another_field_of_view_on_rectangles(view: str, tmp_path: Path) -> None:
    moved: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "as stored": lambda x: x,
        "mirrored": lambda x: x.flip(-1),
        "shifted": lambda x: x.roll(8, -1),
        "sheared": lambda x: torch.stack([row.roll(i // 2, -1) for i, row in enumerate(x.unbind(-2))], dim=-2),
    }

    class Moved(Pooled):
        def tokens(self, images_B3HW: torch.Tensor, grid: tuple[int, int] | None = None) -> Any:
            return super().tokens(moved[view](images_B3HW), grid)

    rng, root = np.random.default_rng(1), tmp_path / "photos"
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        for i in range(150):
            size = [(48, 80), (80, 48)][i % 2]
            small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
            small.resize(size[::-1], Image.Resampling.BICUBIC).save(root / name / f"{i:03d}.png")
    track = settings(root, tmp_path / "track", buckets=[[24, 40], [40, 24]], image_size=32).build()
    cache = track.open(Moved())
    for bucket in cache.buckets:
        if view == "as stored":
            verify(bucket.bucket, bucket)
        else:
            with pytest.raises(Fault, match="do not see the same field of view"):
                verify(bucket.bucket, bucket)
    cache.close()
