"""Tracks of VAE latents and cached teacher tokens in the document's layout (spec 000 §3, appendix A).

Layout below `root`: vae_latents_lmdb/ (key: sample id), dino_tokens_lmdb/ (key: sample id + "_mid"), one CSV
per split, clip_embeddings_1001.pt, images/ (only while building), track.json (digests of the CSVs).
"""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from urepa.data import vae
from urepa.data.cache import Cache, Sample, check_manifest, read_split
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
        online_teacher: bool = False,
        stage_to: str | None = None,
    ) -> None:
        if not 0 <= cfg_dropout <= 1:
            raise UserError(f"data.cfg_dropout={cfg_dropout} is a probability: give 0 to 1")
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
        self.online_teacher, self.stage_to = online_teacher, stage_to
        self.remake = f"make it with `python -m urepa.preprocess data={name} data.root={root}`"
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

    def open(self, teacher: Any | None) -> Cache:
        """The track's caches; a UserError where one is missing, was made for another teacher or size, or has
        changed since."""
        needed = [self.latents] if teacher is None or self.online_teacher else [self.latents, self.tokens]
        for path in [*needed, *self.csv.values()]:
            if not path.exists():
                raise UserError(f"there is no cache at {path}; {self.remake}, or give data.root=FOLDER")
        splits = self.samples()
        place = self.folder if self.stage_to is None else stage(needed, self.folder, Path(self.stage_to))
        stores = {path: Store(place / path.relative_to(self.folder)) for path in needed}
        latents = check_manifest(stores[self.latents], {"shape": self.record_shape()}, self.remake)
        require_keys(latents, [s.sample_id for rows in splits.values() for s in rows], self.remake)
        tokens: Store | OnlineTokens | None = None
        if teacher is not None and self.online_teacher:
            tokens = OnlineTokens(teacher, ImageArchive(self.folder), [s.sample_id for s in splits["train"]])
        elif teacher is not None:
            tokens = check_manifest(stores[self.tokens], {"teacher": teacher.manifest()}, self.remake)
            require_keys(tokens, [f"{s.sample_id}_mid" for rows in splits.values() for s in rows], self.remake)
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

    def samples(self) -> dict[str, list[Sample]]:
        """The splits, less what has no image; a UserError if a CSV is not the one the caches were made from."""
        record = self.folder / "track.json"
        digests = json.loads(record.read_text())["csv_sha256"] if record.exists() else {}
        for path in self.csv.values():
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            if digests.get(path.name, digest) != digest:
                raise UserError(f"{path} has changed since the caches were made from it; put it back, or {self.remake}")
        skipped = skipped_ids(self.folder)
        return {split: [s for s in read_split(path) if s.sample_id not in skipped] for split, path in self.csv.items()}


def require_keys(store: Store, keys: list[str], remake: str) -> None:
    """Every sample has its record: asked before the first step, not at step 40,000."""
    missing = set(keys).difference(store.keys())
    if missing:
        raise UserError(
            f"{store.folder} lacks {len(missing)} of {len(keys)} records (first: '{min(missing)}'); {remake}"
        )
