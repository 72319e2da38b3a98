"""Tracks of VAE latents and cached teacher tokens in the document's layout (spec 000 §3, appendix A).

Layout below `root`: vae_latents_lmdb/ (key: sample id), dino_tokens_lmdb/ (key: sample id + "_mid"), one CSV
per split, clip_embeddings_1001.pt. Stores carry a manifest.json; tokens also mean_token.npy.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from urepa.data.cache import Cache, check_manifest, read_split
from urepa.data.store import Store
from urepa.errors import UserError


class LatentTrack:
    """Opens finished caches. Fields are described in `urepa.config`."""

    def __init__(
        self,
        name: str,
        root: str,
        latents: str,
        tokens: str,
        train: str,
        val: str,
        prompts: str,
        latent_shape: list[int],
        num_classes: int,
        cfg_dropout: float,
    ) -> None:
        if not 0 <= cfg_dropout <= 1:
            raise UserError(f"data.cfg_dropout={cfg_dropout} is a probability: give 0 to 1")
        self.name, self.folder = name, Path(root)
        self.stores = {"latents": self.folder / latents, "tokens": self.folder / tokens}
        self.csv = {"train": self.folder / train, "val": self.folder / val}
        self.latent_shape = (latent_shape[0], latent_shape[1], latent_shape[2])
        self.num_classes, self.cfg_dropout = num_classes, cfg_dropout
        self.remake = f"make it with `python -m urepa.preprocess data={name} data.root={root}`"

    def open(self, teacher: Any | None) -> Cache:
        """The track's caches; a UserError where one is missing or was made for another teacher or size."""
        needed = [self.stores["latents"], *self.csv.values()]
        needed += [self.stores["tokens"]] if teacher is not None else []
        for path in needed:
            if not path.exists():
                raise UserError(f"there is no cache at {path}; {self.remake}, or give data.root=FOLDER")
        latents = check_manifest(Store(self.stores["latents"]), {"shape": list(self.latent_shape)}, self.remake)
        tokens = None
        if teacher is not None:
            tokens = check_manifest(Store(self.stores["tokens"]), {"teacher": teacher.manifest()}, self.remake)
        splits = {split: read_split(path) for split, path in self.csv.items()}
        grid = None if teacher is None else teacher.grid
        return Cache(splits, latents, tokens, grid, self.num_classes, null_id=self.num_classes)
