"""The declaration of the evaluation that counts the codes a tokenizer uses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from urepa.core.declared_keys import COUNT, setting
from urepa.core.descriptions import EvaluatedRun, number
from urepa.core.evaluation_protocols import Metric

if TYPE_CHECKING:
    from urepa.evaluation.context import Context


@dataclass
class CodeUsage:
    """The share of all codes that occur in held-out images, and at some positions of the sequence the number of
    different codes and their perplexity."""

    _target_: str = "urepa.evaluation.measures.code_usage.CodeUsage"
    images: int = setting("number of held-out images, at most", ge=1, le=COUNT)
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("final/codes_used", "share of the codes used", "↑", place=64),
        Metric("final/codes_used_at/{}", "different codes at token {}", "↑", place=65),
        Metric("final/code_perplexity/{}", "perplexity at token {}", "↑", place=66),
    )

    def __call__(self, context: Context) -> dict[str, float]:
        from urepa.evaluation.measures.code_usage_math import use_of_codes

        return use_of_codes(self, context)

    def description(self, run: EvaluatedRun) -> str:
        return (
            f"Codes, over at most {number(self.images)} held-out images: the share of all codes that occur, and at the "
            "1st, 2nd, 4th, ... and last token the number of different codes and their perplexity, which is the "
            "exponential of the entropy of their frequencies and at most the number of images."
        )
