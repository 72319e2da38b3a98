"""A track's caches opened for training: latents, teacher tokens and the splits.

Layout below the cache folder: `latents/`, `tokens_<teacher>/` (stores), `train.csv`, `val.csv`, `test.csv`
(sample_id,class_id,path,split). With data.flip a store of the training images' mirror images, under the same
keys, lies beside each: `latents_flip/`, `tokens_<teacher>_flip/`.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from sys import intern
from typing import Any

import numpy as np
import torch
from torch import Tensor

from urepa.data.online import OnlineTokens
from urepa.data.reading import MIRRORED, Store
from urepa.draws import normal
from urepa.errors import UserError
from urepa.files import write_whole
from urepa.nested import flatten

SPLITS = ("train", "val", "test")
UNKNOWN = "unknown"
OF_THE_STORE = ("count", "parts", "adopted", "csv_sha256")  # what a manifest says that is not about its records
FIELDS = ("sample_id", "class_id", "path", "split")


@dataclass(frozen=True, slots=True)
class Sample:
    """One row of a split; `mirrored` once a training step has drawn it so."""

    sample_id: str
    class_id: int
    path: str
    split: str
    mirrored: bool = False

    @property
    def key(self) -> str:
        """Of its latents."""
        return self.sample_id + MIRRORED * self.mirrored

    @property
    def token_key(self) -> str:
        """Of its tokens."""
        return f"{self.sample_id}_mid" + MIRRORED * self.mirrored


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
        rows = csv.DictReader(file)
        return [Sample(r["sample_id"], int(r["class_id"]), r["path"], intern(r["split"])) for r in rows]


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
    def flips(self) -> bool:
        """Are the training images' mirror images there?"""
        return self.latents.mirror is not None

    @property
    def has_moments(self) -> bool:
        """Do the latents hold a posterior's mean and standard deviation instead of one value?"""
        return len(self.latents.shape) == 4

    def x0(self, samples: list[Sample], posterior: list[np.random.Generator] | None = None) -> Tensor:
        """Latents [B,C,H,W], float32. Moments are sampled with the generators, or give their mean without."""
        values = self.latents.tensor([s.key for s in samples]).float()
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
        return self.tokens.tensor([s.token_key for s in samples], raw)

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
            "flip": self.flips,
            "samples": {split: len(samples) for split, samples in self.splits.items()},
        }


def is_finished(store: Path) -> bool:
    """Does it count?"""
    return (store / "manifest.json").is_file()


def mirrored_folder(store: Path) -> Path:
    """Where the mirror images of a store's records lie."""
    return store.with_name(f"{store.name}_flip")


def mirrored_facts(facts: dict[str, Any]) -> dict[str, Any]:
    """A manifest's facts as the mirrored store's manifest has them."""
    teacher = {"teacher": facts["teacher"] | {"flip": "horizontal"}} if "teacher" in facts else {}
    return facts | {"flip": "horizontal"} | teacher


def refuse_differing(folder: Path, manifest: dict[str, Any], expected: dict[str, Any], remake: str) -> None:
    """A UserError that names what differs, unless the folder's manifest says what is expected. It may know more
    (a teacher's weights, say) than what is asked of it."""
    there = {"flip": "none"} | flatten(manifest)  # which older ones do not say
    differing = [
        f"{k}: {there.get(k)!r} there, {v!r} here"
        for k, v in flatten(expected).items()
        if there.get(k) != v and UNKNOWN not in (there.get(k), v)  # adopted caches do not know everything
    ]
    if differing:
        raise UserError(
            f"{folder} was made differently ({', '.join(differing)}); choose another data.root, or delete "
            f"it and {remake}"
        )


def begin(folder: Path, facts: dict[str, Any], remake: str) -> None:
    """Writes down what a folder is going to hold, before anything is in it. A UserError if it was begun or
    finished as something else: work that is taken up again never mixes two settings."""
    for file in (folder / "manifest.json", folder / "begun.json"):
        if file.exists():
            refuse_differing(folder, json.loads(file.read_text()), facts, remake)
            return
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "begun.json", json.dumps(facts, indent=1))


def open_store(
    folder: Path,
    expected: dict[str, Any],
    keys: list[str],
    remake: str,
    mirrored_keys: list[str] | None = None,
) -> Store:
    """A finished store that was made as expected and has every key; with `mirrored_keys` also the mirror images.
    Asked before the first step, not at step 40,000."""
    store = Store(folder)
    refuse_differing(folder, store.manifest, expected, remake)
    require_keys(store, keys, remake)
    if mirrored_keys is not None:
        of_records = {k: v for k, v in store.manifest.items() if k not in OF_THE_STORE}
        store.mirror = open_store(mirrored_folder(folder), mirrored_facts(of_records), mirrored_keys, remake)
    return store


def require_keys(store: Store, keys: list[str], remake: str) -> None:
    """Every sample has its record."""
    missing = store.missing(keys)
    if missing:
        raise UserError(
            f"{store.folder} lacks {len(missing)} of {len(keys)} records (first: '{min(missing)}'); {remake}"
        )


def csv_digests(files: list[Path]) -> dict[str, str]:
    """SHA-256 of each file, by name."""
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def refuse_changed(files: list[Path], known: dict[str, str], remake: str) -> None:
    """A UserError if a CSV is not there or not the one the caches were made from."""
    gone = [file for file in files if not file.is_file()]
    if gone:
        raise UserError(f"there is no {gone[0]}; put it back, or {remake}")
    for file, digest in zip(files, csv_digests(files).values(), strict=True):
        if known.get(file.name, digest) != digest:
            raise UserError(f"{file} has changed since the caches were made from it; put it back, or {remake}")
