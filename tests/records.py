"""The content of a finished track, for comparing builds."""

from __future__ import annotations

from pathlib import Path

import torch

from urepa.data.stores.record_reading import Store


def records(root: Path) -> dict[str, bytes]:
    """Every record of the stores, including mirrored ones, and the finished files beside them."""
    out: dict[str, bytes] = {}
    for name in sorted(path.name for path in root.glob("*_lmdb*")):
        store = Store(root / name)
        keys = sorted(store.keys())
        out |= {f"{name}/{k}": store.read([k]).tobytes() for k in keys}
        store.close()
    for file in ("train_200k.csv", "val_50k.csv", "dino_tokens_lmdb/mean_token.npy", "dino_tokens_lmdb/digests.npy"):
        out[file] = (root / file).read_bytes()
    prompts = torch.load(root / "clip_embeddings_1001.pt", weights_only=True)
    out["prompts"] = prompts.numpy().tobytes()
    return out
