"""The declaration of a check that generated images show what they were asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from urepa.core.declared_keys import part
from urepa.core.descriptions import EvaluatedRun, encoder_text
from urepa.core.evaluation_protocols import Metric, Reference

if TYPE_CHECKING:
    from urepa.evaluation.context import Context

BOUNDS = "end of the 95 % interval of"


def _share(what: str, label: str, better: str = "", *more: Reference) -> Metric:
    """A column of a share, with the ends of its interval beside it."""
    key = f"final/classified/{what}"
    low, high = (Reference(f"{key}_{end}", label=f"{end} {BOUNDS} {label}") for end in ("low", "high"))
    return Metric(key, label, better, place=75, beside=(low, high, *more))


@dataclass
class Classified:
    """The share of generated images to which a classifier of real images gives the class that was asked for, and the
    same share of images from the same noises with the condition withheld."""

    _target_: str = "urepa.evaluation.measures.classified.Classified"
    images: Any = part("which images are generated; their classes are those of their captions' images")
    classifier: Any = part("the classifier, as `python -m urepa.train_classifier` writes it")
    metrics: ClassVar[tuple[Metric, ...]] = (
        _share(
            "correct",
            "images classified correctly",
            "↑",
            Reference("final/classified/real", label="real test images classified correctly"),
            Reference("final/classified/prompts", label="different prompts of the classified images"),
            Reference("final/classified/prompts_trained_on", label="of these prompts, captions of training images"),
        ),
        _share("withheld", "the same with the condition withheld"),
    )

    def __call__(self, context: Context) -> dict[str, float]:
        from urepa.evaluation.measures.classified_math import classify

        return classify(self, context)

    def description(self, run: EvaluatedRun) -> str:
        return (
            f"Images classified correctly: {self.images.description(run)}, by {encoder_text(self.classifier)}, with "
            "Wilson's 95 % interval; and as many from the same noises with the condition withheld."
        )
