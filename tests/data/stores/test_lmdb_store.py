"""A store is either complete or ignored."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import lmdb
import numpy as np
import pytest

from urepa.core.errors import UserError
from urepa.data.stores.lmdb_store import Part, StoreWriter, part_of, write_store
from urepa.data.stores.record_format import decode, encode
from urepa.data.stores.record_reading import Store


def records(n: int = 5) -> list[tuple[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [(f"id{i}", rng.standard_normal((2, 3)).astype(np.float32)) for i in range(n)]


def put(folder: Path, key: str, value: bytes) -> None:
    with lmdb.open(str(folder)) as env, env.begin(write=True) as txn:
        txn.put(key.encode(), value)


def test_what_is_written_is_read_to_fp16(tmp_path: Path) -> None:
    write_store(tmp_path / "store", records(), {"made": "here"})
    store = Store(tmp_path / "store")
    out = store.read(["id3", "id0", "id3"])
    by_key = {key: value.astype(np.float16).astype(np.float32) for key, value in records()}
    assert out.dtype == np.float32
    assert np.array_equal(out, np.stack([by_key["id3"], by_key["id0"], by_key["id3"]]))
    digests = hashlib.sha256((tmp_path / "store" / "digests.npy").read_bytes()).hexdigest()
    of_store = {"shape": [2, 3], "dtype": "float16", "count": 5, "digests_sha256": digests}
    assert store.manifest == {"made": "here"} | of_store
    store.close()


def test_many_records_survive_the_commits_between(tmp_path: Path) -> None:
    many = [(f"id{i}", np.full((1,), i, np.float32)) for i in range(1200)]
    write_store(tmp_path / "store", many, {})
    store = Store(tmp_path / "store")
    assert store.read([key for key, _ in many])[:, 0].tolist() == list(range(1200))
    store.close()


def test_a_closed_store_opens_again(tmp_path: Path) -> None:
    write_store(tmp_path / "store", records(), {})
    store = Store(tmp_path / "store")
    first = store.read(["id0"])
    store.close()
    store.close()
    assert np.array_equal(store.read(["id0"]), first)
    store.close()


def test_a_missing_record_is_named(tmp_path: Path) -> None:
    write_store(tmp_path / "store", records(), {})
    store = Store(tmp_path / "store")
    with pytest.raises(UserError, match="no record 'id9'"):
        store.read(["id0", "id9"])
    store.close()


@pytest.mark.parametrize("length", [0, 6, 11, 24])
def test_a_record_of_the_wrong_length_is_named(tmp_path: Path, length: int) -> None:
    write_store(tmp_path / "store", records(), {})
    put(tmp_path / "store", "id1", b"\0" * length)
    store = Store(tmp_path / "store")
    with pytest.raises(UserError, match="'id1' is damaged"):
        store.read(["id0", "id1"])
    store.close()


def test_a_damaged_file_is_a_user_error(tmp_path: Path) -> None:
    write_store(tmp_path / "store", records(), {})
    (tmp_path / "store" / "data.mdb").write_bytes(b"not lmdb" * 100)
    with pytest.raises(UserError, match="cannot be read"):
        Store(tmp_path / "store").read(["id0"])


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e6])
def test_values_that_fp16_cannot_hold_are_refused(tmp_path: Path, value: float) -> None:
    bad = [*records(), ("bad", np.full((2, 3), value, np.float32))]
    with pytest.raises(ValueError, match="values that are not finite"), np.errstate(over="ignore"):
        write_store(tmp_path / "store", bad, {})
    assert not (tmp_path / "store").exists()


def test_records_of_another_shape_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="odd has shape"):
        write_store(tmp_path / "store", [*records(), ("odd", np.zeros((3, 2)))], {})
    assert not (tmp_path / "store").exists()


def test_a_store_without_records_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no records"):
        write_store(tmp_path / "store", [], {})
    assert not (tmp_path / "store").exists()


def broken_off(after: int) -> Iterator[tuple[str, np.ndarray]]:
    yield from records(after)
    raise KeyboardInterrupt


def test_a_half_built_store_is_ignored(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        write_store(tmp_path / "store", broken_off(3), {})
    assert not (tmp_path / "store").exists()
    with pytest.raises(UserError, match=r"no manifest\.json"):
        Store(tmp_path / "store")
    write_store(tmp_path / "store", records(), {})
    assert Store(tmp_path / "store").manifest["count"] == 5
    assert [p.name for p in tmp_path.iterdir()] == ["store"]


def test_an_interrupted_store_leaves_the_old_one(tmp_path: Path) -> None:
    write_store(tmp_path / "store", records(), {"version": 1})
    with pytest.raises(KeyboardInterrupt):
        write_store(tmp_path / "store", broken_off(3), {"version": 2})
    store = Store(tmp_path / "store")
    assert store.manifest["version"] == 1
    assert store.read(["id4"]).shape == (1, 2, 3)
    store.close()


def test_a_new_store_replaces_the_old_one(tmp_path: Path) -> None:
    write_store(tmp_path / "store", records(5), {"version": 1})
    write_store(tmp_path / "store", records(2), {"version": 2}, lambda: {"beside.txt": b"yes"})
    store = Store(tmp_path / "store")
    assert (store.manifest["version"], store.manifest["count"]) == (2, 2)
    assert (tmp_path / "store" / "beside.txt").read_bytes() == b"yes"
    with pytest.raises(UserError):
        store.read(["id4"])
    store.close()


# --- parts and int8 -----------------------------------------------------------------------------------------


def test_a_part_has_one_writer_at_a_time(tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "store"), pytest.raises(UserError, match="written by another process"):
        StoreWriter(tmp_path / "store")
    with StoreWriter(tmp_path / "store") as writer:
        writer.put(records())
        assert writer.missing(["id0", "id9", "id4"]) == ["id9"]


def test_parts_divide_the_samples_and_contain_their_tokens() -> None:
    names = [f"id{i}" for i in range(300)]
    parts = [Part(i, 3) for i in range(3)]
    held = [[name for name in names if part.holds(name)] for part in parts]
    assert sorted(name for part in held for name in part) == sorted(names)
    assert all(60 < len(part) < 140 for part in held)
    assert all(part_of(f"{name}_mid", 3) == part_of(name, 3) for name in names)


def test_int8_is_exact_to_half_a_step_of_each_groups_largest(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    value = (rng.standard_normal((3, 256)) * np.array([[1e-3], [1.0], [50.0]])).astype(np.float32)
    value[1, :128] = 0
    raw = encode(value, "int8")
    assert len(raw) == 3 * 2 * (128 + 2)
    out = decode(np.frombuffer(raw, dtype=np.uint8).copy()[None], value.shape, "int8")[0].numpy()
    step = np.abs(value.reshape(-1, 128)).max(1, keepdims=True) / 127
    assert (np.abs(out - value).reshape(-1, 128) <= step * 0.6 + 1e-9).all()
    assert not out[1, :128].any()
