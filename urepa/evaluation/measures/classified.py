"""The declaration of a check that generated images show the class of their condition."""

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
    """A column with a share and references to the ends of its interval."""
    key = f"final/classified/{what}"
    low, high = (Reference(f"{key}_{end}", label=f"{end} {BOUNDS} {label}") for end in ("low", "high"))
    return Metric(key, label, better, place=75, beside=(low, high, *more))


@dataclass
class Classified:
    """The share of generated images that a classifier of real images assigns to the class of their condition, and the
    same share for images from the same noises with the condition withheld."""

    _target_: str = "urepa.evaluation.measures.classified.Classified"
    images: Any = part("the generated images; the class of each is that of its caption's image")
    classifier: Any = part("the classifier, a file of `python -m urepa.train_classifier`")
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
