"""Codes of a run's images, for evaluations of tokenizers.

Shapes: N images, B images of a chunk, K codes of an image, d values of a code, CHW latent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from urepa.core.errors import UserError
from urepa.data.lists.samples import Sample
from urepa.evaluation.context import Context
from urepa.method.training_step import AlignedModel

CHUNK = 128


def tokenizer_of(context: Context, model: AlignedModel | None = None) -> Any:
    """The backbone of the run, or of another model (`urepa.core.backbone_protocols.Tokenizer`). Raises UserError if it
    is not a tokenizer."""
    backbone: Any = (context.model if model is None else model).backbone
    if not hasattr(backbone, "encode"):
        raise UserError("this run's backbone does not encode images as codes; leave this evaluation out")
    return backbone


def powers_of_two(most: int) -> list[int]:
    """The powers of two from 1 that are below `most`, followed by `most`."""
    return [*(2**i for i in range(most.bit_length()) if 2**i < most), most]


@torch.no_grad()
def codes_of(context: Context, samples: Sequence[Sample], model: AlignedModel | None = None) -> Tensor:
    """The samples' codes [N,K], int64, on the CPU. Latents with a posterior are encoded at its mean."""
    backbone = tokenizer_of(context, model)
    chunks = [list(samples[i : i + CHUNK]) for i in range(0, len(samples), CHUNK)]
    return torch.cat([backbone.encode(context.cache.x0(part).to(context.device)).cpu() for part in chunks])


def vectors_of(context: Context, codes_NK: Tensor) -> Tensor:
    """The quantised vectors [N,K,d] of codes, in [-1, 1], on the CPU."""
    quantiser = tokenizer_of(context).encoder.quantiser
    vectors: Tensor = quantiser.vectors(codes_NK.to(context.device)).cpu()
    return vectors
