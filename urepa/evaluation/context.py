"""What an evaluation after training gets to see, and how several are run."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from urepa.core import progress
from urepa.core.errors import UserError
from urepa.core.files import FULL
from urepa.core.teacher_names import ALONE
from urepa.data.cache import Cache
from urepa.method.training_step import AlignedModel
from urepa.models.teachers.several_teachers import name_at


@dataclass(frozen=True)
class Context:
    """A model whose weights are the EMA's, in eval mode, and what it was trained on."""

    model: AlignedModel
    objective: Any
    loss: Any
    track: Any
    cache: Cache
    folder: Path
    device: torch.device
    seed: int
    step: int
    untrained: Callable[[], AlignedModel]  # builds the run's model as it was before any training, in eval mode
    random: Callable[[], AlignedModel] | None = None  # the same of random weights, where the untrained one has others
    teacher: str = ALONE  # whose tokens and heads are read

    @property
    def floors(self) -> dict[str, Callable[[], AlignedModel]]:
        """What is read beside the run's model, by the name that its values bear."""
        return {"untrained": self.untrained} | ({} if self.random is None else {"random": self.random})

    def head_at(self, tap: str) -> str | None:
        """The name of the teacher's head on a tap; None where it has none."""
        name = name_at(tap, self.teacher)
        return name if name in self.model.heads else None


@dataclass(frozen=True)
class Evaluated:
    """The metrics of several evaluations, why some of those gave none: a sentence by name, and whose the metrics are:
    keys by evaluation."""

    metrics: dict[str, float]
    failures: dict[str, str]
    keys: dict[str, list[str]] = field(default_factory=dict)

    def require_all(self, error: type[UserError] = UserError) -> None:
        """An error that names what is missing."""
        if self.failures:
            told = "; ".join(f"evaluation.{name}: {why}" for name, why in self.failures.items())
            raise error(f"{told} (every other result is reported and written)")


class Incomplete(UserError):
    """What an evaluation has found, and why not the rest: a sentence by the key that asks for it."""

    def __init__(self, metrics: dict[str, float], failures: dict[str, str]) -> None:
        super().__init__("; ".join(f"{key}: {why}" for key, why in failures.items()))
        self.metrics, self.failures = metrics, failures


def run_each(context: Context, evaluations: dict[str, Any], declaration_of: Callable[[Any], Any]) -> Evaluated:
    """Every evaluation of a config's `evaluation`, each from its settings by `declaration_of`. If one fails, the others
    still run, whatever it raises; what is no user's mistake and no full disk leaves its traceback on stderr."""
    metrics: dict[str, float] = {}
    failures: dict[str, str] = {}
    keys: dict[str, list[str]] = {}
    for name, settings in evaluations.items():
        try:
            with progress.prefix_bars(name):
                found = declaration_of(settings)(context)
        except Incomplete as partly:
            failures |= {f"{name}.{key}": why for key, why in partly.failures.items()}
            found = partly.metrics
        except UserError as error:
            failures[name] = str(error)
            continue
        except OSError as error:
            if error.errno not in FULL:
                traceback.print_exc()
            failures[name] = str(error)
            continue
        except Exception as error:  # noqa: BLE001  hours of training and other metrics must not go with it
            traceback.print_exc()
            failures[name] = f"{type(error).__name__}: {error}".splitlines()[0]
            continue
        if twice := sorted(found.keys() & metrics.keys()):
            failures[name] = f"{', '.join(twice)} is reported by another evaluation too; ask for one of the two"
        else:
            metrics |= found
            keys[name] = sorted(found)
    return Evaluated(metrics, failures, keys)
