"""Further values of a network that training logs (`urepa.core.backbone_protocols.ObservedNetwork`). Nothing here
changes a run: values are read, and stay on the device until they are logged.

Shapes: B samples of a micro-batch, K blocks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from urepa.core.backbone_protocols import ExpectedRange, ObservedNetwork
from urepa.core.collectives import mean_over_ranks, sum_over_ranks
from urepa.core.conditions import Condition, covered_parts
from urepa.core.shards import whole
from urepa.core.types import Batch
from urepa.method.training_step import Aligned
from urepa.runs.metrics import Rows, number
from urepa.training.observed_attention import KEY, ObservedAttention

NOTHING = "nothing"  # the outcome of a draw that withholds no part
WITHHELD = "train/withheld/"
SHARES = (WITHHELD, KEY)  # keys of values that are [2] until they are logged: an amount, and of how many samples it is


class Observed:
    """One update's values: `begin`, `note` after each micro-batch, `end` before gradients are clipped, then `row`.
    There are none without an `ObservedNetwork`."""

    def __init__(self, backbone: nn.Module, dropout: Mapping[str, float], parts: Sequence[str]) -> None:
        """
        Args:
            dropout: of the track's conditions. parts: the names of their parts.
        """
        self.is_active = isinstance(backbone, ObservedNetwork)
        self.ranges: tuple[ExpectedRange, ...] = ()
        self.parameters: dict[str, list[nn.Parameter]] = {}
        self.outcomes: dict[str, frozenset[str]] = {}
        self.blocks = Blocks(backbone) if self.is_active else None
        self.attention = ObservedAttention(backbone)
        self._judged: set[ExpectedRange] | None = None  # None: the rows of earlier processes are not read yet
        self._logs, self._values = False, dict[str, Tensor]()
        self._squares: list[Tensor] = []
        if isinstance(backbone, ObservedNetwork):
            self.ranges = backbone.ranges
            named = list(backbone.named_parameters())
            self.parameters = {
                own: [p for name, p in named if name == own or name.startswith(f"{own}.")] for own in backbone.observed
            }
            assert all(self.parameters.values()), "a name of `observed` that no parameter has"
            self.outcomes = {NOTHING: frozenset()}
            self.outcomes |= {name: frozenset(covered_parts(name, parts)) for name in dropout}
            self.device = named[0][1].device  # ranks cannot add tensors of the CPU where they have GPUs

    def begin(self, batches: Sequence[Batch], logs: bool) -> None:
        """Begins an update with these micro-batches, before they are moved to the device; `logs`: whether it is
        logged."""
        self._logs, self._values, self._squares = logs and self.is_active, {}, []
        if self.blocks is not None:
            self.blocks.begin()
        if self._logs:
            self.attention.begin(batches)
        if self._logs and len(self.outcomes) > 2:  # one name: its share says nothing of a draw among several
            self._values |= _shares([batch.condition for batch in batches], self.outcomes, self.device)

    def note(self, output: Aligned) -> None:
        """Notes the prediction of a micro-batch."""
        if self._logs and len(output.prediction_RCHW):
            self._squares.append(output.prediction_RCHW.detach().float().pow(2).mean())
        self.attention.next()

    def end(self) -> Tensor | None:
        """Notes the gradients. Returns where values are not finite (`Blocks.flags`)."""
        if self._logs:
            for name, own in self.parameters.items():
                gradients = [p.grad for p in own if p.grad is not None]
                self._values[f"grad_norm/{name}"] = whole(torch.nn.utils.get_total_norm(gradients))
            self._values |= self.attention.sums(self.device)
        return None if self.blocks is None else self.blocks.flags()

    def row(self) -> dict[str, float]:
        """The values of the update. Synchronises with the device."""
        row: dict[str, float] = {}
        for key, value in self._values.items():
            if key.startswith(SHARES):
                amount, count = sum_over_ranks(value).tolist()
                row |= {key: amount / count} if count else {}
            else:
                row[key] = value.item()  # gradients are the same on all ranks
        if self._squares:
            row["train/prediction_rms"] = mean_over_ranks(torch.stack(self._squares).mean()).sqrt().item()
        return row

    def remarks(self, step: int, row: Mapping[str, Any], metrics: Path) -> list[str]:
        """A sentence for each value that leaves its range for the first time at this step; `metrics` has the rows of
        before."""
        if not self.ranges:
            return []
        if self._judged is None:
            self._judged = set()
            for before in Rows(metrics):
                if before["step"] < step:
                    self._judge(before["step"], before)
        return self._judge(step, row)

    def _judge(self, step: int, row: Mapping[str, Any]) -> list[str]:
        assert self._judged is not None
        found = []
        for own in self.ranges:
            if own in self._judged or step < own.step or own.key not in row:
                continue
            value = number(row[own.key])
            outside = not ((own.low is None or value >= own.low) and (own.high is None or value <= own.high))
            if outside or not own.onwards:
                self._judged.add(own)
            if outside:
                found.append(f"{own.key} is {value:.3g}; expected is {_in_words(own)}")
        return found


class Blocks:
    """Where values of an update are not finite: in the outputs of a network's repeated blocks (those in its `regions`),
    in the input of the first, and in the blocks' gradients. Compiled blocks have only their gradients looked at."""

    def __init__(self, backbone: nn.Module) -> None:
        regions = getattr(backbone, "regions", ())
        found = [  # by all names of a class: trainer.sharding puts a class of FSDP2's over a block's own
            (name, module)
            for name, module in backbone.named_modules()
            if any(own.__name__ in regions for own in type(module).__mro__)
        ]
        self.names = [name for name, _ in found]
        self.modules = [module for _, module in found]
        self._outputs = [torch.zeros((), dtype=torch.bool)] * (len(found) + 1)
        for k, module in enumerate(self.modules):
            if getattr(module, "_compiled_call_impl", None) is None:
                module.register_forward_hook(self._hook(k))

    def _hook(self, k: int) -> Any:
        def look(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            if module.training:
                values = (inputs[0], output) if k == 0 else (output,)
                for place, value in zip((0, 1) if k == 0 else (k + 1,), values, strict=True):
                    bad = ~value.detach().isfinite().all()
                    self._outputs[place] = self._outputs[place].to(bad.device) | bad

        return look

    def begin(self) -> None:
        """Forgets the last update."""
        self._outputs = [torch.zeros((), dtype=torch.bool, device=x.device) for x in self._outputs]

    def flags(self) -> Tensor:
        """Bools [1+2K] on the gradients' device: the first block's input, the blocks' outputs, their gradients."""
        gradients = []
        for module in self.modules:
            own = [p.grad for p in module.parameters() if p.grad is not None]
            gradients.append(~whole(torch.nn.utils.get_total_norm(own)).isfinite() if own else torch.zeros(()).bool())
        device = gradients[-1].device if gradients else self._outputs[0].device
        return torch.stack([x.to(device) for x in (*self._outputs, *gradients)])

    def name(self, flags: Sequence[bool]) -> str:
        """The first place in the order of the forward pass that `flags` names; of gradients alone the last block, where
        the backward pass began."""
        outputs, gradients = flags[: len(self.names) + 1], flags[len(self.names) + 1 :]
        if any(outputs):
            first = list(outputs).index(True)
            return self.names[first - 1] if first else f"before {self.names[0]}"
        bad = [name for name, is_bad in zip(self.names, gradients, strict=True) if is_bad]
        return f"the gradient of {bad[-1]}" if bad else f"after {self.names[-1]}"


def _shares(
    conditions: Sequence[Condition], outcomes: Mapping[str, frozenset[str]], device: torch.device
) -> dict[str, Tensor]:
    """Of each outcome the number [2] of samples that lost just these parts, and of all samples, on the device."""
    counts = dict.fromkeys(outcomes, 0)
    for condition in conditions:
        given = torch.stack([condition[name].given_B for name in condition.names]).T.tolist()
        for sample in given:
            lost = frozenset(name for name, is_given in zip(condition.names, sample, strict=True) if not is_given)
            for outcome, parts in outcomes.items():
                counts[outcome] += lost == parts
    total = sum(len(condition) for condition in conditions)
    return {f"{WITHHELD}{name}": torch.tensor([count, total]).float().to(device) for name, count in counts.items()}


def _in_words(own: ExpectedRange) -> str:
    if own.low is None:
        bound = f"at most {own.high:g}"
    else:
        bound = f"at least {own.low:g}" if own.high is None else f"{own.low:g} to {own.high:g}"
    return f"{bound} {'from' if own.onwards else 'at'} step {own.step}{' on' if own.onwards else ''}"
