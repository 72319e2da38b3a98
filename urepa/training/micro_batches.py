"""The micro-batches of an update.

Shapes as in `urepa.method.training_step`.
"""

from __future__ import annotations

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
