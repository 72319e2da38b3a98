"""Validation: the loss terms, in total and by timestep bin, for fixed groups of samples with fixed noise and timesteps.

Shapes: G groups, B samples of a group, T timestep bins, K per-sample terms, N tokens, D teacher width.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from urepa.core.collectives import sum_over_ranks
from urepa.core.types import Batch
from urepa.data.reader import Layout, ValidationReader
from urepa.evaluation.buckets import bucket_key
from urepa.evaluation.constant_tokens import ConstantToken
from urepa.method.losses import loss_math
from urepa.method.training_step import Aligned, Terms, shares_of, step_terms
from urepa.models.layers import resize_tokens
from urepa.models.teachers.several_teachers import name_at

BINS = 10
FLOORS = ("zero_predictor", "constant_token", "null_condition")  # columns of what losses are compared with


@dataclass
class Validation:
    """Computes validation losses. Ranks take whole groups in turn, so the values do not depend on the number of
    ranks."""

    reader: ValidationReader
    objective: Any
    loss: Any
    constants: dict[str, list[ConstantToken]]  # by teacher; empty where its tokens are not the loss's targets
    layout: Layout
    device: torch.device
    of_null: bool = False  # whether the loss under conditions with all parts withheld is reported too
    total_at_peak: float = field(init=False)  # of the last call: `val/total` with λ = λ_max, for the best checkpoint

    @torch.no_grad()
    def __call__(self, model: nn.Module, step: int) -> dict[str, float]:
        """`val/...` and `floor/...` of the model in its current state; λ is that of the completed step."""
        was_training = model.training
        model.eval()
        names: list[str] = []
        batch_term: str | None = None
        groups = len(self.reader.groups)
        table_GTK = torch.zeros(0)
        manifold_G = torch.zeros(groups, dtype=torch.float64)
        own = range(self.layout.rank, groups, self.layout.world)
        for index in own or [0]:
            batch = self.reader.read(index).to(self.device)
            columns, terms = self._group(model, batch, step, self.reader.full[index])
            manifold = terms.manifold if self.reader.full[index] else None
            if not names:
                names = list(columns)
                batch_term = None if terms.manifold is None else terms.batch_term
                table_GTK = torch.zeros(groups, BINS, len(names), dtype=torch.float64)
            if index not in own:  # with more ranks than groups, this one adds zeros of the same shape
                continue
            bins_B = (self.objective.time_fraction(batch.t_B) * BINS).long().cpu()
            per_sample_BK = torch.stack(list(columns.values()), dim=1).double().cpu()
            table_GTK[index].index_add_(0, bins_B, per_sample_BK)
            if manifold is not None:
                manifold_G[index] = manifold.double().cpu()
        model.train(was_training)
        table_GTK = sum_over_ranks(table_GTK.to(self.device)).cpu()
        manifold_G = sum_over_ranks(manifold_G.to(self.device)).cpu()
        metrics = self._metrics(names, table_GTK.sum(0), manifold_G, batch_term, step)
        return metrics | self._by_bucket(names, table_GTK.sum(1))

    def _by_bucket(self, names: list[str], table_GK: Tensor) -> dict[str, float]:
        """The means over each bucket's samples, if there are several buckets."""
        buckets = [bucket.bucket for bucket in self.reader.buckets]
        metrics: dict[str, float] = {}
        for bucket in dict.fromkeys(name for name in buckets if name):
            rows = [i for i, name in enumerate(buckets) if name == bucket]
            sums = dict(zip(names, table_GK[rows].sum(0).tolist(), strict=True))
            metrics |= {bucket_key(bucket, f"val/{name}"): sums[name] / sums["count"] for name in _split_terms(names)}
        return metrics

    def _group(self, model: nn.Module, batch: Batch, step: int, full: bool) -> tuple[dict[str, Tensor], Terms]:
        """Per-sample terms [B] of a group, with a column of ones first, and all its terms. An incomplete group has no
        manifold loss: it may have a single sample, so it is compared with itself, and the value must not be used."""
        gather = torch.nn.Identity() if full else _repeat_twice
        terms, output = step_terms(model, self.objective, self.loss, batch, step, gather)
        x_t = self.objective.corrupt(batch.x0, batch.noise, batch.t_B)
        implied_x0 = self.objective.to_x0(x_t, output.prediction_RCHW.float(), batch.t_B)
        target = self.objective.target(batch.x0, batch.noise, batch.t_B)
        columns = {
            "count": torch.ones(len(batch.ids), device=self.device),
            **terms.per_sample,
            "x0_error": loss_math.diffusion_loss(implied_x0, batch.x0),
            "zero_predictor": self.objective.diffusion_terms(torch.zeros_like(target), target, batch.t_B),
        }
        if self.of_null:
            null = model(x_t, batch.t_B, batch.condition.null(), batch.rows_R, batch.grids)
            columns["null_condition"] = self.objective.diffusion_terms(null.prediction_RCHW, target, batch.t_B)
        if terms.weighted_B is not None:
            columns["weighted"] = terms.weighted_B
        if batch.teachers and self.constants:
            columns |= self._constant(batch, output)
        return columns, terms

    def _constant(self, batch: Batch, output: Aligned) -> dict[str, Tensor]:
        """The token loss of the best constant token [B]: of each teacher's where there are several, and their mean."""
        by_teacher = {}
        for name, own_tokens in batch.teachers.items():
            parts = []
            for constant in self.constants[name]:
                tokens = resize_tokens(own_tokens, output.tokens[name_at(constant.tap, name)].grid)
                constant_BND = constant.token_D.to(self.device).expand_as(tokens.x_BND)
                own_B = loss_math.token_loss(constant_BND, tokens.x_BND, tokens.mask_BN)
                parts.append(constant.share * own_B)
            by_teacher[name] = torch.stack(parts).sum(0)
        shares = shares_of(by_teacher, self.loss.teachers)
        mean_B = torch.stack([share * by_teacher[name] for name, share in shares.items()]).sum(0)
        return {"constant_token": mean_B} | {f"constant_token/{name}": x for name, x in by_teacher.items() if name}

    def _metrics(
        self, names: list[str], table_TK: Tensor, manifold_G: Tensor, batch_term: str | None, step: int
    ) -> dict[str, float]:
        sums = dict(zip(names, table_TK.sum(0).tolist(), strict=True))
        means = {name: value / sums["count"] for name, value in sums.items() if name != "count"}
        weighted = means.pop("weighted", None)  # part of the total; not reported separately. None: no alignment
        of_floors = [k for k in means if k.startswith(FLOORS)]
        floors = {f"floor/{k}": means.pop(k) for k in of_floors}
        metrics = {f"val/{name}": value for name, value in means.items()}
        metrics["val/total"] = means["diffusion"] if self.loss.diffusion_fraction else 0.0
        for name, weight in getattr(self.loss, "beside_diffusion", {}).items():
            metrics["val/total"] += weight * means[name]
        self.total_at_peak = metrics["val/total"]
        if weighted is not None:
            manifold = float(manifold_G.sum() / sum(self.reader.full))
            lam = self.loss.lam(step)
            if "token" in means:
                metrics["val/cosine"] = 1 - means["token"]
            if batch_term is not None:
                metrics[f"val/{batch_term}"] = manifold
            metrics["val/lambda"] = lam
            alignment = weighted + self.loss.manifold_weight * manifold
            metrics["val/total"] += lam * alignment
            self.total_at_peak += self.loss.lambda_max * alignment
        for i, row in enumerate(table_TK.tolist()):
            by_name = dict(zip(names, row, strict=True))
            for name in _split_terms(names):
                if by_name["count"]:
                    label = f"val/{name}_by_t/{i / BINS:.1f}-{(i + 1) / BINS:.1f}"
                    metrics[label] = by_name[name] / by_name["count"]
        return metrics | floors


def _split_terms(names: list[str]) -> list[str]:
    """The columns that are also reported by timestep bin and by bucket: the terms of all teachers together."""
    return [
        name for name in names if "/" not in name and name not in ("count", "weighted") and not name.startswith(FLOORS)
    ]


def _repeat_twice(x_BD: Tensor) -> Tensor:
    return torch.cat([x_BD, x_BD])
