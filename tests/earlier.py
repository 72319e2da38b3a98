"""Stores as earlier versions wrote them."""

from __future__ import annotations

import json
from pathlib import Path

import lmdb
import numpy as np

from urepa.data.stores.digests import FILE, as_file, in_manifest
from urepa.data.stores.lmdb_pages import DIGESTS, SUM_KEY, key_digests


def without_digests(store: Path) -> None:
    """Removes what the version before digests did not write: their rows, digests.npy, and the manifest's entries about
    files."""
    for data in store.rglob("data.mdb"):
        with lmdb.open(str(data.parent), map_size=2**30) as env, env.begin(write=True) as txn:
            keys = [key for key in txn.cursor().iternext(values=False) if key.startswith(DIGESTS.encode())]
            assert all(map(txn.delete, keys))
        (data.parent / "lock.mdb").unlink()
    (store / "digests.npy").unlink(missing_ok=True)
    file = store / "manifest.json"
    if file.exists():
        manifest = json.loads(file.read_text())
        for key in ("digests_sha256", "mean_token_sha256"):
            manifest.pop(key, None)
        file.write_text(json.dumps(manifest, indent=1))


def with_mid_in_keys(store: Path) -> None:
    """A token store, finished or not, with the keys that were written before manifests had a `key_suffix`."""
    before: list[str] = []
    for data in store.rglob("data.mdb"):
        with lmdb.open(str(data.parent), map_size=2**30) as env, env.begin(write=True) as txn:
            rows = [(key.decode(), bytes(value)) for key, value in txn.cursor()]
            ids = [key for key, _ in rows if not key.startswith((DIGESTS, SUM_KEY))]
            before += ids
            for key, value in rows:
                if key.startswith(DIGESTS):
                    txn.put(key.encode(), _with_mid(value, ids).tobytes())
                elif key != SUM_KEY:
                    assert txn.delete(key.encode())
                    txn.put(f"{key}_mid".encode(), value)
        (data.parent / "lock.mdb").unlink()
    facts: dict[str, str] = {}
    if (store / FILE).exists():
        rows_R4 = _with_mid(np.ascontiguousarray(np.load(store / FILE).T).tobytes(), before)
        content = as_file(rows_R4[np.argsort(rows_R4[:, 0])])
        (store / FILE).write_bytes(content)
        facts = in_manifest({FILE: content})
    for name, more in (("manifest.json", facts), ("begun.json", {})):
        if (store / name).exists():
            manifest = json.loads((store / name).read_text())
            assert manifest.pop("key_suffix") == ""
            (store / name).write_text(json.dumps(manifest | more, indent=1))


def _with_mid(rows: bytes, ids: list[str]) -> np.ndarray:
    """The rows of digests for the former keys."""
    rows_R4 = np.frombuffer(rows, dtype="<u8").reshape(-1, 4).copy()
    new = dict(zip(key_digests(ids).tolist(), key_digests(f"{i}_mid" for i in ids).tolist(), strict=True))
    rows_R4[:, 0] = [new[digest] for digest in rows_R4[:, 0].tolist()]
    return rows_R4
