"""Tracks of small images whose "latent" is the pixel-unshuffled image: no VAE, no hub.

Shapes: B batch, C image channels, S image size, f unshuffle factor; x0 is [B, C·f², S/f, S/f] in
[-scale, scale].
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from urepa.core.files import lock_folder, missing_folders, read_json, remove_new
from urepa.data.cache import (
    SPLITS,
    Cache,
    csv_digests,
    mirrored_facts,
    mirrored_folder,
    open_store,
    refuse_changed,
    refuse_differing,
    token_stores,
)
from urepa.data.class_conditions import ClassConditions
from urepa.data.lists.classes import names_at, read_names, write_names
from urepa.data.lists.paths import is_finished, no_cache_error, remake_pixels_text, tokens_name
from urepa.data.lists.samples import Keys, Sample, Samples, digest_of, read_split, write_split
from urepa.data.lists.splits import split_rows
from urepa.data.online_encoders import OnlineTokens
from urepa.data.sources import source_changes, unreadable
from urepa.data.sources.decoding import UNREADABLE
from urepa.data.sources.image_sources import SOURCES, SourceImage, refuse_duplicates, refuse_unfit_names
from urepa.data.sources.source_identity import Listing
from urepa.data.stages.encode import Encode, Output, Todo, device_and_dtype, encode_part, outputs_of, seal
from urepa.data.stages.verify import verify
from urepa.data.stores.digests import IN_MANIFEST
from urepa.data.stores.lmdb_pages import has_records
from urepa.data.stores.lmdb_store import Part
from urepa.data.stores.record_reading import Store
from urepa.data.stores.sealing import add_digests
from urepa.data.tracks.pixel_sizes import check_channels
from urepa.models.teachers.several_teachers import by_name

if TYPE_CHECKING:
    from urepa.data.tracks.pixel_track import PixelTrack

CHUNK = 64  # images a step while building
Images = Callable[[Sequence[Sample]], tuple[Sequence[Sample], Tensor]]  # those there are, as [B,C,S,S] in [0,1]


class PixelTrackCaches:
    """Builds and opens the caches of one small data set."""

    prompt_bytes = 0  # its conditions are class ids
    autoencoder = None  # pixels need none
    online_latents = False  # they are read as they lie

    def __init__(self, settings: PixelTrack) -> None:
        settings.check()
        self.settings = settings
        self.name, self.limit = settings.name, settings.limit
        self.source, self.images = str(settings.source), settings.images
        self.held_out = settings.held_out
        self.channels, self.image_size, self.unshuffle = settings.channels, settings.image_size, settings.unshuffle
        self.num_classes, self.scale = settings.num_classes, settings.scale
        self.conditions = ClassConditions.withheld_with(settings.cfg_dropout)
        self.max_skipped, self.flip, self.online_teacher = settings.max_skipped, settings.flip, settings.online_teacher
        self.build_on_first_use = settings.build_on_first_use
        self.image_shape = (self.channels, self.image_size, self.image_size)
        self.latent_shape = settings.latent_shape
        self.folder = settings.folder
        self.latents = self.folder / "latents"
        self.remake = remake_pixels_text(self.name)

    def _manifest(self) -> dict[str, Any]:
        return {
            "kind": "pixels",
            "track": self.name,
            "image_size": self.image_size,
            "unshuffle": self.unshuffle,
            "scale": self.scale,
            "limit": self.limit,
            "held_out": self.held_out,
            "num_classes": self.num_classes,
            "flip": "none",
        }

    def tokens_folders(self, teacher: Any | None) -> dict[str, Path]:
        """Where each teacher's tokens lie, as far as they are kept."""
        return {} if self.online_teacher else {name: self._folder_of(one) for name, one in by_name(teacher).items()}

    def store_folders(self, teacher: Any | None) -> list[Path]:
        """The folders of what is cached."""
        plain = list(dict.fromkeys([self.latents, *self.tokens_folders(teacher).values()]))  # teachers may share one
        return plain + ([mirrored_folder(path) for path in plain] if self.flip else [])

    def _folder_of(self, teacher: Any) -> Path:
        known = teacher.manifest()
        return self.folder / tokens_name(known["model"], known["image_size"], teacher.grid, known.get("positions"))

    def open(self, teacher: Any | None) -> Cache:
        """The track's caches; built first if they are missing and the track may. `teacher` None: no tokens."""
        folders, teachers = self.tokens_folders(teacher), by_name(teacher)
        missing = [path for path in self.store_folders(teacher) if not is_finished(path)]
        if missing and not self.build_on_first_use:
            raise no_cache_error(missing[0], self.remake)
        if missing:
            self.build(teacher)
        splits = self._splits()
        latents = self._store(self.latents, self._manifest(), splits)
        opened: dict[Path, Store] = {}  # one that two names share is opened once, as LMDB asks
        tokens: dict[str, Store | OnlineTokens] = {}
        for name, folder in folders.items():
            if folder not in opened:
                opened[folder] = self._store(folder, {"teacher": teachers[name].manifest()}, splits)
            tokens[name] = opened[folder]
        if self.online_teacher:
            read = partial(self._images, latents)
            tokens = {name: OnlineTokens(one, read, splits["train"].ids()) for name, one in teachers.items()}
        grids = {name: one.grid for name, one in teachers.items()}
        names = read_names(self.folder, self.num_classes)
        return Cache(splits, latents, tokens, grids, self.num_classes, self.conditions, class_names=names)

    def has_caches(self, teacher: Any | None) -> bool:
        """Is everything cached that training reads? A teacher that is asked online has no tokens to compare."""
        needed = [self.latents, *self.tokens_folders(teacher).values()]
        return not (teacher is not None and self.online_teacher) and all(is_finished(path) for path in needed)

    def source_changes(self) -> str | None:
        """In what the images are not those that the caches were made from; None where they are, or nobody can say."""
        return source_changes.changes(self.source, self.images, self.folder) if is_finished(self.latents) else None

    def reads_squares(self, teacher: Any | None) -> bool:
        """An online teacher sees the cached pixels."""
        return False

    def expected_samples(self) -> dict[str, int]:
        """How many samples the splits have or will have."""
        return self.settings.expected_samples()

    def stores(self, teacher: Any | None) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and type of each cache's records."""
        stores: dict[str, tuple[tuple[int, ...], str]] = {"latents": (self.latent_shape, "float16")}
        return stores | ({} if self.online_teacher else token_stores(teacher, "float16"))

    def _splits(self) -> dict[str, Samples]:
        """As the latents were made from them."""
        files = [self.folder / f"{split}.csv" for split in SPLITS]
        refuse_changed(files, Store(self.latents).manifest.get("csv_sha256", {}), self.remake)
        return {split: read_split(file) for split, file in zip(SPLITS, files, strict=True)}

    def _store(self, folder: Path, expected: dict[str, Any], splits: dict[str, Samples]) -> Store:
        mirrored = Keys([splits["train"]]) if self.flip else None
        return open_store(folder, expected, Keys(splits.values()), self.remake, mirrored)

    def build(self, teacher: Any | None) -> None:
        """Makes what is missing, from where an earlier process left it. A second process waits, then finds it made."""
        new = missing_folders(self.folder)
        with lock_folder(self.folder):
            try:
                self._build(teacher)
            except BaseException:
                if not self._has_results():  # refused before anything was made
                    remove_new(new)
                raise

    def make(self, teacher: Any, stage: str) -> None:
        """What `urepa.preprocess` does: everything in one go, then the stage `verify` or `digest` as for others."""
        self.build(teacher)
        if stage == "digest":
            for store in self.store_folders(teacher):
                add_digests(store)
        cache = self.open(teacher)
        counts = ", ".join(f"{len(samples)} {split}" for split, samples in cache.splits.items())
        print(f"{self.folder}: {counts}")
        if stage == "verify":
            verify(str(self.folder), cache)
        cache.close()

    def _has_results(self) -> bool:
        """Records, or a list of what cannot be read?"""
        return (self.folder / unreadable.FILE).exists() or any(map(has_records, self.folder.iterdir()))

    def _build(self, teacher: Any | None) -> None:
        source_changes.refuse_changes(self)
        if is_finished(self.latents):
            self._complete_latents()
        else:
            self._list_and_build_latents()
        latents = Store(self.latents)
        refuse_differing(self.latents, latents.manifest, self._manifest(), self.remake)
        splits = self._splits()
        if self.flip:
            self._build_mirrored_latents(latents, splits)
        for name, folder in self.tokens_folders(teacher).items():
            self._build_tokens(by_name(teacher)[name], folder, latents, splits)
        latents.close()

    def _list_and_build_latents(self) -> None:
        """The three CSVs and the latents. Which images cannot be read is known, of all, before anything else is made;
        the next of its class takes the place of one. What a killed build has made of other files goes."""
        if source_changes.record(self.source, self.images, self.folder):
            shutil.rmtree(self.latents, ignore_errors=True)
        (self.folder / unreadable.FILE).unlink(missing_ok=True)
        listing = Listing(self.source, self.images, {})
        rows = list(listing)
        refuse_duplicates(rows)
        refuse_unfit_names(rows)
        skipped: dict[str, str] = {}
        while True:
            kept = [row for row in rows if row.name not in skipped]
            splits = split_rows(kept, self.num_classes, self.held_out, self.limit)
            lists = {
                split: Samples.of_rows((row.name, row.class_id, row.path, split) for row in chosen)
                for split, chosen in splits.items()
            }
            samples = Samples.concatenate(lists.values())
            if not skipped:
                unused = sum(row.split == "test" for row in rows) - len(splits["test"])
                listing.print_left_out(max(0, unused), f"data.test_images={self.held_out['test']}")
            found = self._encode_latents(samples, {row.name: row for row in kept})
            if found:
                skipped |= found
                unreadable.report(skipped, len(samples) + len(skipped) - len(found), self.max_skipped, self.folder)
            elif self._has_other_records(samples):
                shutil.rmtree(self.latents)  # of images that were read in place of some that can be read now
            else:
                break
        for split, chosen in lists.items():
            write_split(self.folder / f"{split}.csv", chosen)
        write_names(self.folder, names_at(self.source, self.images, listing.suffixes))
        self._seal_latents(samples)

    def _complete_latents(self) -> None:
        """Finished latents of which records are missing. UserError where an image cannot be read any more."""
        samples = Samples.concatenate(read_split(self.folder / f"{split}.csv") for split in SPLITS)
        if _is_complete(self._latents_output(), samples):
            return
        wanted = {(s.sample_id, s.path) for s in samples}
        rows = {r.name: r for r in SOURCES[self.source](self.images) if (r.name, r.path) in wanted}
        unreadable.report(self._encode_latents(samples, rows), len(samples), 0, self.folder)
        self._seal_latents(samples)

    def _latents_output(self) -> Output:
        return Output(self.latents, self._manifest() | {"shape": list(self.latent_shape), "dtype": "float16"})

    def _encode_latents(self, samples: Samples, rows: dict[str, SourceImage]) -> dict[str, str]:
        """The latents that are not there yet. Returns why images cannot be read, by sample id."""
        reasons: dict[str, str] = {}

        def images(chosen: Sequence[Sample]) -> tuple[list[Sample], Tensor]:
            read = {}
            for s in chosen:
                try:
                    pixels = rows[s.sample_id].load()
                except UNREADABLE as error:
                    reasons[s.sample_id] = f"{s.path}: {error}"
                else:
                    read[s] = self._image(pixels)
            return list(read), torch.cat([torch.empty(0, *self.image_shape), *read.values()])

        def latents(images_BCSS: Tensor) -> np.ndarray:
            return self.to_x0(images_BCSS).numpy()

        self._encode(self._latents_output(), samples, images, latents)
        return reasons

    def _has_other_records(self, samples: Samples) -> bool:
        store = Store(self.latents, self._latents_output().facts)
        count = store.count()
        store.close()
        return count != len(samples)

    def _seal_latents(self, samples: Samples) -> None:
        output = self._latents_output()
        digests = {"csv_sha256": csv_digests([self.folder / f"{split}.csv" for split in SPLITS])}
        seal(replace(output, facts=output.facts | digests), digest_of(samples))

    def _build_mirrored_latents(self, latents: Store, splits: dict[str, Samples]) -> None:
        facts = mirrored_facts({k: v for k, v in latents.manifest.items() if k not in ("count", *IN_MANIFEST)})
        output = Output(mirrored_folder(self.latents), facts, mirrored=True)

        def images(samples: Sequence[Sample]) -> Tensor:
            return F.pixel_shuffle(torch.from_numpy(latents.read([s.sample_id for s in samples])), self.unshuffle)

        def mirror(images_BCSS: Tensor) -> np.ndarray:
            return F.pixel_unshuffle(images_BCSS, self.unshuffle).numpy()

        self._build_store(output, splits, images, mirror)

    def _build_tokens(self, teacher: Any, folder: Path, latents: Store, splits: dict[str, Samples]) -> None:
        device, _ = device_and_dtype()
        shape = [teacher.grid[0] * teacher.grid[1], teacher.width]
        facts = {"kind": "tokens", "track": self.name, "flip": "none", "teacher": teacher.manifest()}
        facts |= {"shape": shape, "dtype": "float16"}

        def images(samples: Sequence[Sample]) -> Tensor:
            return self._images(latents, [s.sample_id for s in samples])

        def tokens(images_B3SS: Tensor) -> np.ndarray:
            return teacher.tokens(images_B3SS.to(device)).x_BND.cpu().numpy()

        for output in outputs_of(Output(folder, facts), self.flip):
            self._build_store(output, splits, images, tokens)

    def _build_store(
        self, output: Output, splits: dict[str, Samples], images: Callable[[Sequence[Sample]], Tensor], encode: Encode
    ) -> None:
        """Writes the missing records of a store and seals it."""
        samples = Samples.concatenate(splits[split] for split in SPLITS)
        if not _is_complete(output, samples):
            self._encode(output, samples, lambda chosen: (chosen, images(chosen)), encode)
            seal(output, digest_of(samples))

    def _encode(self, output: Output, samples: Samples, images: Images, encode: Encode) -> None:
        """Writes what a store lacks of the samples whose images there are."""
        begun = output.folder / "begun.json"
        known = read_json(begun) if begun.exists() else output.facts
        if any(known.get(key) != value for key, value in output.facts.items()):
            shutil.rmtree(output.folder)  # the images have changed since, and it never counted

        def read(todo: Todo) -> Iterator[tuple[Sequence[Sample], Tensor]]:
            for start in range(0, len(samples), CHUNK):
                if wanted := todo(samples[start : start + CHUNK]):
                    chosen, images_BCSS = images(wanted)
                    if chosen:
                        yield chosen, images_BCSS

        new = missing_folders(output.folder)
        try:
            encode_part(output, Part(), samples, read, encode, self.remake, digest_of(samples))
        except BaseException:
            if not has_records(output.folder):  # weights that cannot be read, say
                remove_new(new)
            raise

    def _image(self, pixels: np.ndarray) -> Tensor:
        """The central square of an image, uint8 [H,W] or [H,W,3], as [1,C,S,S] in [0,1]."""
        pixels = pixels if pixels.ndim == 3 else pixels[..., None]
        check_channels(self.channels, pixels.shape[2])
        side = min(pixels.shape[:2])
        top, left = ((n - side) // 2 for n in pixels.shape[:2])
        pixels = pixels[top : top + side, left : left + side]
        image = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255
        size = (self.image_size, self.image_size)
        if image.shape[-2:] != size:
            image = F.interpolate(image, size=size, mode="bilinear", align_corners=False, antialias=True)
        return image.clamp(0, 1)

    def _images(self, latents: Store, ids: list[str]) -> Tensor:
        return self.to_rgb(torch.from_numpy(latents.read(ids)))

    def to_x0(self, images_BCSS: Tensor) -> Tensor:
        """Images in [0,1] to latents."""
        return F.pixel_unshuffle((images_BCSS * 2 - 1) * self.scale, self.unshuffle)

    def to_rgb(self, x0: Tensor) -> Tensor:
        """Latents back to images [B,3,S,S] in [0,1]."""
        images = (F.pixel_shuffle(x0, self.unshuffle) / self.scale + 1) / 2
        return images.clamp(0, 1).expand(-1, 3, -1, -1) if self.channels == 1 else images.clamp(0, 1)


def _is_complete(output: Output, samples: Samples) -> bool:
    """Is a store finished, with a record of every sample?"""
    if not is_finished(output.folder):
        return False
    store = Store(output.folder)
    missing = store.missing(Keys([samples.filter(map(output.holds, samples))]))
    store.close()
    return not missing
