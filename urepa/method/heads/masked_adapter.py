"""PixelREPA's masked transformer adapter.

Shin, Kim, Shim 2026, "Representation Alignment for Just Image Transformers is not Easier than You Think", arXiv
2603.14366. Some tokens of the tapped state are replaced by a learned token, a shallow transformer maps the tokens, and
a projection maps each to the teacher's width; all tokens are compared, by their cosine. Read: the abstract; the
published settings (kaist-cvml/PixelREPA, main_pixelREPA.py: 0.2 of the tokens are masked); and the adapter in another
repository's changed copy of its code (quickjkee/pixelrepa, model_pixelREPA.py, denoiser_pixelREPA.py: each token is
masked by itself; two blocks of the backbone's kind and width, conditioned on time and class; linear, LayerNorm, SiLU,
linear). The paper's equations and λ were not read.
Differences here: the blocks are SiT's, conditioned on the time alone, because heads do not get the condition; there are
no class tokens beside the image's; masked tokens get fixed sine-cosine positions, where JiT's attention has rotary
ones. Reported (abstract): JiT-B/16 on ImageNet 256, FID 3.17 with it and 3.66 without.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from urepa.core.declared_keys import SIZE, setting
from urepa.core.descriptions import number

if TYPE_CHECKING:
    from urepa.method.heads.masked_adapter_net import MaskedAdapterHead


@dataclass
class MaskedAdapter:
    """A share of the tapped tokens is masked in training; transformer blocks and a projection predict the teacher's
    tokens at all places (PixelREPA, arXiv 2603.14366)."""

    _target_: str = "urepa.method.heads.masked_adapter.MaskedAdapter"
    share: float = setting("share of tokens that are masked in training", ge=0, le=1)
    depth: int = setting("number of transformer blocks", ge=1, le=SIZE)
    heads: int = setting("attention heads of a block, a divisor of the tap's width", ge=1, le=SIZE)
    resizes: ClassVar[bool] = True

    def check(self) -> None:
        """Nothing to check: any settings in their ranges are valid together."""

    def build(self, *, in_width: int, out_width: int) -> MaskedAdapterHead:
        from urepa.method.heads.masked_adapter_net import MaskedAdapterHead

        return MaskedAdapterHead(self.share, self.depth, self.heads, in_width=in_width, out_width=out_width)

    def description(self) -> str:
        blocks = f"{self.depth} transformer block{'s' * (self.depth > 1)} of the tap's width with {self.heads} heads"
        return (
            f"in training each token is replaced by a learned one with a probability of {number(self.share)}; "
            f"{blocks}, conditioned on the time by adaLN-Zero; a dense layer, LayerNorm, SiLU and a dense layer on "
            "each token by itself, and where the grids differ bilinear interpolation to the target's after them"
        )
