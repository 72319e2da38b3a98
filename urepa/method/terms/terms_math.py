"""The alignment terms as pure functions, each [B], computed in fp32.

Shapes: B batch, G gathered batch, N tokens, M tokens of the gathered batch (G·N), D width.

`mask_BN` is True where a token counts (None: all do), as in `urepa.method.losses.loss_math`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from urepa.method.losses.loss_math import counts, pool_tokens, without_masked
from urepa.models.unit_vectors import unit_vectors

Gather = Callable[[Tensor], Tensor]


# --- token by token -----------------------------------------------------------------------------------------


def mean_over_tokens(value_BN: Tensor, mask_BN: Tensor | None) -> Tensor:
    """The mean over each sample's tokens that count [B]."""
    if mask_BN is None:
        return value_BN.mean(1)
    return value_BN.masked_fill(~mask_BN, 0).sum(1) / counts(mask_BN)


def squared_distance(student_BND: Tensor, teacher_BND: Tensor, mask_BN: Tensor | None) -> Tensor:
    """Mean squared difference of the tokens' entries (FitNets, arXiv 1412.6550, eq. 3, without its factor 1/2)."""
    difference_BND = without_masked(student_BND.float() - teacher_BND.float(), mask_BN)
    return mean_over_tokens(difference_BND.pow(2).mean(2), mask_BN)


def smooth_l1_distance(student_BND: Tensor, teacher_BND: Tensor, mask_BN: Tensor | None, beta: float) -> Tensor:
    """The mean of d²/(2β) where |d| < β, and |d| − β/2 elsewhere (Fast R-CNN, arXiv 1504.08083, eq. 3, at β = 1)."""
    size_BND = without_masked(student_BND.float() - teacher_BND.float(), mask_BN).abs()
    value_BND = torch.where(size_BND < beta, size_BND.pow(2) / (2 * beta), size_BND - beta / 2)
    return mean_over_tokens(value_BND.mean(2), mask_BN)


def marginal_cosine(student_BND: Tensor, teacher_BND: Tensor, mask_BN: Tensor | None, margin: float) -> Tensor:
    """relu(1 − margin − cos) (VA-VAE, arXiv 2501.01423): tokens whose cosine is at least 1 − margin have no
    gradient."""
    student_BND, teacher_BND = unit_tokens(student_BND, mask_BN), unit_tokens(teacher_BND, mask_BN)
    return mean_over_tokens(F.relu(1.0 - margin - (student_BND * teacher_BND).sum(-1)), mask_BN)


# --- tokens of a sample with each other ----------------------------------------------------------------------


def unit_tokens(x_BND: Tensor, mask_BN: Tensor | None, centred: bool = False) -> Tensor:
    """Tokens of unit length, masked ones 0. `centred`: after the mean of the sample's tokens is subtracted."""
    x_BND = without_masked(x_BND.float(), mask_BN)
    if centred:
        mean_B1D = x_BND.mean(1, keepdim=True) if mask_BN is None else x_BND.sum(1, keepdim=True) / _of_tokens(mask_BN)
        x_BND = without_masked(x_BND - mean_B1D, mask_BN)
    return unit_vectors(x_BND)


def similarity_difference(
    student_BND: Tensor, teacher_BND: Tensor, mask_BN: Tensor | None, centred: bool = False
) -> Tensor:
    """Student's minus teacher's cosines of all pairs of a sample's tokens [B,N,N]; 0 where a token is masked."""
    student_BND, teacher_BND = (unit_tokens(x, mask_BN, centred) for x in (student_BND, teacher_BND))
    return student_BND @ student_BND.mT - teacher_BND @ teacher_BND.mT


def marginal_relations(student_BND: Tensor, teacher_BND: Tensor, mask_BN: Tensor | None, margin: float) -> Tensor:
    """relu(|difference of cosines| − margin), the mean over all N² pairs (VA-VAE, arXiv 2501.01423)."""
    value_BNN = F.relu(similarity_difference(student_BND, teacher_BND, mask_BN).abs() - margin)
    return value_BNN.sum((1, 2)) / _token_count(student_BND, mask_BN).pow(2)


def token_relations(student_BND: Tensor, teacher_BND: Tensor, mask_BN: Tensor | None, centred: bool) -> Tensor:
    """Squared difference of cosines, the mean over pairs of different tokens: U-REPA's manifold loss at the level of
    tokens, of centred tokens if asked to."""
    difference_BNN = similarity_difference(student_BND, teacher_BND, mask_BN, centred)
    off_diagonal = ~torch.eye(difference_BNN.shape[1], dtype=torch.bool, device=difference_BNN.device)
    count_B = _token_count(student_BND, mask_BN, at_least=2)
    return difference_BNN.pow(2).mul(off_diagonal).sum((1, 2)) / (count_B * (count_B - 1))


