"""Real photographs as a class-folder tree, and small random SD, DINOv2 and CLIP checkpoints in the real formats."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from sd import SMALL, write_unet

WIDTH = 32
TRAIN, VAL = 64, 16


def write_photos(root: Path, train: int, val: int) -> Path:
    """Writes crops of scikit-learn's china.jpg and flower.jpg, of several sizes, as ROOT/{train,val}/CLASS/*.png."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(0)
    for name, photo in zip(("china", "flower"), load_sample_images().images, strict=True):
        for split, count in (("train", train), ("val", val)):
            folder = root / split / name
            folder.mkdir(parents=True, exist_ok=True)
            for i in range(count // 2):
                size = int(rng.integers(100, 200))
                top, left = (int(rng.integers(0, n - size)) for n in photo.shape[:2])
                crop = photo[top : top + size, left : left + size + int(rng.integers(0, 30))]
                Image.fromarray(crop).save(folder / f"{i:04d}.png", compress_level=1)
    return root


def write_sd(folder: Path) -> Path:
    """Writes a diffusers pipeline's folder: unet, vae, text_encoder, tokenizer, all small and random."""
    write_unet(folder, **SMALL)
    write_vae(folder)
    return write_clip_text(folder)


def write_vae(folder: Path, channels: int = 4, **config: float) -> Path:
    """Writes vae/, small and random, whose latents are an eighth of the image's side; `config`: scale and shift."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 16, 16),
        latent_channels=channels,
        norm_num_groups=4,
        **{"scaling_factor": 0.18215} | config,
    )
    with torch.no_grad():  # filters that average: like a trained one's, the latents follow the image's colours
        for module in vae.encoder.modules():
            if isinstance(module, torch.nn.Conv2d):
                module.weight.abs_()
    vae.save_pretrained(folder / "vae")
    return folder


def write_clip_tokenizer(tokenizer: Path, pad: str = "<|endoftext|>") -> int:
    """Writes a tokenizer with one token per letter; returns the number of its tokens."""
    words = ["<|startoftext|>", "<|endoftext|>", *(f"{c}</w>" for c in "abcdefghijklmnopqrstuvwxyz")]
    words += list("abcdefghijklmnopqrstuvwxyz")
    tokenizer.mkdir(parents=True)
    (tokenizer / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
    (tokenizer / "merges.txt").write_text("#version: 0.2\n")
    (tokenizer / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "CLIPTokenizer",
                "model_max_length": 77,
                "bos_token": "<|startoftext|>",
                "eos_token": "<|endoftext|>",
                "unk_token": "<|endoftext|>",
                "pad_token": pad,
            }
        )
    )
    return len(words)


def write_clip_text(folder: Path, seed: int | None = None) -> Path:
    """Writes tokenizer/ and text_encoder/ of a small CLIP of width 16 with one token per letter. `seed` None: torch's
    own draws."""
    from transformers import CLIPTextConfig, CLIPTextModel

    if seed is not None:
        torch.manual_seed(seed)
    words = write_clip_tokenizer(folder / "tokenizer")
    CLIPTextModel(
        CLIPTextConfig(
            vocab_size=words,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
    ).save_pretrained(folder / "text_encoder")
    return folder


def write_dinov2(folder: Path, side: int = 4, width: int = WIDTH) -> Path:
    """Writes a random DINOv2 whose native grid is `side` squared."""
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=width, num_hidden_layers=2, num_attention_heads=2, image_size=14 * side, patch_size=14
    )
    model = Dinov2Model(config)
    with torch.no_grad():  # transformers starts patch embeddings and scales so small that tokens are alike
        model.embeddings.patch_embeddings.projection.weight.mul_(20)
    model.save_pretrained(folder)
    return folder


def overrides(material: Path, root: Path) -> list[str]:
    return [
        "data=track_a",
        f"data.root={root}",
        f"data.images={material / 'photos'}",
        f"data.train_images={TRAIN}",
        f"data.val_images={VAL}",
        "data.image_size=64",
        f"data.vae={material / 'sd'}",
        f"data.text={material / 'sd'}",
        f"data.class_names={material / 'names.txt'}",
        "data.latent_shape=[4,8,8]",
        "data.num_classes=2",
        f"teacher.model={material / 'dino'}",
        "teacher.image_size=56",
        "teacher.grid=[4,4]",
        f"teacher.width={WIDTH}",
    ]
