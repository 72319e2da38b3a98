"""The declaration of the evaluation of images under another image's caption."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from urepa.core.declared_keys import COUNT, SIZE, setting
from urepa.core.descriptions import EvaluatedRun, number
from urepa.core.evaluation_protocols import ImageCounts, Metric, Picture, Reference
from urepa.evaluation.conditioned_settings import Conditioned, check_few

if TYPE_CHECKING:
    from urepa.evaluation.context import Context

FEWEST, WHY = 2, "because captions are exchanged"
PICTURE = Picture(
    "samples/caption_change_{step}.png",
    "Images under another image's caption",
    "A column is a held-out image. Rows: the original; the image under its own caption, vector and patches, the same "
    "from another noise, and the same under another image's caption; the original with that caption; and the image "
    "under that caption alone.",
)


def _change(what: str, words: str) -> Metric:
    """A column with the same difference of two images of different noise."""
    key = f"final/caption_change_{what}"
    again = Reference(f"{key}_noise", label=f"{words} of another noise in place of another caption")
    return Metric(key, f"{words} of another caption", place=68, beside=(again,))


@dataclass
class CaptionChange(Conditioned):
    """How much an image changes if another image's caption replaces its own, with its vector and patches as they were.
    Where the images have classes, also how often the class of the caption is the nearest one: of the classes' mean
    vectors of training images, the nearest to the generated image's. This measures only coarsely whether the
    text is followed: the features are those of a condition, and the captions must differ between the classes.
    References: another noise, and real images. A picture has all of them."""

    _target_: str = "urepa.evaluation.measures.caption_change.CaptionChange"
    images: int = setting("number of held-out images, at most", ge=FEWEST, le=COUNT)
    shown: int = setting("number of images in the picture", ge=1, le=SIZE)
    train_images: int = setting("training images of the classes' means, at most", ge=1, le=COUNT)
    pictures: ClassVar[tuple[Picture, ...]] = (PICTURE,)
    metrics: ClassVar[tuple[Metric, ...]] = (
        _change("tokens", "token distance"),
        _change("pixels", "pixel error"),
        Metric(
            "final/caption_named/{}",
            "images nearest to their caption's class ({})",
            "↑",
            place=69,
            beside=(
                Reference("final/caption_named_real", label="real images nearest to their class"),
                Reference("final/caption_named_chance", label="the same by chance"),
            ),
        ),
    )

    def __call__(self, context: Context) -> dict[str, float]:
        from urepa.evaluation.measures.caption_change_math import change_captions

        return change_captions(self, context)

    def check_images(self, there: ImageCounts, place: str = "") -> None:
        check_few(there.held_out, FEWEST, WHY)

    def description(self, run: EvaluatedRun) -> str:
        return (
            f"Exchanged captions: at most {number(self.images)} held-out images are generated under their own vectors "
            "and patches and another image's caption (of another class, where there are several), "
            f"{self.sampling(run)}, from the same noise as under their own captions. Reported is how far both differ, "
            "in the image encoder's tokens and in colours, and as reference how far two images under their own "
            "captions differ whose noises do. With several classes also the share of images whose vector is nearest to "
            f"the mean of their caption's class over at most {number(self.train_images)} training images: under their "
            "own image and caption (own), under another caption (exchanged), and under that caption alone (text). "
            "This is not a comparison of image and text, for which there is no network here."
        )
