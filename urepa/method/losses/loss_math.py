"""The loss terms as pure functions, computed in fp32 for inputs of any dtype.

Shapes: B batch, N tokens, D width, G group of samples whose similarities are compared.
L_total = L_diff + λ(step) · [L_token + w · L_manifold]

`mask_BN` is True where a token counts (None: all do). A masked term equals the term of the counted tokens alone. The
other tokens have no gradient, whatever their values. A sample without counted tokens raises ValueError.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from urepa.models.unit_vectors import UnitVectors, unit_vectors


def diffusion_loss(prediction_BCHW: Tensor, target_BCHW: Tensor) -> Tensor:
    """Mean squared error of each sample [B]; its mean over B is L_diff."""
    return (prediction_BCHW.float() - target_BCHW.float()).pow(2).flatten(1).mean(1)


def token_loss(student_BND: Tensor, teacher_BND: Tensor, mask_BN: Tensor | None = None) -> Tensor:
    """1 − cos(student, teacher), averaged over each sample's tokens: [B], in [0,2] (REPA eq. 8,
    arXiv 2410.06940, with an added 1)."""
    assert student_BND.shape == teacher_BND.shape, f"{student_BND.shape} against {teacher_BND.shape}"
    student_BND, teacher_BND = (UnitTokens(x, mask_BN).get() for x in (student_BND, teacher_BND))
    return token_loss_of_units(student_BND, teacher_BND, mask_BN)


def token_loss_of_units(student_BND: Tensor, teacher_BND: Tensor, mask_BN: Tensor | None = None) -> Tensor:
    """`token_loss` of `UnitTokens`."""
    cosine_BN = (student_BND * teacher_BND).sum(-1)
    if mask_BN is None:
        return 1.0 - cosine_BN.mean(1)
    return 1.0 - cosine_BN.sum(1) / counts(mask_BN)


def normalise_spatially(tokens_BND: Tensor, share: float, mask_BN: Tensor | None = None) -> Tensor:
    """(x − share·mean)/(std + 1e-6) over an image's tokens, channel by channel, which emphasises the differences
    between its positions (iREPA). The standard deviation divides by N − 1. A masked token becomes 0."""
    tokens_BND = tokens_BND.float()
    if mask_BN is None:
        mean_B1D, std_B1D = tokens_BND.mean(1, keepdim=True), tokens_BND.std(1, keepdim=True)
        return (tokens_BND - share * mean_B1D) / (std_B1D + 1e-6)
    count_B11 = counts(mask_BN, at_least=2)[:, None, None]
    mean_B1D = without_masked(tokens_BND, mask_BN).sum(1, keepdim=True) / count_B11
    squares_B1D = without_masked(tokens_BND - mean_B1D, mask_BN).pow(2).sum(1, keepdim=True)
    std_B1D = (squares_B1D / (count_B11 - 1)).sqrt()
    return without_masked((tokens_BND - share * mean_B1D) / (std_B1D + 1e-6), mask_BN)


def mean_square(difference_XNN: Tensor, diagonal: bool = False) -> Tensor:
    """Mean of the squared entries off the diagonals. For symmetric matrices this is the mean over their upper
    triangles. With `diagonal`, the mean over all entries: (N − 1)/N of the former if the diagonals are 0, as those of
    the difference of two similarity matrices are."""
    n = difference_XNN.shape[-1]
    if n < 2:
        raise ValueError("a manifold loss compares at least 2 vectors; there is 1")
    if diagonal:
        return difference_XNN.pow(2).mean()
    off_diagonal = ~torch.eye(n, dtype=torch.bool, device=difference_XNN.device)
    return difference_XNN.pow(2).mul(off_diagonal).sum() / (difference_XNN.numel() / n * (n - 1))


def pool_tokens(tokens_BND: Tensor, mask_BN: Tensor | None = None) -> Tensor:
    """A sample's vector [B,D]: the unit vector along its mean token."""
    return pool_units(UnitTokens(tokens_BND, mask_BN).get(), mask_BN)


def pool_units(unit_BND: Tensor, mask_BN: Tensor | None = None) -> Tensor:
    """`pool_tokens` of `UnitTokens`."""
    mean_BD = unit_BND.mean(1) if mask_BN is None else unit_BND.sum(1) / counts(mask_BN)[:, None]
    return F.normalize(mean_BD, dim=-1)


