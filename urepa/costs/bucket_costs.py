"""The costs of a step in each bucket and over all buckets: the mean of the FLOPs, and the memory of the bucket that
needs most."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from urepa.costs.counting import StepCount


@dataclass(frozen=True)
class BucketCost:
    """The costs of a step in a bucket; a track without buckets is one with an empty name. FLOPs and bytes are those of
    a micro-batch."""

    latent_shape: tuple[int, int, int]  # of x0, [C,H,W]
    image_shape: tuple[int, int]  # rows and columns in pixels
    samples: Mapping[str, int] | None  # by split; None: not known yet
    step: StepCount
    forward_per_sample: int  # of a whole forward pass, as validation makes it
    taps: dict[str, tuple[int, int, int]]  # rows, columns and width of a tap's tokens
    grids: dict[str, tuple[int, int]]  # of each teacher's tokens

    def steps_an_epoch(self, batch_size: int) -> int | None:
        """The number of whole batches; None: not known yet."""
        return None if self.samples is None else self.samples["train"] // batch_size

    def as_dict(self, batch_size: int) -> dict[str, Any]:
        """For JSON."""
        return {
            "latent_shape": list(self.latent_shape),
            "samples": None if self.samples is None else dict(self.samples),
            "steps_an_epoch": self.steps_an_epoch(batch_size),
            "flops": {"forward": self.step.forward, "backward": self.step.backward},
            "step_peak_bytes": self.step.peak,
            "grids": {name: list(grid) for name, grid in self.grids.items()},
        }


def is_weighted(buckets: Mapping[str, BucketCost]) -> bool:
    """Whether the number of samples of each bucket is known; otherwise means are unweighted."""
    return all(bucket.samples is not None for bucket in buckets.values())


def largest(buckets: Mapping[str, BucketCost]) -> str:
    """The name of the bucket whose step needs most memory."""
    return max(buckets, key=lambda name: buckets[name].step.peak)


def mean_step(buckets: Mapping[str, BucketCost], batch_size: int) -> StepCount:
    """The mean FLOPs of a step, by the buckets' steps an epoch; bytes of the step that needs most."""
    steps = [bucket.step for bucket in buckets.values()]
    if len(steps) == 1:
        return steps[0]
    weights = [bucket.steps_an_epoch(batch_size) for bucket in buckets.values()]
    most = buckets[largest(buckets)].step
    forward, backward = ([getattr(step, way) for step in steps] for way in ("forward", "backward"))
    return StepCount(_means(forward, weights), _means(backward, weights), most.saved, most.peak)


def mean_forward(buckets: Mapping[str, BucketCost]) -> int:
    """The mean FLOPs of a validation image, by the buckets' validation images."""
    weights = [None if bucket.samples is None else bucket.samples["val"] for bucket in buckets.values()]
    return mean_of([bucket.forward_per_sample for bucket in buckets.values()], weights)


def mean_of(values: Sequence[int], weights: Sequence[int | None]) -> int:
    """The weighted mean, rounded to a whole number; unweighted if a weight is None."""
    known = [weight for weight in weights if weight is not None]
    used = known if len(known) == len(weights) else [1] * len(weights)
    total = sum(used)
    return (2 * sum(value * weight for value, weight in zip(values, used, strict=True)) + total) // (2 * total)


def _means(steps: Sequence[dict[str, int]], weights: Sequence[int | None]) -> dict[str, int]:
    """The mean of each part; a part that a step does not have counts as 0."""
    parts: Iterable[str] = dict.fromkeys(part for step in steps for part in step)
    return {part: mean_of([step.get(part, 0) for step in steps], weights) for part in parts}
