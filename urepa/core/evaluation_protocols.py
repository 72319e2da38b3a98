"""Protocols of evaluations, their encoders and their images, and the columns of a comparison that evaluations declare.
There is one commented class for each (`urepa.core.protocols` has the parts that are used in training).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from urepa.core.descriptions import EvaluatedRun
    from urepa.core.types import Tokens


LAST = 1000  # the place of a column without a declared place
# rows of a comparison below the arms that several evaluations share, in their order
TEACHER, UNTRAINED = "the teacher's tokens", "the untrained model"
RANDOM, PIXELS = "the same of random weights", "pixels"
ROWS = (TEACHER, UNTRAINED, RANDOM, PIXELS)
OF_HEADS = ("loss.lambda_max",)  # `trained_by` of values of a head's output, which is trained only through λ


@dataclass(frozen=True)
class Reference:
    """A logged value that is a reference for a metric. It does not describe an arm, so it has no column.

    Args:
        key: `final/...`; `{}` in it stands for the name in the metric's key.
        row: the row below the arms in which it is shown, in its metric's column; "": listed below the table instead.
        label: its name in that list; "": its key.
    """

    key: str
    row: str = ""
    label: str = ""


@dataclass(frozen=True)
class BetterWith:
    """A criterion of success: runs with a setting are better by a share than those without it.

    Args:
        words: the criterion, as the subject of a sentence.
        setting: a config key that is true or false.
        share: of the value without it, in (0, 1).
    """

    words: str
    setting: str
    share: float


@dataclass(frozen=True)
class BetterThan:
    """A criterion of success: a value is better than reference values of the same run.

    Args:
        words: the criterion, as the subject of a sentence.
        key: the metric's key, with the name in it.
        references: keys of the reference values, with what they are.
    """

    words: str
    key: str
    references: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Metric:
    """A column of a comparison.

    Args:
        key: the logged key, `final/MEASURE/WHAT`. `{}` as its last part stands for any name, for example an encoder's.
        label: the displayed name; `{}` in it is replaced by the name.
        better: the direction of better values, "↑" or "↓", or "" if there is none.
        rests_on: config keys and groups; values of runs that differ in one of them are not compared.
        place: columns are ordered by place, within a place by name and order of declaration, and in `LAST` by key.
        beside: its reference values.
        trained_by: config keys that weigh this quantity, or the fit of its input, in the training loss. In runs that
            differ in one of them the quantity differs by construction: it is compared, but the first sentence of a
            report does not count it.
        criteria: what a description expects of it; remarks of a report say whether that is so.
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
    criteria: tuple[BetterWith | BetterThan, ...] = ()

    @property
    def title(self) -> str:
        """The label with the arrow of its direction."""
        return f"{self.label}\u00a0{self.better}" if self.better else self.label


@dataclass(frozen=True)
class Nested:
    """How an evaluation renames the metrics of evaluations that it runs, so that they have columns of their own.

    Args:
        prefix: what precedes the second part of their keys.
        words: what precedes their labels.
    """

    prefix: str
    words: str

    def key(self, key: str) -> str:
        """`final/elsewhere_fd/NAME` for `final/fd/NAME`."""
        kind, _, rest = key.partition("/")
        return f"{kind}/{self.prefix}{rest}"

    def metric(self, metric: Metric) -> Metric:
        """The renamed column with its reference values. Criteria are left out, because they are about the run's own
        data, and so are settings of the evaluation, which lie at another place."""
        beside = tuple(
            replace(one, key=self.key(one.key), label=one.label and f"{self.words}{one.label}") for one in metric.beside
        )
        return replace(
            metric,
            key=self.key(metric.key),
            label=f"{self.words}{metric.label}",
            rests_on=tuple(key for key in metric.rests_on if not key.startswith("evaluation.")),
            beside=beside,
            circular=metric.circular and self.key(metric.circular),
            criteria=(),
        )


@dataclass(frozen=True)
class Picture:
    """A PNG that an evaluation writes, and that a comparison shows.

    Args:
        path: its place in the run's folder, or in that of a bucket: FOLDER/FILE, for example
            `samples/image_swap_{step}.png`, with `{step}` for the step in eight digits and possibly `{name}` for any
            name, for example a teacher's.
        title: a heading; with `{name}` in the path the name follows it.
        caption: what its rows and columns, or its panels and lines, are, in whole sentences.
    """

    path: str
    title: str
    caption: str

    @property
    def folder(self) -> str:
        """The first part of the path."""
        return PurePosixPath(self.path).parts[0]

    def file(self, step: int, name: str = "") -> str:
        """The path at a step."""
        return self.path.format(step=f"{step:08d}", name=name)

    def read(self, path: str) -> tuple[str, int] | None:
        """The name ("" without one) and the step in a path that ends in this picture's; None for another one's."""
        pattern = re.escape(self.path).replace(r"\{step\}", r"(?P<step>\d{8,})").replace(r"\{name\}", "(?P<name>[^/]+)")
        match = re.search(f"(?:^|/){pattern}$", path)
        return None if match is None else (match.groupdict().get("name", ""), int(match["step"]))


