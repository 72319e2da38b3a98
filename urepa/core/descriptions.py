"""What a part's description is made of: strings, which are paragraphs, and formulas; numbers and sizes as they stand
there."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Formula:
    """A displayed formula; its text is ours, with numbers from the config at most."""

    latex: str


def format_value(value: Any) -> str:
    """A config's value as YAML has it: null, true, [1, 2], 0.5; text as it is."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def number(value: float) -> str:
    """200,000 and 0.00085: whole numbers with separators, others in full."""
    return f"{int(value):,}" if float(value).is_integer() else format_value(value)


def shape(sizes: Iterable[int]) -> str:
    """4×64×64."""
    return "×".join(map(str, sizes))
