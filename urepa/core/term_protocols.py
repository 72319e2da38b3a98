"""The declaration of an alignment term, which `loss.terms` adds to the token and the manifold loss.

Shapes: B local batch, G gathered (global) batch, N tokens, D width of the teacher's tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from urepa.core.descriptions import Formula


class TermMath(Protocol):
    """Computes the term of each sample [B] in fp32, from the student's projected tokens [B,N,D], the targets [B,N,D],
    the mask [B,N] of tokens that count (None: all), and a function that gathers [B,D] over the ranks to [G,D] with
    gradient. Only the student's tokens have a gradient. The mean over all samples of the global batch is the loss."""

    def __call__(
        self,
        student_BND: Tensor,
        teacher_BND: Tensor,
        mask_BN: Tensor | None,
        gather: Callable[[Tensor], Tensor],
    ) -> Tensor: ...


class Term(Protocol):
    """A term of the alignment with its weight (urepa/method/terms/)."""

    weight: float

    @property
    def compares_samples(self) -> bool:
        """Whether samples of the global batch are compared with each other."""
        ...

    @property
    def compares_tokens(self) -> bool:
        """Whether the tokens of a sample are compared with each other: a teacher with one token then has no term."""
        ...

    @property
    def compares_lengths(self) -> bool:
        """Whether the lengths of tokens matter, so that heads leave them as they are."""
        ...

    def check(self) -> None:
        """Raises UserError if settings that are each in their range do not fit together."""
        ...

    def build(self) -> Any:
        """The mathematics (`TermMath`)."""
        ...

    def description(self, name: str) -> list[str | Formula]:
        """The formula and what is compared, for `describe`; `name` is the term's name in the loss."""
        ...
