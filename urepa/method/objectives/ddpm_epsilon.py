"""DDPM that predicts the noise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, ClassVar

from urepa.core.comparability import DIFFUSION, NOISE_LEVELS, TOTAL
from urepa.core.declared_keys import LARGEST, SIZE, TINY, setting
from urepa.core.descriptions import Formula, number
from urepa.core.errors import UserError
from urepa.core.escaping import markdown

if TYPE_CHECKING:
    from urepa.method.objectives.ddpm_math import DDPMMath

OF_NOISE = (DIFFUSION, TOTAL, NOISE_LEVELS)
CORRUPTION = r"x_t = \sqrt{\bar\alpha_t}\, x_0 + \sqrt{1 - \bar\alpha_t}\, \epsilon, \qquad "
RISES = {"linear": "linear in t", "scaled_linear": "linear in its square root over t"}


class BetaSchedule(Enum):
    linear = "linear"
    scaled_linear = "scaled_linear"


@dataclass
class DDPMEpsilon:
    """A variance-preserving diffusion over whole timesteps; the backbone predicts the noise ε."""

    _target_: str = "urepa.method.objectives.ddpm_epsilon.DDPMEpsilon"
    beta_start: float = setting("β of the first timestep", ge=TINY, le=1 - TINY, alters=OF_NOISE)
    beta_end: float = setting("β of the last timestep", ge=TINY, le=1 - TINY, alters=OF_NOISE)
    beta_schedule: BetaSchedule = setting("β over timesteps: linear, or linear in its square root", alters=OF_NOISE)
    timesteps: int = setting("number of timesteps", ge=1, le=SIZE, alters=OF_NOISE, unpairs=True)
    min_snr: float | None = setting(
        "γ of Min-SNR: the diffusion loss weighs timesteps as x0's error times min(SNR, γ) does; null: all equally",
        None,
        ge=TINY,
        le=LARGEST,
        alters=(DIFFUSION, TOTAL),
    )

    # The scale of the diffusion loss depends on what is predicted; that of the implied x0's error does not.
    alters: ClassVar[tuple[str, ...]] = (DIFFUSION, TOTAL)

    prediction_type: ClassVar[str] = "epsilon"
    scheduler: ClassVar[Mapping[str, str]] = {
        **{name: name for name in ("beta_start", "beta_end", "beta_schedule")},
        "num_train_timesteps": "timesteps",
    }
    training_only: ClassVar[tuple[str, ...]] = ("min_snr",)
    has_intervals: ClassVar[bool] = False
    predicts: ClassVar[tuple[str, str, str]] = ("epsilon", "the noise ε", r"\epsilon")  # on a card, in words, as LaTeX
    weight_formula: ClassVar[str] = r"\min(\mathrm{SNR}, \gamma) / \mathrm{SNR}"

    @property
    def most_steps(self) -> int:
        return self.timesteps

    @property
    def times(self) -> str:
        return f"timesteps are 0 to {self.timesteps - 1}, whole numbers"

    def check(self) -> None:
        if self.beta_start > self.beta_end:
            raise UserError(
                f"objective.beta_start={self.beta_start} is above objective.beta_end={self.beta_end}; give a smaller "
                "objective.beta_start"
            )

    def has_time(self, t: float) -> bool:
        return 0 <= t < self.timesteps and t == int(t)

    def time_at(self, fraction: float) -> int:
        return round(fraction * self.timesteps)

    def build(self) -> DDPMMath:
        from urepa.method.objectives.ddpm_math import EpsilonMath

        return EpsilonMath(self.beta_start, self.beta_end, str(self.beta_schedule), self.timesteps, self.min_snr)

    def description(self) -> list[str | Formula]:
        _, name, target = self.predicts
        start, end = number(self.beta_start), number(self.beta_end)
        last = float(self.build().alphas_cumprod[-1])
        return [
            f"The backbone predicts {name} of a variance-preserving diffusion over T = {number(self.timesteps)} "
            f"timesteps, drawn uniformly. β rises from {start} to {end}, {RISES[str(self.beta_schedule)]}; at the last "
            f"timestep a share of {last:.2g} of the signal's variance is left.",
            Formula(CORRUPTION + r"\bar\alpha_t = \prod_{s \le t} (1 - \beta_s), \qquad y = " + target),
            *self._weights(),
        ]

    def _weights(self) -> list[str | Formula]:
        """The weights of timesteps, if they are not all 1."""
        if self.min_snr is None:
            return []
        return [
            f"The diffusion term of a sample is multiplied by the Min-SNR weight of its timestep, γ = "
            f"{number(self.min_snr)}:",
            Formula(self.weight_formula + r", \qquad \mathrm{SNR} = \bar\alpha_t / (1 - \bar\alpha_t)"),
        ]

    def model_card(self) -> str:
        return (
            f"**The model predicts {self.predicts[0]}**, with {markdown(str(self.beta_schedule))} β from "
            f"{self.beta_start} to {self.beta_end} over {self.timesteps} timesteps. "
            "`scheduler/` contains these settings; make another scheduler class from its config with `from_config`. A "
            "pipeline's own scheduler may have other settings, and then the images are noise. Choose a number of steps "
            f"that divides {self.timesteps}: with others diffusers' DDIMScheduler uses wrong timesteps, and with a few "
            "(such as 61 of 1,000) all its schedulers take one step too many, so that images differ from "
            "`urepa.generate`'s."
        )
