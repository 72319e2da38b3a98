"""CLIP score: how well each generated image matches the prompt of its class (Hessel et al. 2021, scaled as in
torchmetrics: 100 × the cosine, 0 if that is negative).

Shapes: B images, K classes, E width of CLIP's common space.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from urepa.core import progress
from urepa.core.errors import UserError
from urepa.core.hub_names import download_failure, resolve
from urepa.data.lists.classes import class_names
from urepa.evaluation.context import Context
from urepa.evaluation.image_counts import cache_counts
from urepa.evaluation.measures.clip_score import ClipScore
from urepa.models.teachers.vit_net import OPENAI


def score_prompts(asked: ClipScore, context: Context) -> dict[str, float]:
    """The mean CLIP score of the images, each with the prompt of its class."""
    asked.check_images(cache_counts(context.cache))
    if hasattr(context.cache.conditions, "of_prompts"):
        raise UserError(
            "the CLIP score compares images with prompts of their classes, and this run was trained on captions; leave "
            "this evaluation out"
        )
    names = class_names(asked.class_names)
    clip, tokenizer = _load(asked.model)
    clip = clip.to(context.device)
    with torch.no_grad(), torch.autocast(context.device.type, enabled=False):
        text_KE = _embed_texts(clip, tokenizer, [f"a photo of a {name}" for name in names])
    scores = []
    for ids, rgb in asked.images.rgb(context):
        with torch.no_grad(), torch.autocast(context.device.type, enabled=False):
            cosine_B = (_embed_images(clip, rgb) * text_KE[ids]).sum(1)
        scores.append(100 * cosine_B.clamp(min=0).double().cpu())
    return {"final/clip_score": float(torch.cat(scores).mean())}


def _load(model: str) -> tuple[Any, Any]:
    """The network and its tokenizer. Raises UserError if they are not available."""
    from transformers import CLIPModel, CLIPTokenizer

    progress.hide_loading()
    name, revision = resolve(model)
    try:
        clip: Any = CLIPModel.from_pretrained(name, use_safetensors=True, dtype=torch.float32, revision=revision)
        tokenizer = CLIPTokenizer.from_pretrained(name, revision=revision)
    except OSError as error:
        raise UserError(
            f"the CLIP score's model={model} could not be loaded "
            f"({download_failure(error, model)}); or give a local folder, or leave this evaluation out"
        ) from error
    return clip.eval().requires_grad_(False), tokenizer


def _embed_texts(clip: Any, tokenizer: Any, prompts: list[str]) -> Tensor:
    """Text embeddings [K,E] of unit length."""
    options = {"padding": "max_length", "max_length": tokenizer.model_max_length, "truncation": True}
    ids = tokenizer(prompts, return_tensors="pt", **options).input_ids
    rows = [clip.text_model(input_ids=part.to(clip.device)).pooler_output for part in ids.split(64)]
    return F.normalize(clip.text_projection(torch.cat(rows)), dim=1)


def _embed_images(clip: Any, rgb_B3SS: Tensor) -> Tensor:
    """Image embeddings [B,E] of unit length, of square RGB in [0,1]."""
    side = clip.config.vision_config.image_size
    resized = F.interpolate(rgb_B3SS, size=(side, side), mode="bicubic", align_corners=False, antialias=True)
    mean, std = (torch.tensor(x, device=rgb_B3SS.device).view(3, 1, 1) for x in OPENAI)
    states = clip.vision_model(pixel_values=(resized.clamp(0, 1) - mean) / std)
    return F.normalize(clip.visual_projection(states.pooler_output), dim=1)