@dataclass(frozen=True)
class ImageCounts:
    """The numbers of images for a run's evaluations: training, held out (test, or validation without one); classes."""

    train: int
    held_out: int
    classes: int


class EncoderNetwork(Protocol):
    """A network that maps images to features for a distance between distributions, including its preprocessing. A
    `TeacherNetwork` is one. One for the Inception Score, or that names images, also has `probabilities(images_B3HW)`,
    [B,K]."""

    def manifest(self) -> dict[str, Any]:
        """The properties on which its features depend, without its weights, as plain values."""
        ...

    def weights_sha256(self) -> str:
        """Digest of its weights, "none" without any. Raises UserError if they are not available."""
        ...

    def tokens(self, images_B3HW: Tensor) -> Tokens:
        """Maps RGB in [0,1] of any size to tokens [B,N,D], without gradients. An image's features are √D times the mean
        of its tokens, so tokens of length 1 give features with mean square 1."""
        ...


class Encoder(Protocol):
    """The declaration of an encoder (urepa/evaluation/encoders/). Any declared teacher is one too."""

    def build(self) -> Any:
        """An `EncoderNetwork`. It reads its weights when they are needed."""
        ...


class Images(Protocol):
    """The declaration of a run's images for evaluations (urepa/evaluation/images/)."""

    count: int  # total number

    def rgb(self, context: Any, withheld: bool = False) -> Iterator[tuple[list[int], Tensor]]:
        """Class ids and RGB [B,3,S,S] in multiples of 1/255, batch by batch.

        Args:
            context: `urepa.evaluation.context.Context`.
            withheld: the images of the same noises under the null condition.
        """
        ...

    def description(self, run: EvaluatedRun) -> str:
        """Their number and origin, as a clause in `describe`: "1,000 by DDIM in 25 steps without guidance"."""
        ...


class Evaluation(Protocol):
    """The declaration of an evaluation after training (urepa/evaluation/measures/).

    A class may also have

    - `metrics: ClassVar[tuple[Metric, ...]]`, the columns of its keys in `compare`; a key without one is its own label,
      without a direction;
    - `pictures: ClassVar[tuple[Picture, ...]]`, what it writes at `context.picture_file(PICTURE)`, for reports;
    - `check_images(there: ImageCounts, place: str) -> None`, which raises UserError if it needs more images than there
      are, with all values to give instead, prefixed by `place` ("evaluation.NAME."); called before step 0 of a run, and
      before `urepa.evaluate` computes anything;
    - `check_run(config: dict, place: str) -> None`, which raises UserError if its other inputs are missing or do not
      fit the run with this config; called at the same times, without torch;
    - `check_opened(cache: Caches, place: str) -> None`, the same for the run's opened caches;
    - `nested: ClassVar[Nested]`, if it runs other evaluations and renames their metrics;
    - `description(run: EvaluatedRun) -> str`, its sentences in `describe`; without it, its settings are listed.

    Keys that contain `_by_t/` (a value at each of several times) and keys whose second part ends in `_sd` (a standard
    deviation) have no column.
    """

    def __call__(self, context: Any) -> dict[str, float]:
        """Values by key, `final/MEASURE/WHAT`. Raises UserError if they cannot be measured.

        Args:
            context: `urepa.evaluation.context.Context`.
        """
        ...


def metrics_declared_by(evaluation: type) -> tuple[Metric, ...]:
    """An evaluation's `metrics`; empty if it declares none."""
    metrics: tuple[Metric, ...] = getattr(evaluation, "metrics", ())
    return metrics


def all_metrics(evaluations: Sequence[type]) -> list[Metric]:
    """The `metrics` of evaluations in their order, followed by those that evaluations which run others rename."""
    own = {evaluation: metrics_declared_by(evaluation) for evaluation in evaluations}
    nested: dict[type, Nested] = {one: one.nested for one in evaluations if hasattr(one, "nested")}
    plain = [metric for evaluation, metrics in own.items() if evaluation not in nested for metric in metrics]
    renamed = [how.metric(metric) for how in nested.values() for metric in plain]
    return [*(metric for metrics in own.values() for metric in metrics), *renamed]


def pictures_declared_by(evaluation: type) -> tuple[Picture, ...]:
    """An evaluation's `pictures`; empty if it declares none."""
    pictures: tuple[Picture, ...] = getattr(evaluation, "pictures", ())
    return pictures


def evaluation_description(evaluation: Any, run: EvaluatedRun) -> str | None:
    """An evaluation's `description`; None if it has none."""
    text: str | None = evaluation.description(run) if hasattr(evaluation, "description") else None
    return text
