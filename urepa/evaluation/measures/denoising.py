"""The declaration of the evaluation of denoised images at given shares of noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from urepa.core.declared_keys import COUNT, LARGEST, TINY, setting
from urepa.core.descriptions import EvaluatedRun, join_with_and, number
from urepa.core.evaluation_protocols import Metric, Reference

if TYPE_CHECKING:
    from urepa.evaluation.context import Context


@dataclass
class Denoising:
    """The mean squared error of the x0 that predictions imply, at the same noise-to-signal ratios σ/α for every
    objective, with every sample's own condition. x0 + (σ/α)·ε is then the same problem under every objective, so the
    values of different objectives on the same x0 are comparable. `val/x0_error` is a mean over the objective's own
    times: under ε-prediction the few times with almost no signal outweigh all others in it. The reference is the error
    of the mean x0."""

    _target_: str = "urepa.evaluation.measures.denoising.Denoising"
    ratios: list[float] = setting("noise-to-signal ratios σ/α", ge=TINY, le=LARGEST)
    images: int = setting("number of held-out images, at most", ge=1, le=COUNT)
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric(
            "final/x0_error",
            "x0 error at given noise",
            "↓",
            place=55,
            beside=(Reference("final/floor/x0_error", "the mean x0"),),
        ),
        Metric("final/x0_error/{}", "x0 error at σ/α = {}", "↓", place=56),
    )

    def __call__(self, context: Context) -> dict[str, float]:
        from urepa.evaluation.measures.denoising_math import denoise

        return denoise(self, context)

    def description(self, run: EvaluatedRun) -> str:
        ratios = join_with_and([number(ratio) for ratio in self.ratios])
        return (
            f"Denoising: the mean squared error of the implied x0 of at most {number(self.images)} held-out images at "
            f"noise-to-signal ratios of {ratios}, with the images' own conditions, and the mean over these ratios."
        )
