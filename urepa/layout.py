"""Which batches a level of the manifold loss can be computed on, without torch."""

from __future__ import annotations

from urepa.errors import UserError


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