def structure(student_BND: Tensor, teacher_BND: Tensor, mask_BN: Tensor | None) -> Tensor:
    """‖difference of the autocorrelation matrices‖²_F, the sum over all N² pairs (SARA, arXiv 2503.08253)."""
    return similarity_difference(student_BND, teacher_BND, mask_BN).pow(2).sum((1, 2))


# --- samples with each other ---------------------------------------------------------------------------------


def sample_relations(
    student_BND: Tensor, teacher_BND: Tensor, mask_BN: Tensor | None, gather: Gather, centred: bool
) -> Tensor:
    """Squared difference of cosines between a sample's pooled tokens and those of all others of the global batch, the
    mean over the others. `centred`: after the global batch's mean is subtracted. Raises ValueError for one sample."""
    differences = []
    for x_BND in (student_BND, teacher_BND):
        own_BD = pool_tokens(x_BND, mask_BN)
        all_GD = gather(own_BD)
        if centred:
            mean_D = all_GD.mean(0)
            own_BD, all_GD = (F.normalize(x - mean_D, dim=-1) for x in (own_BD, all_GD))
        differences.append(own_BD @ all_GD.mT)
    similarities, targets = differences
    others = similarities.shape[1] - 1
    if others < 1:
        raise ValueError("a term that compares samples needs at least 2 of them; there is 1")
    return (similarities - targets).pow(2).sum(1) / others  # a sample and itself differ by 0


def contrast_within(student_BND: Tensor, teacher_BND: Tensor, mask_BN: Tensor | None, temperature: float) -> Tensor:
    """NT-Xent of each projected token with the teacher's token at its place against those at the other places of the
    same image: −log softmax over places of cos/temperature."""
    return _contrast(student_BND, teacher_BND, mask_BN, unit_tokens(teacher_BND, mask_BN), mask_BN, temperature)


def contrast_batch(
    student_BND: Tensor, teacher_BND: Tensor, mask_BN: Tensor | None, gather: Gather, temperature: float
) -> Tensor:
    """The same against the teacher's tokens at all places of all images of the global batch."""
    teacher_1MD = _gather_tokens(unit_tokens(teacher_BND, mask_BN), gather)
    mask_1M = None if mask_BN is None else gather(mask_BN.float()).flatten()[None] > 0
    return _contrast(student_BND, teacher_BND, mask_BN, teacher_1MD, mask_1M, temperature)


def _contrast(
    student_BND: Tensor,
    teacher_BND: Tensor,
    mask_BN: Tensor | None,
    keys_XMD: Tensor,
    mask_XM: Tensor | None,
    temperature: float,
) -> Tensor:
    """X is B, or 1 for keys that all samples share. The keys contain each token's own target."""
    student_BND = unit_tokens(student_BND, mask_BN)
    positive_BN = (student_BND * unit_tokens(teacher_BND, mask_BN)).sum(-1) / temperature
    logits_BNM = student_BND @ keys_XMD.mT / temperature
    if mask_XM is not None:
        logits_BNM = logits_BNM.masked_fill(~mask_XM[:, None], -torch.inf)
    return mean_over_tokens(logits_BNM.logsumexp(-1) - positive_BN, mask_BN)


def _gather_tokens(x_BND: Tensor, gather: Gather) -> Tensor:
    """All ranks' tokens in one row [1,M,D]."""
    return gather(x_BND.flatten(1)).unflatten(1, x_BND.shape[1:]).flatten(0, 1)[None]


def _of_tokens(mask_BN: Tensor) -> Tensor:
    """How many tokens count, as [B,1,1]."""
    return counts(mask_BN)[:, None, None]


def _token_count(x_BND: Tensor, mask_BN: Tensor | None, at_least: int = 1) -> Tensor:
    """How many of each sample's tokens count [B], fp32. Raises ValueError if these are fewer than `at_least`."""
    if mask_BN is not None:
        return counts(mask_BN, at_least)
    if x_BND.shape[1] < at_least:
        raise ValueError(f"a term that compares a sample's tokens needs {at_least} of them; there is {x_BND.shape[1]}")
    return torch.full((len(x_BND),), float(x_BND.shape[1]), device=x_BND.device)
