"""Random SD-1.5-shaped checkpoints, prompts and a few-sample cache, in the real formats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from urepa.data.cache import mean_token_file
from urepa.data.lists.samples import Sample, write_split
from urepa.data.stores.lmdb_store import write_store

# SD-1.5's layout at a size for tests: three resolutions with cross-attention, one without, like the real one
SMALL: dict[str, Any] = {
    "sample_size": 8,
    "cross_attention_dim": 16,
    "attention_head_dim": 2,
    "block_out_channels": (32, 32, 64, 64),
    "layers_per_block": 1,
}
TEACHER = {
    "family": "dinov2",
    "model": "dinov2-large",
    "image_size": 518,
    "grid": [16, 16],
    "width": 1024,
    "crop": "center",
    "flip": "none",
}


LATENT = (4, 8, 8)


def small_parts(folder: Path) -> dict[str, Path]:
    """A small U-Net and the caches of four samples for it."""
    write_cache(folder / "data", 4, LATENT, 16, TEACHER | {"width": 24, "grid": [4, 4]})
    return {"weights": write_unet(folder / "weights", **SMALL), "data": folder / "data"}


def write_unet(folder: Path, **architecture: Any) -> Path:
    """Writes a random U-Net in the layout of a diffusers pipeline: FOLDER/unet/{config.json,*.safetensors}."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    UNet2DConditionModel(**architecture).save_pretrained(folder / "unet")
    return folder


def write_cache(root: Path, samples: int, latent: tuple[int, ...], text_width: int, teacher: dict[str, Any]) -> Path:
    """Latents, tokens, splits and prompts of `samples` training and as many validation samples."""
    root.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    rows = {
        split: [Sample(f"{split}_{i}", i, f"{split}_{i}.jpg", split) for i in range(samples)]
        for split in ("train", "val")
    }
    write_split(root / "train_200k.csv", rows["train"])
    write_split(root / "val_50k.csv", rows["val"])
    ids = [s.sample_id for split in rows.values() for s in split]
    latents = ((i, rng.standard_normal(latent)) for i in ids)
    write_store(root / "vae_latents_lmdb", latents, {"kind": "latents", "image_size": 512, "crop": "center"})
    count, width = teacher["grid"][0] * teacher["grid"][1], teacher["width"]
    tokens = {f"{i}_mid": rng.standard_normal((count, width)) for i in ids}
    unit = {k: v / np.linalg.norm(v, axis=-1, keepdims=True) for k, v in tokens.items()}
    mean = np.mean([v.mean(0) for k, v in unit.items() if k.startswith("train")], axis=0)
    write_store(
        root / "dino_tokens_lmdb",
        unit.items(),
        {"kind": "tokens", "teacher": teacher},
        lambda: mean_token_file(mean),
    )
    prompts = torch.from_numpy(rng.standard_normal((1001, 77, text_width))).half()
    torch.save(prompts, root / "clip_embeddings_1001.pt")
    return root
