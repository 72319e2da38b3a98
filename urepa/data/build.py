"""The stages that make a LatentTrack's caches. Each goes on where it was; parts of a stage run side by side."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from urepa.backbones.sd15 import load_prompts
from urepa.data import encode, images, verify
from urepa.data.cache import (
    UNKNOWN,
    Sample,
    begin,
    csv_digests,
    is_finished,
    mean_token_file,
    mirrored_facts,
    mirrored_folder,
    read_split,
    refuse_changed,
    require_keys,
    write_split,
)
from urepa.data.encode import Output
from urepa.data.latents import LatentTrack
from urepa.data.reading import Store
from urepa.data.sources import SOURCES, Row, refuse_duplicates
from urepa.data.store import GROUP, Part
from urepa.draws import unit_interval
from urepa.errors import UserError
from urepa.files import write_whole

STAGES = ("manifest", "images", "latents", "tokens", "prompts", "verify")


@dataclass
class Build:
    """A track, its teacher, and the part of the samples that this process is for."""

    track: LatentTrack
    teacher: Any
    part: Part
    batch: int

    def run(self, stage: str) -> None:
        """One stage, or "all" in order."""
        names = STAGES if stage == "all" else (stage,)
        for name in names:
            if stage == "all" and name == "tokens" and self.track.online_teacher:
                continue
            if stage == "all" and name == "verify" and not self._all_parts_are_done():
                print("verify: other parts are still being made; the last one verifies")
                continue
            work: Callable[[], None] = getattr(self, f"stage_{name}")
            work()

    def _all_parts_are_done(self) -> bool:
        stores = self.track.store_folders(with_tokens=not self.track.online_teacher)
        return self.part.count == 1 or all(is_finished(path) for path in stores)

    # --- manifest and images ----------------------------------------------------------------------------

    def stage_manifest(self) -> None:
        """The splits as CSV, class-balanced; the first n of a class are the same for every n, so a smaller
        track is a subset of a larger one."""
        track, files = self.track, list(self.track.csv.values())
        if all(path.exists() for path in files):
            self._refuse_other_numbers()
        else:
            track.folder.mkdir(parents=True, exist_ok=True)
            for split, rows in self._chosen().items():
                rows.sort(key=lambda row: row.name)
                write_split(track.csv[split], [Sample(r.name, r.class_id, r.path, split) for r in rows])
        refuse_changed(files, track.record().get("csv_sha256", {}), track.remake)
        self._record(csv_sha256=csv_digests(files))

    def _chosen(self) -> dict[str, list[Row]]:
        """The splits' images. Where the source keeps none apart, the validation images are drawn by name."""
        track = self.track
        found = list(SOURCES[track.source](track.images))
        refuse_duplicates(found)
        pools: dict[str, list[list[Row]]] = {s: [[] for _ in range(track.num_classes)] for s in ("train", "val")}
        for row in found:
            if row.class_id >= track.num_classes:
                raise UserError(f"the images have a class {row.class_id}; data.num_classes={track.num_classes}")
            pools["val" if row.split == "test" else "train"][row.class_id].append(row)
        if not any(pools["val"]):
            if track.wanted["val"] is None:
                raise UserError("the images have no val or test folder: say how many to keep apart, data.val_images=N")
            for c, pool in enumerate(pools["train"]):
                pool.sort(key=lambda row: unit_interval("split", row.name))
                share = self._share("val", c, pool)
                pools["val"][c], pools["train"][c] = pool[:share], pool[share:]
        chosen: dict[str, list[Row]] = {}
        for split, classes in pools.items():
            ordered = [sorted(pool, key=lambda row: unit_interval("track", row.name)) for pool in classes]
            chosen[split] = [row for c, pool in enumerate(ordered) for row in pool[: self._share(split, c, pool)]]
        return chosen

    def _share(self, split: str, class_id: int, pool: list[Row]) -> int:
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

    def _samples(self) -> list[Sample]:
        """This part's samples, in the order in which every stage goes through them."""
        missing = [path for path in self.track.csv.values() if not path.exists()]
        if missing:
            raise UserError(f"there is no {missing[0]}; run the stage `manifest` first")
        rows = [s for path in self.track.csv.values() for s in read_split(path)]
        return [s for s in rows if self.part.holds(s.sample_id)]

    def stage_images(self) -> None:
        """Squares as JPEG."""
        track, samples = self.track, self._samples()
        facts = {"kind": "images", "image_size": track.image_size, "crop": "center"}
        begin(track.folder / "images", facts, track.remake)
        if all(file.exists() for file, _ in images.chunks_of(track.folder, self.part, samples)):
            return  # the source may be gone by now
        wanted = {s.sample_id for s in samples}
        load = {row.name: row.load for row in SOURCES[track.source](track.images) if row.name in wanted}
        gone = wanted - load.keys()
        if gone:
            raise UserError(f"{len(gone)} samples of the manifest are not in data.images (first: {min(gone)})")
        images.write_images(track.folder, self.part, samples, load, track.image_size, track.max_skipped)

    # --- networks ---------------------------------------------------------------------------------------

    def stage_latents(self) -> None:
        """VAE latents."""
        track = self.track
        encoder, facts = encode.vae_encoder(track.vae, track.moments)
        facts |= {"kind": "latents", "shape": track.record_shape(), "dtype": "float16"}
        facts |= {"image_size": track.image_size, "crop": "center"}
        self._encode(Output(track.latents, facts), encoder)

    def stage_tokens(self) -> None:
        """Teacher tokens."""
        track, teacher = self.track, self.teacher
        if track.token_dtype == "int8" and teacher.width % GROUP:
            raise UserError(
                f"data.token_dtype=int8 needs a width that is a multiple of {GROUP}; {teacher.width} is not"
            )
        facts = {"kind": "tokens", "shape": self._token_shape(), "dtype": track.token_dtype}
        facts |= {"teacher": teacher.manifest() | {"weights_sha256": teacher.weights_sha256()}}
        self._encode(Output(track.tokens, facts, "_mid"), encode.token_encoder(teacher))

    def _token_shape(self) -> list[int]:
        return [self.teacher.grid[0] * self.teacher.grid[1], self.teacher.width]

    def _is_adopted(self, folder: Path) -> bool:
        """Of an adopted store it is not known how to go on with it."""
        file = folder / "manifest.json"
        adopted = file.exists() and "adopted" in json.loads(file.read_text())
        if adopted:
            print(f"{folder.name} was adopted and stays as it is")
        return adopted

    def _encode(self, output: Output, encoder: encode.Encode) -> None:
        """This part of a store and, with data.flip, of the mirrored one."""
        facts = output.facts | {"flip": "none", "parts": self.part.count}
        outputs = [replace(output, facts=facts)]
        if self.track.flip:
            folder = mirrored_folder(output.folder)
            outputs.append(replace(output, folder=folder, facts=mirrored_facts(facts), mirrored=True))
        samples = self._samples()
        read = partial(images.read_images, self.track.folder, self.part, samples, self.batch)
        for out in outputs:
            if self._is_adopted(out.folder):
                continue
            encode.encode_part(out, self.part, samples, read, encoder, self.track.remake)
            if encode.seal(out):
                self._record(skipped=sorted(images.skipped_ids(self.track.folder)))

    def stage_prompts(self) -> None:
        """Text embeddings of the classes; part 0 makes them."""
        track = self.track
        if self.part.index or track.prompts.exists():
            return
        names = class_names(track.class_names)
        if len(names) != track.num_classes:
            raise UserError(f"data.class_names has {len(names)} names; data.num_classes={track.num_classes}")
        encode.write_prompts(track.prompts, track.text, names)

    # --- verify -----------------------------------------------------------------------------------------

    def stage_verify(self) -> None:
        """Counts, keys, shapes, finiteness, lengths, digests and the field of view."""
        if (
            self.track.prompts.exists()
            and not load_prompts(self.track.prompts, self.track.num_classes).isfinite().all()
        ):
            raise UserError(f"{self.track.prompts} is not finite; delete it and make it again")
        cache = self.track.open(self.teacher)
        verify.verify(str(self.track.folder), cache)
        cache.close()

    def stage_adopt(self) -> None:
        """Takes in caches that lie in the document's layout without manifests, after looking at every record.
        What cannot be known is marked so."""
        track = self.track
        samples = track.samples()
        teacher = dict.fromkeys(self.teacher.manifest(), UNKNOWN) | {"grid": list(self.teacher.grid)}
        teacher |= {"width": self.teacher.width}
        unknown = dict.fromkeys(("image_size", "crop"), UNKNOWN)
        outputs = [
            Output(track.latents, {"kind": "latents", "shape": track.record_shape()} | unknown),
            Output(track.tokens, {"kind": "tokens", "shape": self._token_shape(), "teacher": teacher}, "_mid"),
        ]
        for output in outputs:
            self._adopt(output, [s for rows in samples.values() for s in rows], samples["train"])
            if track.flip:
                mirrored = Output(
                    mirrored_folder(output.folder), mirrored_facts(output.facts), output.suffix, mirrored=True
                )
                self._adopt(mirrored, samples["train"], samples["train"])
        self._record(csv_sha256=csv_digests(list(track.csv.values())))
        self.stage_verify()

    def _adopt(self, output: Output, rows: list[Sample], train: list[Sample]) -> None:
        """One store."""
        folder = output.folder
        if (folder / "manifest.json").exists():
            return
        keys = [s.sample_id + output.suffix for s in rows]
        manifest = {"flip": "none"} | output.facts | {"dtype": "float16", "adopted": True, "count": len(keys)}
        store = Store(folder, manifest)
        require_keys(store, keys, "adopt caches that are whole")
        verify.check_records(store, keys, unit_length=output.is_tokens)
        if output.is_tokens:
            for name, content in mean_token_file(_mean(store, [s.sample_id + output.suffix for s in train])).items():
                write_whole(folder / name, content)
        store.close()
        write_whole(folder / "manifest.json", json.dumps(manifest, indent=1))


def _mean(store: Store, keys: list[str]) -> np.ndarray:
    total, count = np.zeros(store.shape[-1]), 0
    for start in range(0, len(keys), 512):
        values = store.read(keys[start : start + 512])
        total += values.reshape(-1, store.shape[-1]).astype(np.float64).sum(0)
        count += values.shape[0] * values.shape[1]
    return total / count


def class_names(name: str) -> list[str]:
    """`imagenet` (shipped with the package) or a text file with a name a line, in the order of the class ids."""
    file = Path(__file__).with_name("imagenet_classes.txt") if name == "imagenet" else Path(name)
    if not file.is_file():
        raise UserError(f"data.class_names={name} is neither 'imagenet' nor a file with a name a line")
    return file.read_text().splitlines()
