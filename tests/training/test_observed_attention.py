"""The share of cross-attention by part of the condition in training: against a direct computation, and without an
effect on gradients.

Shapes: B samples, L text tokens, N queries, S context tokens.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from urepa.core.conditions import Condition, Part
from urepa.core.part_names import CLS, PATCHES, TEXT
from urepa.core.types import Batch
from urepa.method.training_step import Aligned
from urepa.models.backbones.nanodit_net import NanoDiTNetwork
from urepa.training.observed import Observed
from urepa.training.observed_attention import KEY, QUERIES, SAMPLES, ObservedAttention

DROPOUT = {"text+image": 0.1, "image": 0.3, "text": 0.05}
PARTS = (TEXT, CLS, PATCHES)
WIDTH, HEADS, LENGTH = 16, 2, 5
SIDES = (12, 20)  # of x_t: 60 tokens


def network(patches: bool = True, cls: str = "both", recompute: bool = False) -> NanoDiTNetwork:
    torch.manual_seed(0)
    net = NanoDiTNetwork((2, *SIDES), 2, 3, WIDTH, HEADS, (3, 7, 4), cls, True, patches, False, recompute)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(std=0.3)
    return net.train()


def condition(words: list[int], seed: int = 1) -> Condition:
    """As many samples as there are numbers of words that count."""
    random = torch.Generator().manual_seed(seed)
    mask_BL = torch.arange(LENGTH) < torch.tensor(words)[:, None]
    text = Part.of(torch.randn(len(words), LENGTH, 3, generator=random), mask_BL)
    cls = Part.of(torch.randn(len(words), 7, generator=random))
    patches = Part.of_image(torch.randn(len(words), 6, 4, generator=random), (2, 3))
    return Condition({TEXT: text, CLS: cls, PATCHES: patches})


def batch_of(own: Condition, rows_R: Tensor | None = None) -> Batch:
    x_t = torch.randn(len(own), 2, *SIDES, generator=torch.Generator().manual_seed(len(own)))
    return Batch(["a"] * len(own), x_t, x_t, torch.linspace(0.2, 0.8, len(own)), own, {}, rows_R)


def update(net: Any, batches: list[Batch], taps: tuple[str, ...] = (), logs: bool = True) -> dict[str, float]:
    """The logged shares of one update. Its gradients are left in the network."""
    observed = Observed(net, DROPOUT, PARTS)
    observed.begin(batches, logs)
    for batch in batches:
        output = net(batch.x0, batch.t_B, batch.condition, taps, batch.rows_R).prediction_RCHW
        output.square().sum().backward()
        observed.note(Aligned(output, {}, {}))
    observed.end()
    return {key.removeprefix(KEY): value for key, value in observed.row().items() if key.startswith(KEY)}


def shares_by_hand(net: Any, batch: Batch, row: int) -> np.ndarray:
    """The attention [S] of one sample to each token: every score by itself, in float64, averaged over the queries whose
    numbers are those of multiples of the golden ratio, over heads and blocks."""
    assert batch.x0.shape[2] * batch.x0.shape[3] // 4 == 60
    queries = sorted({int((i * (5**0.5 - 1) / 2 % 1) * 60) for i in range(QUERIES)})
    assert len(queries) == QUERIES
    columns = SIDES[1] // 2
    assert {q % columns for q in queries} == set(range(columns)), "queries of all columns"
    seen: list[tuple[Tensor, ...]] = []
    hooks = [a.register_forward_pre_hook(lambda _, inputs: seen.append(inputs)) for a in net.cross_attentions()]
    with torch.no_grad():
        net(batch.x0[row : row + 1], batch.t_B[row : row + 1], batch.condition.rows(torch.tensor([row])))
    for hook in hooks:
        hook.remove()
    total, side = np.zeros(seen[0][1].shape[1]), WIDTH // HEADS
    for attention, (x_1ND, context_1SD, mask_1S) in zip(net.cross_attentions(), seen, strict=True):
        q = x_1ND[0].double() @ attention.q.weight.detach().double().T
        k = context_1SD[0].double() @ attention.kv.weight.detach().double()[:WIDTH].T
        for head in range(HEADS):
            own = slice(head * side, (head + 1) * side)
            for query in queries:
                scores = (k[:, own] @ q[query, own]).numpy() / side**0.5
                weights = np.exp(scores) * mask_1S[0].numpy()
                total += weights / weights.sum()
    return total / (len(seen) * HEADS * len(queries))


def by_part(shares_S: np.ndarray) -> dict[str, float]:
    return {TEXT: shares_S[:LENGTH].sum(), CLS: shares_S[LENGTH], PATCHES: shares_S[LENGTH + 1 :].sum()}


@pytest.mark.parametrize("recompute", [False, True])
def test_shares_are_those_of_all_scores_of_the_first_complete_samples(recompute: bool) -> None:
    """Of the second, third and fourth sample of the first micro-batch and of the second one of the other: the others
    lost a part, or come after the fourth."""
    net = network(recompute=recompute)
    first, second = condition([5, 3, 1, 2]), condition([4, 5, 2], seed=2)
    first = first.drop({"image": torch.tensor([True, False, False, False])})
    second = second.drop({"text": torch.tensor([True, False, False])})
    batches = [batch_of(first), batch_of(second)]
    found = update(net, batches)
    rows = [(batches[0], 1), (batches[0], 2), (batches[0], 3), (batches[1], 1)]
    assert len(rows) == SAMPLES
    expected = by_part(np.mean([shares_by_hand(net, batch, row) for batch, row in rows], axis=0))
    assert found == pytest.approx(expected, rel=1e-5)
    assert sum(found.values()) == pytest.approx(1, abs=1e-6)
    assert min(found.values()) > 0.02


def test_masked_words_have_no_share() -> None:
    """Without queries attention is uniform over what is attended to: words, vector and patches."""
    net = network()
    with torch.no_grad():
        for attention in net.cross_attentions():
            attention.q.weight.zero_()
    assert update(net, [batch_of(condition([2]))]) == pytest.approx({TEXT: 2 / 9, CLS: 1 / 9, PATCHES: 6 / 9})
    assert update(net, [batch_of(condition([0]))]) == pytest.approx({TEXT: 0, CLS: 1 / 7, PATCHES: 6 / 7})


def test_parts_are_those_of_the_context() -> None:
    assert update(network(patches=False), [batch_of(condition([2, 3]))]).keys() == {TEXT, CLS}
    assert update(network(cls="adaln"), [batch_of(condition([2, 3]))]).keys() == {TEXT, PATCHES}
    assert update(network(patches=False, cls="adaln"), [batch_of(condition([2]))]) == pytest.approx({TEXT: 1})


def test_only_samples_with_a_prediction_are_looked_at() -> None:
    """Blocks after the deepest tap have these alone, in their own order; the third sample is the only complete one."""
    net = network()
    own = condition([5, 3, 1, 2]).drop({"text": torch.tensor([False, True, False, False])})
    batch = batch_of(own, rows_R=torch.tensor([1, 2]))
    expected = by_part(shares_by_hand(net, batch, 2))
    assert update(net, [batch], taps=("block_0",)) == pytest.approx(expected, rel=1e-5)


def test_without_complete_samples_nothing_is_logged() -> None:
    lost = condition([5, 3]).drop({"image": torch.tensor([True, True])})
    assert update(network(), [batch_of(lost)]) == {}
    assert update(network(), [batch_of(condition([5, 3]))], logs=False) == {}


@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_and_random_numbers_are_the_same_bit_for_bit(recompute: bool) -> None:
    found = []
    for logs in (True, False):
        net = network(recompute=recompute)
        state = torch.get_rng_state()
        shares = update(net, [batch_of(condition([5, 3, 2])), batch_of(condition([1]))], logs=logs)
        assert bool(shares) is logs
        assert torch.equal(torch.get_rng_state(), state)
        found.append({name: p.grad for name, p in net.named_parameters()})
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert any(bool(g.any()) for g in found[0].values())


def test_other_weights_and_other_passes_are_not_looked_at() -> None:
    """States at averaged weights are made in eval mode, before the update's own pass; others come after it."""
    net, batch = network(), batch_of(condition([5, 3]))
    own = ObservedAttention(net)
    own.begin([batch])
    net.eval()
    net(batch.x0 + 1, batch.t_B, batch.condition)
    net.train()
    net(batch.x0, batch.t_B, batch.condition)
    net(batch.x0 - 1, batch.t_B, batch.condition)
    own.next()
    net(batch.x0 + 1, batch.t_B, batch.condition)
    sums = own.sums(torch.device("cpu"))
    expected = by_part(shares_by_hand(net, batch, 0) + shares_by_hand(net, batch, 1))
    assert {key.removeprefix(KEY): pair[0].item() for key, pair in sums.items()} == pytest.approx(expected, rel=1e-5)
    assert {pair[1].item() for pair in sums.values()} == {2}
    net(batch.x0, batch.t_B, batch.condition)
    assert own.sums(torch.device("cpu")) == {}


@pytest.mark.slow
def test_nothing_of_networks_without_such_attention_or_with_compiled_blocks() -> None:
    net = network()
    for block in net.blocks:
        block.compile(backend="eager")
    for other in (nn.Linear(2, 2), net):
        own = ObservedAttention(other)
        own.begin([batch_of(condition([5]))])
        assert own.sums(torch.device("cpu")) == {}
