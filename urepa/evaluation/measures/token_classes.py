"""The declaration of the evaluation that measures how well an image's first tokens separate the classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from urepa.core.declared_keys import COUNT, setting
from urepa.core.descriptions import EvaluatedRun, number
from urepa.core.evaluation_protocols import UNTRAINED, ImageCounts, Metric, Reference
from urepa.evaluation.image_counts import refuse_one_class

if TYPE_CHECKING:
    from urepa.evaluation.context import Context

BOUNDS = "end of the 95 % interval of the linear probe of the first {} tokens"


@dataclass
class TokenClasses:
    """The silhouette of the first tokens by class and a linear probe of them, for powers of two up to all tokens."""

    _target_: str = "urepa.evaluation.measures.token_classes.TokenClasses"
    train_images: int = setting("number of training images to fit the probe to", ge=1, le=COUNT)
    test_images: int = setting("number of held-out images, at most", ge=1, le=COUNT)
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric(
            "final/token_silhouette/{}",
            "silhouette of the first {} tokens",
            "↑",
            place=67,
            beside=(Reference("final/untrained_token_silhouette/{}", UNTRAINED),),
        ),
        Metric(
            "final/token_probe/{}",
            "linear probe of the first {} tokens",
            "↑",
            place=68,
            beside=(
                Reference("final/untrained_token_probe/{}", UNTRAINED),
                Reference("final/token_probe_low/{}", label=f"low {BOUNDS}"),
                Reference("final/token_probe_high/{}", label=f"high {BOUNDS}"),
                Reference("final/token_probe_chance", label="accuracy of always answering the most frequent class"),
            ),
        ),
    )

    def __call__(self, context: Context) -> dict[str, float]:
        from urepa.evaluation.measures.token_classes_math import classes_of_tokens

        return classes_of_tokens(self, context)

    def check_images(self, there: ImageCounts, place: str = "") -> None:
        refuse_one_class(there)

    def description(self, run: EvaluatedRun) -> str:
        return (
            f"Classes of tokens: the values of an image's first 1, 2, 4, ... and all tokens, joined. Reported are "
            f"their mean silhouette by class over at most {number(self.test_images)} held-out images, and the accuracy "
            f"on these of a linear probe (logistic regression, C = 0.1, on standardised values) fitted to "
            f"{number(self.train_images)} training images, with Wilson's 95 % interval. References: the run's encoder "
            "before training, and always answering the most frequent class of the training images."
        )
