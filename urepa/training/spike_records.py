"""A record of updates with a spike: a manifold loss above `loss.spike_threshold` after the warm-up.

It stays on the device until it is written, when logging. Shapes: B local batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from urepa.core.collectives import all_objects
from urepa.core.json_lines import append, read_lines, truncate_at
from urepa.data.bucketed_cache import Caches
from urepa.data.stores.record_keys import sample_id_of

FILE = "spikes.jsonl"
ClassesOf = Callable[[Sequence[str]], list[int]]


class ClassesOfSamples:
    """The classes of training samples by the keys of their records. The table is made when the first spike is
    written."""

    def __init__(self, cache: Caches) -> None:
        self.cache = cache

    @cached_property
    def _table(self) -> dict[str, int]:
        return {s.sample_id: s.class_id for bucket in self.cache.buckets for s in bucket.splits["train"]}

    def __call__(self, keys: Sequence[str]) -> list[int]:
        return [self._table[sample_id_of(key)] for key in keys]


class SpikeRecords:
    """Writes a line of `spikes.jsonl` for each update with a spike: its step, the ids and classes of the global batch's
    samples, the mean of each term over the ranks, the gradient's norm before clipping, λ, and the learning rates of the
    optimiser's groups. Consecutive updates with a spike are one episode, so that spikes per episode are the updates
    until recovery.

    Args:
        classes_of: the classes of samples, by the keys of their records.
    """

    def __init__(self, folder: Path, device: torch.device, classes_of: ClassesOf) -> None:
        self.file, self.classes_of = folder / FILE, classes_of
        self.episodes, self.was_spike = (torch.zeros((), device=device) for _ in range(2))
        self._pending: list[tuple[dict[str, Any], dict[str, Tensor], Tensor]] = []

    def note(
        self, step: int, ids: list[str], terms: Mapping[str, Tensor], grad_norm: Tensor, known: Any, spike: Tensor
    ) -> None:
        """Notes an update. `known`: what of the line is known without the device; `spike`: 1.0 if it is one on any
        rank, else 0.0."""
        self.episodes += spike * (1.0 - self.was_spike)
        self.was_spike.copy_(spike)
        values = {name: value.detach().float() for name, value in terms.items()} | {"grad_norm": grad_norm.float()}
        self._pending.append(({"step": step, "ids": ids} | known, values, spike))

    def write(self, is_main: bool) -> None:
        """Writes the spikes since the last call. All ranks call it. Synchronises with the device."""
        if not self._pending:
            return
        flags = torch.stack([spike for *_, spike in self._pending]).tolist()
        own = [
            line | {"values": dict(zip(values, torch.stack(list(values.values())).tolist(), strict=True))}
            for (line, values, _), flag in zip(self._pending, flags, strict=True)
            if flag
        ]
        self._pending.clear()
        if not any(flags):
            return
        ranks = all_objects(own)
        if is_main:
            append(self.file, [self._line(parts) for parts in zip(*ranks, strict=True)])

    def _line(self, parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The line of an update, of all ranks' parts."""
        first, ids = parts[0], [i for part in parts for i in part["ids"]]
        means = {name: sum(part["values"][name] for part in parts) / len(parts) for name in first["values"]}
        norm = means.pop("grad_norm")
        line = {name: value for name, value in first.items() if name not in ("ids", "values")}
        return line | {"grad_norm": norm, "terms": means, "sample_ids": ids, "classes": self.classes_of(ids)}

    def state(self) -> dict[str, float]:
        """The state for a checkpoint."""
        return {"episodes": self.episodes.item(), "was_spike": self.was_spike.item()}

    def load(self, state: Mapping[str, float]) -> None:
        """Restores the state from a checkpoint."""
        for name, value in state.items():
            getattr(self, name).fill_(value)

    def cut(self, step: int) -> None:
        """Removes the lines of updates that will be repeated."""
        end = 0
        for line in read_lines(self.file):
            if not line.damage and line.value["step"] >= step:
                break
            end = line.end
        truncate_at(self.file, end)
