"""A rule that ends a run once it is better than its control was at the same step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from urepa.core.declared_keys import LARGEST, LAST_STEP, SIZE, setting
from urepa.core.descriptions import number


@dataclass
class ControlOvertaken:
    """The run ends at the first step at which a validation loss is below that of a finished control at the same step,
    for `patience` validations in a row."""

    _target_: str = "urepa.training.stop_rules.control_overtaken.ControlOvertaken"
    control: str = setting("the folder of the finished control of the same seed and data, as outputs/NAME/seed${seed}")
    metric: str = setting("the validation loss, lower is better, as val/diffusion")
    patience: int = setting("validations in a row at which the control is overtaken", ge=1, le=SIZE)
    margin: float = setting("by how much the value must be below the control's", ge=0, le=LARGEST)
    after: int = setting("validations before this step are not counted", ge=0, le=LAST_STEP)

    def why(self, values: Mapping[int, float], controls: Mapping[int, float]) -> str | None:
        both = [(step, value, controls[step]) for step, value in sorted(values.items()) if step in controls]
        recent = [found for found in both if found[0] >= self.after][-self.patience :]
        if len(recent) < self.patience or not all(value < there - self.margin for _, value, there in recent):
            return None
        step, value, there = recent[-1]
        return f"{self.metric} {value:.6g} is below the control's {there:.6g} at step {step} ({self.control})"

    def description(self) -> str:
        return (
            f"A run ends early when its {self.metric} is more than {number(self.margin)} below that of its control "
            f"({Path(self.control).parent.name}) at the same update, at {number(self.patience)} validations in a row "
            f"from update {number(self.after)} on."
        )
