"""Tracks of small images whose "latent" is the pixel-unshuffled image: no VAE, no hub.

Shapes: B batch, C image channels, S image size, f unshuffle factor; x0 is [B, C·f², S/f, S/f] in
[-scale, scale].
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from urepa.data import source_files
from urepa.data.cache import (
    SPLITS,
    Cache,
    csv_digests,
    is_finished,
    mirrored_facts,
    mirrored_folder,
    open_store,
    refuse_changed,
    refuse_differing,
    token_stores,
)
from urepa.data.digests import IN_MANIFEST
from urepa.data.encode import Encode, Output, Todo, device_and_dtype, encode_part, seal
from urepa.data.lmdb_file import Index
from urepa.data.online import OnlineTokens
from urepa.data.photos import UNREADABLE
from urepa.data.reading import Store
from urepa.data.samples import Keys, Sample, Samples, digest_of, read_split, write_split
from urepa.data.sources import SOURCES, Row, count_images, refuse_duplicates, refuse_unfit_names
from urepa.data.store import Part
from urepa.draws import digest64, unit_interval
from urepa.errors import UserError
from urepa.files import new_places, read_json, remove_new
from urepa.teachers.several import by_name

CHUNK = 64  # images a step while building
KEYS = {"val": "validation_images", "test": "test_images"}


class PixelTrack:
    """Builds and opens the caches of one small data set. Fields are described in `urepa.config`."""

    prompt_bytes = 0  # its conditions are class ids
    autoencoder = None  # pixels need none
    online_latents = False  # they are read as they lie

    def __init__(
        self,
        name: str,
        root: str,
        source: str,
        images: str,
        limit: int | None,
        validation_images: int,
        test_images: int,
        channels: int,
        image_size: int,
        unshuffle: int,
        num_classes: int,
        cfg_dropout: float,
        build_on_first_use: bool,
        scale: float = 1.0,
        flip: bool = False,
        online_teacher: bool = False,
    ) -> None:
        if image_size % unshuffle:
            raise UserError(f"data.image_size={image_size} is not a multiple of data.unshuffle={unshuffle}")
        if flip and source == "digits":
            raise UserError("data.flip=true would mirror digits, and then they are none; leave it out")
        self.name, self.source, self.images, self.limit = name, source, images, limit
        self.held_out = {"val": validation_images, "test": test_images}
        self.channels, self.image_size, self.unshuffle = channels, image_size, unshuffle
        self.num_classes, self.cfg_dropout, self.scale = num_classes, cfg_dropout, scale
        self.build_on_first_use, self.flip, self.online_teacher = build_on_first_use, flip, online_teacher
        side = image_size // unshuffle
        self.image_shape = (channels, image_size, image_size)
        self.latent_shape = (channels * unshuffle**2, side, side)
        size = "all" if limit is None else limit
        place = f"{digest64(images):016x}"[:6]  # two image folders have two caches
        self.folder = Path(root) / f"{source}-{place}_{size}_{validation_images}_{test_images}_{channels}x{image_size}"
        self.latents = self.folder / "latents"
        self.remake = f"run `python -m urepa.preprocess data={name}` with the same data overrides"

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
        """By model, size and grid, and by the rule of its positions where tokens rest on it: `transformers` has the
        name without, as stores had when it was the only one."""
        manifest, pooled = teacher.manifest(), "x".join(map(str, teacher.grid))
        rule = manifest.get("positions", "transformers")
        suffix = "" if rule == "transformers" else f"_{rule}"
        return self.folder / f"tokens_{manifest['model']}_{manifest['image_size']}_{pooled}{suffix}"

    def open(self, teacher: Any | None) -> Cache:
        """The track's caches; built first if they are missing and the track may. `teacher` None: no tokens."""
        folders, teachers = self.tokens_folders(teacher), by_name(teacher)
        missing = [path for path in self.store_folders(teacher) if not is_finished(path)]
        if missing and not self.build_on_first_use:
            raise UserError(f"there is no cache at {missing[0]}; {self.remake}, or give data.root=FOLDER")
        if missing:
            self.build(teacher)
        splits = self._splits()
        latents = self._store(self.latents, self._manifest(), splits, "")
        opened: dict[Path, Store] = {}  # one that two names share is opened once, as LMDB asks
        tokens: dict[str, Store | OnlineTokens] = {}
        for name, folder in folders.items():
            if folder not in opened:
                opened[folder] = self._store(folder, {"teacher": teachers[name].manifest()}, splits, "_mid")
            tokens[name] = opened[folder]
        if self.online_teacher:
            read = partial(self._images, latents)
            tokens = {name: OnlineTokens(one, read, splits["train"].ids()) for name, one in teachers.items()}
        grids = {name: one.grid for name, one in teachers.items()}
        return Cache(splits, latents, tokens, grids, self.num_classes, null_id=self.num_classes)

    def has_caches(self, teacher: Any | None) -> bool:
        """Is everything cached that training reads? A teacher that is asked online has no tokens to compare."""
        needed = [self.latents, *self.tokens_folders(teacher).values()]
        return not (teacher is not None and self.online_teacher) and all(is_finished(path) for path in needed)

    def source_changes(self) -> str | None:
        """In what the images are not those that the caches were made from; None where they are, or nobody can say."""
        return source_files.changes(self.source, self.images, self.folder) if is_finished(self.latents) else None

    def reads_squares(self, teacher: Any | None) -> bool:
        """An online teacher sees the cached pixels."""
        return False

    def expected_samples(self) -> dict[str, int]:
        """How many samples the splits have or will have."""
        if self.limit is not None:
            return {"train": self.limit} | self.held_out
        there = count_images(self.source, self.images)
        test_images = there.get("test", 0)
        rest = sum(there.values()) - test_images - self.held_out["val"]
        return {"train": rest if test_images else rest - self.held_out["test"]} | self.held_out

    def stores(self, teacher: Any | None) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and type of each cache's records."""
        stores: dict[str, tuple[tuple[int, ...], str]] = {"latents": (self.latent_shape, "float16")}
        return stores | ({} if self.online_teacher else token_stores(teacher, "float16"))

    def _splits(self) -> dict[str, Samples]:
        """As the latents were made from them."""
        files = [self.folder / f"{split}.csv" for split in SPLITS]
        refuse_changed(files, Store(self.latents).manifest.get("csv_sha256", {}), self.remake)
        return {split: read_split(file) for split, file in zip(SPLITS, files, strict=True)}

    def _store(self, folder: Path, expected: dict[str, Any], splits: dict[str, Samples], suffix: str) -> Store:
        mirrored = Keys([splits["train"]], suffix) if self.flip else None
        return open_store(folder, expected, Keys(splits.values(), suffix), self.remake, mirrored)

    def build(self, teacher: Any | None) -> None:
        """Makes what is missing, from where an earlier process left it. A second process waits, then finds it made."""
        new = new_places(self.folder)
        with self._locked():
            try:
                self._build(teacher)
            except BaseException:
                if not self._has_records():  # refused before anything was made
                    remove_new(new)
                raise

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """The folder is there, and this process alone builds in it. One that another process has removed while this one
        waited is made again."""
        while True:
            self.folder.mkdir(parents=True, exist_ok=True)
            with open(self.folder / ".lock", "w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if self._is_there(lock.fileno()):
                    yield
                    return

    def _is_there(self, lock: int) -> bool:
        """Is an open lock still the one in the folder?"""
        try:
            return os.path.samestat(os.fstat(lock), os.stat(self.folder / ".lock"))
        except FileNotFoundError:
            return False

    def _has_records(self) -> bool:
        stores = (file for file in self.folder.glob("*/data.mdb") if file.stat().st_size)
        return any(len(Index(file.parent)) for file in stores)

    def _build(self, teacher: Any | None) -> None:
        source_files.refuse_changes(self)
        if not is_finished(self.latents):
            self._split_up()
        self._build_latents()
        latents = Store(self.latents)
        refuse_differing(self.latents, latents.manifest, self._manifest(), self.remake)
        splits = self._splits()
        if self.flip:
            self._build_mirrored_latents(latents, splits)
        for name, folder in self.tokens_folders(teacher).items():
            self._build_tokens(by_name(teacher)[name], folder, latents, splits)
        latents.close()

    def _split_up(self) -> None:
        """The three CSVs, and what the images' files are. What a killed build has made of other files goes."""
        if source_files.record(self.source, self.images, self.folder):
            shutil.rmtree(self.latents, ignore_errors=True)
        splits = self._split(list(SOURCES[self.source](self.images)))
        self._image(next(row for rows in splits.values() for row in rows))  # one that does not fit is met now
        for split, rows in splits.items():
            samples = [Sample(row.name, row.class_id, row.path, split) for row in rows]
            write_split(self.folder / f"{split}.csv", samples)

    def _build_latents(self) -> None:
        splits = {split: read_split(self.folder / f"{split}.csv") for split in SPLITS}
        wanted = {s.sample_id for rows in splits.values() for s in rows}
        rows = cache(lambda: {row.name: row for row in SOURCES[self.source](self.images) if row.name in wanted})
        digests = {"csv_sha256": csv_digests([self.folder / f"{split}.csv" for split in SPLITS])}
        facts = self._manifest() | {"shape": list(self.latent_shape), "dtype": "float16"} | digests

        def images(samples: Sequence[Sample]) -> Tensor:
            return torch.cat([self._image(rows()[s.sample_id]) for s in samples])

        def latents(images_BCSS: Tensor) -> np.ndarray:
            return self.to_x0(images_BCSS).numpy()

        self._fill(Output(self.latents, facts), splits, images, latents)

    def _build_mirrored_latents(self, latents: Store, splits: dict[str, Samples]) -> None:
        facts = mirrored_facts({k: v for k, v in latents.manifest.items() if k not in ("count", *IN_MANIFEST)})
        output = Output(mirrored_folder(self.latents), facts, mirrored=True)

        def images(samples: Sequence[Sample]) -> Tensor:
            return F.pixel_shuffle(torch.from_numpy(latents.read([s.sample_id for s in samples])), self.unshuffle)

        def mirrored(images_BCSS: Tensor) -> np.ndarray:
            return F.pixel_unshuffle(images_BCSS, self.unshuffle).numpy()

        self._fill(output, splits, images, mirrored)

    def _build_tokens(self, teacher: Any, folder: Path, latents: Store, splits: dict[str, Samples]) -> None:
        device, _ = device_and_dtype()
        shape = [teacher.grid[0] * teacher.grid[1], teacher.width]
        facts = {"kind": "tokens", "track": self.name, "flip": "none", "teacher": teacher.manifest()}
        facts |= {"shape": shape, "dtype": "float16"}
        outputs = [Output(folder, facts, "_mid")]
        if self.flip:
            outputs.append(Output(mirrored_folder(folder), mirrored_facts(facts), "_mid", mirrored=True))

        def images(samples: Sequence[Sample]) -> Tensor:
            return self._images(latents, [s.sample_id for s in samples])

        def tokens(images_B3SS: Tensor) -> np.ndarray:
            return teacher.tokens(images_B3SS.to(device)).x_BND.cpu().numpy()

        if not is_finished(folder):
            tokens(images(splits["train"][:1]))  # weights that cannot be read are met now
        for output in outputs:
            self._fill(output, splits, images, tokens)

    def _fill(
        self, output: Output, splits: dict[str, Samples], images: Callable[[Sequence[Sample]], Tensor], encode: Encode
    ) -> None:
        """What is missing of a store."""
        samples = Samples.joined(splits[split] for split in SPLITS)
        if is_finished(output.folder):
            store = Store(output.folder)
            missing = store.missing(Keys([samples.only(map(output.holds, samples))], output.suffix))
            store.close()
            if not missing:
                return
        begun = output.folder / "begun.json"
        if begun.exists() and read_json(begun) != output.facts:
            shutil.rmtree(output.folder)  # the images have changed since, and it never counted

        def read(todo: Todo) -> Iterator[tuple[Sequence[Sample], Tensor]]:
            for start in range(0, len(samples), CHUNK):
                if wanted := todo(samples[start : start + CHUNK]):
                    yield wanted, images(wanted)

        listed = digest_of(samples)
        encode_part(output, Part(), samples, read, encode, self.remake, listed)
        seal(output, listed)

    def _image(self, row: Row) -> Tensor:
        """The image's central square, uint8 [H,W] or [H,W,3], as [1,C,S,S] in [0,1]."""
        try:
            pixels = row.load()
        except UNREADABLE as error:
            raise UserError(f"the image {row.path} cannot be read ({error}); mend it or take it away") from error
        pixels = pixels if pixels.ndim == 3 else pixels[..., None]
        if pixels.shape[2] != self.channels:
            raise UserError(f"data.channels={self.channels}, but the images have {pixels.shape[2]}")
        side = min(pixels.shape[:2])
        top, left = ((n - side) // 2 for n in pixels.shape[:2])
        pixels = pixels[top : top + side, left : left + side]
        image = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255
        size = (self.image_size, self.image_size)
        if image.shape[-2:] != size:
            image = F.interpolate(image, size=size, mode="bilinear", align_corners=False, antialias=True)
        return image.clamp(0, 1)

    def _split(self, rows: list[Row]) -> dict[str, list[Row]]:
        """Train, validation and test with nothing shared: each row's place is drawn from its name alone.
        Where the publisher kept test images apart they stay apart. Every split is class-balanced."""
        refuse_duplicates(rows)
        refuse_unfit_names(rows)
        rows = sorted(rows, key=lambda row: unit_interval("split", row.name))
        by_class: list[dict[str, list[Row]]] = [{"train": [], "test": []} for _ in range(self.num_classes)]
        for row in rows:
            if row.class_id >= self.num_classes:
                raise UserError(f"the images have a class {row.class_id}; data.num_classes={self.num_classes}")
            by_class[row.class_id]["test" if row.split == "test" else "train"].append(row)
        there = sum(any(pools.values()) for pools in by_class)
        if there < self.num_classes:
            raise UserError(f"the images have {there} classes; data.num_classes={self.num_classes}")
        splits: dict[str, list[Row]] = {split: [] for split in SPLITS}
        for class_id, pools in enumerate(by_class):
            train, test = pools["train"], pools["test"] or pools["train"]
            for split, pool in (("test", test), ("val", train)):
                share = _share(self.held_out[split], class_id, self.num_classes)
                splits[split] += _take(pool, share, f"data.{KEYS[split]}")
            wanted = len(train) if self.limit is None else _share(self.limit, class_id, self.num_classes)
            splits["train"] += _take(train, wanted, "data.limit")
        return splits

    def _images(self, latents: Store, ids: list[str]) -> Tensor:
        return self.to_rgb(torch.from_numpy(latents.read(ids)))

    def to_x0(self, images_BCSS: Tensor) -> Tensor:
        """Images in [0,1] to latents."""
        return F.pixel_unshuffle((images_BCSS * 2 - 1) * self.scale, self.unshuffle)

    def to_rgb(self, x0: Tensor) -> Tensor:
        """Latents back to images [B,3,S,S] in [0,1]."""
        images = (F.pixel_shuffle(x0, self.unshuffle) / self.scale + 1) / 2
        return images.clamp(0, 1).expand(-1, 3, -1, -1) if self.channels == 1 else images.clamp(0, 1)


def _share(total: int, class_id: int, num_classes: int) -> int:
    """A class's part of `total` images; the first classes get one more where it does not divide."""
    return total // num_classes + (class_id < total % num_classes)


def _take(pool: list[Row], n: int, key: str) -> list[Row]:
    """The first `n` rows, removed from the pool."""
    if n > len(pool):
        raise UserError(f"{key} asks for {n} images of one class; there are {len(pool)} left: ask for fewer")
    taken, pool[:n] = pool[:n], []
    return taken
