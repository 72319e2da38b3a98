"""A track's caches opened for training: latents, teacher tokens and the splits.

Layout below the cache folder: `latents/`, `tokens_<teacher>/` (stores), `train.csv`, `val.csv`, `test.csv`
(sample_id,class_id,path,split). With data.flip a store of the training images' mirror images, under the same
keys, lies beside each: `latents_flip/`, `tokens_<teacher>_flip/`.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from urepa.core.conditions import Condition
from urepa.core.errors import UserError
from urepa.core.files import read_json, write_whole
from urepa.core.nested_dicts import flatten
from urepa.core.random_draws import normal
from urepa.core.teacher_names import ALONE
from urepa.core.track_protocols import ConditionMaker
from urepa.core.types import Attention, Tokens
from urepa.data.image_statistics import IMAGE_TOKENS
from urepa.data.lists.content import Identity
from urepa.data.lists.paths import lost_list_error
from urepa.data.lists.samples import Keys, Sample, Samples
from urepa.data.online_encoders import OnlineLatents, OnlineText, OnlineTokens
from urepa.data.stages.image_archives import ImageArchive
from urepa.data.stages.vae_config import NEUTRAL
from urepa.data.stores.digests import IN_MANIFEST, MEAN_TOKEN
from urepa.data.stores.record_keys import SUFFIX
from urepa.data.stores.record_reading import Store

SPLITS = ("train", "val", "test")
UNKNOWN = "unknown"
NONE: Mapping[Path, dict[str, Any]] = {}
# entries of a manifest that do not describe how its records were made
STORE_FACTS = ("count", "parts", "adopted", "csv_sha256", SUFFIX, *IN_MANIFEST)
SEEN: dict[str, Any] = {"teacher.sees": "images", "teacher.decoder": None}  # for token manifests without these entries
FAULT = "fault.txt"  # beside a store's records: the fault that the stage `verify` found


def mean_token_file(mean_D: np.ndarray) -> dict[str, bytes]:
    """The file beside a token store that holds the training set's mean token."""
    content = io.BytesIO()
    np.save(content, mean_D.astype(np.float32), allow_pickle=False)
    return {MEAN_TOKEN: content.getvalue()}


def of_unit_length(tokens_BND: np.ndarray, teacher: Mapping[str, Any]) -> np.ndarray:
    """Tokens as the mean token averages them: raw ones, by the teacher's manifest, are normalised first, because the
    token loss compares directions."""
    if teacher.get("unit_length", True):
        return tokens_BND
    tokens_BND = tokens_BND.astype(np.float64)
    return tokens_BND / np.maximum(np.linalg.norm(tokens_BND, axis=-1, keepdims=True), 1e-12)


