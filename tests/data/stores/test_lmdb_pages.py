"""The index agrees with LMDB's own cursor, without reading the values."""

from __future__ import annotations

from pathlib import Path

import lmdb
import numpy as np
import pytest

from urepa.core.errors import UserError
from urepa.data.stores.lmdb_pages import Index, records


def write(folder: Path, items: dict[str, bytes], drop: tuple[str, ...] = ()) -> Path:
    folder.mkdir(exist_ok=True)
    with lmdb.open(str(folder), map_size=2**30) as env:
        for start in range(0, len(items), 100):
            with env.begin(write=True) as txn:
                for key in list(items)[start : start + 100]:
                    txn.put(key.encode(), items[key])
        with env.begin(write=True) as txn:
            for key in drop:
                txn.delete(key.encode())
    return folder


def sizes(n: int) -> dict[str, bytes]:
    """Values that fit into a leaf page, are just below or above its half, or need several pages."""
    rng = np.random.default_rng(0)
    return {f"key-{i * 7919 % n:05d}-ü": rng.bytes(int(rng.choice([0, 3, 2000, 2040, 2100, 9000]))) for i in range(n)}


@pytest.mark.parametrize("n", [1, 5, 3000])
def test_every_record_is_found_where_lmdb_finds_it(tmp_path: Path, n: int) -> None:
    items = sizes(n)
    write(tmp_path / "store", items, drop=tuple(items)[1::3])
    write(tmp_path / "store", dict.fromkeys(tuple(items)[2::3], b"written over" * 400))
    data = (tmp_path / "store" / "data.mdb").read_bytes()
    ours = [(key, data[at : at + length]) for key, at, length in records(tmp_path / "store")]
    with lmdb.open(str(tmp_path / "store"), readonly=True, lock=False) as env, env.begin() as txn:
        theirs = [(key.decode(), value) for key, value in txn.cursor()]
        depth = env.stat()["depth"]
    assert ours == theirs
    assert len(ours) == n - len(tuple(items)[1::3])
    assert depth > 2 or n < 3000
    index = Index(tmp_path / "store")
    assert all(index.find(key) == (at, length) for key, at, length in records(tmp_path / "store"))
    assert index.find("key") is index.find("another") is None


def test_a_store_without_records_has_none(tmp_path: Path) -> None:
    write(tmp_path / "store", {"a": b"1"}, drop=("a",))
    assert list(records(tmp_path / "store")) == []


def test_an_index_does_not_read_the_values(tmp_path: Path) -> None:
    """48 MB of values; an LMDB cursor that reads them would touch each page."""
    value = np.random.default_rng(0).bytes(2**18)
    write(tmp_path / "store", {f"n{i:04d}": value for i in range(192)})

    def peak() -> int:
        return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])

    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    before = peak()
    Index(tmp_path / "store")
    assert peak() - before < 10 * 1024
    with lmdb.open(str(tmp_path / "store"), readonly=True, lock=False) as env, env.begin(buffers=True) as txn:
        assert sum(1 for _ in txn.cursor()) == 192
    assert peak() - before > 30 * 1024, "pages that are touched are counted"


@pytest.mark.parametrize("damage", ["pages", "magic", "short", "gone"])
def test_a_damaged_file_is_a_user_error(tmp_path: Path, damage: str) -> None:
    folder = write(tmp_path / "store", sizes(500))
    file = folder / "data.mdb"
    data = bytearray(file.read_bytes())
    if damage == "pages":
        data[2 * 4096 :] = bytes(len(data) - 2 * 4096)
    elif damage == "magic":
        data[16:20] = data[4096 + 16 : 4096 + 20] = b"none"
    elif damage == "short":
        data = data[: len(data) - 4096]
    file.write_bytes(data) if damage != "gone" else file.unlink()
    with pytest.raises(UserError, match="data.mdb is truncated" if damage == "short" else "data.mdb cannot be read"):
        Index(folder)
