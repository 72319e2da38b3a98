"""Similarity of two feature sets of the same samples. Pure functions; similarity matrices are computed in blocks.

Shapes: N samples, D and E widths of the two sets, b a block of samples, k neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from scipy.sparse import csr_array
from torch import Tensor

ENTRIES = 2**22  # entries of a similarity matrix in memory at once
ROWS = 1024  # rows of features converted to fp64 at once


def similarity_mae(x_ND: Tensor, y_NE: Tensor) -> float:
    """Mean |cos(x_i, x_j) − cos(y_i, y_j)| over i ≠ j."""
    n, total = len(x_ND), 0.0
    for (_, x_bN), (_, y_bN) in zip(_cosines(x_ND), _cosines(y_NE), strict=True):
        total += x_bN.sub_(y_bN).abs_().sum(dtype=torch.float64).item()  # the diagonal is 1 on both sides
    return total / (n * (n - 1))


def neighbours(x_ND: Tensor, k: int) -> Tensor:
    """Indices [N,k] of each sample's k nearest others by cosine."""
    n = len(x_ND)
    assert 0 < k < n
    found_Nk = torch.empty(n, k, dtype=torch.long, device=x_ND.device)
    for rows_b, similarity_bN in _cosines(x_ND):
        similarity_bN[rows_b - rows_b[0], rows_b] = -torch.inf
        found_Nk[rows_b] = similarity_bN.topk(k, dim=1).indices
    return found_Nk


def _cosines(x_ND: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields blocks of row indices [b] and the rows' cosines with all samples [b,N]. All blocks use the same memory:
    allocating and freeing each one would fragment it. A block must be used before the next one is computed."""
    x_ND = F.normalize(x_ND, dim=-1)
    n = len(x_ND)
    rows = torch.arange(n, device=x_ND.device).split(max(1, ENTRIES // n))
    memory_bN = x_ND.new_empty(len(rows[0]), n)
    for rows_b in rows:
        yield rows_b, torch.mm(x_ND[rows_b], x_ND.mT, out=memory_bN[: len(rows_b)])


def neighbour_recall(x_ND: Tensor, y_NE: Tensor, k: int) -> float:
    """The share of y's k nearest neighbours that are among x's k nearest, in [0,1]; k / (N − 1) by chance. With equal k
    this is the mutual k-NN of Huh et al. (arXiv 2405.07987)."""
    mine, theirs = _graph(neighbours(x_ND, k)), _graph(neighbours(y_NE, k))
    return float(mine.multiply(theirs).sum()) / mine.nnz


def linear_cka(x_ND: Tensor, y_NE: Tensor) -> float:
    """Linear CKA (Kornblith et al. 2019) with the unbiased HSIC of Song et al. (2012, eq. 5). It is computed from
    features, so no [N,N] matrix is needed. It is 1 if a rotation and a scale map one feature set to the other, and 0 on
    average for independent ones. The biased estimate approaches 1 for any two sets whose widths approach N. NaN if all
    samples of a set are equal."""
    across = _unbiased_hsic(x_ND, y_NE)
    own = _unbiased_hsic(x_ND, x_ND) * _unbiased_hsic(y_NE, y_NE)
    return across / own**0.5 if own > 0 else float("nan")


def _unbiased_hsic(x_ND: Tensor, y_NE: Tensor) -> float:
    """N(N−3) times the unbiased HSIC of centred features' linear kernels, in fp64."""
    n = len(x_ND)
    x_D, y_E = (sum(part.double().sum(0) for part in v.split(ROWS)) / n for v in (x_ND, y_NE))
    across_DE = torch.zeros(len(x_D), len(y_E), dtype=torch.float64, device=x_ND.device)
    inner = x_all = y_all = 0.0
    for x_bD, y_bE in zip(x_ND.split(ROWS), y_NE.split(ROWS), strict=True):
        x_bD, y_bE = x_bD.double() - x_D, y_bE.double() - y_E
        across_DE += x_bD.mT @ y_bE
        x_b, y_b = x_bD.square().sum(1), y_bE.square().sum(1)
        inner, x_all, y_all = inner + float(x_b @ y_b), x_all + float(x_b.sum()), y_all + float(y_b.sum())
    return float(across_DE.square().sum()) - n / (n - 2) * inner + x_all * y_all / ((n - 1) * (n - 2))


def cknna(x_ND: Tensor, y_NE: Tensor, k: int) -> float:
    """Centred kernel nearest-neighbour alignment (Huh et al. 2024, arXiv 2405.07987, appendix A): CKA of cosine kernels
    restricted to the pairs that are k nearest neighbours in both sets (REPA, arXiv 2410.06940, reports it with k = 10).
    As in the authors' code, it uses the unbiased HSIC of the masked kernels, and a sample is not its own neighbour.
    Unlike there, 1e-6 is not added to the denominator, so that features have exactly 1 with themselves, and outliers
    are not clipped."""
    x_ND, y_NE = F.normalize(x_ND, dim=-1), F.normalize(y_NE, dim=-1)
    x_graph, y_graph = _graph(neighbours(x_ND, k)), _graph(neighbours(y_NE, k))
    across = _masked_hsic(x_ND, y_NE, x_graph.multiply(y_graph).tocsr())
    own = _masked_hsic(x_ND, x_ND, x_graph) * _masked_hsic(y_NE, y_NE, y_graph)
    return across / own**0.5 if own > 0 else float("nan")


def _graph(indices_Nk: Tensor) -> csr_array:
    """The k-NN graph: entry [i,j] is 1 if j is a neighbour of i."""
    n, k = indices_Nk.shape
    ones = torch.ones(n * k).double().numpy()
    return csr_array((ones, indices_Nk.flatten().cpu().numpy(), range(0, n * k + 1, k)), shape=(n, n))


def _masked_hsic(x_ND: Tensor, y_NE: Tensor, mask: csr_array) -> float:
    """N(N−3) times the unbiased HSIC (Song et al. 2012, eq. 5) of both kernels where the mask is 1."""
    n = len(x_ND)
    kernel, other = _kernel(x_ND, mask), _kernel(y_NE, mask)
    products = float(kernel.multiply(other.T).sum())
    chains = float(kernel.sum(0) @ other.sum(1))
    return products + float(kernel.sum() * other.sum()) / ((n - 1) * (n - 2)) - 2 * chains / (n - 2)


def _kernel(x_ND: Tensor, mask: csr_array) -> csr_array:
    """Inner products where the mask is 1."""
    rows, columns = (torch.from_numpy(i).long() for i in mask.tocoo().coords)
    pairs = zip(rows.split(ROWS), columns.split(ROWS), strict=True)
    values = [(x_ND[i].double() * x_ND[j].double()).sum(1).cpu() for i, j in pairs]
    return csr_array((torch.cat(values).numpy(), (rows.numpy(), columns.numpy())), shape=mask.shape)
