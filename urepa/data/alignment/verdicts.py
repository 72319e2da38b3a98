"""Which view of their images a set of tokens shows, by the share of the reference's variance that they explain.

For each view a ridge regression maps the tokens' principal components to the features of the places that the view
assigns to them, so the tokens may be of another network than the reference. It is fitted to one half of the samples
and scored on the other, and the reverse. The mean at each place is subtracted, so that what images have in common at
a place (sky at the top) explains nothing. A view is called right or wrong only if its score differs from the next
one's by `SURE` standard errors over the samples.

Shapes: S samples, N tokens, D their width, K components, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from statistics import mean

import torch
from torch import Tensor

from urepa.data.alignment.references import Reference
from urepa.data.alignment.views import AS_DECLARED, Crop, View, displacement, flat_features, possible_views
from urepa.data.lists.bucket_shapes import Size
from urepa.models.teachers.rectangle_sizes import Grid

COMPONENTS, FEATURES = 64, 16  # principal components of the tokens, and of the reference
ROWS_PER_COMPONENT = 8  # tokens in a fit
RIDGE = 1e-2
SURE = 3.0
LEAST = 0.02  # of the variance, that the best view must explain
LEAST_SAMPLES = 6


class State(Enum):
    aligned = "aligned"
    misaligned = "misaligned"
    unknown = "cannot tell"


@dataclass(frozen=True)
class Finding:
    """The score of one view: the explained share of the variance, for each sample."""

    view: View
    scores_S: Tensor

    @property
    def r2(self) -> float:
        return float(self.scores_S.mean())


@dataclass(frozen=True)
class Verdict:
    """What the tokens show. `findings`: best first. `apart`: the mean distance, in tokens, between the place of a token
    in the declared grid and the one that it shows; None if that is unknown."""

    state: State
    text: str
    findings: Sequence[Finding]
    apart: float | None

    @property
    def best(self) -> View | None:
        """The view that explains the most."""
        return self.findings[0].view if self.findings else None


def judge(tokens_SND: Tensor, grid: Grid, size: Size, reference: Reference) -> Verdict:
    """Compares all views that N tokens can have.

    Args:
        grid: the declared rows and columns.
        size: rows and columns of the images in pixels.
    """
    samples, count = tokens_SND.shape[:2]
    wrong_count = count != grid[0] * grid[1]
    counted = f"{count} tokens instead of {grid[0]}x{grid[1]}={grid[0] * grid[1]}; " if wrong_count else ""
    if not tokens_SND.isfinite().all():
        return Verdict(State.misaligned, f"{counted}some are not finite", [], None)
    worst = State.misaligned if wrong_count else State.unknown
    if samples < LEAST_SAMPLES:
        return Verdict(
            worst, f"{counted}{samples} samples are too few to compare, {LEAST_SAMPLES} are needed", [], None
        )
    views = possible_views(count, grid, size)
    if not views:
        return Verdict(worst, f"{counted}no known mistake makes this number", [], None)
    findings = _scores(tokens_SND.float(), views, reference, grid)
    best = findings[0]
    if best.r2 < LEAST or _standard_errors(best.scores_S) < SURE:
        none = f"the tokens explain too little of {reference.name} in every known view"
        return Verdict(worst, f"{counted}{none}", findings, None)
    return _compared(findings, counted, displacement(best.view, count, grid))


def _compared(findings: Sequence[Finding], counted: str, apart: float | None) -> Verdict:
    """The verdict where some view explains the reference. A wrong view is called one if it explains more than the
    declared one; the declared one is called right if it explains more than every other. `counted`: a text if the number
    of tokens is wrong."""
    best, samples = findings[0], len(findings[0].scores_S)
    is_best = best.view.name == AS_DECLARED
    others = [f for f in findings[1:] if counted or is_best or f.view.name == AS_DECLARED]
    rivals = [other for other in others if _standard_errors(best.scores_S - other.scores_S) < SURE]
    if counted:
        return Verdict(
            State.misaligned, f"{counted}they show {'probably ' if rivals else ''}{_said(best)}", findings, apart
        )
    if rivals:
        text = f"{_said(best)} and {_said(rivals[0])} cannot be told apart with {samples} samples"
        return Verdict(State.unknown, text, findings, None)
    if is_best:
        return Verdict(State.aligned, f"{_said(best)}, next {_said(findings[1])}", findings, 0.0)
    own = next(f for f in findings if f.view.name == AS_DECLARED)
    return Verdict(State.misaligned, f"they show {_said(best)}, not {_said(own)}", findings, apart)


def _said(finding: Finding) -> str:
    return f"{finding.view.name} (R² {finding.r2:.3f})"


def _standard_errors(scores_S: Tensor) -> float:
    """The mean in standard errors."""
    return float(scores_S.mean() / (scores_S.std() / len(scores_S) ** 0.5).clamp(min=1e-9))


def _scores(tokens_SND: Tensor, views: Sequence[View], reference: Reference, grid: Grid) -> list[Finding]:
    samples, count = tokens_SND.shape[:2]
    most = max(4, samples * count // (2 * ROWS_PER_COMPONENT))
    tokens_SNK = principal(tokens_SND, min(COMPONENTS, most))
    maps: dict[Crop, Tensor] = {}
    findings = []
    for view in views:
        if view.crop not in maps:
            maps[view.crop] = _reduced(reference.map(view.crop))
        features_SNF = flat_features(view.move(maps[view.crop], grid), view.grid)[:, : view.count(count)]
        own = tokens_SNK[:, view.skipped : view.skipped + features_SNF.shape[1]]
        findings.append(Finding(view, explained(own, features_SNF)))
    return sorted(findings, key=lambda finding: -finding.r2)


def _reduced(map_SFab: Tensor) -> Tensor:
    """The map with its first principal components as channels."""
    return principal(map_SFab.flatten(2).mT, FEATURES).mT.unflatten(2, map_SFab.shape[-2:])


def principal(values_SND: Tensor, most: int) -> Tensor:
    """The first principal components of vectors [S,N,D], at most `most` of them."""
    if values_SND.shape[-1] <= most:
        return values_SND - values_SND.mean((0, 1))
    flat = (values_SND - values_SND.mean((0, 1))).flatten(0, 1)
    _, vectors_DD = torch.linalg.eigh(flat.mT @ flat)
    return (flat @ vectors_DD[:, -most:]).unflatten(0, values_SND.shape[:2])


def explained(tokens_SNK: Tensor, features_SNF: Tensor) -> Tensor:
    """The share of the features' variance that the tokens explain in each sample [S], scored on the half to which the
    regression was not fitted."""
    half = len(tokens_SNK) // 2
    errors, totals = [], []
    for fit, test in ((slice(None, half), slice(half, None)), (slice(half, None), slice(None, half))):
        (fit_x, test_x), (fit_y, test_y) = (
            (values[fit] - values[fit].mean(0), values[test] - values[test].mean(0))
            for values in (tokens_SNK, features_SNF)
        )
        flat_x, flat_y = fit_x.flatten(0, 1).double(), fit_y.flatten(0, 1).double()
        gram_KK = flat_x.mT @ flat_x
        gram_KK += RIDGE * gram_KK.diagonal().mean().clamp(min=1e-12) * torch.eye(len(gram_KK), dtype=gram_KK.dtype)
        weights_KF = torch.linalg.solve(gram_KK, flat_x.mT @ flat_y)
        errors.append((test_y.double() - test_x.double() @ weights_KF).pow(2).sum((1, 2)))
        totals.append(test_y.double().pow(2).sum((1, 2)))
    total_S = torch.cat(totals)[_order(half, len(tokens_SNK))]
    error_S = torch.cat(errors)[_order(half, len(tokens_SNK))]
    return (total_S - error_S) / max(mean(total_S.tolist()), 1e-12)


def _order(half: int, samples: int) -> Tensor:
    """The second half was scored first; the positions that restore the samples' order."""
    return torch.cat([torch.arange(samples - half, samples), torch.arange(samples - half)])
