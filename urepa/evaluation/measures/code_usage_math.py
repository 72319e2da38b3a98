"""Counts the codes that a tokenizer uses. Shapes: N images, K codes of an image."""

from __future__ import annotations

import math

from torch import Tensor

from urepa.evaluation.context import Context
from urepa.evaluation.features import held_out_samples, subset
from urepa.evaluation.image_tokens import codes_of, powers_of_two, tokenizer_of
from urepa.evaluation.measures.code_usage import CodeUsage


def use_of_codes(asked: CodeUsage, context: Context) -> dict[str, float]:
    """The share of all codes that occur, and the number of codes and their perplexity at positions that are powers of
    two, counted from 1, and at the last one."""
    backbone = tokenizer_of(context)
    codes_NK = codes_of(context, subset(held_out_samples(context), asked.images))
    metrics = {"final/codes_used": len(codes_NK.unique()) / backbone.encoder.quantiser.codes}
    for position in powers_of_two(backbone.registers):
        codes_N = codes_NK[:, position - 1]
        metrics[f"final/codes_used_at/{position}"] = float(len(codes_N.unique()))
        metrics[f"final/code_perplexity/{position}"] = perplexity(codes_N)
    return metrics


def perplexity(codes_N: Tensor) -> float:
    """The exponential of the entropy of the codes' frequencies: the number of equally frequent codes with the same
    entropy."""
    _, counts = codes_N.unique(return_counts=True)
    shares = counts.double() / len(codes_N)
    return math.exp(float(-(shares * shares.log()).sum()))
