"""Writes a latent track's caches as the shards of `layout`. A shard is a temporary file until it is complete; a run
that was killed goes on with the first shard that is missing.

Shapes: CHW latent, N patches, D width of an image token, L positions of a caption's tokens.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np

from urepa.core import progress
from urepa.core.errors import UserError
from urepa.core.files import read_json, set_aside, sync_folder, write_whole
from urepa.data.lists.captions import EMPTY, caption_key, read_written
from urepa.data.lists.classes import read_names
from urepa.data.lists.paths import is_finished
from urepa.data.lists.samples import Sample, Samples
from urepa.data.shards.into_stores import EMPTY_FILES
from urepa.data.shards.layout import (
    GLOBAL,
    JSON,
    LATENT,
    MANIFEST,
    MASK,
    PATCHES,
    TEXT,
    WHOLE,
    ShardSizes,
    bucket_folder,
    image_tokens_folder,
)
from urepa.data.shards.shard_reading import list_samples
from urepa.data.stages.vae_config import NEUTRAL
from urepa.data.stores.record_reading import Store
from urepa.data.stores.text_records import TextShape

if TYPE_CHECKING:
    from urepa.data.tracks.latent_bucket_caches import LatentBucket
    from urepa.data.tracks.latent_caches import LatentTrackCaches

BEGUN = "begun.json"
SHARD_SIZE = 1000


class ShardExport:
    """Writes one track."""

    def __init__(self, track: LatentTrackCaches, encoder: Any, folder: Path, shard_size: int) -> None:
        """Raises UserError if a cache is missing.

        Args:
            encoder: the declaration of the encoder whose patches were stored; it is not run.
            shard_size: samples in a shard; the last of a bucket and split may have fewer.
        """
        self.track, self.folder, self.shard_size = track, folder, shard_size
        self.sizes = ShardSizes.of(track.settings, encoder)
        self.tokens = {b: image_tokens_folder(b.folder, encoder, self.sizes.grids[b.name]) for b in track.buckets}
        for place in self.tokens.values():
            if not is_finished(place):
                raise UserError(f"there are no image tokens at {place}, which the shards hold; make them first")
        self.text, self.shape = Store(track.settings.text_folder), TextShape.of(track.settings.text_encoder)
        self.captions = read_written(track.settings.captions_file)
        self.splits = {bucket: bucket.samples() for bucket in track.buckets}
        self.facts = self._facts()

    def run(self) -> None:
        """Writes all shards, and the manifest last."""
        self._begin()
        for bucket, splits in self.splits.items():
            stores = Store(bucket.latents), Store(self.tokens[bucket])
            for split, samples in splits.items():
                if len(samples):
                    place = self.folder / split / bucket_folder(bucket.size)
                    place.mkdir(parents=True, exist_ok=True)
                    self._write_split(place, samples, *stores)
            for store in stores:
                store.close()
        tokens_LD, mask_L = self._text_arrays(EMPTY)
        for name, values in zip(EMPTY_FILES, (tokens_LD, mask_L), strict=True):
            write_whole(self.folder / name, _npy(values))
        self.text.close()
        write_whole(self.folder / MANIFEST, json.dumps(self.facts, indent=1))
        (self.folder / BEGUN).unlink()

    def replace(self, buckets: Collection[str]) -> None:
        """Writes the samples of these buckets, in shards that exist, again from the caches; the former folders are set
        aside. Raises UserError, and changes nothing, if the caches lack a sample."""
        names = {bucket.name: bucket for bucket in self.track.buckets}
        there, _ = list_samples(self.folder, self.sizes, self.track.settings.caption_column)
        ids: dict[Path, list[str]] = {}
        for sample in there:
            if sample.bucket in buckets:
                ids.setdefault(sample.shard.parent, []).append(sample.sample_id)
        found: dict[Path, tuple[LatentBucket, Samples]] = {}
        for place, own in ids.items():
            name, splits = self.sizes.bucket_of(place), dict[str, Samples]()
            if name in names:
                splits = self.splits[names[name]]
            samples = Samples.concatenate(splits.values())
            if lacking := set(own) - set(samples.ids()):
                raise UserError(
                    f"the caches of {name} lack {len(lacking)} samples of {place} (first: {min(lacking)!r}), so "
                    "they cannot be written again; make caches of all of them first"
                )
            found[place] = names[name], samples.filter(map(set(own).__contains__, samples.ids()))
        for place, (bucket, samples) in found.items():
            print(f"set aside: {set_aside(place)}")
            place.mkdir()
            stores = Store(bucket.latents), Store(self.tokens[bucket])
            self._write_split(place, samples, *stores)

    def _facts(self) -> dict[str, Any]:
        """The manifest of the shards."""
        track, (first, *_) = self.track, self.track.buckets
        latents, tokens = (read_json(place / MANIFEST) for place in (first.latents, self.tokens[first]))
        scaling = {key: latents[key] for key in ("scaling_factor", *NEUTRAL) if key in latents}
        facts = {"crop": WHOLE, "patch": self.sizes.patch, "shard_size": self.shard_size, "vae": latents.get("vae")}
        facts |= {"latents": scaling} if "scaling_factor" in scaling else {}
        facts |= {"image_encoder": tokens["encoder"], "encoder": self.text.manifest["encoder"]}
        counts = {b.name: {s: len(own) for s, own in splits.items()} for b, splits in self.splits.items()}
        facts |= {"samples": counts}
        return facts | {"class_names": read_names(track.folder, track.num_classes)}

    def _begin(self) -> None:
        """Marks the folder as begun. Raises UserError if it is finished, or holds something else."""
        mark, asked = self.folder / BEGUN, json.loads(json.dumps(self.facts))
        if mark.is_file():
            if read_json(mark) != asked:
                raise UserError(f"webdataset={self.folder} was begun with other settings; delete it, or give another")
        elif self.folder.is_dir() and any(self.folder.iterdir()):
            raise UserError(f"webdataset={self.folder} is not empty; give a new folder")
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(mark, json.dumps(self.facts, indent=1))

    def _write_split(self, place: Path, samples: Samples, latents: Store, tokens: Store) -> None:
        """Writes the missing shards of a bucket's split."""
        bar = progress.bar(total=len(samples), desc=f"{place.parent.name}/{place.name}", unit="sample")
        for number, start in enumerate(range(0, len(samples), self.shard_size)):
            own, file = samples[start : start + self.shard_size], place / f"shard-{number:06d}.tar"
            if not file.is_file():
                write_tar(file, self._members(own, latents, tokens))
            bar.update(len(own))
        bar.close()

    def _members(self, samples: Samples, latents: Store, tokens: Store) -> Iterator[tuple[str, bytes]]:
        for sample in samples:
            key, caption = key_of(sample.sample_id), self._caption(sample)
            image_tokens = tokens.tensor([sample.sample_id])[0].numpy()
            tokens_LD, mask_L = self._text_arrays(caption)
            facts = {"id": sample.sample_id, "caption": caption, "split": sample.split, "class_id": sample.class_id}
            yield f"{key}.{JSON}", json.dumps(facts | {"path": sample.path}).encode()
            arrays = {GLOBAL: image_tokens[0], PATCHES: image_tokens[1:], TEXT: tokens_LD, MASK: mask_L}
            arrays[LATENT] = latents.tensor([sample.sample_id])[0].numpy()
            for member, values in arrays.items():
                yield f"{key}.{member}", _npy(values)

    def _caption(self, sample: Sample) -> str:
        """The sample's first caption: the shards hold one."""
        return self.captions[sample.sample_id][0]

    def _text_arrays(self, caption: str) -> tuple[np.ndarray, np.ndarray]:
        """Tokens [L,E], fp16, and mask [L], uint8, of a caption."""
        found = self.shape.unpack(self.text.tensor([caption_key(caption)]))
        return found.tokens_BLD[0].half().numpy(), found.mask_BL[0].numpy().astype(np.uint8)


def key_of(sample_id: str) -> str:
    """A sample's key in a tar: its id, in which dots and slashes are escaped, because they end a key or its folder."""
    return quote(sample_id, safe="").replace(".", "%2E")


def write_tar(file: Path, members: Iterator[tuple[str, bytes]]) -> None:
    """Writes a tar file, whole or not at all. Its bytes depend on the members alone."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as out:
            with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as archive:
                for name, content in members:
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
            out.flush()
            os.fsync(out.fileno())
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(file.parent)


def _npy(values: np.ndarray) -> bytes:
    content = io.BytesIO()
    np.save(content, np.ascontiguousarray(values), allow_pickle=False)
    return content.getvalue()
