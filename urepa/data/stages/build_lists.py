"""The stage `manifest`, which lists a latent track's images with their split, bucket and captions."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from urepa.core import progress
from urepa.core.errors import UserError
from urepa.core.files import missing_folders, read_json, remove_new, write_whole
from urepa.core.random_draws import unit_interval
from urepa.data.cache import csv_digests, refuse_changed
from urepa.data.lists.bucket_shapes import BUCKETS, Size, nearest_buckets
from urepa.data.lists.classes import names_at, write_names
from urepa.data.lists.equal_images import EqualImages
from urepa.data.lists.samples import Sample, Samples, read_split, write_split
from urepa.data.lists.split_sizes import refuse_other_classes
from urepa.data.sources import source_changes
from urepa.data.sources.decoding import UNREADABLE
from urepa.data.sources.equal_files import equal_files
from urepa.data.sources.image_sources import refuse_duplicates, refuse_unfit_names
from urepa.data.sources.source_identity import Listing
from urepa.data.sources.source_image import SourceImage
from urepa.data.tracks.latent_bucket_caches import LatentBucket
from urepa.data.tracks.latent_caches import LatentTrackCaches

APART = "equal_images_apart"  # in track.json: how equal images were found, to be kept in one split


def record_facts(folder: Path, **facts: Any) -> None:
    """Adds entries to a folder's track.json; mappings and lists are merged with the existing ones."""
    file = folder / "track.json"
    known = read_json(file) if file.exists() else {}
    for name, value in facts.items():
        before = known.get(name, type(value)())
        known[name] = before | value if isinstance(value, dict) else sorted({*before, *value})
    write_whole(file, json.dumps(known, indent=1))


