"""The declaration of AdamW with a cosine schedule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from urepa.core.declared_keys import LARGEST, setting
from urepa.core.descriptions import Formula, number
from urepa.core.errors import UserError
from urepa.core.text_tables import Table
from urepa.method.step_schedules import cosine_with_warmup

if TYPE_CHECKING:
    import torch


@dataclass
class AdamW:
    """torch's fused AdamW (Loshchilov & Hutter 2019). Learning rates warm up linearly and follow half a cosine."""

    _target_: str = "urepa.training.optimizers.adamw.AdamW"
    lr: dict[str, float] = setting("peak learning rate by part: backbone, lora, head", ge=0, le=1)
    weight_decay: dict[str, float] = setting("weight decay by part", ge=0, le=LARGEST)
    betas: list[float] = setting("decay rates of the two moments, from 0 to below 1", ge=-LARGEST, le=LARGEST)
    eps: float = setting("added to the root of the second moment", ge=0, le=LARGEST)
    warmup_ratio: float = setting("share of max_steps over which the learning rate rises from 0", ge=0, le=1)
    final_ratio: float = setting("share of the peak at which the cosine ends; 1: the rate is constant", 0.0, ge=0, le=1)

    states: ClassVar[int] = 2  # the moments

    def check(self) -> None:
        """Raises UserError if lr·weight_decay, which AdamW subtracts from every weight as a share at each update
        (Loshchilov & Hutter 2019, Algorithm 2), exceeds 1, or if a beta is out of range."""
        for part, decay in self.weight_decay.items():
            lr = self.lr.get(part, 0.0)
            if lr * decay > 1:
                raise UserError(
                    f"optimizer.lr.{part}={lr} x optimizer.weight_decay.{part}={decay} is the share of every weight "
                    "that an update takes off; give values whose product is at most 1"
                )
        if len(self.betas) != 2 or not all(0 <= b < 1 for b in self.betas):
            raise UserError(f"optimizer.betas={self.betas}: give two numbers from 0 up to, but not including, 1")

    def build(self, groups: Mapping[str, list[torch.nn.Parameter]]) -> torch.optim.AdamW:
        """The optimiser. Its fused step takes `found_inf`, which leaves parameters, moments and Adam's own step count
        unchanged without synchronising (as torch's GradScaler relies on)."""
        import torch

        for part in groups:
            if part not in self.lr or part not in self.weight_decay:
                raise UserError(
                    f"optimizer has no lr and weight_decay for '{part}', which trains; it has "
                    f"{', '.join(self.lr)}: choose the optimizer option that fits lora"
                )
        return torch.optim.AdamW(
            [
                {
                    "params": parameters,
                    "lr": self.lr[part],
                    "weight_decay": self.weight_decay[part],
                    "name": part,
                }
                for part, parameters in groups.items()
            ],
            betas=(self.betas[0], self.betas[1]),
            eps=self.eps,
            fused=True,
        )

    def rate(self, step: int, max_steps: int) -> float:
        return cosine_with_warmup(step, max_steps, self.warmup_ratio, self.final_ratio)

    def set_lr(self, optimizer: torch.optim.Optimizer, step: int, max_steps: int) -> None:
        """Sets the learning rates of the update with this index."""
        factor = self.rate(step, max_steps)
        for group in optimizer.param_groups:
            group["lr"] = self.lr[group["name"]] * factor

    def description(
        self, groups: Mapping[str, int], max_steps: int, clip_norm: float | None
    ) -> list[str | Formula | Table]:
        warmup = round(self.warmup_ratio * max_steps)
        clip = (
            "Gradients are not clipped."
            if clip_norm is None
            else f"Gradients are clipped to a global norm of {number(clip_norm)}."
        )
        rows = tuple(
            (group, number(parameters), number(self.lr[group]), number(self.weight_decay[group]))
            for group, parameters in groups.items()
        )
        return [
            f"AdamW with β1 = {number(self.betas[0])}, β2 = {number(self.betas[1])} and ε = {number(self.eps)}. "
            f"The learning rates {rates(warmup, self.final_ratio, max_steps)}. {clip}",
            *rate_formula(warmup, self.final_ratio, max_steps),
            Table("Optimiser groups.", ("group", "parameters", "peak learning rate", "weight decay"), rows),
        ]


def rates(warmup: int, final: float, steps: int) -> str:
    """The learning rates over the run, in words."""
    rise = f"rise linearly over the first {number(warmup)} updates and " if warmup else ""
    if final == 1:
        return f"{rise}stay at their peaks"
    return f"{rise}fall along half a cosine to {number(final)} of their peaks at update {number(steps)}"


def rate_formula(warmup: int, final: float, steps: int) -> list[Formula]:
    """The learning rates as a formula; empty for constant rates."""
    if warmup == 0 and final == 1:
        return []
    since, over = ("(s - W)", "S - W") if warmup else ("s", "S")
    cosine = rf"r + \frac{{1 - r}}{{2}} \bigl( 1 + \cos \frac{{\pi {since}}}{{{over}}} \bigr)"
    after = "1" if final == 1 else cosine
    shape = (
        rf"\begin{{cases}} s / W & s < W \\ {after} & s \ge W \end{{cases}}" if warmup else rf"\Bigl[ {after} \Bigr]"
    )
    where = [rf"W = {warmup}"] * (warmup > 0) + [rf"S = {steps}, \quad r = {number(final)}"] * (final < 1)
    return [Formula(rf"\eta(s) = \eta_{{\max}} {shape}, \qquad " + r", \quad ".join(where))]
