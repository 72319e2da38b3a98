"""What a network attends to in training: the share of its cross-attention that goes to each part of the condition.

The scores are computed again, without gradients, from the inputs that the forward pass of an update gives to each
cross-attention, for at most `SAMPLES` samples of a rank and `QUERIES` queries. No forward pass is added, nothing is
drawn, and no tensor of the update is changed.

Shapes: B samples of a micro-batch, R rows of it, N queries, S context tokens, D width of a token, P parts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from urepa.core.attention_protocols import CrossAttending
from urepa.core.types import Batch
from urepa.evaluation.measures.attention_mass_math import attention_to

SAMPLES = 4  # of an update and rank: the first from which nothing is withheld
QUERIES = 32
KEY = "train/attention_mass/"
SPREAD = (5**0.5 - 1) / 2  # its multiples modulo 1 are spread over [0, 1), so queries are of all rows and columns

Inputs = tuple[Tensor, Tensor, Tensor]


class Chosen(NamedTuple):
    """What is looked at of a micro-batch: its size B, the rows, the rows with a diffusion term (None: all), and the
    number of context tokens by part."""

    size: int
    rows: list[int]
    predicted: list[int] | None
    lengths: dict[str, int]

    def rows_in(self, size: int) -> list[int]:
        """The rows in a block's input of this many: after the deepest tap it has only those with a diffusion term."""
        if self.predicted is None or size == self.size:
            return self.rows
        return [self.predicted.index(row) for row in self.rows]


class ObservedAttention:
    """`begin` an update, `next` after each micro-batch, then `sums`. Nothing is looked at in networks without such
    attention (`CrossAttending`) or with compiled blocks, which call no hook, and outside of an update that has begun.
    """

    def __init__(self, backbone: nn.Module) -> None:
        is_compiled = any(getattr(module, "_compiled_call_impl", None) is not None for module in backbone.modules())
        self.backbone = backbone if isinstance(backbone, CrossAttending) and not is_compiled else None
        self._chosen: list[Chosen] = []
        self._micro = 0
        self._shares: dict[tuple[int, int], Tensor] = {}  # [P] by micro-batch and block, summed over the samples
        self._queries: dict[tuple[int, torch.device], Tensor] = {}
        self._blocks = 0
        if self.backbone is not None:
            for k, attention in enumerate(self.backbone.cross_attentions()):
                attention.register_forward_pre_hook(self._hook(k))
                self._blocks += 1

    def begin(self, batches: Sequence[Batch]) -> None:
        """Begins an update with these micro-batches, before they are moved to the device."""
        if self.backbone is None:
            return
        self._chosen, self._micro, self._shares = [], 0, {}
        left = SAMPLES
        for batch in batches:
            predicted = None if batch.rows_R is None else batch.rows_R.tolist()
            rows = _complete_rows(batch, predicted)[:left]
            left -= len(rows)
            lengths = self.backbone.context_lengths(batch.condition)
            self._chosen.append(Chosen(len(batch.condition), rows, predicted, lengths))

    def next(self) -> None:
        """Ends a micro-batch."""
        self._micro += 1

    def sums(self, device: torch.device) -> dict[str, Tensor]:
        """By key the sum over samples of their share, averaged over blocks, and the number of samples: [2], on the
        device. Ends the update."""
        if not self._chosen:
            return {}
        assert len(self._shares) == self._blocks * sum(bool(one.rows) for one in self._chosen), "a share of every block"
        parts = list(self._chosen[0].lengths)
        sums_P = sum(self._shares.values(), torch.zeros(len(parts), device=device)) / self._blocks
        counts_P = torch.full_like(sums_P, sum(len(one.rows) for one in self._chosen))
        self._chosen, self._shares = [], {}
        return {f"{KEY}{part}": pair for part, pair in zip(parts, torch.stack([sums_P, counts_P], 1), strict=True)}

    def _hook(self, k: int) -> Callable[[nn.Module, Inputs], None]:
        def look(attention: nn.Module, inputs: Inputs) -> None:
            # once: a block that is recomputed in the backward pass is called twice; states at other weights are in eval
            # mode
            if self._micro < len(self._chosen) and attention.training and (self._micro, k) not in self._shares:
                chosen = self._chosen[self._micro]
                if chosen.rows:
                    self._shares[self._micro, k] = self._look(attention, inputs, chosen)

        return look

    @torch.no_grad()
    def _look(self, attention: nn.Module, inputs: Inputs, chosen: Chosen) -> Tensor:
        """The shares [P] of the parts, summed over the chosen rows."""
        rows = chosen.rows_in(len(inputs[0]))
        x_RND, context_RSD, mask_RS = (torch.stack([one[row] for row in rows]) for one in inputs)
        x_RND = x_RND[:, self._queries_of(x_RND.shape[1], x_RND.device)]
        with torch.autocast(x_RND.device.type, enabled=False):
            shares_S = attention_to(attention, x_RND, context_RSD, mask_RS).sum(0)
        return torch.stack([part.sum() for part in shares_S.split(list(chosen.lengths.values()))])

    def _queries_of(self, count: int, device: torch.device) -> Tensor:
        """The indices of at most `QUERIES` of this many queries. They are copied to the device once."""
        if (count, device) not in self._queries:
            indices = torch.arange(count)
            if count > QUERIES:
                indices = (torch.arange(QUERIES).double() * SPREAD % 1 * count).long()
            self._queries[count, device] = indices.to(device)
        return self._queries[count, device]


def _complete_rows(batch: Batch, predicted: Sequence[int] | None) -> list[int]:
    """The rows of which every part is given and a prediction is asked for."""
    condition = batch.condition
    given_B = torch.stack([condition[name].given_B for name in condition.names]).all(0).tolist()
    return [row for row in (range(len(condition)) if predicted is None else predicted) if given_B[row]]
