"""The loss terms as pure functions, in fp32 whatever comes in.

Shapes: B batch, N tokens, D width, G group of samples whose similarities are compared.
L_total = L_diff + λ(step) · [L_token + w · L_manifold]
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def diffusion_loss(prediction_BCHW: Tensor, target_BCHW: Tensor) -> Tensor:
    """Mean squared error of each sample [B]; its mean over B is L_diff."""
    return (prediction_BCHW.float() - target_BCHW.float()).pow(2).flatten(1).mean(1)


def token_loss(student_BND: Tensor, teacher_BND: Tensor, mask_BN: Tensor | None = None) -> Tensor:
    """1 − cos(student, teacher), averaged over each sample's tokens: [B], in [0,2] (REPA eq. 8,
    arXiv 2410.06940, with an added 1). `mask_BN` is True where a token counts."""
    assert student_BND.shape == teacher_BND.shape, f"{student_BND.shape} against {teacher_BND.shape}"
    cosine_BN = (F.normalize(student_BND.float(), dim=-1) * F.normalize(teacher_BND.float(), dim=-1)).sum(-1)
    if mask_BN is None:
        return 1.0 - cosine_BN.mean(1)
    weight_BN = mask_BN.float()
    return 1.0 - (cosine_BN * weight_BN).sum(1) / weight_BN.sum(1)


def normalise_spatially(tokens_BND: Tensor, share: float) -> Tensor:
    """(x − share·mean)/(std + 1e-6) over an image's tokens, channel by channel: what tells its places apart (iREPA).
    The standard deviation divides by N − 1."""
    tokens_BND = tokens_BND.float()
    mean_B1D, std_B1D = tokens_BND.mean(1, keepdim=True), tokens_BND.std(1, keepdim=True)
    return (tokens_BND - share * mean_B1D) / (std_B1D + 1e-6)


def off_diagonal_mean(difference_XNN: Tensor) -> Tensor:
    """Mean of squared entries off the diagonal. For a symmetric matrix this is the mean over its upper
    triangle."""
    n = difference_XNN.shape[-1]
    if n < 2:
        raise ValueError("a manifold loss compares at least 2 vectors; there is 1")
    off_diagonal = ~torch.eye(n, dtype=torch.bool, device=difference_XNN.device)
    return difference_XNN.pow(2).mul(off_diagonal).sum() / (difference_XNN.numel() / n * (n - 1))


def pool_tokens(tokens_BND: Tensor) -> Tensor:
    """A sample's vector [B,D]: the unit vector along its mean token."""
    return F.normalize(F.normalize(tokens_BND.float(), dim=-1).mean(1), dim=-1)


def manifold_loss_sample(student_GD: Tensor, teacher_GD: Tensor) -> Tensor:
    """Squared difference of the samples' similarity matrices. Takes `pool_tokens` vectors of
    the whole group, so that the caller may gather them over ranks first."""
    return off_diagonal_mean(student_GD @ student_GD.mT - teacher_GD @ teacher_GD.mT)


def manifold_loss_token(student_BND: Tensor, teacher_BND: Tensor) -> Tensor:
    """The paper's form: similarity matrices of tokens within each sample (U-REPA, arXiv 2503.18414,
    eq. 6), here without the diagonal, which is 1 on both sides."""
    student_BND, teacher_BND = (F.normalize(x.float(), dim=-1) for x in (student_BND, teacher_BND))
    return off_diagonal_mean(student_BND @ student_BND.mT - teacher_BND @ teacher_BND.mT)


def total_loss(diffusion: Tensor, token: Tensor, manifold: Tensor, lam: float, weight: float) -> Tensor:
    """L_diff + λ·(L_token + w·L_manifold)."""
    return diffusion + lam * (token + weight * manifold)
