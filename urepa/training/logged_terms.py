"""The terms of several micro-batches as those of one update, and a row's terms for the progress bar."""

from __future__ import annotations

from typing import Any

import torch

from urepa.method.training_step import Terms


def merge_terms(terms: list[Terms]) -> Terms:
    """Combines the terms of several micro-batches into those of one batch."""
    if len(terms) == 1:
        return terms[0]
    per_sample = {k: torch.cat([t.per_sample[k] for t in terms]) for k in terms[0].per_sample}
    manifolds = [t.manifold for t in terms if t.manifold is not None]
    return Terms(
        torch.stack([t.total for t in terms]).mean(),
        per_sample,
        manifold=torch.stack(manifolds).mean() if manifolds else None,
    )


def short(row: dict[str, Any]) -> str:
    """The terms of the last logged step, for the progress bar."""
    names = {"total": "total", "diffusion": "diff", "token": "token", "manifold": "manifold"}
    return " ".join(f"{s}={row[f'train/{k}']:.3f}" for k, s in names.items() if f"train/{k}" in row)
