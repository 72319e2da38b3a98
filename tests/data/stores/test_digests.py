"""Changes of a store's records after they were written are found."""

from __future__ import annotations

import hashlib
import json
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
from earlier import without_digests

from urepa.core.errors import UserError
from urepa.core.random_draws import digest64
from urepa.data.lists.samples import Keys, Samples
from urepa.data.stages import verify
from urepa.data.stores.lmdb_pages import Index, key_digests
from urepa.data.stores.lmdb_store import Part, StoreWriter, part_of, write_store
from urepa.data.stores.record_reading import Store
from urepa.data.stores.sealing import add_digests, digests_file
from urepa.data.tracks.pixel_caches import PixelTrackCaches
from urepa.data.tracks.pixel_track import PixelTrack

Damage = Callable[[Path], None]
OF_CRC = np.frombuffer((0x1DB710641).to_bytes(5, "little"), np.uint8)  # the polynomial: XOR with it keeps a crc


def changed(key: str, change: Callable[[np.ndarray], Any]) -> Damage:
    """Changes a record's bytes [B] in place in the file, by `change`."""

    def damage(store: Path) -> None:
        place = Index(store).find(key)
        assert place is not None
        data = np.memmap(store / "data.mdb", mode="r+")
        change(data[place[0] : sum(place)])
        data.flush()

    return damage


def some(change: Callable[[np.ndarray], Any]) -> Damage:
    """Applies `change` to a hundred records."""

    def damage(store: Path) -> None:
        for key in sorted(Store(store).keys())[200:300]:
            changed(key, change)(store)

    return damage


def zeroed(raw_B: np.ndarray) -> None:
    raw_B[:] = 0


def noise(raw_B: np.ndarray) -> None:
    """Noise of the same scale as the values."""
    values = np.frombuffer(raw_B.tobytes(), np.float16).astype(np.float32)
    rng = np.random.default_rng(0)
    raw_B[:] = np.frombuffer(
        rng.normal(values.mean(), values.std(), values.shape).astype(np.float16).tobytes(), np.uint8
    )


