"""The elements of a part's description: strings, which are paragraphs, and formulas; and the format of numbers and
sizes in it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from urepa.core.samplers import TITLES


@dataclass(frozen=True)
class Formula:
    """A displayed formula, in LaTeX. It contains no text from the config except numbers."""

    latex: str


@dataclass(frozen=True)
class BackboneFacts:
    """Facts besides its settings that a backbone's description needs.

    Args:
        latent_shape: of x0, [C,H,W]. If x0 has several shapes, the first; a sentence must not name it alone.
        are_replaced: whether a warm start replaces all weights before training.
        latent_shapes: all shapes if there are several.
    """

    latent_shape: tuple[int, ...]
    num_classes: int
    are_replaced: bool
    latent_shapes: tuple[tuple[int, ...], ...] = ()

    @property
    def x0_shape(self) -> str:
        """The shape or shapes of x0 for use in a sentence, for example "4×32×32"."""
        return " or ".join(map(shape, self.latent_shapes or (self.latent_shape,)))

    def initial_weights(self, base: str | None) -> str:
        """The clause on the initial weights: those of `base`, or random ones; "" if a warm start replaces all of
        them."""
        if base is not None:
            return f", with the weights of {base}"
        return "" if self.are_replaced else ", with random initial weights"


@dataclass(frozen=True)
class CardFacts:
    """Facts besides the backbone's settings that the model card of exported weights needs.

    Args:
        files: the files of the export's folder, relative to it.
        command: the part of the training command that composes the same model, in shell syntax.
        latent_shape: of x0, [C,H,W].
        timesteps: number of the objective's timesteps; None if times are continuous.
    """

    files: tuple[str, ...]
    command: str
    latent_shape: tuple[int, int, int]
    timesteps: int | None


def code_block(code: str, language: str) -> str:
    """A fenced Markdown code block, with a fence longer than any in the code."""
    longest = max((len(ticks) for ticks in re.findall("`+", code)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{code.rstrip()}\n{fence}"


def join_with_and(items: list[str]) -> str:
    """Joins names: `a`, `a and b`, `a, b and c`."""
    return " and ".join([*([", ".join(items[:-1])] if items[1:] else []), *items[-1:]])


def format_value(value: Any) -> str:
    """A config's value in YAML syntax: null, true, [1, 2], 0.5; text without quotes."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def number(value: float) -> str:
    """200,000 and 0.00085: whole numbers with separators, others in full."""
    return f"{int(value):,}" if float(value).is_integer() else format_value(value)


def shape(sizes: Iterable[int]) -> str:
    """The sizes in the form 4×64×64."""
    return "×".join(map(str, sizes))


# --- evaluations ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EvaluatedRun:
    """Properties of the evaluated run that an evaluation's description needs."""

    num_classes: int
    sampler: str  # the objective's usual sampler
    is_aligned: bool  # whether it has a teacher and heads


def sampling_text(run: EvaluatedRun, sampler: str | None, steps: int, guidance: float) -> str:
    """For example "DDIM in 25 steps without guidance". If `sampler` is None, it is the objective's usual one."""
    name = run.sampler if sampler is None else sampler
    guided = "without guidance" if guidance == 1 else f"at guidance {number(guidance)}"
    return f"{TITLES.get(name, name)} in {steps} steps {guided}"


def encoder_text(encoder: Any) -> str:
    """The name of a declared encoder, with the file or model of its weights if it has such a setting."""
    name = type(encoder).__name__
    weights = next((Path(getattr(encoder, key)).name for key in ("model", "weights") if hasattr(encoder, key)), None)
    return name if weights is None else f"{name}, {weights}"
