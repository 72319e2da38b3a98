"""The declaration of the evaluation of what a backbone's cross-attention attends to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from urepa.core.declared_keys import COUNT, LARGEST, TIME, setting
from urepa.core.descriptions import EvaluatedRun, join_with_and, number
from urepa.core.evaluation_protocols import Metric, Picture, Reference

if TYPE_CHECKING:
    from urepa.evaluation.context import Context


PICTURE = Picture(
    "evaluation/attention_mass_step_{step}.png",
    "Attention to the parts of the condition",
    "A panel for each part of the condition has the share of the cross-attention that goes to it, by block, with a "
    "line for each time.",
)


@dataclass
class AttentionMass:
    """The share of cross-attention that goes to each part of the condition: the caption, the image encoder's vector,
    and its patches. Columns have the means over blocks and times; the values of each are in `..._by_t` and in a figure.
    The reference is a part's share of the tokens that are attended to."""

    _target_: str = "urepa.evaluation.measures.attention_mass.AttentionMass"
    images: int = setting("number of held-out images, at most", ge=1, le=COUNT)
    timesteps: list[int | float] = setting("times of the objective", ge=-LARGEST, le=LARGEST, is_a=TIME)
    pictures: ClassVar[tuple[Picture, ...]] = (PICTURE,)
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric(
            "final/attention_mass/{}",
            "attention to {}",
            place=69,
            beside=(Reference("final/attention_mass_uniform/{}", label="{}'s share of the attended tokens"),),
        ),
    )

    def __call__(self, context: Context) -> dict[str, float]:
        from urepa.evaluation.measures.attention_mass_math import measure_mass

        return measure_mass(self, context)

    def description(self, run: EvaluatedRun) -> str:
        times = join_with_and([number(t) for t in self.timesteps])
        return (
            "Attention: the share of each block's cross-attention that goes to the caption, to the image encoder's "
            f"vector and to its patches, averaged over heads and queries, for at most {number(self.images)} held-out "
            f"images under their own conditions at t = {times}. The reference is uniform attention."
        )
