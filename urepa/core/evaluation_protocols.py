"""What an evaluation, its encoders and its generated images declare of themselves, and the columns of a comparison that
they fill, one commented class for each (`urepa.core.protocols` has the parts that train).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from urepa.core.descriptions import EvaluatedRun
    from urepa.core.types import Tokens


LAST = 1000  # the place of a column that declares none
# rows of a comparison below the arms, which several evaluations have, in their order
TEACHER, UNTRAINED = "the teacher's tokens", "the untrained model"
RANDOM, PIXELS = "the same of random weights", "pixels"
ROWS = (TEACHER, UNTRAINED, RANDOM, PIXELS)
OF_HEADS = ("loss.lambda_max",)  # `trained_by` of what is read from a head's output, which λ alone trains


@dataclass(frozen=True)
class Reference:
    """A logged value that is read beside a metric and says nothing about an arm, so it has no column.

    Args:
        key: `final/...`; `{}` in it is the name that the metric's key has there.
        row: the row below the arms in which it stands, in its metric's column; "": none, it is listed below the table.
        label: what it is called in that list; "": its key.
    """

    key: str
    row: str = ""
    label: str = ""


@dataclass(frozen=True)
class Metric:
    """A column of a comparison.

    Args:
        key: as it is logged, `final/MEASURE/WHAT`. `{}` as its last part stands for any name, as of an encoder.
        label: what it is called; `{}` in it is that name.
        better: which way is better, "↑" or "↓", or "" where nobody can say.
        rests_on: config keys and groups; the values of runs that differ in one of them are not compared.
        place: columns stand by their places; those of one place by their names and in declared order; those of `LAST`
            by their keys.
        beside: what is read beside it.
        trained_by: config keys that weigh this quantity, or the fit of what it is read from, in the training loss. In
            runs that differ in one of them it differs by construction: it is compared, but the first sentence of a
            report does not count it.
        circular: a key; if a run has logged it, the name in the label is marked as circular.
    """

    key: str
    label: str
    better: str = ""
    rests_on: tuple[str, ...] = ()
    place: int = LAST
    beside: tuple[Reference, ...] = ()
    circular: str = ""
    trained_by: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """The label with an arrow."""
        return f"{self.label}\u00a0{self.better}" if self.better else self.label


@dataclass(frozen=True)
class ImageCounts:
    """How many images a run's evaluations have: for training, held out (test, or validation without one); classes."""

    train: int
    held_out: int
    classes: int


class EncoderNetwork(Protocol):
    """What turns images into features for a distance between distributions; it owns its preprocessing. A
    `TeacherNetwork` is one. One for the Inception Score also has `probabilities(images_B3HW)`, [B,K]."""

    def manifest(self) -> dict[str, Any]:
        """What its features depend on but for its weights, as plain values."""
        ...

    def weights_sha256(self) -> str:
        """Digest of its weights, "none" without any. UserError where they are not to be had."""
        ...

    def tokens(self, images_B3HW: Tensor) -> Tokens:
        """RGB in [0,1] of any size to tokens [B,N,D], without gradients; an image's features are √D times their mean,
        so tokens of length 1 give features whose mean square is 1."""
        ...


class Encoder(Protocol):
    """Images to features (urepa/evaluation/encoders/). Any declared teacher is one too."""

    def build(self) -> Any:
        """An `EncoderNetwork`, whose weights are read when they are needed."""
        ...


class Images(Protocol):
    """Which images of a run evaluations look at (urepa/evaluation/images/)."""

    count: int  # in all

    def rgb(self, context: Any) -> Iterator[tuple[list[int], Tensor]]:
        """Class ids and RGB [B,3,S,S] in whole 255ths, batch by batch.

        Args:
            context: `urepa.evaluation.context.Context`.
        """
        ...

    def description(self, run: EvaluatedRun) -> str:
        """How many and how they are made, as a clause in `describe`: "1,000 by DDIM in 25 steps without guidance"."""
        ...


class Evaluation(Protocol):
    """What is measured of a model after training (urepa/evaluation/measures/).

    A class may also have

    - `metrics: ClassVar[tuple[Metric, ...]]`, the columns of `compare` for its keys; a key without one is its own
      label, without a direction;
    - `check_images(there: ImageCounts, place: str) -> None`, a UserError where it asks for more images than there are,
      with all values to give instead, behind `place` ("evaluation.NAME."): asked before step 0 of a run, and before
      `urepa.evaluate` computes anything;
    - `description(run: EvaluatedRun) -> str`, its sentences in `describe`, without which its settings are listed.

    Keys with `_by_t/` in them (a value at each of several times) and those whose second part ends in `_sd` (a standard
    deviation) have no column.
    """

    def __call__(self, context: Any) -> dict[str, float]:
        """Values by key, `final/MEASURE/WHAT`. A UserError for what cannot be measured.

        Args:
            context: `urepa.evaluation.context.Context`.
        """
        ...


def metrics_declared_by(evaluation: type) -> tuple[Metric, ...]:
    """An evaluation's `metrics`; empty for one that declares none."""
    metrics: tuple[Metric, ...] = getattr(evaluation, "metrics", ())
    return metrics


def evaluation_description(evaluation: Any, run: EvaluatedRun) -> str | None:
    """An evaluation's `description`; None for one without."""
    text: str | None = evaluation.description(run) if hasattr(evaluation, "description") else None
    return text
