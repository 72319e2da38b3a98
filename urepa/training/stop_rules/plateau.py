"""A rule that ends a run whose validation no longer improves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from urepa.core.declared_keys import LARGEST, LAST_STEP, SIZE, setting
from urepa.core.descriptions import number


@dataclass
class Plateau:
    """The run ends at the first validation at which a loss has not improved over the last `patience` ones."""

    _target_: str = "urepa.training.stop_rules.plateau.Plateau"
    metric: str = setting("the validation loss, lower is better, as val/diffusion")
    patience: int = setting("validations in a row without an improvement", ge=1, le=SIZE)
    min_delta: float = setting("an improvement is a value below the best one by more than this", ge=0, le=LARGEST)
    after: int = setting("validations before this step are not counted, nor is their best value", ge=0, le=LAST_STEP)
    control: ClassVar[None] = None

    def why(self, values: Mapping[int, float], controls: Mapping[int, float]) -> str | None:
        best: tuple[int, float] | None = None
        waited = 0
        for step, value in sorted(values.items()):
            if step < self.after:
                continue
            if best is None or value < best[1] - self.min_delta:
                best, waited = (step, value), 0
            else:
                waited += 1
        if best is None or waited < self.patience:
            return None
        return f"{self.metric} has not improved for {waited} validations: its best is {best[1]:.6g}, at step {best[0]}"

    def description(self) -> str:
        return (
            f"A run ends early when its {self.metric} has not fallen by more than {number(self.min_delta)} below its "
            f"best over {number(self.patience)} validations from update {number(self.after)} on."
        )
