"""What a part of each kind declares of itself, one commented class for each kind.

A declaration is a dataclass in a file of its own, in the folder of its kind. Its fields are the keys of its config, and
`_target_` is its own dotted name. It loads without torch: `build` imports the network or the mathematics.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    from torch import Tensor, nn

    from urepa.core.descriptions import Formula
    from urepa.core.types import Tokens


@dataclass(frozen=True)
class Metric:
    """A column of a comparison: the logged key, what it is called, and which way is better ("↑", "↓", or "" where
    nobody can say)."""

    key: str
    label: str
    better: str = ""

    @property
    def title(self) -> str:
        """The label with an arrow."""
        return f"{self.label}\u00a0{self.better}" if self.better else self.label


class HeadNetwork(Protocol):
    """`forward(tapped, t_B)`: the state [B,N,D] of a tap, and the times of its samples as the objective has them, to
    tokens [B,N,E] on the teacher's grid, of unit length, in fp32. Heads run in fp32 also under bf16."""

    def forward(self, tapped: Tokens, t_B: Tensor) -> Tokens: ...


class Head(Protocol):
    """From a tapped state to the teacher's token space (urepa/method/heads/)."""

    # Whether it takes a tap of any grid to the teacher's. One that does not is refused where the grids differ.
    resizes: ClassVar[bool]

    def build(self, *, in_width: int, out_width: int, grid: tuple[int, int]) -> nn.Module:
        """The network (`HeadNetwork`) for one tap and one teacher, its weights drawn from torch's generator.

        Args:
            in_width, out_width: D of the tap and E of the teacher.
            grid: rows and columns of the teacher's tokens.
        """
        ...

    def description(self) -> str:
        """Its layers as `describe` writes them, after "A head of its own maps each tap to the teacher's space: "."""
        ...


class Objective(Protocol):
    """How x0 is noised and what the backbone must predict (urepa/method/objectives/)."""

    # What the scheduler of a diffusers pipeline is told to take the prediction for; "flow": there is no such scheduler.
    prediction_type: ClassVar[str]
    # Whether its samplers take guidance at some times only.
    has_intervals: ClassVar[bool]

    @property
    def most_steps(self) -> float:
        """In how many steps a sampler of it can go from noise to data at most; inf: any number."""
        ...

    @property
    def times(self) -> str:
        """Which times it has, for an error message: "times lie in [0, 1]"."""
        ...

    def check(self) -> None:
        """UserError where settings that are each in their range do not go together."""
        ...

    def has_time(self, t: float) -> bool:
        """Is this one of its times?"""
        ...

    def time_at(self, fraction: float) -> float:
        """The time at a share, from 0 to 1, of the way from data to noise: `${time_at:0.5}` in conf/."""
        ...

    def build(self) -> Any:
        """The mathematics (`urepa.method.objectives.objective_math.ObjectiveMath`)."""
        ...

    def description(self) -> list[str | Formula]:
        """What is predicted, of what, and at which times, as `describe` writes it."""
        ...

    def model_card(self) -> str:
        """What is predicted, for users of published weights, as Markdown."""
        ...


class TeacherNetwork(Protocol):
    """A frozen encoder with its preprocessing. Everything but its weights is known before they are read."""

    grid: tuple[int, int]  # rows and columns of its tokens
    width: int  # of a token
    image_size: int  # side of the image that it sees, pixels

    @property
    def is_local(self) -> bool:
        """Do its weights lie on this disk?"""
        ...

    def manifest(self) -> dict[str, Any]:
        """What its tokens depend on, as plain values: `Teacher.stored_as` and more."""
        ...

    def weights_sha256(self) -> str:
        """Digest of its weights."""
        ...

    def tokens(self, images_B3HW: Tensor) -> Tokens:
        """RGB in [0,1] of any size to tokens [B,N,D] of unit length on `grid`, without gradients."""
        ...

    def build_without_weights(self) -> Any:
        """The network from its architecture alone, to count costs; `tokens` then goes through it."""
        ...


class Teacher(Protocol):
    """One encoder, or several at once (urepa/models/teachers/). What only one has, its members are asked for."""

    def members(self) -> Mapping[str, OneTeacher]:
        """Itself as `ALONE`, or several by their names."""
        ...

    def check(self) -> None:
        """UserError where its settings do not go together."""
        ...

    def hub_files(self) -> dict[str, list[str]]:
        """What `prefetch` fetches: patterns of files by the name of a repository on the hub, with its revision."""
        ...

    def build(self) -> Any:
        """A `TeacherNetwork`, whose weights are read when they are needed; of several all."""
        ...

    def description(self) -> str:
        """Network, preprocessing and tokens as `describe` writes them, in whole sentences."""
        ...


class OneTeacher(Teacher, Protocol):
    """One encoder."""

    grid: list[int]  # rows and columns of its tokens

    def check_files(self) -> None:
        """UserError where a local file that its weights come from is not there."""
        ...

    def stored_as(self) -> dict[str, Any]:
        """What names its store of tokens on a small track: `model`, `image_size` and, where they count, `positions`."""
        ...


class Evaluation(Protocol):
    """What is measured of a model after training. A class may also have `metrics: ClassVar[tuple[Metric, ...]]`, the
    columns of `compare` for its keys; a key without one is its own label, without a direction."""

    def __call__(self, context: Any) -> dict[str, float]:
        """Values by key, `final/MEASURE/WHAT`. A UserError for what cannot be measured.

        Args:
            context: `urepa.evaluation.context.Context`.
        """
        ...
