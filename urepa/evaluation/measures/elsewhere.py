"""The declaration of an evaluation on the data of another run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from urepa.core.declared_keys import part, setting
from urepa.core.descriptions import EvaluatedRun
from urepa.core.errors import UserError
from urepa.core.evaluation_protocols import UNTRAINED, Metric, Nested, Reference, evaluation_description

if TYPE_CHECKING:
    from urepa.data.bucketed_cache import Caches
    from urepa.evaluation.context import Context

LABEL = "elsewhere: "


@dataclass
class Elsewhere:
    """The diffusion loss on the validation images of another run, and other evaluations on its data."""

    _target_: str = "urepa.evaluation.measures.elsewhere.Elsewhere"
    run: str | None = setting("the run whose data are used, outputs/NAME/seed0; its caches must exist")
    evaluations: dict[str, Any] = part(
        "evaluations on these data, by name: evaluation@evaluation.elsewhere.evaluations=[NAME,...]"
    )
    nested: ClassVar[Nested] = Nested("elsewhere_", LABEL)
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric(
            "final/elsewhere_diffusion",
            f"{LABEL}diffusion loss",
            "↓",
            rests_on=("objective",),  # which says what is predicted and at which times
            place=74,
            beside=(
                Reference("final/elsewhere_untrained_diffusion", UNTRAINED),  # before the fine-tuning: of the base
                Reference("floor/elsewhere_zero_predictor", label=f"{LABEL}diffusion loss of predicting zero"),
            ),
        ),
    )

    def __call__(self, context: Context) -> dict[str, float]:
        from urepa.evaluation.measures.elsewhere_math import evaluate_elsewhere

        return evaluate_elsewhere(self, context)

    def check_run(self, config: dict[str, Any], place: str) -> None:
        """Raises UserError if the other run does not exist, has no caches, or has data that do not fit the model of a
        run with this config."""
        from urepa.evaluation.other_run import check_data, named_run, other_config

        for name, evaluation in self.evaluations.items():
            if hasattr(evaluation, "nested"):
                raise UserError(f"{place}evaluations.{name} is evaluated on the data of a run too: name it beside this")
        check_data(named_run(self.run, place), other_config(self.run, place), config)

    def check_opened(self, cache: Caches, place: str) -> None:
        """The same for the caches of both runs, and for the numbers of images that the evaluations need."""
        from urepa.evaluation.measures.elsewhere_math import check_caches

        check_caches(self, cache, place)

    def description(self, run: EvaluatedRun) -> str:
        texts = [evaluation_description(one, replace(run, is_aligned=False)) for one in self.evaluations.values()]
        also = "".join(f" On the same data: {text}" for text in texts if text is not None)
        return (
            f"On the data of {'another run' if self.run is None else f'the run {self.run}'}: the diffusion loss of its "
            "validation images, with noise and timesteps that depend on the image alone, and that of the model before "
            f"its training.{also}"
        )
