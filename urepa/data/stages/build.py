"""The stages that make a latent track's caches. Each goes on where it was; parts of a stage run side by side."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

from urepa.core import progress
from urepa.core.errors import UserError
from urepa.core.files import missing_folders, read_json, remove_new, write_whole
from urepa.core.random_draws import unit_interval
from urepa.data.cache import (
    FAULT,
    UNKNOWN,
    Cache,
    csv_digests,
    mean_token_file,
    refuse_changed,
    write_begun,
)
from urepa.data.lists.classes import class_names, names_at, write_names
from urepa.data.lists.equal_images import EqualImages
from urepa.data.lists.paths import is_finished, no_list_error, unfinished_error
from urepa.data.lists.samples import Keys, Sample, Samples, digest_of, read_split, write_split
from urepa.data.lists.split_sizes import refuse_other_classes
from urepa.data.sources import source_changes
from urepa.data.sources.equal_files import equal_files
from urepa.data.sources.image_sources import refuse_duplicates, refuse_unfit_names
from urepa.data.sources.source_identity import Listing
from urepa.data.sources.source_image import SourceImage
from urepa.data.stages import encode, image_archives, verify
from urepa.data.stages.encode import Output
from urepa.data.stores.digests import in_manifest
from urepa.data.stores.lmdb_store import Part, batches_of
from urepa.data.stores.record_format import GROUP
from urepa.data.stores.record_reading import Store
from urepa.data.stores.sealing import add_digests, digests_file
from urepa.data.tracks.latent_caches import LatentTrackCaches
from urepa.models.backbones.sd15_net import load_prompts
from urepa.models.teachers.several_teachers import SeveralTeachers, by_name

APART = "equal_images_apart"  # in track.json: by what equal images were found and kept in one split
STAGES = ("manifest", "images", "latents", "tokens", "prompts", "verify")


@dataclass
class Build:
    """A track, its teacher, and the part of the samples that this process is for."""

    track: LatentTrackCaches
    teacher: Any
    part: Part
    batch: int

    def run(self, stage: str) -> None:
        """One stage, or "all" in order."""
        if stage in ("all", "manifest", "images") and any(path.exists() for path in self.track.csv.values()):
            source_changes.refuse_changes(self.track)
        names = STAGES if stage == "all" else (stage,)
        asked = {"latents": self.track.online_latents, "tokens": self.track.online_teacher}
        for name in names:
            if asked.get(name, False):
                if stage == "all":
                    continue
                key = "online_latents" if name == "latents" else "online_teacher"
                raise UserError(f"data.{key}=true makes {name} while training: leave the stage or the key out")
            if stage == "all" and name == "prompts" and self.track.text is None:
                continue
            if stage == "all" and name == "verify" and not self._all_parts_are_done():
                print("verify: other parts are still being made; the last one verifies")
                continue
            work: Callable[[], None] = getattr(self, f"stage_{name}")
            work()

    def _all_parts_are_done(self) -> bool:
        track, listed = self.track, self._listed_samples()
        parts = [Part(i, self.part.count) for i in range(self.part.count)]
        return self.part.count == 1 or (
            all(is_finished(path) for path in track.store_folders(self.teacher))
            and (
                not track.reads_squares(self.teacher)
                or all(image_archives.has_chunks(track.folder, p, _part_samples(listed, p)) for p in parts)
            )
        )

    # --- manifest and images ----------------------------------------------------------------------------

    def stage_manifest(self) -> None:
        """The splits as CSV, class-balanced; the first n of a class are the same for every n, so a smaller
        track is a subset of a larger one."""
        track, files = self.track, list(self.track.csv.values())
        there, digests = [path for path in files if path.exists()], track.record().get("csv_sha256", {})
        refuse_changed(there, digests, track.remake)
        if there == files:
            self._refuse_other_numbers()
        else:
            self._make_lists(files, digests)
        self._record(csv_sha256=csv_digests(files))

    def _make_lists(self, files: list[Path], digests: dict[str, str]) -> None:
        """From the source; of one that does not fit nothing is left."""
        track, new = self.track, missing_folders(self.track.folder)
        try:
            known = track.record().get("source", {})
            listing = Listing(track.source, track.images, known)
            source_changes.record(track.source, track.images, track.folder)
            found = list(progress.bar(listing, desc="manifest", unit="image"))
            listing.refuse_other(known, track.folder)
            refuse_duplicates(found)
            refuse_unfit_names(found)
            equal = EqualImages()
            apart = APART in track.record() or not known  # lists of an earlier version go on as they are
            equal.settle(found, equal_files(found) if apart else [])
            chosen = self._split_rows([row for row in found if row.name not in equal.left_out], equal.train_only)
            equal.print_line()
            unused = sum(row.split == "test" for row in found) - len(chosen["val"]) - len(equal.left_out)
            listing.print_left_out(max(0, unused), f"data.val_images={track.wanted['val']}")
            self._write_missing(chosen)
            refuse_changed(files, digests, track.remake)
            if not known:  # lists of an earlier version have no names of classes
                write_names(track.folder, names_at(track.source, track.images, listing.suffixes))
            self._record(source=listing.facts(), **({APART: ["files"]} if apart else {}))
        except BaseException:
            remove_new(new)
            raise

    def _write_missing(self, chosen: dict[str, list[SourceImage]]) -> None:
        """A list that another track of the folder has made stays; a UserError where this one would need another."""
        track = self.track
        for split, path in track.csv.items():
            if path.exists() and {s.sample_id: s.class_id for s in read_split(path)} != {
                row.name: row.class_id for row in chosen[split]
            }:
                raise UserError(
                    f"{path} holds other samples than the {len(chosen[split])} that are asked for here; give "
                    f"data.{split}=OTHER.csv beside it, or another data.root"
                )
        track.folder.mkdir(parents=True, exist_ok=True)
        for split, path in track.csv.items():
            if not path.exists():
                rows = sorted(chosen[split], key=lambda row: row.name)
                write_split(path, [Sample(r.name, r.class_id, r.path, split) for r in rows])

    def _split_rows(self, found: list[SourceImage], train_only: Collection[str]) -> dict[str, list[SourceImage]]:
        """Assigns images to splits. If the source has no held-out images, the validation images are drawn by name, none
        of `train_only` among them."""
        track = self.track
        pools: dict[str, list[list[SourceImage]]] = {
            s: [[] for _ in range(track.num_classes)] for s in ("train", "val")
        }
        refuse_other_classes({row.class_id for row in found}, track.num_classes)
        for row in found:
            pools["val" if row.split == "test" else "train"][row.class_id].append(row)
        if not any(pools["val"]):
            if track.wanted["val"] is None:
                raise UserError("the images have no val or test folder: say how many to keep apart, data.val_images=N")
            for c, pool in enumerate(pools["train"]):
                pool.sort(key=lambda row: unit_interval("split", row.name))
                free = [row for row in pool if row.name not in train_only]
                pools["val"][c] = free[: self._share("val", c, free)]
                taken = {row.name for row in pools["val"][c]}
                pools["train"][c] = [row for row in pool if row.name not in taken]
        chosen: dict[str, list[SourceImage]] = {}
        for split, classes in pools.items():
            ordered = [sorted(pool, key=lambda row: unit_interval("track", row.name)) for pool in classes]
            chosen[split] = [row for c, pool in enumerate(ordered) for row in pool[: self._share(split, c, pool)]]
        return chosen

    def _share(self, split: str, class_id: int, pool: list[SourceImage]) -> int:
        """How many of a class a split has."""
        wanted, classes = self.track.wanted[split], self.track.num_classes
        share = len(pool) if wanted is None else wanted // classes + (class_id < wanted % classes)
        if share > len(pool):
            raise UserError(f"data.{split}_images={wanted} needs {share} of class {class_id}; there are {len(pool)}")
        return share

    def _refuse_other_numbers(self) -> None:
        """A UserError if the CSVs that are there hold other numbers of samples than are asked for."""
        for split, path in self.track.csv.items():
            wanted, there = self.track.wanted[split], len(read_split(path))
            if wanted not in (None, there):
                raise UserError(
                    f"{path} has {there} samples; data.{split}_images={wanted}: give data.{split}=OTHER.csv beside it, "
                    "or another data.root"
                )

    def _record(self, **facts: Any) -> None:
        """Adds to track.json; a mapping's or list's new entries to those there are."""
        known = self.track.record()
        for name, value in facts.items():
            before = known.get(name, type(value)())
            known[name] = before | value if isinstance(value, dict) else sorted({*before, *value})
        write_whole(self.track.folder / "track.json", json.dumps(known, indent=1))

    def _listed_samples(self) -> Samples:
        """The samples of all parts, in the order of every stage."""
        missing = [path for path in self.track.csv.values() if not path.exists()]
        if missing:
            raise no_list_error(missing[0])
        return Samples.concatenate(map(read_split, self.track.csv.values()))

    def _samples(self) -> Samples:
        """This part's."""
        return _part_samples(self._listed_samples(), self.part)

    def stage_images(self) -> None:
        """Squares as JPEG."""
        track, samples = self.track, self._samples()
        facts = {"kind": "images", "image_size": track.image_size, "crop": "center"}
        write_begun(track.folder / "images", facts, track.remake)
        if image_archives.is_complete(track.folder, self.part, samples):
            return  # the source may be gone by now
        wanted = set(samples.ids())
        known = track.record().get("source", {})
        listing = Listing(track.source, track.images, known)
        load = {row.name: row.load for row in listing if row.name in wanted}
        gone = wanted - load.keys()
        if gone:
            raise UserError(f"{len(gone)} samples of the manifest are not in data.images (first: {min(gone)})")
        listing.refuse_other(known, track.folder)
        image_archives.write_images(track.folder, self.part, samples, load, track.image_size, track.max_skipped)

    # --- networks ---------------------------------------------------------------------------------------

    def stage_latents(self) -> None:
        """VAE latents."""
        track, _ = self.track, self._listed_samples()  # missed now, not after the weights are read
        encoder, facts = encode.vae_encoder(track.vae, track.moments)
        track.require_shape(encoder(torch.zeros(1, *track.image_shape, dtype=torch.uint8)).shape[-3:])
        facts |= {"kind": "latents", "shape": track.record_shape(), "dtype": "float16"}
        facts |= {"image_size": track.image_size, "crop": "center"}
        self._encode(Output(track.latents, facts), encoder)

    def stage_tokens(self) -> None:
        """Teacher tokens, a store for each teacher."""
        track, teachers, _ = self.track, by_name(self.teacher), self._listed_samples()
        for teacher in teachers.values():
            if track.token_dtype == "int8" and teacher.width % GROUP:
                raise UserError(
                    f"data.token_dtype=int8 needs a width that is a multiple of {GROUP}; {teacher.width} is not"
                )
        for name, folder in track.tokens_folders(self.teacher).items():
            teacher = teachers[name]
            facts = {"kind": "tokens", "shape": _token_shape(teacher), "dtype": track.token_dtype}
            facts |= {"teacher": teacher.manifest() | {"weights_sha256": teacher.weights_sha256()}}
            self._encode(Output(folder, facts), encode.token_encoder(teacher))

    def _is_adopted(self, folder: Path) -> bool:
        """Of an adopted store it is not known how to go on with it."""
        file = folder / "manifest.json"
        adopted = file.exists() and "adopted" in read_json(file)
        if adopted:
            print(f"{folder.name} was adopted and stays as it is")
        return adopted

    def _encode(self, output: Output, encoder: encode.Encode) -> None:
        """This part of a store and, with data.flip, of the mirrored one."""
        facts = output.facts | {"flip": "none", "parts": self.part.count}
        outputs = encode.outputs_of(replace(output, facts=facts), self.track.flip)
        samples, listed = self._samples(), digest_of(self._listed_samples())
        read = partial(image_archives.read_images, self.track.folder, self.part, samples, self.batch)
        for out in outputs:
            if self._is_adopted(out.folder):
                continue
            encode.encode_part(out, self.part, samples, read, encoder, self.track.remake, listed)
            if encode.seal(out, listed):
                self._record(skipped=sorted(image_archives.skipped_ids(self.track.folder)))

    def stage_prompts(self) -> None:
        """Text embeddings of the classes; part 0 makes them."""
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

    # --- verify -----------------------------------------------------------------------------------------

    def stage_verify(self) -> None:
        """Counts, keys, shapes, finiteness, lengths, digests and the field of view."""
        self._verify(self.track.open_to_verify(self.teacher))

    def _verify(self, cache: Cache) -> None:
        """A fault is written down, so that training refuses the store until it passes."""
        prompts = self.track.prompts
        if prompts.exists() and not load_prompts(prompts, self.track.num_classes).isfinite().all():
            raise UserError(f"{prompts} is not finite; delete it and make it again")
        try:
            for name, tokens in cache.tokens.items():
                if isinstance(tokens, Store):
                    verify.weights_check(tokens, by_name(self.teacher)[name])
            verify.verify(str(self.track.folder), cache)
        except verify.Fault as fault:
            fault.mark()
            raise
        finally:
            cache.close()
        for store in self.track.store_folders(self.teacher):
            (store / FAULT).unlink(missing_ok=True)

    def stage_digest(self) -> None:
        """Digests of the records of stores that are there already and have none."""
        track = self.track
        if self.part.count > 1:
            raise UserError("stage=digest takes whole stores: leave shard out")
        for store in track.store_folders(self.teacher):
            if not is_finished(store):
                raise unfinished_error(store, track.remake)
            add_digests(store)

    def stage_adopt(self) -> None:
        """Takes in caches that lie in the description's layout without manifests, after looking at every record and at
        the field of view: a store counts only then. What cannot be known is marked so."""
        track = self.track
        if isinstance(self.teacher, SeveralTeachers):
            raise UserError(
                "caches in the description's layout have tokens of one teacher: adopt them with teacher=NAME"
            )
        if track.online_latents or track.online_teacher:
            raise UserError("stage=adopt takes in caches: leave data.online_latents and data.online_teacher out")
        samples = track.samples()
        teacher = dict.fromkeys(self.teacher.manifest(), UNKNOWN) | {"grid": list(self.teacher.grid)}
        teacher |= {"width": self.teacher.width}
        unknown = dict.fromkeys(("image_size", "crop"), UNKNOWN)
        plain = (
            Output(track.latents, {"kind": "latents", "shape": track.record_shape()} | unknown),
            Output(track.tokens, {"kind": "tokens", "shape": _token_shape(self.teacher), "teacher": teacher}),
        )
        outputs = [o for one in plain for o in encode.outputs_of(one, track.flip) if not is_finished(o.folder)]
        known = {"dtype": "float16", "adopted": True}
        manifests = {
            o.folder: {"flip": "none"} | o.facts | known | {"count": sum(map(o.holds, chain(*samples.values())))}
            for o in outputs
        }
        track.require_folders(self.teacher)
        for output in outputs:  # digests first, so that they are of what is verified
            manifests[output.folder] |= _write_derived_files(output, manifests[output.folder], digests_file)
        self._verify(track.open_to_verify(self.teacher, manifests))
        for output in outputs:
            if output.is_tokens:
                keys = Keys([samples["train"]])
                manifests[output.folder] |= _write_derived_files(
                    output, manifests[output.folder], partial(_mean_file, keys=keys)
                )
            write_whole(output.folder / "manifest.json", json.dumps(manifests[output.folder], indent=1))
        self._record(csv_sha256=csv_digests(list(track.csv.values())))


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
    return in_manifest(files)


def _mean_file(store: Store, keys: Keys) -> dict[str, bytes]:
    """The mean token over the records with these keys."""
    total, count = np.zeros(store.shape[-1]), 0
    for chunk in batches_of(keys, 512):
        values = store.read(chunk)
        total += values.reshape(-1, store.shape[-1]).astype(np.float64).sum(0)
        count += values.shape[0] * values.shape[1]
    return mean_token_file(total / count)
