"""The declaration of the evaluation of images under captions alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from urepa.core.declared_keys import SIZE, setting
from urepa.core.descriptions import EvaluatedRun, number
from urepa.core.evaluation_protocols import ImageCounts, Metric, Picture, Reference
from urepa.evaluation.conditioned_settings import Conditioned, check_few

if TYPE_CHECKING:
    from urepa.evaluation.context import Context

FEWEST, WHY = 2, "because real images are compared with each other"
PICTURE = Picture(
    "samples/text_only_{step}.png",
    "Images of one caption",
    "A column is a held-out image. Rows: the original; images under its caption alone (text), and under its caption, "
    "vector and patches (both), a row for each noise.",
)


def _diversity(what: str, words: str) -> Metric:
    """A column by condition, with the same distance of different real images."""
    real = Reference(f"final/diversity_{what}_real", label=f"{words} of different real images")
    return Metric(f"final/diversity_{what}/{{}}", f"{words} of one condition's images ({{}})", place=68, beside=(real,))


@dataclass
class TextOnly(Conditioned):
    """How different the images of one caption are, from several noises: under the caption alone, and with an image's
    vector and patches. Reported is the distance between two of them, in the image encoder's tokens and in their layout
    (the tokens less each picture's mean token). A model that takes the layout from the patches has a small distance
    with them; one whose layouts vary with the noise has a large one without. The reference is the distance of real
    images. A picture has both kinds."""

    _target_: str = "urepa.evaluation.measures.text_only.TextOnly"
    captions: int = setting("number of held-out images whose captions are used, at most", ge=FEWEST, le=SIZE)
    variants: int = setting("images of each caption", ge=2, le=SIZE)
    pictures: ClassVar[tuple[Picture, ...]] = (PICTURE,)
    metrics: ClassVar[tuple[Metric, ...]] = (
        _diversity("layout", "layout distance"),
        _diversity("tokens", "token distance"),
    )

    def __call__(self, context: Context) -> dict[str, float]:
        from urepa.evaluation.measures.text_only_math import measure_diversity

        return measure_diversity(self, context)

    def check_images(self, there: ImageCounts, place: str = "") -> None:
        check_few(there.held_out, FEWEST, WHY)

    def description(self, run: EvaluatedRun) -> str:
        return (
            f"Captions alone: {self.variants} images from different noises for each of at most "
            f"{number(self.captions)} held-out captions, {self.sampling(run)}, under the caption alone (text) and with "
            "its image's vector and patches (both). Reported is the mean distance between two images of a caption: 1 "
            "less the cosine of the image encoder's tokens at the same position, and of these tokens less each "
            "picture's mean token (the layout). The reference is the distance between different originals."
        )
