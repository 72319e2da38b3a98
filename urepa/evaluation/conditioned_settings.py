"""Settings of evaluations that generate images under a caption and an image, without torch."""

from __future__ import annotations

from dataclasses import dataclass

from urepa.core.declared_keys import LARGEST, SAMPLER_STEPS, SIZE, setting
from urepa.core.descriptions import EvaluatedRun, number, sampling_text
from urepa.core.errors import UserError


@dataclass
class Conditioned:
    """Base class for declarations of evaluations that have these keys."""

    _target_: str = "urepa.evaluation.conditioned_settings.Conditioned"
    steps: int = setting("steps of the objective's usual sampler", ge=1, le=SIZE, is_a=SAMPLER_STEPS)
    guidance_text: float | None = setting("scale of guidance by the caption; null: no guidance by it", ge=0, le=LARGEST)
    guidance_image: float | None = setting(
        "scale of guidance by the image, its vector and patches together; null: no guidance by it", ge=0, le=LARGEST
    )

    @property
    def scales(self) -> dict[str, float]:
        """The scale of each part that is guided. A part without one is given in every pass."""
        known = {"text": self.guidance_text, "image": self.guidance_image}
        return {part: scale for part, scale in known.items() if scale is not None}

    def sampling(self, run: EvaluatedRun) -> str:
        """How images are generated, as a clause: "by Euler in 25 steps without guidance"."""
        how = sampling_text(run, None, self.steps, 1)
        guided = " and ".join(f"{number(scale)} by the {part}" for part, scale in self.scales.items())
        return f"by {how.replace('without guidance', f'with guidance of {guided}') if guided else how}"


def check_few(images: int, fewest: int, why: str) -> None:
    """Raises UserError if there are fewer held-out images than an evaluation needs."""
    if images < fewest:
        raise UserError(f"there are {images} held-out images and it needs {fewest}, {why}; give a track with more")