@dataclass
class Cache:
    """Open stores of samples of one shape: a whole track, or one of its buckets (`urepa.data.bucketed_cache`).
    `tokens` and `grids` are keyed by teacher; they are empty where the loss needs no teacher."""

    splits: Mapping[str, Samples]
    latents: Store | OnlineLatents
    tokens: dict[str, Store | OnlineTokens]
    grids: dict[str, tuple[int, int]]
    num_classes: int
    conditions: ConditionMaker
    images: ImageArchive | None = None  # the square images that networks encode during training, in place of a cache
    class_names: Sequence[str] = ()  # in the order of the ids; () where the track has none
    text: Store | OnlineText | None = None  # the records of the samples' captions, read by `conditions`
    image_tokens: Store | None = None  # the image tokens of the samples' conditions, read by `conditions`
    bucket: str = ""  # rows and columns of its images in pixels, "64x96", where the track has several buckets

    @property
    def buckets(self) -> tuple[Cache, ...]:
        """A tuple with this cache alone, as it has one shape."""
        return (self,)

    def bucket_of(self, sample: Sample) -> Cache:
        """The cache in `buckets` that holds the sample: this one."""
        return self

    @property
    def teacher_names(self) -> tuple[str, ...]:
        """The names of the teachers whose tokens are read; a single teacher has the name ALONE."""
        return tuple(self.tokens)

    @property
    def flips(self) -> bool:
        """Whether the cache holds the training images' mirror images too."""
        return self.latents.mirror is not None

    @property
    def has_moments(self) -> bool:
        """Whether the latents are a posterior's mean and standard deviation instead of one value."""
        return len(self.latents.shape) == 4

    def condition(self, class_ids: Sequence[int]) -> Condition:
        """The condition for images of these classes, outside training."""
        return self.conditions.of_classes(class_ids)

    def x0(self, samples: Sequence[Sample], posterior: list[np.random.Generator] | None = None) -> Tensor:
        """Latents [B,C,H,W], float32. Moments are sampled with the generators `posterior`; without them the mean is
        returned."""
        values = self.latents.tensor([s.key for s in samples]).float()
        if not self.has_moments:
            return values
        mean, std = values.unbind(1)
        if posterior is None:
            return mean
        return mean + std * torch.stack([normal(tuple(mean.shape[1:]), rng) for rng in posterior])

    def teachers(self, samples: Sequence[Sample], raw: dict[str, np.ndarray] | None = None) -> dict[str, Tokens]:
        """Every teacher's tokens as stored (fp16; float32 from int8), read into the memory `raw` if given."""
        memory, keys = {} if raw is None else raw, [s.key for s in samples]
        return {
            name: Tokens(store.tensor(keys, memory.get(name)), self.grids[name]) for name, store in self.tokens.items()
        }

    def teacher_attending(
        self, samples: Sequence[Sample], blocks: Sequence[int]
    ) -> tuple[dict[str, Tokens], dict[int, Attention]]:
        """As `teachers`, of a single online teacher, with the attention of these of its blocks from the same pass."""
        online = self.tokens[ALONE]
        assert isinstance(online, OnlineTokens), "attention is not cached"
        x_BND, attention = online.tokens_and_attention([s.key for s in samples], blocks)
        return {ALONE: Tokens(x_BND, self.grids[ALONE])}, attention

    def teacher_BND(self, samples: Sequence[Sample], teacher: str = ALONE) -> Tensor | None:
        """One teacher's tokens; None if the cache has no tokens."""
        return self.tokens[teacher].tensor([s.key for s in samples]) if self.tokens else None

    def mean_token(self, teacher: str = ALONE) -> Tensor | None:
        """A teacher's mean token over the training set [D]: the best constant prediction. None without tokens."""
        return self.tokens[teacher].mean_token() if self.tokens else None

    def close(self) -> None:
        """Closes the stores, so that another run in this process can open them."""
        self.latents.close()
        for tokens in self.tokens.values():
            tokens.close()
        for conditions in (self.text, self.image_tokens):
            if conditions is not None:
                conditions.close()

    def fingerprint(self) -> dict[str, Any]:
        """What a run records about its data."""
        manifests = {name: tokens.manifest for name, tokens in self.tokens.items()}
        samples = {split: len(own) for split, own in self.splits.items()}
        return {
            "latents": self.latents.manifest,
            "tokens": manifests.get(ALONE, manifests) if manifests else None,
            "flip": self.flips,
            "samples": samples,
            **({"buckets": {self.bucket: samples}} if self.bucket else {}),
            "content": self.content(),
        } | {
            name: store.manifest
            for name, store in (("text", self.text), (IMAGE_TOKENS, self.image_tokens))
            if store is not None
        }

    def content(self) -> dict[str, str]:
        """Digests that identify the data, independent of their folder and of the order of the lists. `samples` covers
        the samples' ids, classes and splits. Each store whose records have digests adds one over the samples and their
        records: `latents`, `tokens` or `tokens.TEACHER`, with the suffix `.flip` for mirror images, and
        `latents.held_out` without the training samples. `images` covers the square images that are encoded during
        training."""
        lists = {"": list(self.splits.values())} | ({".flip": [self.splits["train"]]} if self.flips else {})
        identities = {flip: Identity(*own) for flip, own in lists.items()}
        content = {"samples": identities[""].of()}
        tokens = {f"tokens.{name}" if name else "tokens": store for name, store in self.tokens.items()}
        if self.image_tokens is not None:
            tokens[IMAGE_TOKENS] = self.image_tokens
        for name, store in {"latents": self.latents, **tokens}.items():
            if isinstance(store, Store):
                for (flip, own), of in zip(lists.items(), (store, store.mirror), strict=False):
                    if of is not None and of.digests is not None:
                        content[name + flip] = identities[flip].of(of.record_digests(Keys(own)))
                if "whitening_sha256" in store.manifest:
                    content[f"{name}.whitening"] = store.manifest["whitening_sha256"]
        if "latents" in content:
            held_out = [samples for split, samples in self.splits.items() if split != "train"]
            digests = self.latents.record_digests(Keys(held_out))  # type: ignore[union-attr]
            content["latents.held_out"] = Identity(*held_out).of(digests)
        if self.text is not None:
            content |= text_content(self.text)
        if self.images is not None:
            content["images"] = identities[""].of(self.images.crc32(Keys(lists[""])))
        return content


def text_content(text: Store | OnlineText) -> dict[str, str]:
    """A digest of the samples' captions and their records, made of the digests of both; for captions that are encoded
    during training, of the digests of the captions and the encoder's weights."""
    is_online = isinstance(text, OnlineText)
    name = "text.online" if is_online else "text"
    made = text.manifest["encoder"]["weights_sha256"] if is_online else text.manifest["digests_sha256"]
    parts = (text.manifest["captions_sha256"], made)
    return {name: hashlib.blake2b("\0".join(parts).encode(), digest_size=16).hexdigest()}


def token_stores(teachers: Mapping[str, Any], dtype: str) -> dict[str, tuple[tuple[int, ...], str]]:
    """The shape and data type of the records in each teacher's store."""
    return {
        f"tokens_{name}" if name else "tokens": ((one.grid[0] * one.grid[1], one.width), dtype)
        for name, one in teachers.items()
    }


