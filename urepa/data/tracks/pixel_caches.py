"""Tracks of small images whose "latent" is the pixel-unshuffled image: no VAE, no hub. The images are listed here and
divided into splits and, by their shapes, into buckets; `pixel_bucket_caches` makes and opens what each bucket holds.

Shapes: B batch, C image channels, H and W rows and columns of an image.
"""

from __future__ import annotations

import json
import shutil
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from torch import Tensor

from urepa.core import progress
from urepa.core.files import lock_folder, missing_folders, remove_new, write_whole
from urepa.core.track_protocols import ConditionMaker
from urepa.data.bucketed_cache import Caches, caches_of
from urepa.data.lists.bucket_shapes import BUCKETS, Size, nearest_buckets
from urepa.data.lists.classes import names_at, read_names, write_names
from urepa.data.lists.equal_images import EqualImages
from urepa.data.lists.paths import is_finished, no_cache_error, remake_pixels_text
from urepa.data.lists.samples import Samples
from urepa.data.lists.splits import split_rows
from urepa.data.own_image_conditions import conditions_without_text
from urepa.data.sources import source_changes, unreadable
from urepa.data.sources.decoding import UNREADABLE
from urepa.data.sources.image_sources import SOURCES, refuse_duplicates, refuse_unfit_names
from urepa.data.sources.source_identity import Listing
from urepa.data.sources.source_image import SourceImage
from urepa.data.stages.verify import verify
from urepa.data.stores.sealing import add_digests
from urepa.data.text_and_image_conditions import TextAndImageConditions, with_text
from urepa.data.tracks.caption_caches import CaptionCaches
from urepa.data.tracks.image_token_caches import text_and_image_conditions
from urepa.data.tracks.pixel_bucket_caches import PixelBucket
from urepa.data.whitening import whitened

if TYPE_CHECKING:
    from urepa.data.tracks.pixel_track import PixelTrack

Lists = dict[str, Samples]  # by split


