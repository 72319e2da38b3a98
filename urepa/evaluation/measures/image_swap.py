"""The declaration of the evaluation of images under another image's vector and patches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from urepa.core.declared_keys import SIZE, setting
from urepa.core.descriptions import EvaluatedRun, number
from urepa.core.evaluation_protocols import BetterThan, ImageCounts, Metric, Picture, Reference
from urepa.evaluation.conditioned_settings import Conditioned, check_few

if TYPE_CHECKING:
    from urepa.evaluation.context import Context

FEWEST = 3  # images: an original, its donor, and another one as chance
WHY = "because similarities are compared with those of a third image"
PICTURE = Picture(
    "samples/image_swap_{step}.png",
    "Images under another image's vector and patches",
    "A column is a held-out image. Rows: the original; the donor, which is the next original; images under the "
    "original's caption and image, of which nothing, the vector, the patches or both are exchanged for the donor's, "
    "from the same noise.",
)


IN_PLACE = BetterThan(
    "the layout is the donor's where vector and patches are exchanged",
    "final/swap_layout/both",
    (("final/swap_layout_own/both", "the original's"), ("final/swap_layout_chance/both", "a third image's")),
)


def _similarity(what: str, words: str, better: str, criteria: tuple[BetterThan, ...] = ()) -> Metric:
    """A column by what is exchanged, with the similarities to the original and to other images."""
    key = f"final/swap_{what}/{{}}"
    beside = tuple(
        Reference(f"final/swap_{what}_{kind}/{{}}", label=f"{words} as {whose} ({{}} exchanged)")
        for kind, whose in (("own", "the original's"), ("chance", "a third image's"))
    )
    real = Reference(f"final/swap_{what}_real", label=f"{words} of two real images")
    return Metric(
        key, f"{words} as the donor's ({{}} exchanged)", better, place=67, beside=(*beside, real), criteria=criteria
    )


@dataclass
class ImageSwap(Conditioned):
    """Images under the caption of one image and the vector, the patches or both of another one, the donor. Reported is
    how similar they are to the donor, position by position: tokens of the image encoder, and their layout, which is
    the tokens less each picture's mean token. References: the similarity to the original, to a third image (chance),
    and of originals with donors. A picture has all of them."""

    _target_: str = "urepa.evaluation.measures.image_swap.ImageSwap"
    pairs: int = setting("number of held-out images, at most; the donor of each is the next one", ge=FEWEST, le=SIZE)
    pictures: ClassVar[tuple[Picture, ...]] = (PICTURE,)
    metrics: ClassVar[tuple[Metric, ...]] = (
        _similarity("layout", "layout", "↑", (IN_PLACE,)),
        _similarity("tokens", "tokens", "↑"),
    )

    def __call__(self, context: Context) -> dict[str, float]:
        from urepa.evaluation.measures.image_swap_math import swap

        return swap(self, context)

    def check_images(self, there: ImageCounts, place: str = "") -> None:
        check_few(there.held_out, FEWEST, WHY)

    def description(self, run: EvaluatedRun) -> str:
        return (
            f"Exchanged images: at most {number(self.pairs)} held-out images are generated under their own captions "
            "and the vector, the patches, both or none of the next one, the donor, "
            f"{self.sampling(run)}, from the same noise. Reported is the cosine with the donor of the image encoder's "
            "tokens at the same position (standardised over the training images), and of the same tokens less each "
            "picture's mean token (its layout), averaged over positions and pairs. References: the cosine with the "
            "original, with a third image, and of originals with their donors."
        )