def mirrored_folder(store: Path) -> Path:
    """The folder of the store with the mirror images' records."""
    return store.with_name(f"{store.name}_flip")


def mirrored_facts(facts: dict[str, Any]) -> dict[str, Any]:
    """The facts of a store's manifest, changed to those of its mirrored store."""
    teacher = {"teacher": facts["teacher"] | {"flip": "horizontal"}} if "teacher" in facts else {}
    return facts | {"flip": "horizontal"} | teacher


def refuse_differing(folder: Path, manifest: dict[str, Any], expected: dict[str, Any], remake: str) -> None:
    """Raises a UserError that names the differences, unless the folder's manifest has every expected value. Further
    entries in the manifest (a teacher's weights, say) are not compared."""
    there = NEUTRAL | _earlier_defaults(manifest.get("teacher", {})) | flatten(manifest)
    asked = (NEUTRAL if "scaling_factor" in expected else {}) | (SEEN if "teacher" in expected else {})
    asked |= flatten(expected)
    differing = [
        f"{k}: {there.get(k)!r} there, {v!r} here"
        for k, v in asked.items()
        if there.get(k) != v and UNKNOWN not in (there.get(k), v)  # manifests of adopted caches have unknown values
    ]
    if differing:
        raise UserError(
            f"{folder} was made differently ({', '.join(differing)}); choose another data.root, or delete "
            f"it and {remake}"
        )


def _earlier_defaults(teacher: dict[str, Any]) -> dict[str, Any]:
    """Values for manifests of earlier versions, which lack these entries: no mirror images, a teacher that sees images
    and, for DINOv2 at sizes other than 518 px, positions resampled as in the transformers library. Unknown values of
    an adopted store stay unknown."""
    family, size = teacher.get("family"), teacher.get("image_size")
    if family == UNKNOWN:
        return {"flip": "none", "teacher.positions": UNKNOWN} | dict.fromkeys(SEEN, UNKNOWN)
    return (
        {"flip": "none"} | SEEN | ({"teacher.positions": "transformers"} if family == "dinov2" and size != 518 else {})
    )


def refuse_faulty(store: Path) -> None:
    """Raises UserError for a store in which `stage=verify` found a fault that has not been repaired since."""
    file = store / FAULT
    if file.is_file():
        raise UserError(
            f"{store} did not pass the stage `verify` ({file.read_text()}); mend it or make it again, and run that "
            "stage again"
        )


def write_begun(folder: Path, facts: dict[str, Any], remake: str) -> None:
    """Writes the facts of a folder's future records to begun.json, before any record. Raises UserError if the folder
    was begun or finished with other settings, so that a store never mixes records of two settings."""
    for file in (folder / "manifest.json", folder / "begun.json"):
        if file.exists():
            refuse_differing(folder, read_json(file), facts, remake)
            return
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "begun.json", json.dumps(facts, indent=1))


def open_store(
    folder: Path,
    expected: dict[str, Any],
    keys: Keys,
    remake: str,
    mirrored_keys: Keys | None = None,
    manifests: Mapping[Path, dict[str, Any]] = NONE,
) -> Store:
    """Opens a finished store after checking that it was made as expected and has every key; with `mirrored_keys` also
    the mirror images. `manifests` replace the manifest files of folders that are being adopted. The check runs before
    the first step, so that a missing record does not stop a run at step 40,000."""
    store = Store(folder, manifests.get(folder))
    refuse_differing(folder, store.manifest, expected, remake)
    store.require_files_beside()
    require_keys(store, keys, remake)
    if mirrored_keys is not None:
        of_records = {k: v for k, v in store.manifest.items() if k not in STORE_FACTS}
        facts = mirrored_facts(of_records)
        store.mirror = open_store(mirrored_folder(folder), facts, mirrored_keys, remake, manifests=manifests)
    return store


def require_keys(store: Store, keys: Keys, remake: str) -> None:
    """Raises UserError if a sample has no record, or a record has no digest in a store with digests."""
    missing = store.missing(keys)
    if missing:
        raise UserError(
            f"{store.folder} lacks {len(missing)} of {len(keys)} records (first: '{min(missing)}'); {remake}"
        )
    if bare := store.missing_digests(keys):
        raise UserError(
            f"{store.folder} lacks digests of {len(bare)} of {len(keys)} records (first: '{min(bare)}'), so it is not "
            f"finished; {remake}"
        )


def csv_digests(files: list[Path]) -> dict[str, str]:
    """SHA-256 of each file, by name."""
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def refuse_changed(files: list[Path], known: dict[str, str], remake: str) -> None:
    """Raises UserError if a CSV is missing or is not the one that the caches were made from."""
    gone = [file for file in files if not file.is_file()]
    if gone:
        raise lost_list_error(gone[0], remake)
    for file, digest in zip(files, csv_digests(files).values(), strict=True):
        if known.get(file.name, digest) != digest:
            raise UserError(f"{file} has changed since the caches were made from it; put it back, or {remake}")
