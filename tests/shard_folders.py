"""Shards of latents, image tokens and encoded captions of small photographs, written by hand; and overrides for a track
over them.

Shapes: S samples, N tokens, D width, H and W rows and columns in pixels.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from urepa.models.teachers.efficientnet_net import EfficientNetLite0Network
from urepa.models.teachers.rectangle_sizes import teacher_on_grid

BUCKETS = {"128x128": (128, 128), "96x160": (96, 160), "160x96": (160, 96)}  # rows and columns
EACH = 12
LENGTH, TEXT_WIDTH, WIDTH = 6, 8, 112
Arrays = dict[str, np.ndarray]


def write_photographs(root: Path) -> Path:
    """Writes ROOT/BUCKET_NN.png of the buckets' sizes: parts of two photographs, reduced to half their size."""
    from sklearn.datasets import load_sample_images

    rng, scenes = np.random.default_rng(0), load_sample_images().images
    root.mkdir(parents=True)
    for name, (height, width) in BUCKETS.items():
        for i in range(EACH):
            scene = scenes[i % 2]
            top, left = (
                int(rng.integers(0, n - 2 * side)) for n, side in zip(scene.shape, (height, width), strict=False)
            )
            part = Image.fromarray(scene[top : top + 2 * height, left : left + 2 * width])
            part.resize((width, height), Image.Resampling.BICUBIC).save(root / f"{name}_{i:02d}.png")
    return root


def images_of(root: Path, bucket: str) -> Tensor:
    """The images of a bucket [S,3,H,W] in [0,1]."""
    files = sorted(root.glob(f"{bucket}_*.png"))
    return torch.stack([torch.from_numpy(np.array(Image.open(f))).permute(2, 0, 1) for f in files]).float() / 255


def encoder_at(images_S3HW: Tensor, patch: int = 16, grid: tuple[int, int] | None = None) -> Tensor:
    """EfficientNet's tokens of whole images, one for each patch."""
    rows, columns = images_S3HW.shape[-2:] if grid is None else (patch * side for side in grid)
    network = EfficientNetLite0Network(128, [128 // 16] * 2, 16)
    return teacher_on_grid(network, (rows // patch, columns // patch)).tokens(images_S3HW).x_BND


def samples_of(images_S3HW: Tensor, tokens_SND: Tensor) -> list[Arrays]:
    """A sample's arrays for each image: latents are mean colours and brightness of 8x8 pixels."""
    rng = np.random.default_rng(1)
    colours = F.avg_pool2d(images_S3HW, 8) - 0.5
    latents = torch.cat([colours, colours.mean(1, keepdim=True)], dim=1).half().numpy()
    return [
        {
            "dinov3.npy": tokens.mean(0),
            "dinov3_patches.npy": tokens,
            "vae.npy": latent,
            "t5h.npy": rng.normal(size=(LENGTH, TEXT_WIDTH)).astype(np.float16),
            "t5m.npy": (np.arange(LENGTH) < 3).astype(np.uint8),
        }
        for tokens, latent in zip(tokens_SND.half().numpy(), latents, strict=True)
    ]


def npy(values: np.ndarray) -> bytes:
    content = io.BytesIO()
    np.save(content, values)
    return content.getvalue()


def write_shard(file: Path, members: Iterable[tuple[str, bytes]]) -> None:
    """Writes a tar file with these members."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def write_bucket(
    root: Path, bucket: str, samples: list[Arrays], change: Callable[[str, dict[str, bytes]], Any] = len
) -> None:
    """Writes ROOT/bucket_WxH/shard-000000.tar. `change(key, members)` may alter a sample's members in place."""
    height, width = BUCKETS[bucket]
    members: list[tuple[str, bytes]] = []
    for i, arrays in enumerate(samples):
        key = f"{bucket}_{i:02d}"
        facts = {"caption": f"a picture {i} of {bucket}", "aspect_bucket": f"{width}x{height}"}
        own = {"json": json.dumps(facts).encode()} | {name: npy(values) for name, values in arrays.items()}
        if change is not len:
            change(key, own)
        members += [(f"{key}.{name}", content) for name, content in own.items()]
    write_shard(root / f"bucket_{width}x{height}" / "shard-000000.tar", members)


def over(images: Path, root: Path, *more: str) -> list[str]:
    """Overrides for `urepa.preprocess` of a track whose caches lie in `root`."""
    buckets = ",".join(f"[{height},{width}]" for height, width in BUCKETS.values())
    data = [
        f"data.images={images}",
        f"data.root={root}",
        "data.num_classes=1",
        "data.val_images=6",
        "data.image_size=128",
    ]
    data += [
        "data.latent_shape=[4,16,16]",
        f"data.buckets=[{buckets}]",
        "data.vae=/none",
        "data.text_encoder.model=/none",
    ]
    encoders = ["teacher=efficientnet_lite0_s16", "teacher@data.image_encoder=efficientnet_lite0_s16"]
    text = [
        f"data.text_encoder.length={LENGTH}",
        f"data.text_encoder.width={TEXT_WIDTH}",
        "data.text_encoder.null_text=zeros",
        "data.teacher_sees=images",
    ]
    return ["data=nanodit", *encoders, *data, *text, *more]
