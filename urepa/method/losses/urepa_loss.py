"""The alignment loss of REPA and U-REPA: token and manifold terms beside the diffusion term."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum
from math import inf
from typing import TYPE_CHECKING, Any, ClassVar

from urepa.core.comparability import ALIGNMENT, MANIFOLD, NOTHING, TOTAL, TOTAL_BY_STEP
from urepa.core.declared_keys import LARGEST, SIZE, setting
from urepa.core.descriptions import Formula, number
from urepa.core.errors import UserError
from urepa.core.evaluation_protocols import Metric
from urepa.core.protocols import Schedule
from urepa.method import alignment_grids
from urepa.method.diffusion_fraction import strata
from urepa.method.losses.no_loss import DIFFUSION
from urepa.method.step_schedules import linear_warmup

if TYPE_CHECKING:
    from urepa.method.losses.urepa_loss_math import AlignmentLoss

# What `level` means: the weight of each manifold term. "both" keeps the meaning of w by averaging.
MANIFOLD_LEVELS = {"sample": {"sample": 1.0}, "token": {"token": 1.0}, "both": {"sample": 0.5, "token": 0.5}}
MANIFOLDS = (MANIFOLD, TOTAL)  # what a setting of the manifold loss alters


class Level(Enum):
    sample = "sample"
    token = "token"
    both = "both"


@dataclass
class URepaLoss:
    """L_diff + λ(step)·[L_token + w·L_manifold] (REPA, arXiv 2410.06940, eq. 8 and 9; U-REPA, arXiv 2503.18414, eq. 6),
    averaged over taps and teachers with their weights."""

    _target_: str = "urepa.method.losses.urepa_loss.URepaLoss"
    lambda_max: float = setting(
        "λ after its warm-up: the weight of the alignment terms", ge=0, le=LARGEST, alters=(TOTAL,)
    )
    warmup_steps: int = setting("updates over which λ rises from 0", ge=0, le=LARGEST, alters=(TOTAL_BY_STEP,))
    manifold_weight: float = setting(
        "w: the weight of the manifold loss beside the token loss", ge=0, le=LARGEST, alters=(TOTAL,)
    )
    level: Level = setting(
        "what the manifold loss compares: samples, the tokens within each sample, or both (the mean of both losses)",
        alters=MANIFOLDS,
    )
    taps: dict[str, float] = setting(
        "the aligned taps, each with its weight in the mean of the alignment terms",
        ge=0,
        le=LARGEST,
        alters=ALIGNMENT,
    )
    teachers: dict[str, float] = setting(
        "with teacher=several: the weight of each teacher, by its name; 1 if none is given",
        {},
        ge=0,
        le=LARGEST,
        alters=ALIGNMENT,
    )
    spike_threshold: float = setting(
        "a larger manifold loss after the warm-up counts as a spike", ge=0, le=inf, alters=NOTHING
    )
    manifold_clip: float | None = setting(
        "caps the manifold loss (no gradient above it); null: no cap", None, ge=0, le=LARGEST, alters=(TOTAL,)
    )
    spatial_norm: float | None = setting(
        "share of an image's mean token that is subtracted from the teacher's tokens; null: left as they are",
        None,
        ge=0,
        le=1,
        alters=ALIGNMENT,
    )
    time_power: float = setting(
        "a sample's λ falls with its share of noise s as (1 - s)^power, mean 1; 0: the same λ for all",
        0.0,
        ge=0,
        le=LARGEST,
        alters=(TOTAL,),
    )
    diffusion_fraction: float = setting(
        "p/q: p random samples of every q have a diffusion term; 0: none has", 1.0, ge=0, le=1, alters=(TOTAL,)
    )
    manifold_diagonal: bool = setting(
        "whether the mean of the manifold loss includes the pairs of a vector with itself", False, alters=MANIFOLDS
    )
    grid: Any = setting(
        "the grid on which a tap and a teacher of other rows and columns are compared: the teacher's, the student's "
        "(the teacher's tokens are resized), the smaller of the two, or a given one such as [16,16]",
        alignment_grids.TEACHER,
        ge=1,
        le=SIZE,
        alters=ALIGNMENT,
    )

    alters: ClassVar[tuple[str, ...]] = ALIGNMENT
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("val/token", "token loss", "↓", trained_by=("loss.lambda_max",)),
        Metric("val/manifold", "manifold loss", "↓", trained_by=("loss.lambda_max", "loss.manifold_weight")),
    )

    @property
    def levels(self) -> dict[str, float]:
        """The manifold terms with their weights."""
        return MANIFOLD_LEVELS[str(self.level)]

    @property
    def compares_tokens(self) -> bool:
        """Whether a term compares the tokens of a sample with each other. Terms of weight 0 are computed too."""
        return str(self.level) != "sample"

    # --- checks -------------------------------------------------------------------------------------------------

    def check(self) -> None:
        if not self.taps or sum(self.taps.values()) <= 0 or min(self.taps.values()) < 0:
            raise UserError("loss.taps: give at least one tap, and weights that are 0 or more and not all 0")
        if self.lambda_max < 0 or self.manifold_weight < 0:
            raise UserError("loss.lambda_max and loss.manifold_weight are 0 or more")
        alignment_grids.check_policy(self.grid)
        if self.time_power > 0 and self.manifold_weight > 0:
            raise UserError(
                "loss.time_power weighs each sample by its time, and the manifold term is one number for samples of "
                "many times: give loss.manifold_weight=0 with it"
            )

    def check_teachers(self, names: Collection[str]) -> None:
        for name in self.teachers:
            if name not in names:
                there = (
                    f"the teachers are {', '.join(names)}" if names else "it needs several teachers, teacher=several"
                )
                raise UserError(f"loss.teachers.{name} has no effect: {there}")
        if names and not any(self.teachers.get(name, 1.0) for name in names):
            raise UserError(
                "loss.teachers: give weights that are not all 0; to train without alignment, loss.lambda_max=0"
            )

    def check_layout(self, smallest_group: int, accumulation: int) -> None:
        """The sample-level manifold loss compares all samples of the global batch: it must be in memory at once, and
        have at least 2 samples."""
        if str(self.level) == "token":
            return
        if smallest_group < 2:
            raise UserError(
                f"loss.level={self.level} compares samples with each other, but a batch has {smallest_group}; "
                "give trainer.batch_size and trainer.validation_group of 2 or more, or loss.level=token"
            )
        if accumulation > 1:
            raise UserError(
                f"loss.level={self.level} compares all samples of a batch, which trainer.accumulation="
                f"{accumulation} splits into several parts; give trainer.accumulation=1 or loss.level=token"
            )

    def check_schedule(self, schedule: Schedule, max_steps: int) -> None:
        schedule.check()
        schedule.check_length(warmup_steps=self.warmup_steps, max_steps=max_steps)
        if self.diffusion_fraction < 1 and schedule.may_stop(warmup_steps=self.warmup_steps, max_steps=max_steps):
            raise UserError(
                "this schedule may end the alignment before the run's end, and the diffusion term alone would then "
                "train on a fraction of each batch: give loss.diffusion_fraction=1 with it"
            )

    def idle_keys(self) -> dict[str, str | None]:
        if self.lambda_max != 0:
            return {}
        return {"schedule.stop_step": None, "schedule": "loss.lambda_max=0, which it multiplies"}

    def build(self, *, schedule: Schedule, max_steps: int) -> AlignmentLoss:
        from urepa.method.losses.urepa_loss_math import AlignmentLoss

        self.check()
        self.check_schedule(schedule, max_steps)
        return AlignmentLoss(self, schedule.build(warmup_steps=self.warmup_steps, max_steps=max_steps))

    # --- words --------------------------------------------------------------------------------------------------

    def description(self, *, schedule: Schedule, max_steps: int) -> list[str | Formula]:
        """The formulas of `urepa.method.losses.loss_math`, weighted as the loss weighs them."""
        has_diffusion, levels = self.diffusion_fraction > 0, self.levels
        terms = r"\mathcal{L}_{\mathrm{diff}} + " if has_diffusion else ""
        manifold = r"\mathcal{L}_{\mathrm{manifold}}"
        if self.manifold_clip is not None:
            manifold = rf"\min(\mathcal{{L}}_{{\mathrm{{manifold}}}}, {number(self.manifold_clip)})"
        total = rf"\mathcal{{L}} = {terms}\lambda(s) \bigl[ {self._bracket(manifold)} \bigr]"
        formulas = WITH_DIAGONAL if self.manifold_diagonal else FORMULAS
        weighted = [
            formulas[level] if weight == 1 else rf"{number(weight)} \cdot {formulas[level]}"
            for level, weight in levels.items()
        ]
        return [
            f"The loss adds alignment terms with the weight λ at update s and w = {number(self.manifold_weight)}; h(z) "
            "are a tap's tokens behind its head, τ the teacher's, and over several taps the alignment terms are "
            "averaged with their shares.",
            Formula(total),
            *([Formula(DIFFUSION)] if has_diffusion else []),
            Formula(TOKEN),
            Formula(rf"\mathcal{{L}}_{{\mathrm{{manifold}}}} = {' + '.join(weighted)}"),
            f"The manifold term compares {' and '.join(COMPARED[level] for level in levels)}."
            + (" As w = 0, it is logged and not trained on." if self.manifold_weight == 0 else ""),
            *token_normalisation(self.spatial_norm),
            *alignment_grids.description(self.grid),
            self._weight_over_the_run(schedule, max_steps),
            *self._by_step(schedule, max_steps),
            *by_time(self.time_power),
            *fraction(self.diffusion_fraction),
        ]

    def _bracket(self, manifold: str) -> str:
        """What λ multiplies, as LaTeX, given the manifold term."""
        return rf"\mathcal{{L}}_{{\mathrm{{token}}}} + w\, {manifold}"

    def _weight_over_the_run(self, schedule: Schedule, max_steps: int) -> str:
        """λ over the run."""
        warmup, last, lam = self.warmup_steps, max_steps - 1, number(self.lambda_max)
        if self.lambda_max == 0:
            return (
                "λ = 0 throughout: the control, which computes and logs the alignment terms and does not train on them."
            )
        shape = schedule.description()
        if warmup == 0:
            return f"λ = {lam} {f'at first and {shape}' if shape else 'from the first update on'}."
        first = "first update" if warmup == 1 else f"first {number(warmup)} updates"
        rises = f"λ rises linearly from 0 to {lam} over the {first}"
        if last < warmup:
            ends = linear_warmup(last, self.lambda_max, warmup)
            ends *= schedule.share(last, warmup_steps=warmup, max_steps=max_steps)
            return f"{rises}, of which this run makes {number(last + 1)}: it ends at λ = {ends:.4g}."
        return f"{rises} and {shape or 'stays there'}."

    def _by_step(self, schedule: Schedule, max_steps: int) -> list[str | Formula]:
        """The schedule's formulas, and what remains of the alignment after its end."""
        of_run = {"warmup_steps": self.warmup_steps, "max_steps": max_steps}
        after_warmup = self.lambda_max > 0 and self.warmup_steps < max_steps
        formulas = schedule.formulas(peak=self.lambda_max, **of_run) if after_warmup else []
        steps = schedule.teacher_steps(**of_run)
        return [*formulas, *(after_stop(int(steps)) if steps < max_steps else [])]

    def model_card(self) -> str:
        return f"λ = {self.lambda_max:g} and w = {self.manifold_weight:g}"


