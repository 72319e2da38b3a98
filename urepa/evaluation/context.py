"""The input of an evaluation after training, and the function that runs several evaluations."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from urepa.core import progress
from urepa.core.errors import UserError
from urepa.core.evaluation_protocols import Picture
from urepa.core.files import FULL
from urepa.core.teacher_names import ALONE
from urepa.data.cache import Cache
from urepa.method.training_step import AlignedModel
from urepa.models.teachers.several_teachers import name_at


@dataclass(frozen=True)
class Context:
    """A model with EMA weights in eval mode, and the parts and data with which it was trained."""

    model: AlignedModel
    objective: Any
    loss: Any
    track: Any
    cache: Cache
    folder: Path
    device: torch.device
    seed: int
    step: int
    untrained: Callable[[], AlignedModel]  # builds the run's model before any training, in eval mode
    random: Callable[[], AlignedModel] | None = None  # the same with random weights, if it has others
    teacher: str = ALONE  # the teacher whose tokens and heads are evaluated
    own_cache: Cache | None = None  # of the run's own data, if it is evaluated on those of another run

    @property
    def floors(self) -> dict[str, Callable[[], AlignedModel]]:
        """Builders of the models that are evaluated for comparison, by the prefix of their values."""
        return {"untrained": self.untrained} | ({} if self.random is None else {"random": self.random})

    @property
    def aligned_to(self) -> list[dict[str, Any]]:
        """The descriptions of the teachers to which the run is aligned, as in the manifests of their tokens."""
        cache = self.cache if self.own_cache is None else self.own_cache
        return [tokens.manifest["teacher"] for tokens in cache.tokens.values()]

    def picture_file(self, picture: Picture, name: str = "") -> Path:
        """The file of a picture at this step. Its folder is made."""
        file = self.folder / picture.file(self.step, name)
        file.parent.mkdir(exist_ok=True)
        return file

    def head_at(self, tap: str) -> str | None:
        """The name of the teacher's head on a tap; None where it has none."""
        name = name_at(tap, self.teacher)
        return name if name in self.model.heads else None


@dataclass(frozen=True)
class Evaluated:
    """The metrics of several evaluations; the reasons why evaluations failed, a sentence by name; and the keys of the
    metrics by evaluation."""

    metrics: dict[str, float]
    failures: dict[str, str]
    keys: dict[str, list[str]] = field(default_factory=dict)

    def require_all(self, error: type[UserError] = UserError) -> None:
        """Raises an error that lists what is missing."""
        if self.failures:
            told = "; ".join(f"evaluation.{name}: {why}" for name, why in self.failures.items())
            raise error(f"{told} (every other result is reported and written)")


class Incomplete(UserError):
    """The results of an evaluation that failed in part, and the reasons: a sentence by the key of the config."""

    def __init__(self, metrics: dict[str, float], failures: dict[str, str]) -> None:
        super().__init__("; ".join(f"{key}: {why}" for key, why in failures.items()))
        self.metrics, self.failures = metrics, failures


def run_each(context: Context, evaluations: dict[str, Any], declaration_of: Callable[[Any], Any]) -> Evaluated:
    """Runs every evaluation of a config's `evaluation`; `declaration_of` makes it from its settings. If one fails with
    any exception, the others still run. A traceback goes to stderr unless the cause is a user's mistake or a full
    disk."""
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
        except Exception as error:  # noqa: BLE001  training and other metrics must not be lost
            traceback.print_exc()
            failures[name] = f"{type(error).__name__}: {error}".splitlines()[0]
            continue
        if twice := sorted(found.keys() & metrics.keys()):
            failures[name] = f"{', '.join(twice)} is reported by another evaluation too; ask for one of the two"
        else:
            metrics |= found
            keys[name] = sorted(found)
    return Evaluated(metrics, failures, keys)
