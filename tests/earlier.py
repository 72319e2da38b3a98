"""Stores as the version before digests left them."""

from __future__ import annotations

import json
from pathlib import Path

import lmdb

from urepa.data.stores.lmdb_pages import DIGESTS


def without_digests(store: Path) -> None:
    """Takes away what that version did not write: rows of digests, digests.npy, what the manifest says of files."""
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
