"""What backbones and teachers have beside where they hand out the attention of their blocks, for a loss that compares
it, or where it is measured what they attend to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor

    from urepa.core.conditions import Condition
    from urepa.core.types import Attention, Tokens


class AttentionMaps(Protocol):
    """Additional members of a `Backbone` whose network returns the attention of its blocks. Its `forward` has another
    argument, `attention`: the taps whose blocks' queries and keys `Denoised.attention` is to have for the whole batch
    (`urepa.core.types.Attention`). They are those that the block computes with, so its output is the same bit for bit.
    """

    def check_attention(self, tap: str) -> None:
        """Raises UserError for a tap without attention over the tokens of x_t."""
        ...


class AttendingTeacher(Protocol):
    """Additional members of a `TeacherNetwork` that returns the attention of its blocks; its declaration has
    `attention_maps` True."""

    def tokens_and_attention(
        self, images_B3HW: Tensor, blocks: Sequence[int], grid: tuple[int, int] | None = None
    ) -> tuple[Tokens, dict[int, Attention]]:
        """As `tokens`, with the attention among patches of these blocks, counted from 0, by block: without class and
        register tokens, so that a patch's shares are those among patches alone. Raises UserError for a block that it
        does not have."""
        ...

    def attention_grid(self, grid: tuple[int, int] | None = None) -> tuple[int, int]:
        """Rows and columns of the patches, which tokens on this grid are pooled from."""
        ...


@runtime_checkable
class CrossAttending(Protocol):
    """Additional members of a `BackboneNetwork` whose blocks have a cross-attention from the tokens of x_t to a context
    with the tokens of its condition."""

    def cross_attentions(self) -> list[Any]:
        """The cross-attention of each block, called with x_BND, context_BSD and mask_BS (True: attended to): `q(x_BND)`
        are its queries [B,N,D], `kv(context_BSD)` its keys and values [B,S,2D], in `heads` heads."""
        ...

    def context_lengths(self, condition: Condition) -> dict[str, int]:
        """The number of tokens in the context of each part of the condition, in their order."""
        ...
