"""A track's caches opened for training: latents, teacher tokens and the three splits.

Layout below the cache folder: `latents/`, `tokens_<teacher>/` (stores), `train.csv`, `val.csv`, `test.csv`
(sample_id,class_id,path,split).
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from urepa.data.online import OnlineTokens
from urepa.data.reading import Store
from urepa.draws import normal
from urepa.errors import UserError
from urepa.files import write_whole
from urepa.nested import flatten

SPLITS = ("train", "val", "test")
UNKNOWN = "unknown"
FIELDS = ("sample_id", "class_id", "path", "split")


@dataclass(frozen=True)
class Sample:
    """One row of a split."""

    sample_id: str
    class_id: int
    path: str
    split: str


def write_split(path: Path, samples: list[Sample]) -> None:
    """A split as CSV, whole or not at all."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(FIELDS)
    writer.writerows((s.sample_id, s.class_id, s.path, s.split) for s in samples)
    write_whole(path, text.getvalue())


def read_split(path: Path) -> list[Sample]:
    """A split from CSV."""
    with open(path, newline="") as file:
        return [Sample(r["sample_id"], int(r["class_id"]), r["path"], r["split"]) for r in csv.DictReader(file)]


def mean_token_file(mean_D: np.ndarray) -> dict[str, bytes]:
    """The file beside a token store that holds the training set's mean token."""
    content = io.BytesIO()
    np.save(content, mean_D.astype(np.float32), allow_pickle=False)
    return {"mean_token.npy": content.getvalue()}


@dataclass
class Cache:
    """Open stores. `tokens` is None where the loss needs no teacher."""

    splits: dict[str, list[Sample]]
    latents: Store
    tokens: Store | OnlineTokens | None
    grid: tuple[int, int] | None
    num_classes: int
    null_id: int

    @property
    def has_moments(self) -> bool:
        """Do the latents hold a posterior's mean and standard deviation instead of one value?"""
        return len(self.latents.shape) == 4

    def x0(self, samples: list[Sample], posterior: list[np.random.Generator] | None = None) -> Tensor:
        """Latents [B,C,H,W], float32. Moments are sampled with the generators, or give their mean without."""
        values = self.latents.tensor([s.sample_id for s in samples]).float()
        if not self.has_moments:
            return values
        mean, std = values.unbind(1)
        if posterior is None:
            return mean
        return mean + std * torch.stack([normal(tuple(mean.shape[1:]), rng) for rng in posterior])

    def teacher_BND(self, samples: list[Sample], raw: np.ndarray | None = None) -> Tensor | None:
        """Teacher tokens [B,N,D] as they are stored (fp16, or float32 from int8), in the memory `raw` if given."""
        if self.tokens is None:
            return None
        return self.tokens.tensor([f"{s.sample_id}_mid" for s in samples], raw)

    def mean_token(self) -> Tensor | None:
        """The teacher's mean token over the training set [D]: the best constant answer."""
        return None if self.tokens is None else self.tokens.mean_token()

    def close(self) -> None:
        """Lets another run in this process open the same stores."""
        self.latents.close()
        if self.tokens is not None:
            self.tokens.close()

    def fingerprint(self) -> dict[str, Any]:
        """What a run records about its data."""
        return {
            "latents": self.latents.manifest,
            "tokens": None if self.tokens is None else self.tokens.manifest,
            "samples": {split: len(samples) for split, samples in self.splits.items()},
        }


def check_manifest(store: Store, expected: dict[str, Any], remake: str) -> Store:
    """The store, if it was made as `expected` says; otherwise a UserError that names what differs. The store
    may know more (a teacher's weights, say) than what is asked of it."""
    there = flatten(store.manifest)
    differing = [
        f"{k}: {there.get(k)!r} there, {v!r} here"
        for k, v in flatten(expected).items()
        if there.get(k) not in (v, UNKNOWN)  # an adopted cache does not know everything about itself
    ]
    if differing:
        raise UserError(
            f"{store.folder} was made differently ({', '.join(differing)}); choose another data.root, or delete "
            f"it and {remake}"
        )
    return store
