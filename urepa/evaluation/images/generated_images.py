"""The declaration of images that the run generates for its evaluations."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from urepa.core.declared_keys import INTERVAL, LARGEST, SAMPLER_STEPS, SIZE, setting
from urepa.core.descriptions import EvaluatedRun, number, sampling_text
from urepa.core.samplers import Sampler

if TYPE_CHECKING:
    from torch import Tensor

    from urepa.evaluation.context import Context


@dataclass
class GeneratedImages:
    """Images of all classes, in numbers as equal as possible."""

    _target_: str = "urepa.evaluation.images.generated_images.GeneratedImages"
    count: int = setting("number of images, divided equally among the classes", ge=2, le=SIZE)
    sampler: Sampler | None = setting("the sampler; null: the objective's usual one")
    steps: int = setting("of the sampler", ge=1, le=SIZE, is_a=SAMPLER_STEPS)
    guidance: float = setting("classifier-free guidance; 1: none", ge=0, le=LARGEST)
    interval: list[float] = setting(
        "interval of a flow's times (1 is noise) with guidance; for other objectives [0, 1]",
        [0.0, 1.0],
        ge=0,
        le=1,
        is_a=INTERVAL,
    )
    batch_size: int = setting("images that are computed and stored together; the size changes rounding", ge=1, le=SIZE)
    captions_of: ClassVar[str] = "val"  # the split whose captions are the prompts of a run that was trained on captions

    def rgb(self, context: Context, withheld: bool = False) -> Iterator[tuple[list[int], Tensor]]:
        """Class ids and RGB [B,3,S,S] in multiples of 1/255, batch by batch. Missing images are generated first.

        Args:
            withheld: the same noises under the null condition.
        """
        from urepa.evaluation.images.generated_images_math import rgb_batches

        return rgb_batches(self, context, withheld)

    def sampler_name(self) -> str | None:
        """The sampler's name; None: the objective's usual sampler."""
        return None if self.sampler is None else str(self.sampler)

    def description(self, run: EvaluatedRun) -> str:
        how = sampling_text(run, self.sampler_name(), self.steps, self.guidance)
        low, high = self.interval
        at = "" if (low, high) == (0, 1) else f" for t from {number(low)} to {number(high)}"
        return f"{number(self.count)} by {how}{at}"
