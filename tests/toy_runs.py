"""Run folders as training leaves them, without training: small SDs whose adapters have an effect, and their parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from photos import write_sd
from sd import TEACHER, write_cache

from urepa.models.weight_files import own_memory, trainable
from urepa.runs import checkpoint
from urepa.runs.run_folder import RunFolder
from urepa.training.assembly import build_loss, build_model, build_part


def write_run(folder: Path, config: dict[str, Any], step: int) -> Path:
    """Writes a run's folder with a checkpoint at `step`: its EMA weights are its initial weights with strong noise."""
    folder.mkdir(parents=True)
    RunFolder(folder).store_config(config)
    loss, track = build_loss(config), build_part(config["data"])
    model, _ = build_model(config, track, build_part(config["teacher"]) if loss.taps else None, loss)
    generator = torch.Generator().manual_seed(1)
    ema = {name: (p + 0.1 * torch.randn(p.shape, generator=generator)).detach() for name, p in trainable(model).items()}
    (folder / "metrics.jsonl").write_text('{"step": 1, "train/total": 1.5, "time": 0}\n')
    tensors = {"weights": ema, "ema": ema, "optimizer": {}}
    checkpoint.save(folder / "checkpoints", step, tensors, {"metrics_rows": 1}, "")
    return folder


def small_sd(root: Path) -> list[str]:
    """Overrides of track A over a small random SD pipeline in ROOT/sd and prompts of its width in ROOT/data."""
    write_sd(root / "sd")
    write_cache(root / "data", 2, (4, 8, 8), 16, TEACHER | {"width": 24, "grid": [4, 4]})
    return [
        "+experiment=track_a",
        "tracking=none",
        f"backbone.weights={root / 'sd'}",
        f"data.vae={root / 'sd'}",
        f"data.root={root / 'data'}",
        "data.latent_shape=[4,8,8]",
        "data.image_size=64",
        "teacher.grid=[4,4]",
        "teacher.width=24",
        "trainer.precision=fp32",
        "trainer.threads=1",
        "trainer.max_steps=4",
    ]


def small_pipeline(unet: Any, scheduler: Any, components: Path | None = None) -> Any:
    """A StableDiffusionPipeline around a small U-Net, with the folder's other components or without any."""
    from diffusers import AutoencoderKL, StableDiffusionPipeline
    from transformers import CLIPTextModel, CLIPTokenizer

    if components is None:
        vae, text, tokenizer = AutoencoderKL(norm_num_groups=4, block_out_channels=(8,) * 4), None, None
    else:
        vae = AutoencoderKL.from_pretrained(components / "vae")
        text = CLIPTextModel.from_pretrained(components / "text_encoder")
        tokenizer = CLIPTokenizer.from_pretrained(components / "tokenizer")
    own_memory(unet)  # and not where safetensors lies in its file: rounding depends on that
    own_memory(vae)
    vae.enable_slicing()
    pipe = StableDiffusionPipeline(vae, text, tokenizer, unet, scheduler, None, None, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe
