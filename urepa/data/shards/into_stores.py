"""Fills a latent track's caches from the shards of `layout`: lists, captions, and the stores of latents, of image
tokens and of the captions' records. Each store is written whole or not at all, and buckets.json, without which a track
of buckets cannot be opened, is written last.

Shapes: CHW latent, N patches, D width of an image token, L positions of a caption's tokens.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from urepa.core import progress
from urepa.core.errors import UserError
from urepa.core.escaping import printable
from urepa.core.files import read_json, write_whole
from urepa.core.random_draws import unit_interval
from urepa.core.text_protocols import EncodedText, NullText
from urepa.data.cache import UNKNOWN, csv_digests
from urepa.data.image_statistics import IMAGE_TOKENS, statistics_file, sums_of
from urepa.data.lists.bucket_shapes import BUCKETS
from urepa.data.lists.captions import EMPTY, caption_key, write_captions
from urepa.data.lists.classes import write_names
from urepa.data.lists.samples import Sample, write_split
from urepa.data.shards.layout import (
    GLOBAL,
    LATENT,
    MANIFEST,
    MASK,
    PATCHES,
    SPLITS,
    TEXT,
    WHOLE,
    ShardSizes,
    image_tokens_folder,
    read_manifest,
)
from urepa.data.shards.shard_reading import Incomplete, ShardSample, list_samples, read_array
from urepa.data.stages.build_lists import record_facts
from urepa.data.stages.encode import short_name
from urepa.data.stages.vae_config import LatentScaling, known_scaling, scaling_of_facts
from urepa.data.stores.lmdb_store import write_store
from urepa.data.stores.text_records import TextShape
from urepa.models.teachers.rectangle_sizes import Grid

if TYPE_CHECKING:
    from urepa.data.tracks.latent_bucket_caches import LatentBucket
    from urepa.data.tracks.latent_caches import LatentTrackCaches

BATCH = 32  # records in memory
EMPTY_FILES = ("empty.t5h.npy", "empty.t5m.npy")  # beside the manifest: the record of the empty caption
Record = tuple[str, np.ndarray]


class ShardImport:
    """Fills the caches of one track."""

    def __init__(self, track: LatentTrackCaches, encoder: Any, folder: Path) -> None:
        """`encoder` is the declaration of the encoder whose patches the shards hold; it is not run. Raises UserError if
        the shards cannot be of this track."""
        self.track, self.settings, self.encoder, self.folder = track, track.settings, encoder, folder
        self.sizes = ShardSizes.of(track.settings, encoder)
        self.known = read_manifest(folder, self.sizes)
        self.scaling = self._shards_scaling()
        if there := [str(path) for path in track.csv.values() if path.exists()]:
            raise UserError(f"{' and '.join(there)} exist already; give another data.root for the shards' samples")
        if track.wanted["train"] is not None:
            raise UserError("stage=read_shards takes every training sample; give data.train_images=null")
        null = str(self.settings.text_encoder.null_text)
        if null != NullText.zeros.value and not (folder / EMPTY_FILES[0]).is_file():
            raise UserError(
                "the shards have no record of the empty caption; give data.text_encoder.null_text=zeros, for a "
                "backbone that learns its own null"
            )

    def run(self) -> None:
        """Reads all shards. Raises UserError for a faulty sample, and for too many incomplete ones."""
        found, incomplete = list_samples(self.folder, self.sizes, self.settings.caption_column)
        self._report(incomplete, len(found) + incomplete.samples)
        self._check_classes(found)
        samples = self._split(found)
        by_bucket = {bucket: [s for s in samples if s.bucket == bucket.name] for bucket in self.track.all_buckets}
        by_bucket = {bucket: own for bucket, own in by_bucket.items() if own}
        self.track.folder.mkdir(parents=True, exist_ok=True)
        for bucket, own in by_bucket.items():
            bucket.folder.mkdir(parents=True, exist_ok=True)
            self._write_latents(bucket, own)
            self._write_image_tokens(bucket, own)
        captions = {s.sample_id: [s.caption] for s in sorted(samples, key=lambda s: s.sample_id)}
        write_captions(self.settings.captions_file, captions)
        self._write_text(samples)
        self._write_lists(by_bucket, samples)

    def _report(self, incomplete: Incomplete, of: int) -> None:
        """Prints the incomplete samples, or raises UserError if they are too many."""
        if not incomplete.samples:
            return
        share = self.settings.max_skipped
        if incomplete.samples > (max(1, share * of) if share > 0 else 0):
            raise UserError(
                f"{incomplete}: complete them, or leave them out with data.max_skipped="
                f"{-(-1000 * incomplete.samples // of) / 1000}"
            )
        print(f"left out: {incomplete}")

    def _check_classes(self, samples: Sequence[ShardSample]) -> None:
        for sample in samples:
            if sample.class_id >= self.settings.num_classes:
                raise UserError(
                    f"{sample.where('json')} has the class_id {sample.class_id}; data.num_classes="
                    f"{self.settings.num_classes}: give a larger one"
                )

    def _split(self, samples: list[ShardSample]) -> list[ShardSample]:
        """The samples with their split. If the shards have no validation samples, data.val_images are drawn by their
        ids."""
        if any(s.split == "val" for s in samples):
            return samples
        wanted = self.track.wanted["val"]
        if wanted is None or wanted >= len(samples):
            raise UserError(
                f"the {len(samples)} samples of {self.folder} are all for training: give data.val_images=N, fewer than "
                "these, to keep apart"
            )
        held_out = {s.sample_id for s in sorted(samples, key=lambda s: unit_interval("split", s.sample_id))[:wanted]}
        return [replace(s, split="val" if s.sample_id in held_out else "train") for s in samples]

    # --- stores -----------------------------------------------------------------------------------------

    def _write_latents(self, bucket: LatentBucket, samples: Sequence[ShardSample]) -> None:
        convert, facts = self._scaling()
        facts |= {"kind": "latents", "moments": False, "flip": "none"} | bucket.image_facts()

        def records() -> Iterator[Record]:
            for sample in _bar(samples, bucket.latents):
                z = sample.checked(LATENT, self.sizes)
                yield sample.sample_id, z if convert is None else convert(z)

        _write(bucket.latents, records(), facts)

    def _scaling(self) -> tuple[Any, dict[str, Any]]:
        """How the shards' latents become x0 (None: they are x0), and the entries of the store's manifest. Without a
        manifest they are taken to be scaled as data.vae's config says."""
        here = known_scaling(self.settings.vae)
        named = {"vae": short_name(self.settings.vae)}
        there = self.scaling
        if there is None or there == here:
            return None, {} if here is None else named | here.facts()
        if here is None:
            vae = self.known.get("vae")
            return None, there.facts() | ({"vae": str(vae)} if vae else {})

        def convert(x0: np.ndarray) -> np.ndarray:
            z = there.to_z(torch.from_numpy(x0)[None].float())
            values: np.ndarray = here.to_x0(z)[0].numpy()
            return values

        return convert, named | here.facts()

    def _shards_scaling(self) -> LatentScaling | None:
        """The scaling of the shards' latents by their manifest; None if it does not say."""
        if "latents" not in self.known:
            return None
        try:
            return scaling_of_facts(self.known["latents"])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{self.folder / MANIFEST}: its latents are not constants of a VAE ({printable(repr(error))}); give "
                "scaling_factor, and shift_factor or latents_mean and latents_std, or drop the entry"
            ) from error

    def _write_image_tokens(self, bucket: LatentBucket, samples: Sequence[ShardSample]) -> None:
        grid = self.sizes.grids[bucket.name]
        folder = image_tokens_folder(bucket.folder, self.encoder, grid)
        facts: dict[str, Any] = {"kind": IMAGE_TOKENS, "track": self.settings.name, "flip": "none"}
        facts |= {"grid": list(grid), "image_size": list(bucket.size), "encoder": self._encoder_facts(grid)}
        total = np.zeros(2 + 4 * self.sizes.width)

        def records() -> Iterator[Record]:
            for sample in _bar(samples, folder):
                vector_D, patches_ND = (sample.checked(member, self.sizes) for member in (GLOBAL, PATCHES))
                record = np.concatenate([vector_D[None], patches_ND]).astype(np.float16)
                if sample.split == "train":
                    total[:] += sums_of(record[None])
                yield sample.sample_id, record

        _write(folder, records(), facts, lambda: statistics_file(total))

    def _encoder_facts(self, grid: Grid) -> dict[str, Any]:
        """What is known of the encoder that made the image tokens: what the shards' manifest says, or its sizes."""
        sizes = {"grid": list(grid), "width": self.sizes.width, "crop": WHOLE, "patch": self.sizes.patch}
        known = self.known.get("image_encoder")
        if known is not None:
            return dict(known) | sizes
        names = [*self.encoder.build().manifest(), "vector", "weights_sha256"]
        return dict.fromkeys(names, UNKNOWN) | sizes

    def _write_text(self, samples: Sequence[ShardSample]) -> None:
        """A record of each distinct caption, and of the empty one. Raises UserError if equal captions have different
        tokens."""
        encoder, folder = self.settings.text_encoder, self.settings.text_folder
        shape, written = TextShape.of(encoder), dict[str, tuple[bytes, ShardSample]]()

        def records() -> Iterator[Record]:
            yield caption_key(EMPTY), shape.pack(_as_encoded(*self._empty_record(shape)))[0].numpy()
            for sample in _bar(samples, folder):
                tokens_LD, mask_L = (sample.checked(member, self.sizes) for member in (TEXT, MASK))
                record_V = shape.pack(_as_encoded(tokens_LD, mask_L))[0].numpy().astype(np.float16)
                digest, key = hashlib.blake2b(record_V.tobytes()).digest(), caption_key(sample.caption)
                known, first = written.setdefault(key, (digest, sample))
                if known != digest:
                    raise UserError(
                        f"{sample.where(TEXT)} and {first.where(TEXT)} are of the same caption and differ; encode that "
                        "caption again"
                    )
                if first is sample:
                    yield key, record_V

        facts: dict[str, Any] = {"kind": "text", "track": self.settings.name, "captions": str(self.settings.captions)}
        known = dict.fromkeys(encoder.build().manifest(), UNKNOWN) | {"weights_sha256": UNKNOWN}
        facts |= {"encoder": self.known.get("encoder", known), "length": shape.length, "width": shape.width}
        captions = hashlib.sha256(self.settings.captions_file.read_bytes()).hexdigest()
        _write(folder, records(), facts | {"pooled_width": 0, "captions_sha256": captions})

    def _empty_record(self, shape: TextShape) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and mask of the empty caption, from the files beside the manifest; zeros without them."""
        files = [self.folder / name for name in EMPTY_FILES]
        if not files[0].is_file():
            return np.zeros((shape.length, shape.width), np.float16), np.zeros(shape.length, np.uint8)
        if not files[1].is_file():
            raise UserError(f"{files[1]} is missing beside {files[0].name}; put it back")
        tokens_LD, mask_L = (read_array(file.read_bytes(), str(file)) for file in files)
        if tokens_LD.shape != (shape.length, shape.width) or mask_L.shape != (shape.length,):
            raise UserError(
                f"{files[0]} and {files[1].name} have other shapes than data.text_encoder's; make them again"
            )
        return tokens_LD, mask_L

    # --- lists ------------------------------------------------------------------------------------------

    def _write_lists(
        self, by_bucket: Mapping[LatentBucket, Sequence[ShardSample]], all_of: Sequence[ShardSample]
    ) -> None:
        track = self.track
        write_names(track.folder, [str(name) for name in self.known.get("class_names", [])])
        counts = {bucket.name: _write_splits(bucket.folder, bucket.csv, own) for bucket, own in by_bucket.items()}
        _write_splits(track.folder, track.csv, all_of)
        shards = {"folder": self.folder.name, "samples": len(all_of)}
        record_facts(track.folder, shards=shards)
        if self.settings.buckets is not None:
            file = track.folder / BUCKETS
            known = read_json(file) if file.is_file() else {}
            write_whole(file, json.dumps(known | {self.settings.counted_as: counts}, indent=1))


def _write_splits(folder: Path, csv: Mapping[str, Path], samples: Sequence[ShardSample]) -> dict[str, int]:
    """Writes the lists of a folder. Returns the number of samples by split."""
    counts = {}
    for split in SPLITS:
        own = sorted((s for s in samples if s.split == split), key=lambda s: s.sample_id)
        write_split(csv[split], [Sample(s.sample_id, s.class_id, s.path, split) for s in own])
        counts[split] = len(own)
    record_facts(folder, csv_sha256=csv_digests([csv[split] for split in SPLITS]))
    return counts


def _as_encoded(tokens_LD: np.ndarray, mask_L: np.ndarray) -> EncodedText:
    tokens = torch.from_numpy(tokens_LD.astype(np.float32))[None]
    return EncodedText(tokens, torch.from_numpy(mask_L != 0)[None], torch.zeros(1, 0))


def _write(
    folder: Path, records: Iterator[Record], facts: dict[str, Any], more: Callable[[], dict[str, bytes]] = dict
) -> None:
    try:
        write_store(folder, records, facts, more, batch_size=BATCH)
    except UserError:
        raise
    except ValueError as error:  # values that fp16 cannot hold, after conversion
        raise UserError(f"{folder.name}: {error}; make that sample again") from error


def _bar(samples: Sequence[ShardSample], folder: Path) -> Iterator[ShardSample]:
    return iter(progress.bar(samples, desc=folder.name, unit="sample"))
