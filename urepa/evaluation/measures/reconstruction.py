"""The declaration of the evaluation that decodes images from their first tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from urepa.core.declared_keys import COUNT, LARGEST, SAMPLER_STEPS, SIZE, part, setting
from urepa.core.descriptions import EvaluatedRun, encoder_text, join_with_and, number
from urepa.core.evaluation_protocols import ImageCounts, Metric, Picture
from urepa.evaluation.measures.generation import CIRCULAR, check_names

if TYPE_CHECKING:
    from urepa.evaluation.context import Context


PICTURE = Picture(
    "samples/reconstructions_{step}.png",
    "Images decoded from their first tokens",
    "A row is a held-out image. Columns: the image decoded from its first 1, 2, 4, ... tokens, and the original.",
)


@dataclass
class Reconstruction:
    """The errors of images decoded from their first tokens, for powers of two up to all tokens. References: images
    decoded from all tokens of another image, and without tokens. A picture has a row for each image and a column for
    each number of tokens. With encoders also distances between reconstructions and their images in features."""

    _target_: str = "urepa.evaluation.measures.reconstruction.Reconstruction"
    images: int = setting("number of held-out images, at most", ge=2, le=COUNT)
    shown: int = setting("number of images in the picture", ge=1, le=SIZE)
    steps: int = setting("steps of the Euler sampler", ge=1, le=SIZE, is_a=SAMPLER_STEPS)
    encoders: dict[str, Any] = part("the encoders of the distances, by the names of their columns; {}: none")
    guidance: float = setting("scale of classifier-free guidance; 1: no guidance", ge=0, le=LARGEST)
    pictures: ClassVar[tuple[Picture, ...]] = (PICTURE,)
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("final/reconstruction_psnr/{}", "PSNR from {} tokens", "↑", place=60),
        Metric("final/reconstruction_mse/{}", "error from {} tokens", "↓", place=61),
        Metric("final/reconstruction_mse_other", "error from another image's tokens", place=62),
        Metric("final/reconstruction_mse_null", "error without tokens", place=62),
        # the name is that of the encoder and the number of tokens, as in pixels_4
        Metric("final/reconstruction_distance/{}", "distance to the image ({})", "↓", place=62, circular=CIRCULAR),
        Metric("final/reconstruction_distance_other/{}", "distance from another image's tokens ({})", place=62),
        Metric("final/reconstruction_fd/{}", "FD of reconstructions ({})", "↓", place=63, circular=CIRCULAR),
    )

    def __call__(self, context: Context) -> dict[str, float]:
        from urepa.evaluation.measures.reconstruction_math import reconstruct

        return reconstruct(self, context)

    def check_images(self, there: ImageCounts, place: str = "") -> None:
        """Checks that encoder names are valid in column names."""
        check_names(self.encoders)

    def description(self, run: EvaluatedRun) -> str:
        guided = "without guidance" if self.guidance == 1 else f"at guidance {number(self.guidance)}"
        named = join_with_and([f"{name} ({encoder_text(encoder)})" for name, encoder in self.encoders.items()])
        distances = (
            " For each number of tokens, reconstructions and their images are compared by the features of "
            f"{named}: 1 − the cosine of the tokens at the same position, averaged over positions and images, and the "
            "Fréchet distance."
            if named
            else ""
        )
        return (
            f"Reconstruction: at most {number(self.images)} held-out images are decoded from their first 1, 2, 4, ... "
            f"and all tokens with the Euler sampler in {self.steps} steps {guided}, from noise that depends on the "
            "image. Reported are the mean squared error of colours in [0, 1] and its PSNR, averaged over the images. "
            f"References: all tokens of another image, and the null condition.{distances}"
        )
