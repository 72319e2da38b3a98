"""Which attention maps a loss compares. Does not import torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NO_ATTENTION: Mapping[str, int] = {}


def attention_of(loss: Any) -> Mapping[str, int]:
    """The taps whose blocks' attention a loss, declared or built, compares, each with the teacher's block; none if it
    has no `attention`."""
    found: Mapping[str, int] = getattr(loss, "attention", NO_ATTENTION)
    return found


def teacher_blocks(loss: Any) -> tuple[int, ...]:
    """The blocks of the teacher whose attention a loss reads, each once."""
    return tuple(dict.fromkeys(attention_of(loss).values()))
