"""A guard against non-finite values. It counts on the device, without synchronising, and is read when logging."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from urepa.core.collectives import all_objects, any_rank
from urepa.core.errors import UserError
from urepa.core.json_lines import append, read_lines, truncate_at
from urepa.core.shards import own_part
from urepa.method.training_step import Terms


def non_finite(tensors: dict[str, dict[str, Tensor]]) -> list[str]:
    """The tensors that have a number that is not finite, as PART/NAME; of sharded ones this rank's parts. Synchronises
    with the device once."""
    named = {f"{part}/{name}": tensor for part, own in tensors.items() for name, tensor in own.items()}
    finite = torch.stack([own_part(tensor).isfinite().all() for tensor in named.values()]).tolist()
    return [name for name, is_finite in zip(named, finite, strict=True) if not is_finite]


def some_of(names: list[str]) -> str:
    """The number of names, and the first of them."""
    return f"{len(names)}, the first {names[0]}"


class Guard:
    """Skips non-finite steps on all ranks together, stops after `max_skipped` in a row, and counts spikes, which it
    skips too with `skip_spikes`. A run that has skipped more than half of its updates does not finish.

    Shapes: B local batch, P places. The samples of skipped steps are written to `bad_samples.jsonl` in the run's
    folder.

    Args:
        where: bucket and block of an update with a value that is not finite, given its index and which of the places
            that `judge` got were not finite; None: they are not known.
    """

    def __init__(
        self,
        folder: Path,
        max_skipped: int,
        device: torch.device,
        skip_spikes: bool = False,
        where: Callable[[int, Sequence[bool]], dict[str, str]] | None = None,
    ) -> None:
        self.file = folder / "bad_samples.jsonl"
        self.max_skipped, self.skip_spikes = max_skipped, skip_spikes
        self.what = "not finite, or a spike" if skip_spikes else "not finite"
        self.skipped, self.streak, self.longest, self.spikes = (torch.zeros((), device=device) for _ in range(4))
        self.where, self._last = where, ""
        self._suspects: list[tuple[int, list[str], Tensor, Tensor, Tensor | None]] = []
        self._reported = 0

    def judge(
        self,
        step: int,
        ids: list[str],
        terms: list[Terms],
        grad_norm: Tensor,
        spike: Tensor | None = None,
        places_P: Tensor | None = None,
    ) -> Tensor:
        """1.0 if the update with this index must be skipped, else 0.0; the same on every rank. Counts the spike of a
        finite update (None: still in the warm-up, or not checked). `places_P`: where values are not finite."""
        finite_B = torch.cat([t.finite_B() for t in terms])
        total = torch.stack([t.total.detach() for t in terms])
        bad = any_rank(~(finite_B.all() & total.isfinite().all() & grad_norm.isfinite()))
        skipped = bad
        if spike is not None:
            self.spikes += spike.float() * (1.0 - bad)
            if self.skip_spikes:
                skipped = torch.maximum(bad, any_rank(spike))
        self.skipped += skipped
        self.streak = (self.streak + 1) * skipped
        self.longest = torch.maximum(self.longest, self.streak)
        self._suspects.append((step, ids, finite_B, bad, places_P))
        return skipped

    def read(self, step: int, is_main: bool) -> dict[str, float]:
        """The counters, at the logging interval. Writes the ids of bad samples to disk. Raises UserError after too many
        skipped updates in a row."""
        self.report(is_main)
        skipped, longest, spikes = torch.stack([self.skipped, self.longest, self.spikes]).tolist()
        if longest >= self.max_skipped:
            raise UserError(
                f"stopped at step {step}: {int(longest)} updates in a row had a loss or gradient that is "
                f"{self.what} (trainer.max_skipped={self.max_skipped}){self._last}; the samples are in {self._files}. "
                "Look at them; the same command goes on from the last checkpoint, a lower optimizer.lr starts another "
                "run"
            )
        self.longest.copy_(self.streak)
        return {"guard/skipped_steps": skipped, "guard/manifold_spikes": spikes}

    @property
    def _files(self) -> str:
        return f"{self.file}{' and in spikes.jsonl' if self.skip_spikes else ''}"

    def require_updates(self, steps: int) -> None:
        """Raises UserError on every rank, at the end of a run of `steps` updates, if most of them were skipped."""
        skipped = int(self.skipped.item())
        if 2 * skipped > steps:
            raise UserError(
                f"{skipped} of {steps} updates had a loss or gradient that is {self.what} and were skipped, so this "
                f"run is not finished; the samples are in {self._files}. Look at them; a lower optimizer.lr or "
                "loss.lambda_max starts another run"
            )

    def report(self, is_main: bool) -> None:
        """Writes the skipped steps since the last report; called before a checkpoint counts them, and before
        logging."""
        skipped = int(self.skipped.item())
        if skipped > self._reported:
            self._write(is_main)
            self._reported = skipped
        self._suspects.clear()

    def _write(self, is_main: bool) -> None:
        flags = torch.stack([bad for *_, bad, _ in self._suspects]).tolist()
        rows: list[dict[str, Any]] = []
        for (step, ids, finite_B, _, places_P), bad in zip(self._suspects, flags, strict=True):
            if not bad:
                continue
            offending = [i for i, ok in zip(ids, finite_B.tolist(), strict=True) if not ok]
            where = {} if self.where is None or places_P is None else self.where(step, places_P.tolist())
            rows.append({"step": step, "loss": offending, "batch": ids, "where": where})
        ranks = all_objects(rows)
        if not is_main:
            return
        lines = []
        for parts in zip(*ranks, strict=True):
            offending = [i for part in parts for i in part["loss"]]
            cause = "loss" if offending else "gradient"
            ids = offending if offending else [i for part in parts for i in part["batch"]]
            where = next((part["where"] for part in parts if part["loss"]), parts[0]["where"])
            lines.append({"step": parts[0]["step"], "cause": cause, "sample_ids": ids} | where)
            self._last = f", the last {where['block']}, in bucket {where['bucket']}" if where else ""
        append(self.file, lines)

    def cut(self, step: int) -> None:
        """Removes the rows on updates that will be repeated. Damaged lines before them are kept: the file is for the
        reader, and nothing is computed from it."""
        end = 0
        for line in read_lines(self.file):
            damage = line.damage or ("" if type(line.value.get("step")) is int else "has no integer step")
            if damage:
                warnings.warn(f"line {line.number} of {self.file} {damage}; it is left as it is", stacklevel=2)
            elif line.value["step"] >= step:
                break
            end = line.end
        truncate_at(self.file, end)

    def state(self) -> dict[str, float]:
        """The state for a checkpoint."""
        names = ("skipped", "streak", "longest", "spikes")
        return dict(zip(names, torch.stack([getattr(self, n) for n in names]).tolist(), strict=True))

    def load(self, state: dict[str, float]) -> None:
        """Restores the state from a checkpoint."""
        for name, value in state.items():
            getattr(self, name).fill_(value)
        self.longest.copy_(self.streak)  # a streak that ended before the checkpoint does not count
        self._reported = int(state["skipped"])
