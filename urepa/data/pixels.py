"""Tracks of small images whose "latent" is the pixel-unshuffled image: no VAE, no hub.

Shapes: B batch, C image channels, S image size, f unshuffle factor; x0 is [B, C·f², S/f, S/f] in
[-scale, scale].
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from urepa import progress
from urepa.contracts import Tokens
from urepa.data.cache import (
    SPLITS,
    Cache,
    Sample,
    check_manifest,
    mean_token_file,
    read_split,
    write_split,
)
from urepa.data.online import OnlineTokens
from urepa.data.reading import Store
from urepa.data.sources import SOURCES, Row, count_images, refuse_duplicates
from urepa.data.store import write_store
from urepa.draws import digest64, unit_interval
from urepa.errors import UserError

CHUNK = 64  # images a step while building


class PixelTrack:
    """Builds and opens the caches of one small data set. Fields are described in `urepa.config`."""

    prompt_bytes = 0  # its conditions are class ids
    autoencoder = None  # pixels need none

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
        online_teacher: bool = False,
    ) -> None:
        if image_size % unshuffle:
            raise UserError(f"data.image_size={image_size} is not a multiple of data.unshuffle={unshuffle}")
        if not 0 <= cfg_dropout <= 1:
            raise UserError(f"data.cfg_dropout={cfg_dropout} is a probability: give 0 to 1")
        self.name, self.source, self.images, self.limit = name, source, images, limit
        self.held_out = {"val": validation_images, "test": test_images}
        self.channels, self.image_size, self.unshuffle = channels, image_size, unshuffle
        self.num_classes, self.cfg_dropout, self.scale = num_classes, cfg_dropout, scale
        self.build_on_first_use, self.online_teacher = build_on_first_use, online_teacher
        side = image_size // unshuffle
        self.image_shape = (channels, image_size, image_size)
        self.latent_shape = (channels * unshuffle**2, side, side)
        size = "all" if limit is None else limit
        place = f"{digest64(images):016x}"[:6]  # two image folders have two caches
        self.folder = Path(root) / f"{source}-{place}_{size}_{validation_images}_{test_images}_{channels}x{image_size}"
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
        }

    def open(self, teacher: Any | None) -> Cache:
        """The track's caches; built first if they are missing and the track may. `teacher` None: no tokens."""
        tokens_folder = None
        if teacher is not None and not self.online_teacher:
            manifest = teacher.manifest()
            pooled = "x".join(map(str, teacher.grid))
            tokens_folder = self.folder / f"tokens_{manifest['model']}_{manifest['image_size']}_{pooled}"
        needed = [self.folder / "latents"] + ([tokens_folder] if tokens_folder else [])
        missing = [f for f in needed if not f.is_dir()]
        if missing and not self.build_on_first_use:
            raise UserError(f"there is no cache at {missing[0]}; {self.remake}")
        if missing:
            self.build(teacher, tokens_folder)
        latents = check_manifest(Store(needed[0]), self._manifest(), self.remake)
        splits = {split: read_split(self.folder / f"{split}.csv") for split in SPLITS}
        tokens: Store | OnlineTokens | None = None
        if teacher is not None and tokens_folder is not None:
            tokens = check_manifest(Store(tokens_folder), {"teacher": teacher.manifest()}, self.remake)
        elif teacher is not None:
            tokens = OnlineTokens(teacher, partial(self._images, latents), [s.sample_id for s in splits["train"]])
        grid = None if teacher is None else teacher.grid
        return Cache(splits, latents, tokens, grid, self.num_classes, null_id=self.num_classes)

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
        if teacher is not None and not self.online_teacher:
            stores["tokens"] = ((teacher.grid[0] * teacher.grid[1], teacher.width), "float16")
        return stores

    def build(self, teacher: Any | None, tokens_folder: Path | None) -> None:
        """Makes what is missing. A second process waits, then finds it made."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (self.folder / "latents").is_dir():
                self._build_latents()
            if teacher is not None and tokens_folder is not None and not tokens_folder.is_dir():
                self._build_tokens(teacher, tokens_folder)

    def _build_latents(self) -> None:
        splits = self._split(list(SOURCES[self.source](self.images)))
        for split, rows in splits.items():
            samples = [Sample(row.name, row.class_id, row.name, split) for row in rows]
            write_split(self.folder / f"{split}.csv", samples)
        rows = [row for split in SPLITS for row in splits[split]]

        def records() -> Iterator[tuple[str, np.ndarray]]:
            for row in progress.bar(rows, desc=f"{self.name}: latents", unit="image"):
                yield row.name, self.to_x0(self._image(row.load()))[0].numpy()

        write_store(self.folder / "latents", records(), self._manifest())

    def _image(self, pixels: np.ndarray) -> Tensor:
        """uint8 [H,W] or [H,W,3] to [1,C,S,S] in [0,1]."""
        pixels = pixels if pixels.ndim == 3 else pixels[..., None]
        if pixels.shape[2] != self.channels:
            raise UserError(f"data.channels={self.channels}, but the images have {pixels.shape[2]}")
        image = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255
        size = (self.image_size, self.image_size)
        if image.shape[-2:] != size:
            image = F.interpolate(image, size=size, mode="bilinear", align_corners=False, antialias=True)
        return image.clamp(0, 1)

    def _split(self, rows: list[Row]) -> dict[str, list[Row]]:
        """Train, validation and test with nothing shared: each row's place is drawn from its name alone.
        Where the publisher kept test images apart they stay apart. Every split is class-balanced."""
        refuse_duplicates(rows)
        rows = sorted(rows, key=lambda row: unit_interval("split", row.name))
        by_class: list[dict[str, list[Row]]] = [{"train": [], "test": []} for _ in range(self.num_classes)]
        for row in rows:
            if row.class_id >= self.num_classes:
                raise UserError(f"the images have a class {row.class_id}; data.num_classes={self.num_classes}")
            by_class[row.class_id]["test" if row.split == "test" else "train"].append(row)
        splits: dict[str, list[Row]] = {split: [] for split in SPLITS}
        for class_id, pools in enumerate(by_class):
            train, test = pools["train"], pools["test"] or pools["train"]
            for split, pool in (("test", test), ("val", train)):
                share = _share(self.held_out[split], class_id, self.num_classes)
                splits[split] += _take(pool, share, f"data.{split}")
            wanted = len(train) if self.limit is None else _share(self.limit, class_id, self.num_classes)
            splits["train"] += _take(train, wanted, "data.limit")
        return splits

    def _build_tokens(self, teacher: Any, folder: Path) -> None:
        samples = [s for split in SPLITS for s in read_split(self.folder / f"{split}.csv")]
        latents = Store(self.folder / "latents")
        total_D, count = np.zeros(teacher.width), 0

        def records() -> Iterator[tuple[str, np.ndarray]]:
            nonlocal total_D, count
            with progress.bar(total=len(samples), desc=f"{self.name}: teacher tokens", unit="image") as bar:
                for i in range(0, len(samples), CHUNK):
                    chunk = samples[i : i + CHUNK]
                    x0 = torch.from_numpy(latents.read([s.sample_id for s in chunk]))
                    tokens: Tokens = teacher.tokens(self.to_rgb(x0))
                    for sample, tokens_ND in zip(chunk, tokens.x_BND.numpy(), strict=True):
                        if sample.split == "train":
                            total_D += tokens_ND.astype(np.float64).sum(0)
                            count += len(tokens_ND)
                        yield f"{sample.sample_id}_mid", tokens_ND
                    bar.update(len(chunk))

        manifest = {"kind": "tokens", "track": self.name, "teacher": teacher.manifest()}
        write_store(folder, records(), manifest, lambda: mean_token_file(total_D / count))
        latents.close()

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
