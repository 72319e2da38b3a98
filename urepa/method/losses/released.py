"""REPA's loss whose alignment is released during training: sample by sample, and by a curriculum over times.

Two settings, each alone or with the other. `release_cosine`: a sample whose projected tokens are as similar to the
teacher's as this, in the mean over its tokens, gets no alignment gradient at this update. `time_power_end`: the
exponent of a sample's weight by its time, (1 − s)^power with mean 1, moves from `time_power` at the warm-up's end to
this at the run's end, so that later in training times near the data keep the alignment and noisy ones are released.
That alignment helps early and hinders later is HASTE's finding (arXiv 2505.16792, abstract read), which ends it for all
samples at once. A publication named RARE releases it for each sample, as far as is known from memory; it was not found,
so nothing here is its equation or setting. A release of single tokens is the term `marginal_cosine`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from urepa.core.comparability import TOTAL
from urepa.core.declared_keys import LARGEST, setting
from urepa.core.descriptions import Formula, number
from urepa.core.errors import UserError
from urepa.core.protocols import Schedule
from urepa.method.losses.urepa_loss import URepaLoss

if TYPE_CHECKING:
    from urepa.method.losses.released_math import ReleasedLoss


@dataclass
class Released(URepaLoss):
    """REPA's and U-REPA's loss, in which samples that are similar to the teacher, or noisy ones late in training, are
    not aligned."""

    _target_: str = "urepa.method.losses.released.Released"
    release_cosine: float | None = setting(
        "a sample with this mean cosine to the teacher's tokens, or more, is not aligned; null: all are",
        None,
        ge=-1,
        le=1,
        alters=(TOTAL,),
    )
    time_power_end: float | None = setting(
        "loss.time_power at the end of the run, to which it moves linearly from the warm-up's end; null: it stays",
        None,
        ge=0,
        le=LARGEST,
        alters=(TOTAL,),
    )

    def check(self) -> None:
        super().check()
        if self.release_cosine is None and self.time_power_end is None:
            raise UserError(
                "this loss releases nothing: give loss.release_cosine or loss.time_power_end, or choose the loss "
                "without them, loss=repa_early"
            )
        if self.manifold_weight > 0:
            raise UserError(
                "loss.release_cosine and loss.time_power_end weigh single samples, and the manifold term is one number "
                "for many: give loss.manifold_weight=0 with them"
            )

    def build(self, *, schedule: Schedule, max_steps: int) -> ReleasedLoss:
        from urepa.method.losses.released_math import ReleasedLoss

        self.check()
        self.check_schedule(schedule, max_steps)
        math = schedule.build(warmup_steps=self.warmup_steps, max_steps=max_steps)
        return ReleasedLoss(self, math, max_steps)

    def description(self, *, schedule: Schedule, max_steps: int) -> list[str | Formula]:
        # a constant exponent is described there, one that moves below
        fixed = self if self.time_power_end is None else replace(self, time_power=0.0)
        blocks = super(Released, fixed).description(schedule=schedule, max_steps=max_steps)
        if self.release_cosine is not None:
            blocks.append(
                f"A sample whose tokens have a mean cosine of {number(self.release_cosine)} or more with the teacher's "
                "has no alignment term in the loss; the token loss that is reported includes it."
            )
        if self.time_power_end is not None:
            blocks += [
                "In the loss, though not in the token loss that is reported, λ is multiplied for each sample by g(t), "
                "whose exponent moves linearly over the updates after the warm-up, up to the last one; α and σ are the "
                "shares of x0 and noise in x_t, and E the mean over the times that are trained at:",
                Formula(
                    r"g(t) = u(t)^{q} / \operatorname{E}[u(t)^{q}], \qquad u(t) = \frac{\alpha(t)}{\alpha(t) + "
                    rf"\sigma(t)}}, \qquad q: {number(self.time_power)} \to {number(self.time_power_end)}"
                ),
            ]
        return blocks