TOKEN = (
    r"\mathcal{L}_{\mathrm{token}} = \mathbb{E}\, \Bigl[ 1 - \frac{1}{N} \sum_{n=1}^{N}"
    r" \cos\bigl( h(z)_n, \tau_n \bigr) \Bigr]"
)
FORMULAS = {  # by level
    "sample": (
        r"\frac{1}{B (B - 1)} \sum_{i \ne j} \bigl( \hat h_i \cdot \hat h_j"
        r" - \hat\tau_i \cdot \hat\tau_j \bigr)^2"
    ),
    "token": (
        r"\mathbb{E}\, \frac{1}{N (N - 1)} \sum_{m \ne n} \bigl( h(z)_m \cdot h(z)_n - \tau_m \cdot \tau_n \bigr)^2"
    ),
}
WITH_DIAGONAL = {
    "sample": r"\frac{1}{B^2} \sum_{i, j} \bigl( \hat h_i \cdot \hat h_j - \hat\tau_i \cdot \hat\tau_j \bigr)^2",
    "token": (r"\mathbb{E}\, \frac{1}{N^2} \sum_{m, n} \bigl( h(z)_m \cdot h(z)_n - \tau_m \cdot \tau_n \bigr)^2"),
}
COMPARED = {
    "sample": "the pooled tokens (hats: unit vectors along a sample's mean token) of all samples of the global batch",
    "token": "the tokens within each sample",
}


