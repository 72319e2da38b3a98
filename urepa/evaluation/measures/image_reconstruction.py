"""The declaration of reconstructions of images from their own conditions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from urepa.core.declared_keys import COUNT, SIZE, part, setting
from urepa.core.descriptions import EvaluatedRun, encoder_text, join_with_and, number
from urepa.core.evaluation_protocols import BetterWith, ImageCounts, Metric, Picture, Reference
from urepa.evaluation.conditioned_settings import Conditioned, check_few
from urepa.evaluation.measures.generation import CIRCULAR, check_names

if TYPE_CHECKING:
    from urepa.evaluation.context import Context

TEXT_ALONE, OTHER = "images under the caption alone", "other real images"
ENCODERS = "evaluation.image_reconstruction.encoders"
PICTURE = Picture(
    "samples/image_reconstruction_{step}.png",
    "Images under their own captions and images",
    "A column is a held-out image. Rows: the original, the image that is generated under its caption, vector and "
    "patches, and the one under the caption alone, from the same noise.",
)


NEARER = BetterWith("reconstructions 10 % nearer than with the vector alone", "backbone.patches", 0.1)


def _distance(
    key: str,
    what: str,
    *,
    place: int,
    rests_on: tuple[str, ...] = (),
    circular: str = "",
    criteria: tuple[BetterWith, ...] = (),
) -> Metric:
    """A column with the same distance of images under the caption alone, and of other real images."""
    path = key.removesuffix("/{}")
    ending = key.removeprefix(path)
    beside = tuple(
        Reference(f"{path}_{kind}{ending}", label=f"{what} of {label}")
        for kind, label in (("text", TEXT_ALONE), ("other", OTHER))
    )
    return Metric(key, what, "↓", rests_on, place, beside, circular, criteria=criteria)


@dataclass
class ImageReconstruction(Conditioned):
    """The distances between held-out images and images that are generated under their own conditions: caption, vector
    and patches. Perceptual distances have the names of their encoders, and are not LPIPS, whose weights are learnt. The
    token distance is in the features of the image encoder that made the conditions. References: the same distances of
    images under the caption alone, and between two real images. A picture has the originals and both kinds."""

    _target_: str = "urepa.evaluation.measures.image_reconstruction.ImageReconstruction"
    images: int = setting("number of held-out images, at most", ge=2, le=COUNT)
    shown: int = setting("number of images in the picture", ge=1, le=SIZE)
    encoders: dict[str, Any] = part("the networks of the perceptual distances, by the names of their columns")
    pictures: ClassVar[tuple[Picture, ...]] = (PICTURE,)
    metrics: ClassVar[tuple[Metric, ...]] = (
        _distance(
            "final/image_distance",
            "distance of reconstructions, mean",
            place=64,
            rests_on=(ENCODERS,),
            criteria=(NEARER,),
        ),
        _distance("final/image_distance/{}", "distance of reconstructions({})", place=65, circular=CIRCULAR),
        _distance("final/image_pixel_error", "pixel error of reconstructions", place=66),
        _distance("final/image_token_distance", "token distance of reconstructions", place=66),
    )

    def __call__(self, context: Context) -> dict[str, float]:
        from urepa.evaluation.measures.image_reconstruction_math import reconstruct

        return reconstruct(self, context)

    def check_images(self, there: ImageCounts, place: str = "") -> None:
        """Checks the number of images, and that encoder names are valid in column names."""
        check_names(self.encoders)
        check_few(there.held_out, 2, "because images are also compared with other images")

    def description(self, run: EvaluatedRun) -> str:
        named = join_with_and([f"{name} ({encoder_text(encoder)})" for name, encoder in self.encoders.items()])
        return (
            f"Reconstruction: at most {number(self.images)} held-out images are generated under their own captions, "
            f"vectors and patches {self.sampling(run)}, from noise that depends on the image. Reported are, against "
            f"the original images, a perceptual distance for each of {named}: 1 less the cosine of features at the "
            "same position, averaged over positions and images, without learnt weights (it is not LPIPS), and the mean "
            "over these networks; the mean squared error of colours in [0, 1]; and the same distance of the tokens of "
            "the image encoder that made the conditions. References: images under the captions alone, and other "
            "originals in place of the generated images."
        )
