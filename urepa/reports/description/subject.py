"""What is described: a composed config, the parts that need no weights to be made, and what was counted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from urepa.config.declared import declaration_of
from urepa.costs.estimate import Plan
from urepa.training.assembly import build_part


@dataclass(frozen=True)
class Subject:
    """`teacher` is None where the loss has no tap, as in training."""

    config: dict[str, Any]
    planned: Plan
    loss: Any
    objective: Any
    track: Any
    teacher: Any | None

    def trainable(self) -> int:
        return sum(n["trainable"] for n in self.planned.counted.parameters.values())

    def steps_an_epoch(self) -> int:
        """Whole batches; a remainder is dropped."""
        return self.planned.counted.samples["train"] // self.planned.settings.batch_size


def subject_of(config: dict[str, Any], planned: Plan) -> Subject:
    """The parts of a config whose costs are known."""
    loss, objective, track = declaration_of(config["loss"]), build_part(config["objective"]), build_part(config["data"])
    return Subject(config, planned, loss, objective, track, build_part(config["teacher"]) if loss.taps else None)
