"""The identity of data wherever they are stored: digests of samples and records, computed by hand."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest

from urepa.data.cache import Cache, mirrored_folder
from urepa.data.stores.lmdb_store import StoreWriter
from urepa.data.stores.sealing import add_digests


def content_by_hand(cache: Cache, split_names: list[str], store: Path | None) -> str:
    rows = []
    for s in (s for split in split_names for s in cache.splits[split]):
        row = hashlib.blake2b(f"{s.sample_id}\0{s.class_id}\0{s.split}".encode(), digest_size=16).digest()
        words = np.frombuffer(row, "<u8").tolist()
        if store is not None:
            with lmdb.open(str(store), readonly=True, lock=False) as env, env.begin() as txn:
                record = txn.get(s.sample_id.encode())
            words += np.frombuffer(hashlib.blake2b(record, digest_size=16).digest(), "<u8").tolist()
        rows.append(words)
    return hashlib.blake2b(np.array(sorted(rows), "<u8").tobytes(), digest_size=16).hexdigest()


@pytest.mark.slow
def test_content_is_of_samples_and_records(make_track: Any, teacher: Any) -> None:
    track = make_track(flip=True)
    cache = track.open(teacher)
    tokens, every = track.tokens_folders(teacher)[""], ["train", "val", "test"]
    assert cache.content() == {
        "samples": content_by_hand(cache, every, None),
        "latents": content_by_hand(cache, every, track.folder / "latents"),
        "latents.held_out": content_by_hand(cache, ["val", "test"], track.folder / "latents"),
        "latents.flip": content_by_hand(cache, ["train"], mirrored_folder(track.folder / "latents")),
        "tokens": content_by_hand(cache, every, tokens),
        "tokens.flip": content_by_hand(cache, ["train"], mirrored_folder(tokens)),
    }
    assert cache.fingerprint()["content"] == cache.content()
    cache.tokens["other"] = cache.tokens.pop("")
    stores = {"latents", "latents.held_out", "latents.flip", "tokens.other", "tokens.other.flip"}
    assert set(cache.content()) == {"samples"} | stores
    cache.close()


@pytest.mark.slow
def test_content_depends_on_everything_but_place_and_order(built: Path, build_of: Any, tmp_path: Path) -> None:
    def content(change: Callable[[Path], Any]) -> dict[str, str]:
        root = Path(shutil.copytree(built, tmp_path / f"cache{len(list(tmp_path.iterdir()))}"))
        (root / "track.json").unlink()  # which would refuse another list
        change(root)
        build = build_of(root)
        cache = build.track.open(build.teacher)
        cache.close()
        return cache.content()

    def edited(edit: Callable[[list[str]], list[str]]) -> Callable[[Path], Any]:
        def change(root: Path) -> None:
            head, *rows = (root / "train_200k.csv").read_text().splitlines()
            (root / "train_200k.csv").write_text("\n".join([head, *edit(rows)]) + "\n")

        return change

    def rewritten(root: Path) -> None:
        with StoreWriter(root / "vae_latents_lmdb") as writer:
            writer.put([("train_china_0003", np.ones((4, 8, 8)))])
        add_digests(root / "vae_latents_lmdb")

    plain = content(lambda root: None)
    assert set(plain) == {"samples", "latents", "latents.held_out", "tokens"}
    assert content(edited(lambda rows: rows[::-1])) == plain
    assert content(edited(lambda rows: [row.replace(".png", ".jpg") for row in rows])) == plain
    fewer = content(edited(lambda rows: rows[1:]))
    other_class = content(edited(lambda rows: [rows[0].replace(",0,", ",1,"), *rows[1:]]))
    other_split = content(edited(lambda rows: [rows[0].replace(",train", ",val"), *rows[1:]]))
    for other in (fewer, other_class, other_split):
        assert {key for key in plain if other[key] == plain[key]} == {"latents.held_out"}
    other_record = content(rewritten)
    assert {key for key in plain if other_record[key] != plain[key]} == {"latents"}


@pytest.mark.slow
def test_the_content_of_online_encoders_is_that_of_their_images(built: Path, build_of: Any) -> None:
    build = build_of(built, "data.online_latents=true", "data.online_teacher=true")
    cache = build.track.open(build.teacher)
    content, images = cache.content(), cache.images
    assert images is not None
    assert set(content) == {"samples", "images"}
    images._places["crc32"][5] ^= 1
    assert cache.content()["images"] != content["images"]
    assert cache.content()["samples"] == content["samples"]
    cache.close()