def one_bit(raw_B: np.ndarray) -> None:
    """Flips the lowest bit, which changes a value by a thousandth."""
    raw_B[len(raw_B) // 2 & ~1] ^= 1


def with_the_same_crc(raw_B: np.ndarray) -> None:
    before = zlib.crc32(raw_B)
    for at in range(0, len(raw_B) - 5):  # where the values stay finite
        raw_B[at : at + 5] ^= OF_CRC
        if np.isfinite(raw_B.view(np.float16)).all():
            break
        raw_B[at : at + 5] ^= OF_CRC
    assert zlib.crc32(raw_B) == before


def swapped(store: Path) -> None:
    a, b = (Index(store).find(key) for key in sorted(Store(store).keys())[:2])
    assert a is not None
    assert b is not None
    data = np.memmap(store / "data.mdb", mode="r+")
    first = data[a[0] : sum(a)].copy()
    data[a[0] : sum(a)] = data[b[0] : sum(b)]
    data[b[0] : sum(b)] = first
    data.flush()


def bit_of(name: str) -> Damage:
    def damage(store: Path) -> None:
        content = bytearray((store / name).read_bytes())
        content[-3] ^= 1
        (store / name).write_bytes(content)

    return damage


# --- what verify finds --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The latents of 1,797 digits."""
    root = tmp_path_factory.mktemp("digits")
    digits_below(root).open(None).close()
    return root


def digits_below(root: Path) -> PixelTrackCaches:
    settings = ("digits", str(root), "digits", "scikit-learn", None, 180, 180, 1, 8, 2, 1.0, 10, 0.1, True)
    return PixelTrack("", *settings, online_teacher=True).build()


LATENTS = {
    "100 zeroed": some(zeroed),
    "100 of noise": some(noise),
    "swapped": swapped,
    "a bit": changed("digits_0003", one_bit),
    "a bit of each of 100": some(one_bit),
    "the same crc32": changed("digits_0003", with_the_same_crc),
    "edited digests": bit_of("digests.npy"),
    "no digests": lambda store: (store / "digests.npy").unlink(),
}


@pytest.mark.slow
@pytest.mark.parametrize("damage", LATENTS)
def test_damaged_latents_are_found(
    digits: Path, tmp_path: Path, teacher: Any, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    track = digits_below(Path(shutil.copytree(digits, tmp_path / "digits")))
    look(track, teacher)
    assert "1797 latents are whole" in capsys.readouterr().out
    LATENTS[damage](track.folder / "latents")
    words = (
        "digests.npy is missing or is not the file that"
        if "digests" in damage
        else "record 'digits_.*' has changed since"
    )
    with pytest.raises(UserError, match=f"{track.folder}/latents.*{words}"):
        look(track, teacher)
    assert "whole" not in capsys.readouterr().out


def look(track: PixelTrackCaches, teacher: Any) -> None:
    cache = track.open(teacher)
    try:
        verify.verify("this", cache)
    finally:
        cache.close()


@pytest.mark.fast(3)
@pytest.mark.parametrize("flip", ["", "_flip"])
@pytest.mark.parametrize("damage", ["a bit", "swapped", "mean token"])
def test_damaged_tokens_are_found(make_track: Any, teacher: Any, damage: str, flip: str) -> None:
    track = make_track(flip=True)
    look(track, teacher)
    store = Path(f"{track.tokens_folders(teacher)['']}{flip}")
    damages = {
        "a bit": changed("train_dog_09", one_bit),
        "swapped": swapped,
        "mean token": bit_of("mean_token.npy"),
    }
    damages[damage](store)
    words = "mean_token.npy is not the file that manifest" if damage == "mean token" else ": record .* has changed"
    with pytest.raises(UserError, match=f"{store}.?{words}"):
        look(track, teacher)


@pytest.mark.slow
def test_training_refuses_what_verify_found(built: Path, build_of: Any, tmp_path: Path) -> None:
    build = build_of(Path(shutil.copytree(built, tmp_path / "cache")))
    changed("train_china_0003", zeroed)(build.track.buckets[0].latents)
    build.track.open(build.teacher).close()  # nobody has looked yet
    with pytest.raises(UserError, match="vae_latents_lmdb: record 'train_china_0003' has changed since"):
        build.run("verify")
    with pytest.raises(UserError, match="did not pass the stage `verify` .*record 'train_china_0003' has changed"):
        build.track.open(build.teacher)


def test_a_record_that_has_changed_is_not_read(digits: Path, tmp_path: Path) -> None:
    """The reader's check; the other records are read."""
    track = digits_below(Path(shutil.copytree(digits, tmp_path / "digits")))
    changed("digits_0003", one_bit)(track.folder / "latents")
    cache = track.open(None)
    every = [s for rows in cache.splits.values() for s in rows]
    cache.x0([s for s in every if s.sample_id != "digits_0003"])
    with pytest.raises(
        UserError, match=f"{track.folder}/latents: record 'digits_0003' has changed .*copy the store again, or"
    ):
        cache.x0(every)
    cache.close()


# --- what is written ----------------------------------------------------------------------------------------


def by_hand(*folders: Path) -> np.ndarray:
    """The expected content of digests.npy, read through LMDB itself."""
    rows = []
    for folder in folders:
        with lmdb.open(str(folder), readonly=True, lock=False) as env, env.begin() as txn:
            for key, value in txn.cursor():
                if not key.startswith(b"__"):
                    blake = np.frombuffer(hashlib.blake2b(value, digest_size=16).digest(), "<u8")
                    rows.append([digest64("key", key.decode()), zlib.crc32(value), *blake.tolist()])
    return np.array(sorted(rows), dtype="<u8").T


@pytest.mark.slow
def test_a_builds_digests_are_of_its_records(built_with_flips: Path) -> None:
    stores = sorted(built_with_flips.glob("*_lmdb*"))
    assert len(stores) == 4
    for store in stores:
        content = (store / "digests.npy").read_bytes()
        assert np.array_equal(np.load(store / "digests.npy"), by_hand(store))
        manifest = json.loads((store / "manifest.json").read_text())
        assert manifest["digests_sha256"] == hashlib.sha256(content).hexdigest()
        if "tokens" in store.name:
            mean = (store / "mean_token.npy").read_bytes()
            assert manifest["mean_token_sha256"] == hashlib.sha256(mean).hexdigest()


def values(seed: int, n: int = 6) -> list[tuple[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [(f"id{i}", rng.standard_normal((2, 3)).astype(np.float32)) for i in range(n)]


def test_the_last_digest_of_a_rewritten_record_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In one process or several, after twelve writes too, and if a put is interrupted."""
    for seed in range(6):
        with StoreWriter(tmp_path) as writer:
            writer.put(values(seed, 6 if seed == 0 else 4))
            writer.put(values(seed + 100, 3))
            with pytest.raises(ValueError, match="not finite"):
                writer.put([("id0", np.zeros(3)), ("id1", np.full(3, np.nan))])
    store = Store(tmp_path, {"shape": [2, 3], "dtype": "float16"})
    (tmp_path / "digests.npy").write_bytes(digests_file(store)["digests.npy"])
    assert capsys.readouterr().out == ""  # nothing had to be read
    assert np.array_equal(np.load(tmp_path / "digests.npy"), by_hand(tmp_path))
    store.close()


def test_rows_of_digests_are_not_read_as_records(tmp_path: Path) -> None:
    with StoreWriter(tmp_path) as writer:
        writer.put(values(0), add_to_sum=np.ones(4))
        assert writer.missing(["id0", "id9"]) == ["id9"]
    store = Store(tmp_path, {"shape": [2, 3], "dtype": "float16"})
    assert (store.count(), sorted(store.keys())) == (6, [f"id{i}" for i in range(6)])
    asked = Samples.of_rows((f"id{i}", 0, "", "train") for i in range(7))
    assert store.missing(Keys([asked])) == ["id6"]
    assert np.array_equal(store.token_sum(), np.ones(4))  # type: ignore[arg-type]
    store.close()


def test_the_digests_of_parts_lie_in_one_file(tmp_path: Path) -> None:
    parts = [Part(i, 3) for i in range(3)]
    for part in parts:
        with StoreWriter(tmp_path, part=part) as writer:
            writer.put([(key, value) for key, value in values(0, 40) if part.holds(key)])
    manifest = {"shape": [2, 3], "dtype": "float16", "parts": 3}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    add_digests(tmp_path)
    assert np.array_equal(np.load(tmp_path / "digests.npy"), by_hand(*(part.folder(tmp_path) for part in parts)))
    changed("id7", one_bit)(Part(part_of("id7", 3), 3).folder(tmp_path))
    store = Store(tmp_path)
    store.read([f"id{i}" for i in range(40) if i != 7])
    with pytest.raises(UserError, match="record 'id7' has changed"):
        store.read([f"id{i}" for i in range(40)])
    store.close()


# --- stores that are there already --------------------------------------------------------------------------


def files_of(root: Path) -> dict[str, bytes]:
    names = ("digests.npy", "manifest.json", "mean_token.npy")
    return {str(file.relative_to(root)): file.read_bytes() for name in names for file in root.rglob(name)}


def test_stores_of_an_earlier_version_are_read_and_get_the_same_digests(
    built_with_flips: Path, build_of: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = Path(shutil.copytree(built_with_flips, tmp_path / "cache"))
    expected = files_of(root)
    for store in root.glob("*_lmdb*"):
        without_digests(store)
    build = build_of(root, "data.flip=true")
    cache = build.track.open(build.teacher)
    cache.x0(cache.splits["train"])
    assert set(cache.content()) == {"samples"}
    cache.close()
    build.run("verify")
    said = capsys.readouterr().out
    words = "vae_latents_lmdb{0} and dino_tokens_lmdb{0} have no digests of records (stage=digest makes some"
    assert f"80 samples are there and finite, but not compared with what was written: {words.format('')}" in said
    assert (
        f"64 mirrored samples are there and finite, but not compared with what was written: {words.format('_flip')}"
        in said
    )
    assert "whole" not in said
    build.run("digest")
    said = capsys.readouterr().out
    assert "dino_tokens_lmdb_flip: 64 records have no digest; each gets one of its present content" in said
    assert files_of(root) == expected
    before = {file: file.stat().st_mtime_ns for file in root.rglob("*.npy")}
    build.run("digest")
    assert "no digest" not in capsys.readouterr().out
    assert {file: file.stat().st_mtime_ns for file in before} == before
    build.run("verify")
    assert "80 samples are whole" in capsys.readouterr().out


def test_a_small_track_gets_digests_too(make_track: Any, teacher: Any, capsys: pytest.CaptureFixture[str]) -> None:
    track = make_track(flip=True)
    track.open(teacher).close()
    expected = files_of(track.folder)
    for store in track.store_folders(teacher):
        without_digests(store)
    track.make(teacher, "digest")
    said = capsys.readouterr().out
    assert [said.count(f"{s.name}: every record has a digest") for s in track.store_folders(teacher)] == [1] * 4
    assert files_of(track.folder) == expected


@pytest.mark.slow
def test_a_store_that_an_earlier_version_began_is_finished_with_all_digests(
    built: Path, build_of: Any, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(built, tmp_path / "cache"))
    expected = files_of(root)
    for store in root.glob("*_lmdb"):
        without_digests(store)
        (store / "manifest.json").unlink()
        keys = list(map(str.encode, Store(built / store.name).keys()))
        with lmdb.open(str(store), map_size=2**30) as env, env.begin(write=True) as txn:  # two batches
            assert all(txn.delete(key) for key in keys if not key.startswith(b"train"))
    for stage in ("latents", "tokens"):
        build_of(root).run(stage)
    assert files_of(root) == expected


def test_parts_get_no_digests_of_their_own(built: Path, build_of: Any) -> None:
    with pytest.raises(UserError, match="stage=digest takes whole stores: leave shard out"):
        build_of(built, part=Part(0, 2)).run("digest")


@pytest.mark.parametrize("earlier", [False, True])
def test_lost_digests_are_made_again_of_records_that_are_the_same(tmp_path: Path, earlier: bool) -> None:
    store = tmp_path / "store"
    write_store(store, values(0), {})
    expected = files_of(store)
    if earlier:
        without_digests(store)
        add_digests(store)
    for lose in (lambda file: file.unlink(), lambda file: file.write_bytes(b"other")):
        lose(store / "digests.npy")
        with pytest.raises(
            UserError, match="digests.npy is missing or is not the file .*make it again with stage=digest"
        ):
            Store(store).read(["id0"])
        add_digests(store)
        assert files_of(store) == expected
    changed("id3", one_bit)(store)
    (store / "digests.npy").unlink()
    if earlier:
        with pytest.raises(UserError, match="the records are not those that it was made from; put it back, or delete"):
            add_digests(store)
    else:  # they were written down with the records
        add_digests(store)
        with pytest.raises(UserError, match="record 'id3' has changed"):
            Store(store).read(["id3"])


def test_records_that_were_added_and_not_sealed_are_refused_until_they_are(make_track: Any) -> None:
    track = make_track()
    track.open(None).close()
    expected = files_of(track.folder / "latents")
    rows = np.load((track.folder / "latents") / "digests.npy")
    for removed in range(rows.shape[1]):  # as if the last put had come after the seal
        if rows[0, removed] == key_digests(["train_dog_09"])[0]:
            break
    content = np.delete(rows, removed, axis=1)
    np.save((track.folder / "latents") / "digests.npy", np.ascontiguousarray(content))
    manifest = json.loads((track.folder / "latents" / "manifest.json").read_text())
    digest = hashlib.sha256(((track.folder / "latents") / "digests.npy").read_bytes()).hexdigest()
    (track.folder / "latents" / "manifest.json").write_text(json.dumps(manifest | {"digests_sha256": digest}, indent=1))
    with pytest.raises(UserError, match=r"lacks digests of 1 of 42 records \(first: 'train_dog_09'\), so it is"):
        track.open(None)
    add_digests(track.folder / "latents")
    assert files_of(track.folder / "latents") == expected