class PixelTrackCaches:
    """Builds and opens the caches of one small data set."""

    prompt_bytes = 0  # its conditions are class ids
    autoencoder = None  # pixels need none
    online_latents = False  # latents are always cached

    def __init__(self, settings: PixelTrack) -> None:
        settings.check()
        self.settings = settings
        self.name, self.limit = settings.name, settings.limit
        self.source, self.images = str(settings.source), settings.images
        self.held_out = settings.held_out
        self.image_size, self.num_classes = settings.image_size, settings.num_classes
        self.remake = remake_pixels_text(self.name)
        self.text = None if settings.text_encoder is None else CaptionCaches(settings, self.remake)
        self.conditions: ConditionMaker = self._conditions()
        self.condition_widths = settings.condition_widths
        self.max_skipped, self.flip, self.online_teacher = settings.max_skipped, settings.flip, settings.online_teacher
        self.build_on_first_use, self.online_text = settings.build_on_first_use, settings.online_text
        self.all_buckets = [PixelBucket(settings, name, size) for name, size in settings.sizes.items()]
        self.folder = settings.folder
        self._set_shapes()

    def _conditions(self) -> ConditionMaker:
        """The conditions before the caches are opened."""
        if self.text is None:
            return conditions_without_text(self.settings)
        if self.settings.image_encoder is None:
            return self.text.conditions
        return text_and_image_conditions(self.settings, self.text.conditions, self._image_folders)

    def _image_folders(self) -> list[Path]:
        """The folders of the image tokens of all buckets with images."""
        return [bucket.image_tokens.folder for bucket in self.buckets if bucket.image_tokens is not None]

    def _set_shapes(self) -> None:
        self.image_shapes = [(self.settings.channels, *bucket.size) for bucket in self.all_buckets]
        self.latent_shapes = [bucket.latent_shape for bucket in self.all_buckets]
        self.image_shape, self.latent_shape = self.image_shapes[0], self.latent_shapes[0]

    # --- what is there ----------------------------------------------------------------------------------

    @property
    def buckets(self) -> list[PixelBucket]:
        """The buckets with images; all of them while there are no lists."""
        known = self.bucket_samples()
        return [bucket for bucket in self.all_buckets if known is None or bucket.name in known]

    def bucket_samples(self) -> dict[str, dict[str, int]] | None:
        """The number of samples per split of each bucket, by its name; None without lists, or with a single bucket."""
        return self.settings.bucket_samples()

    def tokens_folders(self, teacher: Any | None) -> dict[str, Path]:
        """The folder of each teacher's tokens in the first bucket, if they are cached."""
        return self.buckets[0].tokens_folders(teacher)

    def store_folders(self, teacher: Any | None) -> list[Path]:
        """The folders of all caches."""
        return [path for bucket in self.buckets for path in bucket.store_folders(teacher)] + self.settings.text_folders

    def open(self, teacher: Any | None) -> Caches:
        """Opens the track's caches; builds missing ones if `data.build_on_first_use` is set. `teacher` None: no
        tokens."""
        missing = self._missing(teacher)
        if missing and not self.build_on_first_use:
            raise no_cache_error(missing[0], self.remake)
        if missing:
            self.build(teacher)
        names = read_names(self.folder, self.num_classes)
        conditions = self.conditions
        if self.text is not None:
            conditions = with_text(conditions, self.text.open(self._listed()))
        caches = caches_of([bucket.open(teacher, names, conditions) for bucket in self.buckets])
        return whitened(caches, teacher, self.tokens_folders(teacher))

    def _missing(self, teacher: Any | None) -> list[Path]:
        """The caches that are not made yet."""
        stores = [path for path in self.store_folders(teacher) if not is_finished(path)]
        return stores + [path for path in self.settings.text_places if not path.exists()]

    def _listed(self) -> Samples:
        return Samples.concatenate(bucket.listed() for bucket in self.buckets)

    def has_caches(self, teacher: Any | None) -> bool:
        """Whether everything that training reads is cached; False with online captions or an online teacher."""
        online = self.online_text or (teacher is not None and self.online_teacher)
        has_text = self.text is None or is_finished(self.text.folder)
        return not online and has_text and all(bucket.has_caches(teacher) for bucket in self.buckets)

    def source_changes(self) -> str | None:
        """How the images differ from those that the caches were made from, as text; None if they do not, or if it
        cannot be told."""
        if not self._are_finished():
            return None
        changed = source_changes.changes(self.source, self.images, self.folder)
        return changed if changed is not None or self.text is None else self.text.changes()

    def _are_finished(self) -> bool:
        return all(is_finished(bucket.latents) for bucket in self.buckets)

    def reads_squares(self, teacher: Any | None) -> bool:
        """Always False: an online teacher sees the cached pixels."""
        return False

    def expected_samples(self) -> dict[str, int]:
        """The number of samples in each split, before or after the lists are made."""
        return self.settings.expected_samples()

    def stores(self, teacher: Any | None) -> dict[str, tuple[tuple[int, ...], str]]:
        """The shape and data type of each cache's records, in the first bucket."""
        return self.buckets[0].stores(teacher)

    def caption_records(self) -> tuple[int, int] | None:
        """The number of the captions' records, before or after they are made, and the bytes of one; None without
        captions."""
        return None if self.text is None else self.text.expected_records(self.expected_samples())

    # --- what is made -----------------------------------------------------------------------------------

    def build(self, teacher: Any | None) -> None:
        """Makes the missing caches, resuming what an earlier process began. A second process waits for the first and
        then finds the caches complete."""
        for bucket in self.all_buckets:
            bucket.teachers(teacher)  # raises before anything is made if a teacher cannot see these images
        new = missing_folders(self.folder)
        with lock_folder(self.folder, f"waiting for the caches in {self.folder}, which another process makes"):
            if self._missing(teacher):
                print(f"making the caches in {self.folder}, once for all runs that read them", flush=True)
            try:
                self._build(teacher)
            except BaseException:
                if not self._has_results():  # the error came before anything was made
                    remove_new(new)
                raise

    def make(self, teacher: Any, stage: str) -> None:
        """What `urepa.preprocess` does: builds everything, then runs the stage `verify` or `digest` if that is
        given."""
        self.build(teacher)
        if stage == "digest":
            for store in self.store_folders(teacher):
                add_digests(store)
        cache = self.open(teacher)
        if self.text is not None and stage == "verify":
            self.text.verify(cache.buckets[0].text)
        for bucket in cache.buckets:
            counts = ", ".join(f"{len(samples)} {split}" for split, samples in bucket.splits.items())
            print(f"{self.folder / bucket.bucket}: {counts}")
            if stage == "verify":
                verify(str(self.folder / bucket.bucket), bucket)
        cache.close()

    def _has_results(self) -> bool:
        """Whether there are records, or a list of images that cannot be read."""
        return (self.folder / unreadable.FILE).exists() or any(bucket.has_results() for bucket in self.all_buckets)

    def _build(self, teacher: Any | None) -> None:
        source_changes.refuse_changes(self)
        captions = None if self.text is None else self.text.read_missing()
        if self._are_finished():
            self._complete_latents()
        else:
            self._list_and_build_latents()
        if self.text is not None:
            if captions is None:  # stored captions of other images were removed with the latents
                captions = self.text.read_missing()
            self.text.write(captions, self._listed())
            self.text.build(self._listed())
        for bucket in self.buckets:
            bucket.build_others(teacher)

    def _list_and_build_latents(self) -> None:
        """Makes the lists and the latents. All unreadable images are found before anything else is made; each is
        replaced by the next of its class. Results that a killed build made from other files are removed."""
        if source_changes.record(self.source, self.images, self.folder):
            for bucket in self.all_buckets:
                shutil.rmtree(bucket.latents, ignore_errors=True)
            if self.text is not None:
                self.text.remove()
        (self.folder / unreadable.FILE).unlink(missing_ok=True)
        listing = Listing(self.source, self.images, {})
        rows = list(listing)
        refuse_duplicates(rows)
        refuse_unfit_names(rows)
        skipped: dict[str, str] = {}
        sizes: dict[str, Size] = {}
        equal = EqualImages()
        while True:
            kept = [row for row in rows if row.name not in skipped.keys() | equal.left_out]
            splits = split_rows(kept, self.num_classes, self.held_out, self.limit, equal.train_only)
            total = sum(map(len, splits.values()))
            if len(kept) == len(rows) and not equal.train_only:  # in the first pass
                unused = sum(row.split == "test" for row in rows) - len(splits["test"])
                asked = f"data.test_images={self.held_out['test']}"
                listing.print_left_out(max(0, unused), asked, frozenset() if self.text is None else self.text.suffixes)
            found = self._read_sizes(splits, sizes)
            if not found:
                lists = self._lists_by_bucket(splits, sizes)
                named = {row.name: row for row in kept}
                for bucket, own in lists:
                    found |= bucket.encode_latents(Samples.concatenate(own.values()), named)
            if found:
                skipped |= found
                unreadable.report(skipped, total + len(skipped) - len(found), self.max_skipped, self.folder)
            elif not equal.keep_apart(splits, self._equal_images(lists)) and not self._drop_other_records(lists):
                break
        equal.print_line()
        for bucket, own in lists:
            bucket.write_lists(own)
        write_names(self.folder, names_at(self.source, self.images, listing.suffixes))
        if len(self.all_buckets) > 1:
            counts = {bucket.name: {split: len(samples) for split, samples in own.items()} for bucket, own in lists}
            write_whole(self.folder / BUCKETS, json.dumps(counts, indent=1))
        for bucket, own in lists:
            bucket.seal_latents(Samples.concatenate(own.values()))

    def _read_sizes(self, splits: dict[str, list[SourceImage]], sizes: dict[str, Size]) -> dict[str, str]:
        """With several buckets, adds the images' rows and columns to `sizes`, by sample id. Returns the reason by
        sample id for images that cannot be read."""
        if len(self.all_buckets) == 1:
            return {}
        reasons: dict[str, str] = {}
        new = [row for chosen in splits.values() for row in chosen if row.name not in sizes]
        for row in progress.bar(new, desc="shapes", unit="image"):
            try:
                sizes[row.name] = row.dimensions()
            except UNREADABLE as error:
                reasons[row.name] = f"{row.path}: {error}"
        return reasons

    def _lists_by_bucket(
        self, splits: dict[str, list[SourceImage]], sizes: dict[str, Size]
    ) -> list[tuple[PixelBucket, Lists]]:
        """The buckets with training images, and the splits of each; an image goes to the bucket of the nearest aspect
        ratio. Raises UserError if a bucket given by size has no training image; "auto" leaves such a bucket out."""
        buckets = self.all_buckets
        if len(buckets) > 1:
            named = {bucket.name: bucket.size for bucket in buckets}
            train = [row.name for row in splits["train"]]
            bucket_of = nearest_buckets(sizes, train, named, self.settings.buckets)
            buckets = [bucket for bucket in buckets if bucket.name in bucket_of.values()]
        else:
            bucket_of = {row.name: buckets[0].name for chosen in splits.values() for row in chosen}
        return [
            (
                bucket,
                {
                    split: Samples.of_rows(
                        (row.name, row.class_id, row.path, split)
                        for row in chosen
                        if bucket_of.get(row.name) == bucket.name
                    )
                    for split, chosen in splits.items()
                },
            )
            for bucket in buckets
        ]

    def _equal_images(self, lists: list[tuple[PixelBucket, Lists]]) -> list[list[str]]:
        """Groups of ids of equal images; equal images are always in one bucket."""
        return [group for bucket, own in lists for group in bucket.equal_images(Samples.concatenate(own.values()))]

    def _drop_other_records(self, lists: list[tuple[PixelBucket, Lists]]) -> bool:
        """Removes the latents of a bucket that has records of other samples, which were chosen in place of images that
        can be read now. Returns whether latents must be made again."""
        wanted = {bucket.name: Samples.concatenate(own.values()) for bucket, own in lists}
        removed = False
        for bucket in self.all_buckets:
            if bucket.name not in wanted:
                shutil.rmtree(bucket.folder, ignore_errors=True)
            elif bucket.has_other_records(wanted[bucket.name]):
                shutil.rmtree(bucket.latents)
                removed = True
        return removed

    def _complete_latents(self) -> None:
        """Adds missing records to finished latents. Raises UserError if an image can no longer be read."""
        lacking = [bucket for bucket in self.buckets if bucket.lacks_latents()]
        if not lacking:
            return
        rows = {(row.name, row.path): row for row in SOURCES[self.source](self.images)}
        for bucket in lacking:
            samples = bucket.listed()
            own = {s.sample_id: rows[key] for s in samples if (key := (s.sample_id, s.path)) in rows}
            unreadable.report(bucket.encode_latents(samples, own), len(samples), 0, self.folder)
            bucket.seal_latents(samples)

    def teachers(self, teacher: Any | None) -> dict[str, Any]:
        """The teachers by name, each for images of the first bucket's shape."""
        return self.buckets[0].teachers(teacher)

    def of_bucket(self, name: str) -> PixelTrackCaches:
        """A view of the track with one of its buckets, for code that handles one shape at a time."""
        (bucket,) = (bucket for bucket in self.all_buckets if bucket.name == name)
        return self._with(bucket)

    def of_size(self, size: Size) -> PixelTrackCaches:
        """A view of the track for images of these rows and columns in pixels, without caches."""
        return self._with(PixelBucket(self.settings, f"{size[0]}x{size[1]}", size))

    def _with(self, bucket: PixelBucket) -> PixelTrackCaches:
        track = copy(self)
        track.all_buckets = [bucket]
        if isinstance(self.conditions, TextAndImageConditions):
            track.conditions = self.conditions.of_size(bucket.size)
        track._set_shapes()
        return track

    # --- images -----------------------------------------------------------------------------------------

    def cut(self, pixels_HW3: np.ndarray) -> Tensor:
        """Cuts an image (uint8, RGB) as the track cuts its own: [C,H,W] in [0,1], in grey if the track has one
        channel."""
        pixels = pixels_HW3
        if self.settings.channels == 1:
            pixels = np.asarray(Image.fromarray(pixels_HW3).convert("L"))
        return self.all_buckets[0].cut(pixels)[0]

    def to_x0(self, images_BCHW: Tensor) -> Tensor:
        """Images in [0,1] to latents."""
        return self.all_buckets[0].to_x0(images_BCHW)

    def to_rgb(self, x0: Tensor) -> Tensor:
        """Latents back to images [B,3,H,W] in [0,1]."""
        return self.all_buckets[0].to_rgb(x0)
