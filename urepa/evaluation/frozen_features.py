"""The settings that the evaluations of frozen features share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from urepa.core.declared_keys import COUNT, LARGEST, TAP, TIME, setting
from urepa.core.descriptions import EvaluatedRun, join_with_and, number
from urepa.core.evaluation_protocols import OF_HEADS, RANDOM, TEACHER, UNTRAINED, Metric, Reference


@dataclass
class FrozenFeatures:
    """Settings that `Knn` and `LinearProbe` share. They evaluate the tap, its head's output, the teacher's own tokens
    as upper reference and the model before any training as lower reference; if that has pretrained weights, a model
    with random weights too. A run without a teacher has only the tap and the lower references. The vectors are mean
    tokens (plain names) and attention-pooled tokens (`_attention`)."""

    tap: str = setting("the tap; its head's output, the teacher and the untrained model are evaluated too", is_a=TAP)
    timestep: int | float = setting(
        "time of the objective: a whole number for DDPM, in [0, 1] for a flow", ge=0, le=LARGEST, is_a=TIME
    )
    timesteps: list[int | float] = setting(
        "further times, as curves over t; []: none", ge=-LARGEST, le=LARGEST, is_a=TIME
    )
    train_images: int = setting("training images for fitting", ge=1, le=COUNT)
    test_images: int = setting("held-out images", ge=1, le=COUNT)

    def reading_text(self, run: EvaluatedRun, reader: str) -> str:
        """The sentence of `describe` on this evaluation."""
        read = f"the tap {self.tap}" + (" and its head, below the teacher's own tokens" if run.is_aligned else "")
        return (
            f"A {reader} of {read} and above the model before training, mean- and attention-pooled, at "
            f"{times_text(self.timestep, self.timesteps)} under the null condition: fitted to "
            f"{number(self.train_images)} training images at most and read on {number(self.test_images)} held-out ones "
            "at most."
        )


def times_text(timestep: float, timesteps: list[int | float]) -> str:
    """The times in words: t = 500, or t = 50, 200 and 500."""
    return f"t = {join_with_and(list(map(str, sorted({timestep, *timesteps}))))}"


def reading_metrics(reader: str, title: str, place: int) -> Iterator[Metric]:
    """The columns of an evaluation, with those of the teacher's tokens and of the models before training."""
    for what in ("tap", "head"):
        for pooling in ("", "_attention"):
            for top, rank in (("", ""), ("_top5", ", top 5")):
                vectors = f"{pooling}{top}"
                yield Metric(
                    f"final/{reader}/{what}{vectors}",
                    f"{title}: {what}{', attention' * bool(pooling)}{rank}",
                    "↑",
                    place=place,
                    trained_by=OF_HEADS if what == "head" else (),
                    beside=(
                        Reference(f"final/{reader}/teacher{vectors}", TEACHER),
                        Reference(f"final/{reader}/untrained_{what}{vectors}", UNTRAINED),
                        Reference(f"final/{reader}/random_{what}{vectors}", RANDOM),
                    ),
                )