def token_normalisation(share: float | None) -> list[str | Formula]:
    """How the teacher's tokens are normalised, if at all."""
    if share is None:
        return []
    return [
        f"The teacher's tokens are normalised over each image's places first, channel by channel: less {number(share)} "
        "of their mean, over their standard deviation."
    ]


def after_stop(stop: int) -> list[str | Formula]:
    """What remains of the alignment after the stop (as in HASTE, Wang et al. 2025)."""
    return [
        f"From update {number(stop)} on training neither runs the teacher nor computes the alignment terms; "
        "validations still do both, to measure whether the alignment lasts."
    ]


def by_time(power: float) -> list[str | Formula]:
    """How λ depends on a sample's time."""
    if power == 0:
        return []
    return [
        "In the loss, though not in the token loss that is reported, λ is multiplied for each sample by g(t) with "
        "α and σ the shares of x0 and noise in x_t, and the mean over the times that are trained at:",
        Formula(
            rf"g(t) = u(t)^{{{number(power)}}} / \operatorname{{E}}[u(t)^{{{number(power)}}}], \qquad "
            r"u(t) = \frac{\alpha(t)}{\alpha(t) + \sigma(t)}"
        ),
    ]


def fraction(share: float) -> list[str | Formula]:
    """Which samples have a diffusion term."""
    p, q = strata(share)
    if p == q:
        return []
    if p == 0:
        return [
            "No sample has a diffusion term: the forward pass ends at the deepest tap, and what follows it is frozen."
        ]
    return [f"{p} of every {q} samples, drawn anew at each update, have a diffusion term; all are aligned."]
