"""The stages that run a network over images: VAE latents, teacher tokens, prompt embeddings.

Shapes: B batch, S image size, CHW latent, N tokens, D teacher width, K prompts, L text positions.
A batch is one transaction and batches are cut the same way every time, so that a build that was killed and
taken up again equals an undisturbed one record by record.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from urepa import progress
from urepa.data.cache import Sample
from urepa.data.images import read_images
from urepa.data.store import Part, StoreWriter
from urepa.data.vae import load_vae
from urepa.errors import UserError
from urepa.files import write_whole
from urepa.hub import resolve

Encode = Callable[[Tensor], np.ndarray]  # uint8 [B,3,S,S] -> [B, ...]


def device_and_dtype() -> tuple[torch.device, torch.dtype]:
    """bf16 on a GPU, fp32 on a CPU."""
    gpu = torch.cuda.is_available()
    return torch.device("cuda" if gpu else "cpu"), torch.bfloat16 if gpu else torch.float32


def encode_part(
    name: str,
    root: Path,
    store: Path,
    part: Part,
    samples: list[Sample],
    encode: Encode,
    batch: int,
    suffix: str = "",
    dtype: str = "float16",
    sum_tokens: bool = False,
) -> None:
    """Runs `encode` over the part's images and writes what is not there yet; writing overlaps the next batch."""
    train = {s.sample_id for s in samples if s.split == "train"}
    with (
        StoreWriter(store, dtype, part) as writer,
        ThreadPoolExecutor(1) as pool,
        progress.bar(total=len(samples), desc=name, unit="image") as bar,
    ):
        writing: Future[None] | None = None
        for ids, images in read_images(root, part, samples, batch):
            if not writer.has(ids[-1] + suffix):
                values = encode(images)
                total = _token_sum(values[[i in train for i in ids]]) if sum_tokens else None
                records = [(i + suffix, value) for i, value in zip(ids, values, strict=True)]
                if writing is not None:
                    writing.result()
                writing = pool.submit(writer.put, records, total)
            bar.update(len(ids))
        if writing is not None:
            writing.result()
    done = {"samples": len(samples), "dtype": dtype}
    write_whole(part.folder(store) / "done.json", json.dumps(done))


def _token_sum(tokens_BND: np.ndarray) -> np.ndarray:
    """Sum over all tokens, and their number: [D+1]."""
    flat = tokens_BND.reshape(-1, tokens_BND.shape[-1]).astype(np.float64)
    return np.append(flat.sum(0), len(flat))


def vae_encoder(weights: str, moments: bool) -> tuple[Encode, dict[str, Any]]:
    """Images to latents × the VAE's scaling factor (spec 000 §3.2), and what the manifest says of it.

    The posterior's mode [B,C,H,W]; with `moments` its mean and standard deviation [B,2,C,H,W], for sampling.
    """
    device, dtype = device_and_dtype()
    vae = load_vae(weights).to(device, dtype)
    scale = float(vae.config.scaling_factor)

    @torch.inference_mode()
    def encode(images: Tensor) -> np.ndarray:
        pixels = images.to(device, dtype) / 127.5 - 1
        posterior = vae.encode(pixels).latent_dist
        if moments:
            return torch.stack([posterior.mean, posterior.std], dim=1).float().mul(scale).cpu().numpy()
        return posterior.mode().float().mul(scale).cpu().numpy()

    return encode, {"vae": Path(resolve(weights)[0]).name, "scaling_factor": scale, "moments": moments}


def token_encoder(teacher: Any) -> Encode:
    """Images to teacher tokens [B,N,D]."""

    device, _ = device_and_dtype()

    def encode(images: Tensor) -> np.ndarray:
        return teacher.tokens(images.to(device).float() / 255).x_BND.cpu().numpy()

    return encode


def write_prompts(path: Path, weights: str, class_names: list[str], batch: int = 64) -> None:
    """`a photo of a {name}` for every class and the null prompt in the last row: [K,L,E] fp16 (spec 000 §3.4)."""
    from transformers import CLIPTextModel, CLIPTokenizer

    name, revision = resolve(weights)
    try:
        tokenizer: Any = CLIPTokenizer.from_pretrained(name, subfolder="tokenizer", revision=revision)
        text: Any = CLIPTextModel.from_pretrained(
            name, subfolder="text_encoder", use_safetensors=True, revision=revision
        )
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"data.text={weights} could not be loaded ({reason}); give a local diffusers folder") from error
    text = text.eval()
    prompts = [f"a photo of a {c}" for c in class_names] + [""]
    rows = []
    for start in progress.bar(range(0, len(prompts), batch), desc="prompts", unit="batch"):
        ids = tokenizer(
            prompts[start : start + batch],
            padding="max_length",
            max_length=tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        with torch.inference_mode():
            rows.append(text(ids)[0].half())
    out = io.BytesIO()
    torch.save(torch.cat(rows).clone(), out)
    write_whole(path, out.getvalue())
