"""Which settings of the alignment loss go together, and which batches its levels can be computed on, without torch."""

from __future__ import annotations

from collections.abc import Mapping

from urepa.core.errors import UserError


def check_loss(
    lambda_max: float,
    manifold_weight: float,
    taps: Mapping[str, float],
    diffusion_fraction: float,
    stop_step: int | None,
    time_power: float,
) -> None:
    """UserError where weights are none, or a setting takes away what another one needs."""
    if not taps or sum(taps.values()) <= 0 or min(taps.values()) < 0:
        raise UserError("loss.taps: give at least one tap, and weights that are 0 or more and not all 0")
    if lambda_max < 0 or manifold_weight < 0:
        raise UserError("loss.lambda_max and loss.manifold_weight are 0 or more")
    if stop_step is not None and diffusion_fraction < 1:
        raise UserError("loss.stop_step leaves the diffusion term alone: give loss.diffusion_fraction=1")
    if time_power > 0 and manifold_weight > 0:
        raise UserError(
            "loss.time_power weighs each sample by its time, and the manifold term is one number for samples of "
            "many times: give loss.manifold_weight=0 with it"
        )


def check_layout(level: str, smallest_group: int, accumulation: int) -> None:
    """The sample-level manifold compares the global batch: it must be there at once, and hold 2. UserError otherwise.
    `smallest_group`: samples in the smaller of a training and a validation batch."""
    if level == "token":
        return
    if smallest_group < 2:
        raise UserError(
            f"loss.level={level} compares samples with each other, but a batch has {smallest_group}; "
            "give trainer.batch_size and trainer.validation_group of 2 or more, or loss.level=token"
        )
    if accumulation > 1:
        raise UserError(
            f"loss.level={level} compares all samples of a batch, which trainer.accumulation="
            f"{accumulation} never holds at once; give trainer.accumulation=1 or loss.level=token"
        )
