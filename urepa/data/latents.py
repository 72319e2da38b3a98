"""Tracks of VAE latents and cached teacher tokens in the document's layout (spec 000 §3, appendix A).

Layout below `root`: vae_latents_lmdb/ (key: sample id), dino_tokens_lmdb/ (key: sample id + "_mid"), one CSV
per split, clip_embeddings_1001.pt, images/ (only while building), track.json (digests of the CSVs, images that could
not be read); with data.flip also vae_latents_lmdb_flip/ and dino_tokens_lmdb_flip/ of the mirrored training images.
"""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from urepa.data import vae
from urepa.data.cache import Cache, Sample, mirrored_folder, open_store, read_split, refuse_changed
from urepa.data.images import ImageArchive, skipped_ids
from urepa.data.online import OnlineTokens
from urepa.data.reading import Store
from urepa.data.sources import count_images
from urepa.data.staging import stage
from urepa.errors import UserError


class LatentTrack:
    """What a track is made of and where it lies. Fields are described in `urepa.config`."""

    prompt_bytes = 77 * 768 * 2  # of a class: SD-1.5's text embedding in fp16

    def __init__(
        self,
        name: str,
        root: str,
        source: str,
        images: str,
        train_images: int | None,
        val_images: int | None,
        image_size: int,
        vae: str,
        text: str,
        class_names: str,
        moments: bool,
        token_dtype: str,
        max_skipped: float,
        latents: str,
        tokens: str,
        train: str,
        val: str,
        prompts: str,
        latent_shape: list[int],
        num_classes: int,
        cfg_dropout: float,
        flip: bool = False,
        online_teacher: bool = False,
        stage_to: str | None = None,
    ) -> None:
        self.name, self.folder = name, Path(root)
        self.source, self.images, self.image_size = source, images, image_size
        self.wanted = {"train": train_images, "val": val_images}
        self.vae, self.text, self.class_names = vae, text, class_names
        self.moments, self.token_dtype, self.max_skipped = moments, token_dtype, max_skipped
        self.latents, self.tokens = self.folder / latents, self.folder / tokens
        self.csv = {"train": self.folder / train, "val": self.folder / val}
        self.prompts = self.folder / prompts
        self.latent_shape = (latent_shape[0], latent_shape[1], latent_shape[2])
        self.num_classes, self.cfg_dropout = num_classes, cfg_dropout
        self.flip, self.online_teacher, self.stage_to = flip, online_teacher, stage_to
        flips = " data.flip=true" if flip else ""
        self.remake = f"make it with `python -m urepa.preprocess data={name} data.root={root}{flips}`"
        self.image_shape = (3, image_size, image_size)

    def record_shape(self) -> list[int]:
        """Of a latents record: [C,H,W], or [2,C,H,W] with moments."""
        return [2, *self.latent_shape] if self.moments else list(self.latent_shape)

    def expected_samples(self) -> dict[str, int]:
        """How many samples the splits have or will have."""
        if all(path.exists() for path in self.csv.values()):
            return {split: len(samples) for split, samples in self.samples().items()}
        wanted = {split: n for split, n in self.wanted.items() if n is not None}
        if len(wanted) < len(self.wanted):
            images = "imagenet" if self.class_names == "imagenet" else self.images
            there = count_images(self.source, images)
            wanted = {"train": there["train"], "val": there["test"]} | wanted
        return wanted

    def stores(self, teacher: Any | None) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and type of each cache's records."""
        stores: dict[str, tuple[tuple[int, ...], str]] = {"latents": (tuple(self.record_shape()), "float16")}
        if teacher is not None and not self.online_teacher:
            stores["tokens"] = ((teacher.grid[0] * teacher.grid[1], teacher.width), self.token_dtype)
        return stores

    def store_folders(self, with_tokens: bool) -> list[Path]:
        """The folders of what is cached."""
        plain = [self.latents, self.tokens] if with_tokens else [self.latents]
        return plain + ([mirrored_folder(path) for path in plain] if self.flip else [])

    def open(self, teacher: Any | None) -> Cache:
        """The track's caches; a UserError where one is missing, was made for another teacher or size, or has
        changed since."""
        needed = self.store_folders(with_tokens=teacher is not None and not self.online_teacher)
        for path in [*self.csv.values(), *needed]:
            if not path.exists():
                raise UserError(f"there is no cache at {path}; {self.remake}, or give data.root=FOLDER")
        splits = self.samples()
        place = self.folder if self.stage_to is None else stage(needed, self.folder, Path(self.stage_to))
        shape = {"shape": self.record_shape(), "flip": "none"}
        squares = {"image_size": self.image_size, "crop": "center"}
        latents = self._store(place, self.latents, shape | squares, splits, "")
        tokens: Store | OnlineTokens | None = None
        if teacher is not None and self.online_teacher:
            tokens = OnlineTokens(teacher, ImageArchive(self.folder), [s.sample_id for s in splits["train"]])
        elif teacher is not None:
            tokens = self._store(place, self.tokens, {"teacher": teacher.manifest()}, splits, "_mid")
        grid = None if teacher is None else teacher.grid
        return Cache(splits, latents, tokens, grid, self.num_classes, null_id=self.num_classes)

    @cached_property
    def autoencoder(self) -> Any:
        """The VAE between images and latents; a UserError where its weights are not to be had."""
        return vae.load_vae(self.vae)

    def to_rgb(self, x0: Tensor) -> Tensor:
        """Latents to images [B,3,S,S] in [0,1]."""
        return vae.decode(self.autoencoder.to(x0.device), x0)

    def to_x0(self, images_B3SS: Tensor) -> Tensor:
        """Images in [0,1] to latents, as the latents stage makes them."""
        return vae.encode(self.autoencoder.to(images_B3SS.device), images_B3SS)

    def _store(
        self, place: Path, folder: Path, expected: dict[str, Any], splits: dict[str, list[Sample]], suffix: str
    ) -> Store:
        """A store of every sample and, with flips, its mirror of the training samples."""
        keys = {split: [s.sample_id + suffix for s in rows] for split, rows in splits.items()}
        every = [key for own in keys.values() for key in own]
        mirrored = keys["train"] if self.flip else None
        return open_store(place / folder.relative_to(self.folder), expected, every, self.remake, mirrored)

    def record(self) -> dict[str, Any]:
        """track.json: digests of the CSVs, images that could not be read."""
        file = self.folder / "track.json"
        return json.loads(file.read_text()) if file.exists() else {}

    def samples(self) -> dict[str, list[Sample]]:
        """The splits, less what has no image; a UserError if a CSV is not the one the caches were made from."""
        known = self.record()
        refuse_changed(list(self.csv.values()), known.get("csv_sha256", {}), self.remake)
        skipped = skipped_ids(self.folder).union(known.get("skipped", []))
        splits = {split: read_split(path) for split, path in self.csv.items()}
        for split, rows in splits.items():
            largest = max((s.class_id for s in rows), default=0)
            if largest >= self.num_classes:
                raise UserError(f"{self.csv[split]} has a class {largest}; data.num_classes={self.num_classes}")
        return {split: [s for s in rows if s.sample_id not in skipped] for split, rows in splits.items()}
