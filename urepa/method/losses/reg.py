"""REG: REPA's loss, and the diffusion term of a class token of the teacher that the backbone denoises with the image.

Wu, Zhang, Shi, Gao, Chen, Wang, Chen, Gao, Tang, Yang, Cheng, Li 2025, "Representation Entanglement for Generation",
arXiv 2507.01467. With z the latent, c the teacher's class token, noises ε_z and ε_c that are drawn apart and one time
t, z_t = α_t·z + σ_t·ε_z and c_t = α_t·c + σ_t·ε_c; c_t passes a linear layer and is one more token of the SiT.
L = E[‖v_θ(z_t, t) − (α̇·z + σ̇·ε_z)‖² + β·‖v_θ(c_t, t) − (α̇·c + σ̇·ε_c)‖²] + λ·L_REPA; here each norm is the mean over
its values. Sampling denoises both from noise. Read: the abstract; these equations in a summary of the paper
(themoonlight.io) and not in the paper itself; the README of the published code (Martinser/REG), whose code was not at
hand; its loss, layers and sampler in code by others that derives from it.
Published setting (README): SiT-B/2, DINOv2-B, λ = 0.5 at the 4th block (8th of L and XL), β = 0.03 (`--cls=0.03`).
Reported (abstract and README): SiT-XL/2 on ImageNet-256 trains 63 times faster than SiT and 23 times faster than REPA;
SiT-L/2 at 400,000 updates is better than REPA's SiT-XL/2 at 4 million; FID 1.36; less than 0.5 % more FLOPs.

What differs: c is the pooled vector of the teacher's tokens, standardised over its values, in place of DINOv2's own
class token, as caches hold patch tokens alone; REPA's term compares the image's tokens alone, where the paper's also
compares the class token's state with c, as one more token of the mean (heads with convolutions have no place for it).
Guidance is of both parts with one scale; the published sampler has another for the class token (`--cls-cfg-scale`).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from urepa.core.class_token_protocols import CLASS_TOKEN
from urepa.core.comparability import EVERY_TERM, TOTAL
from urepa.core.declared_keys import LARGEST, setting
from urepa.core.descriptions import Formula, number
from urepa.core.errors import UserError
from urepa.core.evaluation_protocols import Metric
from urepa.core.protocols import Schedule
from urepa.method.losses.urepa_loss import URepaLoss

if TYPE_CHECKING:
    from urepa.method.losses.reg_math import RegLoss


# of which a class token is made
OF_THE_CLASS_TOKEN = ("teacher", "data.token_dtype", "data.teacher_sees", "data.tae")


@dataclass
class Reg(URepaLoss):
    """L_diff + β·L_class + λ(step)·[L_token + w·L_manifold] (REG, arXiv 2507.01467), with a backbone that denoises the
    teacher's class token with the image (`backbone.class_token`)."""

    _target_: str = "urepa.method.losses.reg.Reg"
    class_weight: float = setting(
        "β: the weight of the class token's diffusion term", 0.03, ge=0, le=LARGEST, alters=(TOTAL,)
    )

    # the noised class token carries information about the image, so its denoising is another problem, as is the
    # alignment; it also depends on which teacher the token is of
    alters: ClassVar[tuple[str, ...]] = (EVERY_TERM,)
    terms_rest_on: ClassVar[tuple[str, ...]] = OF_THE_CLASS_TOKEN
    has_class_token: ClassVar[bool] = True
    metrics: ClassVar[tuple[Metric, ...]] = (
        *URepaLoss.metrics,
        Metric(
            *(f"val/{CLASS_TOKEN}", "class token loss", "↓"),
            rests_on=("objective", *OF_THE_CLASS_TOKEN),
            trained_by=("loss.class_weight",),
        ),
    )

    def check(self) -> None:
        super().check()
        if self.diffusion_fraction != 1:
            raise UserError(
                f"loss.diffusion_fraction={self.diffusion_fraction:g} leaves samples without a diffusion term, and a "
                "class token is denoised with each image: give loss.diffusion_fraction=1"
            )

    def check_teachers(self, names: Collection[str]) -> None:
        super().check_teachers(names)
        if names:
            raise UserError("a class token is that of one teacher: choose one, teacher=NAME")

    def check_schedule(self, schedule: Schedule, max_steps: int) -> None:
        super().check_schedule(schedule, max_steps)
        if schedule.may_stop(warmup_steps=self.warmup_steps, max_steps=max_steps):
            raise UserError(
                "this schedule may end the alignment before the run's end, and the class token comes from the teacher "
                "at every update: choose another, schedule=NAME, without schedule.stop_step"
            )

    def build(self, *, schedule: Schedule, max_steps: int) -> RegLoss:
        from urepa.method.losses.reg_math import RegLoss

        self.check()
        self.check_schedule(schedule, max_steps)
        return RegLoss(self, schedule.build(warmup_steps=self.warmup_steps, max_steps=max_steps))

    def description(self, *, schedule: Schedule, max_steps: int) -> list[str | Formula]:
        return [
            *super().description(schedule=schedule, max_steps=max_steps),
            "To this is added, with the weight β = "
            f"{number(self.class_weight)} at every update, the diffusion term of a class token (REG): the vector c of "
            "the teacher's tokens (the mean of their unit vectors, standardised over its E values) is noised at the "
            "image's time with noise of its own, is one more token of the backbone, and is predicted beside the image.",
            Formula(
                r"\mathcal{L}_{\mathrm{class}} = \mathbb{E}\, \frac{1}{E} \lVert f^{c}_\theta(x_t, c_t, t) - y^{c} "
                r"\rVert_2^2"
            ),
        ]