class ListBuilder:
    """Makes a track's missing lists."""

    def __init__(self, track: LatentTrackCaches) -> None:
        self.track = track

    def run(self) -> None:
        """Writes the splits as CSV, class-balanced. The order of a class's images is fixed, so a smaller track is a
        subset of a larger one."""
        track, files = self.track, list(self.track.csv.values())
        there, digests = [path for path in files if path.exists()], track.record().get("csv_sha256", {})
        refuse_changed(there, digests, track.remake)
        if there == files:
            self._refuse_other_numbers()
            self._complete(None)
        else:
            self._make_lists(files, digests)
        record_facts(track.folder, csv_sha256=csv_digests(files))

    def _make_lists(self, files: list[Path], digests: dict[str, str]) -> None:
        """Makes the lists from the source; on an error, new folders are removed."""
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
            apart = APART in track.record() or not known  # lists of an earlier version are not changed
            equal.settle(found, equal_files(found) if apart else [])
            chosen = self._split_rows([row for row in found if row.name not in equal.left_out], equal.train_only)
            if track.captions is not None:
                track.captions.read_missing(found)  # raises for an image without a caption before anything is made
            equal.print_line()
            unused = sum(row.split == "test" for row in found) - len(chosen["val"]) - len(equal.left_out)
            beside = frozenset() if track.captions is None else track.captions.suffixes
            listing.print_left_out(max(0, unused), f"data.val_images={track.wanted['val']}", beside)
            self._write_missing(chosen)
            refuse_changed(files, digests, track.remake)
            if not known:  # lists of an earlier version have no class names
                write_names(track.folder, names_at(track.source, track.images, listing.suffixes))
            record_facts(track.folder, source=listing.facts(), **({APART: ["files"]} if apart else {}))
            self._complete(found)
        except BaseException:
            remove_new(new)
            raise

    def _complete(self, found: list[SourceImage] | None) -> None:
        """Adds captions and the buckets' lists to existing lists, if they are missing. `found`: the source's images, if
        they were read already."""
        track = self.track
        if track.captions is not None:
            listed = Samples.concatenate(map(read_split, track.csv.values()))
            track.captions.write(track.captions.read_missing(found), listed)
            track.captions.written(listed)  # raises if the captions were written for a smaller list
        if track.settings.buckets is not None and track.settings.bucket_counts() is None:
            self._make_bucket_lists(found)

    def _write_missing(self, chosen: dict[str, list[SourceImage]]) -> None:
        """Writes the lists that do not exist. Raises UserError if a list of another track in the folder differs from
        this track's."""
        track = self.track
        for split, path in track.csv.items():
            if path.exists() and {s.sample_id: s.class_id for s in read_split(path)} != {
                row.name: row.class_id for row in chosen[split]
            }:
                raise UserError(
                    f"{path} holds other samples than the {len(chosen[split])} requested here; give "
                    f"data.{split}=OTHER.csv beside it, or another data.root"
                )
        track.folder.mkdir(parents=True, exist_ok=True)
        for split, path in track.csv.items():
            if not path.exists():
                rows = sorted(chosen[split], key=lambda row: row.name)
                write_split(path, [Sample(r.name, r.class_id, r.path, split) for r in rows])

    def _split_rows(self, found: list[SourceImage], train_only: Collection[str]) -> dict[str, list[SourceImage]]:
        """Assigns images to splits. If the source has no held-out images, the validation images are chosen by a hash
        of their names, without those in `train_only`."""
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
        """The number of images of a class in a split."""
        wanted, classes = self.track.wanted[split], self.track.num_classes
        share = len(pool) if wanted is None else wanted // classes + (class_id < wanted % classes)
        if share > len(pool):
            raise UserError(f"data.{split}_images={wanted} needs {share} of class {class_id}; there are {len(pool)}")
        return share

    def _refuse_other_numbers(self) -> None:
        """Raises UserError if existing CSVs have other numbers of samples than requested."""
        for split, path in self.track.csv.items():
            wanted, there = self.track.wanted[split], len(read_split(path))
            if wanted not in (None, there):
                raise UserError(
                    f"{path} has {there} samples; data.{split}_images={wanted}: give data.{split}=OTHER.csv beside it, "
                    "or another data.root"
                )

    # --- buckets ----------------------------------------------------------------------------------------

    def _make_bucket_lists(self, found: list[SourceImage] | None) -> None:
        """Divides the lists among the buckets by the images' shapes; the counts are written last."""
        track, settings = self.track, self.track.settings
        splits = {split: read_split(path) for split, path in track.csv.items()}
        sizes = self._read_sizes(Samples.concatenate(splits.values()), found)
        bucket_of = nearest_buckets(sizes, splits["train"].ids(), settings.sizes, settings.buckets)
        counts: dict[str, dict[str, int]] = {}
        for bucket in track.all_buckets:
            if bucket.name in bucket_of.values():
                own = {s: rows.filter(bucket_of[i] == bucket.name for i in rows.ids()) for s, rows in splits.items()}
                self._write_bucket_lists(bucket, own)
                counts[bucket.name] = {split: len(rows) for split, rows in own.items()}
        file = track.folder / BUCKETS
        known = read_json(file) if file.is_file() else {}
        write_whole(file, json.dumps(known | {settings.counted_as: counts}, indent=1))

    def _read_sizes(self, samples: Samples, found: list[SourceImage] | None) -> dict[str, Size]:
        """Rows and columns of the images, by sample id. An image that cannot be read gets those of the first bucket;
        the stage `images` reports it. Raises UserError if the images do not exist."""
        track = self.track
        first = track.all_buckets[0].size
        if len(track.all_buckets) == 1:
            return dict.fromkeys(samples.ids(), first)
        if found is None:
            if track.source != "hub" and not Path(track.images).is_dir():
                raise UserError(
                    f"data.images={track.images} is not a folder here, and the shapes of its images are not known yet"
                )
            found = list(Listing(track.source, track.images, track.record().get("source", {})))
        rows, sizes = {row.name: row for row in found}, {}
        for sample_id in progress.bar(samples.ids(), desc="shapes", unit="image", total=len(samples)):
            try:
                sizes[sample_id] = rows[sample_id].dimensions()
            except (KeyError, *UNREADABLE):
                sizes[sample_id] = first
        return sizes

    def _write_bucket_lists(self, bucket: LatentBucket, own: dict[str, Samples]) -> None:
        """Writes a bucket's lists that do not exist. Raises UserError if an existing list differs from this track's."""
        refuse_changed(
            [path for path in bucket.csv.values() if path.exists()],
            bucket.record().get("csv_sha256", {}),
            self.track.remake,
        )
        for split, path in bucket.csv.items():
            if path.exists() and list(read_split(path).ids()) != list(own[split].ids()):
                raise UserError(
                    f"{path} holds other samples than the {len(own[split])} of {bucket.name} here; give another "
                    "data.root for other buckets"
                )
        bucket.folder.mkdir(parents=True, exist_ok=True)
        for split, path in bucket.csv.items():
            if not path.exists():
                write_split(path, list(own[split]))
        record_facts(bucket.folder, csv_sha256=csv_digests(list(bucket.csv.values())))
