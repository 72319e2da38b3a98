"""Predicted cache sizes, compared with stores that are really built."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from photos import TRAIN, VAL, overrides

from urepa.core.errors import UserError
from urepa.data.stores.disk_sizes import cache_sizes, lmdb_bytes, reader_bytes
from urepa.data.stores.lmdb_store import StoreWriter
from urepa.data.stores.record_format import record_bytes
from urepa.training.assembly import build_part


@pytest.mark.fast(1)
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((4, 64, 64), "float16"), ((2, 4, 64, 64), "float16"), ((256, 256), "int8"), ((16, 1280), "float16")],
)
def test_a_stores_size_is_predicted(shape: tuple[int, ...], dtype: str, tmp_path: Path) -> None:
    keys = [f"n01440764_{i:05d}" for i in range(300)]
    with StoreWriter(tmp_path, dtype) as writer:
        for i in range(0, len(keys), 100):
            writer.put([(key, np.zeros(shape, dtype=np.float32)) for key in keys[i : i + 100]])
    there = (tmp_path / "data.mdb").stat().st_size
    assert lmdb_bytes(len(keys), record_bytes(shape, dtype)) == pytest.approx(there, rel=0.01)


def test_small_records_share_pages() -> None:
    assert lmdb_bytes(1000, 384) < 1000 * 4096 / 8
    assert lmdb_bytes(1000, 384) > 1000 * 384


def test_the_documents_overheads() -> None:
    """Measured over 2,000 samples: 12.7 % on latents, 0.8 % on tokens."""
    for shape, overhead in (((4, 64, 64), 0.127), ((256, 1024), 0.008)):
        length = record_bytes(shape, "float16")
        assert lmdb_bytes(2000, length) / (2000 * length) - 1 == pytest.approx(overhead, abs=0.001)


def test_the_digits_caches_are_predicted(compose: Callable[..., dict[str, Any]], small_run: list[str]) -> None:
    config = compose(*small_run)
    track, teacher = build_part(config["data"]), build_part(config["teacher"])
    sizes = {size.name: size for size in cache_sizes(track, teacher)}
    cache = track.open(teacher)
    assert {split: len(samples) for split, samples in cache.splits.items()} == track.expected_samples()
    for name, store in (("latents", cache.latents), ("tokens", cache.tokens[""])):
        assert (sizes[name].records, sizes[name].record_bytes) == (store.manifest["count"], store.record_bytes)
        if name == "tokens":  # the latents are smaller than a page
            assert sizes[name].disk_bytes == pytest.approx((store.folder / "data.mdb").stat().st_size, rel=0.05)
    cache.close()
    assert set(sizes) == {"latents", "tokens"}


def test_only_training_images_have_flips(compose: Callable[..., dict[str, Any]]) -> None:
    config = compose("+experiment=repa_imagenet256")
    sizes = {size.name: size.records for size in cache_sizes(build_part(config["data"]), build_part(config["teacher"]))}
    train, both = 1_281_167, 1_331_167
    assert sizes == {"latents": both, "latents_flip": train, "tokens": both, "tokens_flip": train}


@pytest.mark.fast(2)
@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["data=digits"], {"train": 1437, "val": 180, "test": 180}),
        (["data=cifar10"], {"train": 8000, "val": 1000, "test": 1000}),
        (["data=cifar10", "data.limit=null"], {"train": 49_000, "val": 1000, "test": 1000}),
        (["data=track_a"], {"train": 200_000, "val": 50_000}),
        (["data=track_a_minus"], {"train": 100_000, "val": 50_000}),
        (["data=track_b"], {"train": 1_281_167, "val": 50_000}),
        (["data=track_b", "data.val_images=1000"], {"train": 1_281_167, "val": 1000}),
    ],
)
def test_the_number_of_samples_is_known_before_a_build(
    compose: Callable[..., dict[str, Any]],
    overrides: list[str],
    expected: dict[str, int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert build_part(compose(*overrides)["data"]).expected_samples() == expected


def test_a_folder_of_images_is_counted(make_track: Callable[..., Any], teacher: Any) -> None:
    track = make_track()  # 36 training images, 12 that the publisher kept apart
    expected = track.expected_samples()
    assert expected == {"train": 30, "val": 6, "test": 6}
    cache = track.open(teacher)
    assert {split: len(samples) for split, samples in cache.splits.items()} == expected
    cache.close()


def test_a_folder_with_too_few_images_to_train_on_is_refused(make_track: Callable[..., Any]) -> None:
    said = r"there are 36 training images, and data.validation_images=36 leave none of them to train on: give fewer"
    with pytest.raises(UserError, match=said):
        make_track(validation_images=36).expected_samples()
    assert make_track(validation_images=35).expected_samples()["train"] == 1


@pytest.mark.slow
def test_an_existing_track_has_its_own_number_of_samples(
    material: Path, built: Path, compose: Callable[..., dict[str, Any]]
) -> None:
    config = compose(*overrides(material, built), "data.train_images=5", root="preprocess")
    assert build_part(config["data"]).expected_samples() == {"train": TRAIN, "val": VAL}


def test_an_unknown_hub_data_set_must_be_limited(make_track: Callable[..., Any]) -> None:
    track = make_track(source="hub", images="someone/pictures")
    with pytest.raises(UserError, match=r"data\.limit=N"):
        track.expected_samples()


def test_track_b_takes_what_the_document_says(compose: Callable[..., dict[str, Any]]) -> None:
    """672 GB of fp16 tokens for the training images, 341 GB in int8."""
    for dtype, gigabytes in (("float16", 672), ("int8", 341)):
        config = compose("data=track_b", f"data.token_dtype={dtype}")
        track, teacher = build_part(config["data"]), build_part(config["teacher"])
        tokens = next(size for size in cache_sizes(track, teacher) if size.name == "tokens")
        assert tokens.record_bytes * 1_281_167 / 1e9 == pytest.approx(gigabytes, rel=0.002)


def test_the_reader_holds_four_batches_of_tokens(compose: Callable[..., dict[str, Any]]) -> None:
    config = compose("data=track_a")
    track, teacher = build_part(config["data"]), build_part(config["teacher"])
    assert reader_bytes(track, teacher, 128) == 4 * 128 * 256 * 1024 * 2
    assert reader_bytes(track, None, 128) == 0
