"""The stages that make a latent track's caches. A stage resumes where it stopped; its parts may run in parallel."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

from urepa.core.errors import UserError, in_bucket
from urepa.core.files import read_json, write_whole
from urepa.data.bucketed_cache import Caches
from urepa.data.cache import (
    FAULT,
    UNKNOWN,
    Cache,
    csv_digests,
    mean_token_file,
    write_begun,
)
from urepa.data.lists.classes import class_names
from urepa.data.lists.paths import is_finished, no_list_error, unfinished_error
from urepa.data.lists.samples import Keys, Samples, digest_of, read_split
from urepa.data.sources import source_changes
from urepa.data.sources.source_identity import Listing
from urepa.data.stages import encode, image_archives, verify
from urepa.data.stages.build_lists import ListBuilder, record_facts
from urepa.data.stages.encode import Output
from urepa.data.stages.verify import marked_faults
from urepa.data.stores.digests import manifest_entries
from urepa.data.stores.lmdb_store import Part, batches_of
from urepa.data.stores.record_format import GROUP
from urepa.data.stores.record_reading import Store
from urepa.data.stores.sealing import add_digests, digests_file
from urepa.data.track_image_tokens import NO_IMAGE_TOKENS
from urepa.data.tracks.latent_bucket_caches import LatentBucket
from urepa.data.tracks.latent_caches import LatentTrackCaches
from urepa.models.backbones.sd15_net import load_prompts
from urepa.models.teachers.several_teachers import SeveralTeachers, by_name

STAGES = ("manifest", "images", "latents", "tokens", "image_tokens", "prompts", "text", "verify")


@dataclass
class Build:
    """A track, its teacher, and the part of the samples that this process handles."""

    track: LatentTrackCaches
    teacher: Any
    part: Part
    batch: int

    def run(self, stage: str) -> None:
        """Runs one stage, or all of them in order if `stage` is "all"."""
        if stage in ("all", "manifest", "images") and any(path.exists() for path in self.track.csv.values()):
            source_changes.refuse_changes(self.track)
        names = STAGES if stage == "all" else (stage,)
        asked = {"latents": self.track.online_latents, "tokens": self.track.online_teacher}
        asked |= {"text": self.track.online_text}
        for name in names:
            if asked.get(name, False):
                if stage == "all":
                    continue
                key = {"latents": "online_latents", "tokens": "online_teacher", "text": "online_text"}[name]
                raise UserError(f"data.{key}=true computes {name} during training: leave out the stage or the key")
            made_of = {"prompts": self.track.text, "text": self.track.captions}
            made_of |= {"image_tokens": self.track.settings.image_encoder}
            if stage == "all" and name in made_of and made_of[name] is None:
                continue
            if stage == "all" and name == "verify" and not self._all_parts_are_done():
                print("verify: other parts are not finished yet; the last part runs this stage")
                continue
            work: Callable[[], None] = getattr(self, f"stage_{name}")
            work()

    def _all_parts_are_done(self) -> bool:
        track, parts = self.track, [Part(i, self.part.count) for i in range(self.part.count)]
        if self.part.count == 1:
            return True
        if not all(is_finished(path) for path in track.store_folders(self.teacher)):
            return False
        return not track.reads_squares(self.teacher) or all(
            image_archives.has_chunks(bucket.folder, part, _part_samples(self._listed_samples(bucket), part))
            for bucket in self._buckets()
            for part in parts
        )

    # --- manifest and images ----------------------------------------------------------------------------

    def stage_manifest(self) -> None:
        """Makes the lists of samples and of their captions."""
        ListBuilder(self.track).run()

    def _listed_samples(self, bucket: LatentBucket | None = None) -> Samples:
        """The samples of all parts, of the track or of one bucket, in the order that all stages use."""
        csv = self.track.csv if bucket is None else bucket.csv
        missing = [path for path in csv.values() if not path.exists()]
        if missing:
            raise no_list_error(missing[0])
        return Samples.concatenate(map(read_split, csv.values()))

    def _samples(self, bucket: LatentBucket) -> Samples:
        """A bucket's samples in this part."""
        return _part_samples(self._listed_samples(bucket), self.part)

    def _buckets(self) -> list[LatentBucket]:
        """The buckets with images. Raises UserError if the buckets' lists do not exist."""
        self._listed_samples()
        self.track.require_bucket_lists()
        return self.track.buckets

    def stage_images(self) -> None:
        """Cuts the images to squares, or to the rectangles of the buckets, and writes them as JPEG."""
        track, own = self.track, {bucket: self._samples(bucket) for bucket in self._buckets()}
        for bucket in own:
            write_begun(bucket.folder / "images", {"kind": "images"} | bucket.image_facts(), track.remake)
        left = {b: rows for b, rows in own.items() if not image_archives.is_complete(b.folder, self.part, rows)}
        if not left:
            return  # so that the source need not exist any more
        wanted = {sample_id for rows in left.values() for sample_id in rows.ids()}
        known = track.record().get("source", {})
        listing = Listing(track.source, track.images, known)
        load = {row.name: row.load for row in listing if row.name in wanted}
        gone = wanted - load.keys()
        if gone:
            raise UserError(f"{len(gone)} samples of the manifest are not in data.images (first: {min(gone)})")
        listing.refuse_other(known, track.folder)
        refused: list[UserError] = []  # after a bucket's error the other buckets are still tried
        for bucket, rows in left.items():
            try:
                with in_bucket(bucket.name):
                    image_archives.write_images(bucket.folder, self.part, rows, load, bucket.cut, track.max_skipped)
            except UserError as error:
                refused.append(error)
        if refused:
            raise refused[0]

    # --- networks ---------------------------------------------------------------------------------------

    def stage_latents(self) -> None:
        """Encodes the images with the VAE."""
        track, buckets = self.track, self._buckets()  # raises for missing lists before the weights are read
        encoder, facts = encode.vae_encoder(track.vae, track.moments)
        for bucket in buckets:
            bucket.require_shape(encoder(torch.zeros(1, *bucket.image_shape, dtype=torch.uint8)).shape[-3:])
        for bucket in buckets:
            own = {"kind": "latents", "shape": bucket.record_shape(), "dtype": "float16"}
            self._encode(bucket, Output(bucket.latents, facts | own | bucket.image_facts()), encoder)

    def stage_tokens(self) -> None:
        """Computes the teachers' tokens, in one store per teacher."""
        track, teachers, buckets = self.track, by_name(self.teacher), self._buckets()
        show = track.view.show() if teachers else None
        for teacher in teachers.values():
            if track.token_dtype == "int8" and teacher.width % GROUP:
                raise UserError(
                    f"data.token_dtype=int8 needs a width that is a multiple of {GROUP}; {teacher.width} is not"
                )
        for bucket in buckets:
            seen = bucket.teachers(self.teacher)
            for name, folder in bucket.tokens_folders(self.teacher).items():
                facts = {"kind": "tokens", "shape": _token_shape(seen[name]), "dtype": track.token_dtype}
                known = seen[name].manifest() | {"weights_sha256": teachers[name].weights_sha256()} | track.view.facts()
                self._encode(bucket, Output(folder, facts | {"teacher": known}), encode.token_encoder(seen[name], show))

    def stage_image_tokens(self) -> None:
        """Computes the vectors and patch tokens of the conditions' images."""
        for bucket in self._buckets():
            tokens = bucket.image_tokens
            if tokens is None:
                raise UserError(NO_IMAGE_TOKENS.format(name=self.track.name))
            self._encode(bucket, tokens.output(), tokens.encode_bytes)

    def _is_adopted(self, folder: Path) -> bool:
        """Whether a store was adopted; it is then not extended, as its exact settings are unknown."""
        file = folder / "manifest.json"
        adopted = file.exists() and "adopted" in read_json(file)
        if adopted:
            print(f"{folder.name} was adopted and is not changed")
        return adopted

    def _encode(self, bucket: LatentBucket, output: Output, encoder: encode.Encode) -> None:
        """Writes this part of a bucket's store and, with data.flip, of the mirrored store."""
        facts = output.facts | {"flip": "none", "parts": self.part.count}
        outputs = encode.outputs_of(replace(output, facts=facts), self.track.flip)
        samples, listed = self._samples(bucket), digest_of(self._listed_samples(bucket))
        read = partial(image_archives.read_images, bucket.folder, self.part, samples, self.batch)
        for out in outputs:
            if self._is_adopted(out.folder):
                continue
            encode.encode_part(out, self.part, samples, read, encoder, self.track.remake, listed)
            if encode.seal(out, listed):
                record_facts(bucket.folder, skipped=sorted(image_archives.skipped_ids(bucket.folder)))

    def stage_prompts(self) -> None:
        """Writes the text embeddings of the classes, in the process of part 0."""
        track = self.track
        if self.part.index:
            return
        if track.prompts.exists():
            track.refuse_other_prompts()
            return
        if track.text is None or track.class_names is None:
            raise UserError(f"data={track.name} has no prompts: its backbones take class ids; leave that stage out")
        names = class_names(track.class_names)
        if len(names) != track.num_classes:
            raise UserError(f"data.class_names has {len(names)} names; data.num_classes={track.num_classes}")
        write_whole(track.prompt_record, json.dumps(encode.prompt_facts(track.text, names), indent=1))
        encode.write_prompts(track.prompts, track.text, names)

    def stage_text(self) -> None:
        """Writes the records of the captions."""
        track = self.track
        if track.captions is None:
            raise UserError(f"data={track.name} has no captions, so there is nothing to encode; leave that stage out")
        track.captions.build(self._listed_samples(), self.part)

    # --- verify -----------------------------------------------------------------------------------------

    def stage_verify(self) -> None:
        """Checks counts, keys, shapes, finiteness, vector lengths, digests and the field of view."""
        self._verify(self.track.open_to_verify(self.teacher))

    def _verify(self, cache: Caches) -> list[verify.TooFewSamples]:
        """Records a fault beside the store, so that training refuses it until it passes. Returns the checks left
        out."""
        track, prompts, left_out = self.track, self.track.prompts, []
        if prompts.exists() and not load_prompts(prompts, track.num_classes).isfinite().all():
            raise UserError(f"{prompts} is not finite; delete it and make it again")
        try:
            if track.captions is not None:
                with marked_faults():
                    track.captions.verify(cache.buckets[0].text)
            for bucket in cache.buckets:
                with in_bucket(bucket.bucket):
                    left_out += self._verify_bucket(bucket)
        finally:
            cache.close()
        for store in track.store_folders(self.teacher):
            (store / FAULT).unlink(missing_ok=True)
        return left_out

    def _verify_bucket(self, cache: Cache) -> list[verify.TooFewSamples]:
        with marked_faults():
            for name, tokens in cache.tokens.items():
                if isinstance(tokens, Store):
                    verify.weights_check(tokens, by_name(self.teacher)[name])
            if cache.image_tokens is not None:
                verify.weights_check(cache.image_tokens, self.track.settings.image_encoder.build())
            return verify.verify(str(self.track.folder / cache.bucket), cache)

    def stage_digest(self) -> None:
        """Adds digests to the records of finished stores that have none."""
        track = self.track
        if self.part.count > 1:
            raise UserError("stage=digest takes whole stores: leave shard out")
        for store in track.store_folders(self.teacher):
            if not is_finished(store):
                raise unfinished_error(store, track.remake)
            add_digests(store)

    def stage_adopt(self) -> None:
        """Writes manifests for caches in the description's layout that have none, after checking every record and the
        field of view. Facts that cannot be determined are marked as unknown."""
        track = self.track
        if isinstance(self.teacher, SeveralTeachers):
            raise UserError(
                "caches in the description's layout have tokens of one teacher: adopt them with teacher=NAME"
            )
        if track.online_latents or track.online_teacher:
            raise UserError("stage=adopt is for caches: leave data.online_latents and data.online_teacher out")
        samples, (bucket,) = track.samples(), track.buckets
        teacher = dict.fromkeys(self.teacher.manifest(), UNKNOWN) | {"grid": list(self.teacher.grid)}
        teacher |= {"width": self.teacher.width}
        unknown = dict.fromkeys(("image_size", "crop"), UNKNOWN)
        plain = (
            Output(bucket.latents, {"kind": "latents", "shape": bucket.record_shape()} | unknown),
            Output(bucket.tokens, {"kind": "tokens", "shape": _token_shape(self.teacher), "teacher": teacher}),
        )
        outputs = [o for one in plain for o in encode.outputs_of(one, track.flip) if not is_finished(o.folder)]
        known = {"dtype": "float16", "adopted": True}
        manifests = {
            o.folder: {"flip": "none"} | o.facts | known | {"count": sum(map(o.holds, chain(*samples.values())))}
            for o in outputs
        }
        track.require_folders(self.teacher)
        for output in outputs:  # digests first, so that they describe the bytes that are verified
            manifests[output.folder] |= _write_derived_files(output, manifests[output.folder], digests_file)
        for few in self._verify(track.open_to_verify(self.teacher, manifests)):
            raise UserError(f"whether latents and tokens see the same field of view cannot be checked: {few}")
        for output in outputs:
            if output.is_tokens:
                keys = Keys([samples["train"]])
                manifests[output.folder] |= _write_derived_files(
                    output, manifests[output.folder], partial(_mean_file, keys=keys)
                )
            write_whole(output.folder / "manifest.json", json.dumps(manifests[output.folder], indent=1))
        record_facts(track.folder, csv_sha256=csv_digests(list(track.csv.values())))


def _token_shape(teacher: Any) -> list[int]:
    return [teacher.grid[0] * teacher.grid[1], teacher.width]


def _part_samples(samples: Samples, part: Part) -> Samples:
    return samples.filter(map(part.holds, samples.ids()))


def _write_derived_files(
    output: Output, manifest: dict[str, Any], made: Callable[[Store], dict[str, bytes]]
) -> dict[str, str]:
    """Writes the files that are computed from a store's records next to them. Returns their entries for the
    manifest."""
    store = Store(output.folder, manifest)
    files = made(store)
    store.close()
    for name, content in files.items():
        write_whole(output.folder / name, content)
    return manifest_entries(files)


def _mean_file(store: Store, keys: Keys) -> dict[str, bytes]:
    """The mean token over the records with these keys."""
    total, count = np.zeros(store.shape[-1]), 0
    for chunk in batches_of(keys, 512):
        values = store.read(chunk)
        total += values.reshape(-1, store.shape[-1]).astype(np.float64).sum(0)
        count += values.shape[0] * values.shape[1]
    return mean_token_file(total / count)
