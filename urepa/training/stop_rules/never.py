"""The rule of a run that trains all its steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar


@dataclass
class Never:
    """The run trains to its last step."""

    _target_: str = "urepa.training.stop_rules.never.Never"
    metric: ClassVar[None] = None
    control: ClassVar[None] = None

    def why(self, values: Mapping[int, float], controls: Mapping[int, float]) -> str | None:
        return None

    def description(self) -> str:
        return ""