def manifold_loss_sample(student_GD: Tensor, teacher_GD: Tensor, diagonal: bool = False) -> Tensor:
    """Squared difference of the samples' similarity matrices, off the diagonal or with it. Takes `pool_tokens` vectors
    of the whole group, so that the caller may gather them over ranks first."""
    return mean_square(student_GD @ student_GD.mT - teacher_GD @ teacher_GD.mT, diagonal)


def manifold_loss_token(
    student_BND: Tensor, teacher_BND: Tensor, mask_BN: Tensor | None = None, diagonal: bool = False
) -> Tensor:
    """The paper's form: similarity matrices of tokens within each sample (U-REPA, arXiv 2503.18414,
    eq. 6), without the diagonal, which is 1 on both sides, or with it. With a mask, the mean is taken over each
    sample's pairs first and then over samples, which have equal weight however many of their tokens count. Raises
    ValueError if fewer than two tokens of a sample count."""
    student_BND, teacher_BND = (UnitTokens(x, mask_BN).get() for x in (student_BND, teacher_BND))
    return manifold_loss_of_units(student_BND, teacher_BND, mask_BN, diagonal)


def manifold_loss_of_units(
    student_BND: Tensor, teacher_BND: Tensor, mask_BN: Tensor | None = None, diagonal: bool = False
) -> Tensor:
    """`manifold_loss_token` of `UnitTokens`."""
    difference_BNN = student_BND @ student_BND.mT - teacher_BND @ teacher_BND.mT
    if mask_BN is None:
        return mean_square(difference_BNN, diagonal)
    count_B = counts(mask_BN, at_least=2)
    if diagonal:
        return (difference_BNN.pow(2).sum((1, 2)) / count_B.pow(2)).mean()
    off_diagonal = ~torch.eye(mask_BN.shape[1], dtype=torch.bool, device=mask_BN.device)
    sum_B = difference_BNN.pow(2).mul(off_diagonal).sum((1, 2))  # masked tokens are 0 on both sides
    return (sum_B / (count_B * (count_B - 1))).mean()


class UnitTokens:
    """The unit vectors along one side's tokens for several terms, computed once; masked tokens are 0. Each `get` is a
    node of its own in the graph (`urepa.models.unit_vectors`). fp32."""

    def __init__(self, tokens_BND: Tensor, mask_BN: Tensor | None = None) -> None:
        self._tokens_BND, self._mask_BN = tokens_BND, mask_BN
        self._units = None if mask_BN is not None else UnitVectors(tokens_BND.float())

    def get(self, detached: bool = False) -> Tensor:
        """The unit vectors [B,N,D]; `detached`: without a gradient."""
        if self._units is not None:
            return self._units.get(detached)
        tokens_BND = self._tokens_BND.detach() if detached else self._tokens_BND
        # a mask for each term, through which autograd passes a term's gradients together
        return unit_vectors(without_masked(tokens_BND, self._mask_BN).float())


def both_masks(one_BN: Tensor | None, other_BN: Tensor | None) -> Tensor | None:
    """Where tokens of both sides count; None: everywhere."""
    if one_BN is None or other_BN is None:
        return other_BN if one_BN is None else one_BN
    return one_BN & other_BN


def without_masked(x_BND: Tensor, mask_BN: Tensor | None) -> Tensor:
    """Sets masked tokens to 0, so that they have no gradient."""
    return x_BND if mask_BN is None else x_BND.masked_fill(~mask_BN[..., None], 0)


def counts(mask_BN: Tensor, at_least: int = 1) -> Tensor:
    """How many of each sample's tokens count [B], fp32."""
    assert mask_BN.dtype == torch.bool, "a mask is True where a token counts"
    count_B = mask_BN.sum(1)
    fewest = int(count_B.min())
    if fewest < at_least:
        raise ValueError(f"a sample of the batch has {fewest} tokens that count; this term needs {at_least} or more")
    return count_B.float()


def total_loss(diffusion: Tensor, token: Tensor, manifold: Tensor, lam: float, weight: float) -> Tensor:
    """L_diff + λ·(L_token + w·L_manifold)."""
    return diffusion + lam * (token + weight * manifold)
