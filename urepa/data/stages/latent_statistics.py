"""The stage `statistics`: mean and standard deviation of each channel of a track's latents over its training samples,
and a copy of the VAE whose config normalises by them.

Shapes: R records, C channels, HW a latent.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from urepa.core import progress
from urepa.core.errors import UserError
from urepa.core.files import write_whole
from urepa.data.lists.samples import Keys
from urepa.data.stages.vae_config import KL, WEIGHTS, known_config, scaling_of_facts
from urepa.data.stores.lmdb_store import batches_of
from urepa.data.stores.record_reading import Store

if TYPE_CHECKING:
    from urepa.data.tracks.latent_caches import LatentTrackCaches

FILE = "latent_statistics.json"
VAE = "vae_normalised"
CHUNK = 64


def channel_statistics(latents: Iterator[np.ndarray]) -> tuple[np.ndarray, np.ndarray, int]:
    """Mean and standard deviation of each channel [C], float64, and the number of latents, from batches [R,C,H,W]."""
    count, places, total, squares = 0, 0, np.zeros(1), np.zeros(1)
    for batch in latents:
        values = batch.astype(np.float64)
        count += len(values)
        places += values.shape[0] * values.shape[2] * values.shape[3]
        total, squares = total + values.sum((0, 2, 3)), squares + (values**2).sum((0, 2, 3))
    mean = total / max(places, 1)
    return mean, np.sqrt(np.maximum(squares / max(places, 1) - mean**2, 0)), count


def write_statistics(track: LatentTrackCaches) -> None:
    """Writes ROOT/latent_statistics.json, and ROOT/vae_normalised: the VAE's config with `latents_mean` and
    `latents_std` of its own latents z over this training set, which `data.vae` takes. Raises UserError if latents are
    missing or a channel is constant."""
    stores = [(Store(bucket.latents), bucket.samples()["train"]) for bucket in track.buckets]
    total = sum(len(samples) for _, samples in stores)
    bar = progress.bar(total=total, desc="statistics", unit="latent")

    def batches() -> Iterator[np.ndarray]:
        for store, samples in stores:
            for keys in batches_of(Keys([samples]), CHUNK):
                x0 = store.read(keys)
                bar.update(len(keys))
                yield x0[:, 0] if x0.ndim == 5 else x0  # of moments, the mean

    mean_C, std_C, count = channel_statistics(batches())
    bar.close()
    if not count or std_C.min() <= 0:
        raise UserError(f"the latents of {track.folder} are constant in channel {int(std_C.argmin())}; make them again")
    facts: dict[str, Any] = {"samples": count, "x0": {"mean": mean_C.tolist(), "std": std_C.tolist()}}
    manifest = stores[0][0].manifest
    if "scaling_factor" in manifest and manifest.get("patch", 1) == 1:
        mean_z, std_z = _of_z(manifest, mean_C, std_C)
        facts["z"] = {"mean": mean_z.tolist(), "std": std_z.tolist()}
        write_vae(track.folder / VAE, track.vae, mean_z.tolist(), std_z.tolist())
        print(f"data.vae={track.folder / VAE} makes latents of mean 0 and deviation 1 per channel on this training set")
    else:
        print("how these latents were scaled is unknown, or they are packed: no copy of the VAE's config is written")
    write_whole(track.folder / FILE, json.dumps(facts, indent=1))
    print(f"{track.folder / FILE}: mean and deviation per channel of {count} training latents")
    for name, values in (("mean", mean_C), ("std", std_C)):
        print(f"  {name:4}  {' '.join(f'{value:.3f}' for value in values)}")


def _of_z(manifest: dict[str, Any], mean_C: np.ndarray, std_C: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The statistics of the VAE's own latents z, from those of x0, which is linear in them."""
    scaling = scaling_of_facts(manifest)
    mean_1C11 = torch.from_numpy(mean_C).view(1, -1, 1, 1)
    low, high = (scaling.to_z(mean_1C11 + k * torch.from_numpy(std_C).view(1, -1, 1, 1)).flatten() for k in (0, 1))
    return low.numpy(), (high - low).abs().numpy()


def write_vae(folder: Path, vae: str, mean: list[float], std: list[float]) -> None:
    """Writes a folder with the config of `vae`, in which these statistics replace its scale and shift, and a copy of
    its weights if `vae` is a local folder. Without a config on this disk only what the scaling needs is written."""
    known = known_config(vae) or {"_class_name": KL, "latent_channels": len(mean)}
    config = {key: value for key, value in known.items() if key not in ("shift_factor", "_name_or_path")}
    config |= {"scaling_factor": 1.0, "latents_mean": mean, "latents_std": std}
    folder.mkdir(parents=True, exist_ok=True)
    place = next((p for sub in ("vae", ".") if (p := Path(vae) / sub / WEIGHTS).is_file()), None)
    if place is not None:
        temporary = folder / f".{WEIGHTS}.tmp"
        shutil.copyfile(place, temporary)
        temporary.replace(folder / WEIGHTS)
    else:
        print(f"copy {WEIGHTS} of data.vae={vae} into {folder} before images are encoded or decoded")
    write_whole(folder / "config.json", json.dumps(config, indent=1))
