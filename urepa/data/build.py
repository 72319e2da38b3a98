"""The stages that make a LatentTrack's caches. Each goes on where it was; parts of a stage run side by side."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from urepa.data import encode, images, verify
from urepa.data.cache import UNKNOWN, Sample, mean_token_file, read_split, write_split
from urepa.data.latents import LatentTrack, require_keys
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
        for name in STAGES if stage == "all" else (stage,):
            work: Callable[[], None] = getattr(self, f"stage_{name}")
            work()

    # --- manifest and images ----------------------------------------------------------------------------

    def stage_manifest(self) -> None:
        """The splits as CSV, class-balanced; the first n of a class are the same for every n, so a smaller
        track is a subset of a larger one."""
        track = self.track
        if all(path.exists() for path in track.csv.values()):
            return
        track.folder.mkdir(parents=True, exist_ok=True)
        by_class: dict[str, list[list[Row]]] = {s: [[] for _ in range(track.num_classes)] for s in ("train", "val")}
        found = list(SOURCES[track.source](track.images))
        refuse_duplicates(found)
        for row in found:
            if row.class_id >= track.num_classes:
                raise UserError(f"the images have a class {row.class_id}; data.num_classes={track.num_classes}")
            by_class["train" if row.split == "train" else "val"][row.class_id].append(row)
        for split, classes in by_class.items():
            rows = [row for c, pool in enumerate(classes) for row in self._choose(split, c, pool)]
            rows.sort(key=lambda row: row.name)
            samples = [Sample(r.name, r.class_id, f"{track.source}:{r.name}", split) for r in rows]
            write_split(track.csv[split], samples)
        self._record_digests()

    def _choose(self, split: str, class_id: int, pool: list[Row]) -> list[Row]:
        wanted = self.track.wanted[split]
        if wanted is None:
            return pool
        share = wanted // self.track.num_classes + (class_id < wanted % self.track.num_classes)
        if share > len(pool):
            raise UserError(f"data.{split}_images={wanted} needs {share} of class {class_id}; there are {len(pool)}")
        return sorted(pool, key=lambda row: unit_interval("track", row.name))[:share]

    def _record_digests(self) -> None:
        record = self.track.folder / "track.json"
        known = json.loads(record.read_text()) if record.exists() else {"csv_sha256": {}}
        for path in self.track.csv.values():
            known["csv_sha256"][path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
        write_whole(record, json.dumps(known, indent=1))

    def _samples(self) -> list[Sample]:
        """This part's samples, in the order in which every stage goes through them."""
        missing = [path for path in self.track.csv.values() if not path.exists()]
        if missing:
            raise UserError(f"there is no {missing[0]}; run the stage `manifest` first")
        rows = [s for path in self.track.csv.values() for s in read_split(path)]
        return [s for s in rows if self.part.holds(s.sample_id)]

    def stage_images(self) -> None:
        """Squares as JPEG."""
        samples = self._samples()
        wanted = {s.sample_id for s in samples}
        rows = SOURCES[self.track.source](self.track.images)
        load = {row.name: row.load for row in rows if row.name in wanted}
        gone = wanted - load.keys()
        if gone:
            raise UserError(f"{len(gone)} samples of the manifest are not in data.images (first: {min(gone)})")
        track = self.track
        images.write_images(track.folder, self.part, samples, load, track.image_size, track.max_skipped)

    # --- networks ---------------------------------------------------------------------------------------

    def stage_latents(self) -> None:
        """VAE latents."""
        track = self.track
        encoder, facts = encode.vae_encoder(track.vae, track.moments)
        encode.encode_part("latents", track.folder, track.latents, self.part, self._samples(), encoder, self.batch)
        self._seal(track.latents, {"kind": "latents", "image_size": track.image_size, "crop": "center"} | facts, "")

    def stage_tokens(self) -> None:
        """Teacher tokens."""
        track, teacher = self.track, self.teacher
        if track.token_dtype == "int8" and teacher.width % GROUP:
            raise UserError(
                f"data.token_dtype=int8 needs a width that is a multiple of {GROUP}; {teacher.width} is not"
            )
        self._hold_to_one_teacher()
        encode.encode_part(
            "tokens",
            track.folder,
            track.tokens,
            self.part,
            self._samples(),
            encode.token_encoder(teacher),
            self.batch,
            suffix="_mid",
            dtype=track.token_dtype,
            sum_tokens=True,
        )
        facts = {"kind": "tokens", "teacher": teacher.manifest() | {"weights_sha256": teacher.weights_sha256()}}
        self._seal(track.tokens, facts, "_mid")

    def _hold_to_one_teacher(self) -> None:
        """A token store is one teacher's from its first record on: records that are there are not made again, so
        another teacher's would count as this one's."""
        folder, here = self.track.tokens, self.teacher.manifest()
        note, sealed = folder / "teacher.json", folder / "manifest.json"
        there = json.loads(note.read_text()) if note.exists() else here
        there = json.loads(sealed.read_text())["teacher"] if sealed.exists() else there
        differing = [
            f"{k}: {there.get(k)} there, {v} here" for k, v in here.items() if there.get(k) not in (v, UNKNOWN)
        ]
        if differing:
            raise UserError(
                f"{folder} holds another teacher's tokens ({', '.join(differing)}); give this one a store of its own "
                "beside it: data.tokens=NAME"
            )
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(note, json.dumps(here))

    def _seal(self, folder: Path, facts: dict[str, Any], suffix: str) -> None:
        """Once every part is done, the manifest that makes the store count."""
        parts = [Part(i, self.part.count).folder(folder) for i in range(self.part.count)]
        done = [json.loads(p.read_text()) for part in parts if (p := part / "done.json").exists()]
        if len(done) < len(parts):
            print(f"{folder.name}: {len(done)} of {len(parts)} parts are done")
            return
        is_tokens = suffix == "_mid"
        shape = [self.teacher.grid[0] * self.teacher.grid[1], self.teacher.width] if is_tokens else None
        manifest = facts | {
            "shape": shape if shape is not None else self.track.record_shape(),
            "dtype": done[0]["dtype"],
            "parts": len(parts),
            "count": sum(d["samples"] for d in done) - len(images.skipped_ids(self.track.folder)),
        }
        if is_tokens:
            self._write_mean(folder, manifest)
        write_whole(folder / "manifest.json", json.dumps(manifest, indent=1))

    def _write_mean(self, folder: Path, manifest: dict[str, Any]) -> None:
        store = Store(folder, manifest)
        total = store.token_sum()
        store.close()
        assert total is not None, "the tokens stage adds them up"
        for name, content in mean_token_file(total[:-1] / total[-1]).items():
            write_whole(folder / name, content)

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
        cache = self.track.open(self.teacher)
        verify.verify(str(self.track.folder), cache)
        cache.close()

    def stage_adopt(self) -> None:
        """Takes in caches that lie in the document's layout without manifests, after looking at every record.
        What cannot be known is marked so."""
        track = self.track
        shape = [self.teacher.grid[0] * self.teacher.grid[1], self.teacher.width]
        unknown = dict.fromkeys(self.teacher.manifest(), UNKNOWN) | {"grid": list(self.teacher.grid)}
        unknown |= {"width": self.teacher.width}
        facts: dict[Path, dict[str, Any]] = {
            track.latents: {"kind": "latents", "shape": track.record_shape()},
            track.tokens: {"kind": "tokens", "shape": shape, "teacher": unknown},
        }
        samples = track.samples()
        rows = [s for split in samples.values() for s in split]
        for folder, known in facts.items():
            if (folder / "manifest.json").exists():
                continue
            is_tokens = folder == track.tokens
            keys = [f"{s.sample_id}_mid" if is_tokens else s.sample_id for s in rows]
            manifest = known | {"dtype": "float16", "adopted": True, "count": len(keys)}
            store = Store(folder, manifest)
            require_keys(store, keys, "adopt caches that are whole")
            verify.check_records(store, keys, unit_length=is_tokens)
            if is_tokens:
                train = [f"{s.sample_id}_mid" for s in samples["train"]]
                for name, content in mean_token_file(_mean(store, train)).items():
                    write_whole(folder / name, content)
            store.close()
            write_whole(folder / "manifest.json", json.dumps(manifest, indent=1))
        self._record_digests()
        self.stage_verify()


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
