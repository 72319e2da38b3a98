"""The subject of a description: a composed config, the parts that can be built without weights, and the counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from urepa.config.declared import declaration_of
from urepa.costs.estimate import Plan
from urepa.data.stores.bucket_views import bucket_views
from urepa.training.assembly import build_part


@dataclass(frozen=True)
class Subject:
    """The subject of a description. `teacher` is None if the loss has no tap, as in training."""

    config: dict[str, Any]
    planned: Plan
    loss: Any
    objective: Any
    track: Any
    teacher: Any | None

    def trainable(self) -> int:
        return sum(n["trainable"] for n in self.planned.counted.parameters.values())

    def steps_an_epoch(self) -> int:
        """Updates per epoch: whole batches, each of one bucket; incomplete batches are dropped."""
        size = self.planned.settings.batch_size
        steps = [bucket.steps_an_epoch(size) for bucket in self.planned.counted.buckets.values()]
        known = [n for n in steps if n is not None]
        return sum(known) if len(known) == len(steps) else self.planned.counted.samples["train"] // size

    def has_rectangles(self) -> bool:
        """Whether images are not square or have several shapes."""
        shapes = [bucket.image_shape for bucket in self.planned.counted.buckets.values()]
        return len(shapes) > 1 or any(height != width for height, width in shapes)

    def latent_shapes(self) -> tuple[tuple[int, int, int], ...]:
        """The shapes (C, H, W) of x0, if it has several; else empty."""
        shapes = tuple(view.latent_shape for view in bucket_views(self.track).values())
        return shapes if len(shapes) > 1 else ()


def subject_of(config: dict[str, Any], planned: Plan) -> Subject:
    """Builds the parts of a config whose costs are known."""
    loss, objective, track = declaration_of(config["loss"]), build_part(config["objective"]), build_part(config["data"])
    return Subject(config, planned, loss, objective, track, build_part(config["teacher"]) if loss.taps else None)
