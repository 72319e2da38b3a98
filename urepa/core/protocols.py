"""What a part of each kind declares of itself, one commented class for each kind.

A declaration is a dataclass in a file of its own, in the folder of its kind. Its fields are the keys of its config, and
`_target_` is its own dotted name. It loads without torch: `build` imports the network.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    from torch import Tensor, nn

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


class Evaluation(Protocol):
    """What is measured of a model after training. A class may also have `metrics: ClassVar[tuple[Metric, ...]]`, the
    columns of `compare` for its keys; a key without one is its own label, without a direction."""

    def __call__(self, context: Any) -> dict[str, float]:
        """Values by key, `final/MEASURE/WHAT`. A UserError for what cannot be measured.

        Args:
            context: `urepa.evaluation.context.Context`.
        """
        ...
