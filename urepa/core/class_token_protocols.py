"""What a backbone, its network and a loss have beside where a class token of the teacher is denoised with the image, as
in REG (`urepa.method.losses.reg`).

The class token is a second part of the state, with the time of the image and noise of its own. It is [B,E,1,1], an
image of E channels and one pixel, so that an objective's functions take it as they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from urepa.core.conditions import Condition
    from urepa.core.types import Denoised


class ClassTokenNetwork(Protocol):
    """Additional members of a `BackboneNetwork` that denoises a class token; its declaration has `class_token`, E."""

    class_values: int  # E

    def forward(
        self,
        x_t: Tensor,
        t_B: Tensor,
        condition: Condition,
        taps: tuple[str, ...] = (),
        rows_R: Tensor | None = None,
        attention: tuple[str, ...] = (),
        class_BE11: Tensor | None = None,
    ) -> Denoised:
        """As a `BackboneNetwork`. `class_BE11` is the noised class token, and `Denoised.class_RE11` what is predicted
        of it. Taps have the image's tokens alone. Raises UserError without a class token."""
        ...


class ClassTokenLoss(Protocol):
    """Additional members of a `Loss` and its `LossMath` that train such a network: `Aligned.known` then has the class
    token's diffusion term of each sample, under `CLASS_TOKEN`."""

    has_class_token: ClassVar[bool]
    terms_rest_on: ClassVar[tuple[str, ...]]  # prefixes of keys on which all of its terms rest, as it sees the token


CLASS_TOKEN = "class_token"  # the name of its term, and the purpose of its noise


def class_values(backbone: Any) -> int:
    """E of a backbone's network; 0: it denoises no class token."""
    return int(getattr(backbone, "class_values", 0))
