"""The average of the weights, compared with closed forms; a skipped step leaves it unchanged."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from tiny_model import GO, SKIP, model, same, set_gradients
from torch import Tensor, nn

from urepa.core.errors import UserError
from urepa.models.weight_files import trainable
from urepa.runs import checkpoint
from urepa.training.ema import EMA


def test_ema_of_constant_weights_has_its_closed_form() -> None:
    """θ_ema after n updates towards a constant θ is d^n·θ_0 + (1−d^n)·θ."""
    net = model()
    ema = EMA(net, 0.9, warmup=False)
    start = {name: p.detach().clone() for name, p in net.named_parameters()}
    with torch.no_grad():
        for p in net.parameters():
            p.add_(1.0)
    for _ in range(12):
        ema.update(GO)
    for name, p in net.named_parameters():
        torch.testing.assert_close(ema.shadow[name], 0.9**12 * start[name] + (1 - 0.9**12) * p.detach())


def test_ema_of_moving_weights_is_their_weighted_sum() -> None:
    net = nn.Linear(1, 1, bias=False)
    values = [0.0, 1.0, 4.0, 9.0]
    with torch.no_grad():
        net.weight.fill_(values[0])
        ema = EMA(net, 0.75, warmup=False)
        for value in values[1:]:
            net.weight.fill_(value)
            ema.update(GO)
    expected = 0.75**3 * 0 + 0.25 * (0.75**2 * 1 + 0.75 * 4 + 9)
    assert ema.shadow["weight"].item() == pytest.approx(expected)


@pytest.mark.parametrize("warmup", [False, True])
def test_ema_skips_a_bad_step(warmup: bool) -> None:
    net = model()
    ema = EMA(net, 0.9, warmup)
    set_gradients(net, 0)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(p.grad)
    before = {name: x.clone() for name, x in ema.shadow.items()}
    ema.update(SKIP)
    assert all(torch.equal(x, before[name]) for name, x in ema.shadow.items())
    assert (int(ema.updates), ema.initial_share()) == (0, 1.0)
    ema.update(GO)
    assert int(ema.updates) == 1
    assert not any(torch.equal(x, before[name]) for name, x in ema.shadow.items())


def test_ema_follows_trainables_alone() -> None:
    net = model()
    net.backbone.requires_grad_(False)
    assert set(EMA(net, 0.9, warmup=False).shadow) == set(trainable(net)) == {"heads.mid.weight", "heads.mid.bias"}


@pytest.mark.parametrize("fails", [False, True])
def test_ema_applied_gives_the_weights_back_bit_for_bit(fails: bool) -> None:
    net = model()
    ema = EMA(net, 0.9, warmup=False)
    set_gradients(net, 0)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(p.grad)
        for x in ema.shadow.values():
            x.mul_(1e5)  # so far away that a detour by differences would cost bits
    own, shadow = copy.deepcopy(net.state_dict()), {k: v.clone() for k, v in ema.shadow.items()}
    try:
        with ema.use_averages():
            assert all(torch.equal(p, shadow[name]) for name, p in net.named_parameters())
            assert not any(torch.equal(p, own[name]) for name, p in net.named_parameters())
            if fails:
                raise KeyError
    except KeyError:
        assert fails
    assert all(torch.equal(value, own[name]) for name, value in net.state_dict().items())
    assert all(torch.equal(value, shadow[name]) for name, value in ema.shadow.items())


@pytest.mark.parametrize("decay", [-0.1, 1.0, 1.5])
def test_an_impossible_ema_is_a_user_error(decay: float) -> None:
    with pytest.raises(UserError, match=r"trainer\.ema_decay"):
        EMA(model(), decay, warmup=False)


def test_an_ema_decay_of_zero_is_the_weights_themselves() -> None:
    net = nn.Linear(1, 1, bias=False)
    ema = EMA(net, 0.0, warmup=False)
    seen = []
    for value in (1.0, 5.0):
        nn.init.constant_(net.weight, value)
        ema.update(GO)
        seen.append(ema.shadow["weight"].item())
    assert [b - a for a, b in pairwise([0.0, *seen])] == [1.0, 4.0]


def drifting(warmup: bool, decay: float, skipped: tuple[int, ...] = (), steps: int = 40) -> tuple[EMA, list[Tensor]]:
    """An average over weights that change at each step, with the initial weights and those after each step."""
    net = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    ema = EMA(net, decay, warmup)
    seen = [net.weight.detach().clone()]
    random = torch.Generator().manual_seed(0)
    for step in range(steps):
        with torch.no_grad():
            net.weight.add_(torch.randn((1, 1), generator=random, dtype=torch.float64))
        seen.append(net.weight.detach().clone())
        ema.update(SKIP if step in skipped else GO)
    return ema, seen


@pytest.mark.parametrize("decay", [0.99, 0.5])  # below its ramp for all 40 updates; from the 9th on above it
@pytest.mark.parametrize("skipped", [(), (0, 1, 17)])
def test_a_warm_up_is_tensorflows_rule_over_applied_updates(decay: float, skipped: tuple[int, ...]) -> None:
    ema, seen = drifting(True, decay, skipped)
    expected, n, share = seen[0].item(), 0, 1.0
    for step, weight in enumerate(seen[1:]):
        if step not in skipped:
            d = min(decay, (1 + n) / (10 + n))
            expected, n, share = d * expected + (1 - d) * weight.item(), n + 1, share * d
    assert n == int(ema.updates) == 40 - len(skipped)
    assert ema.shadow["weight"].item() == pytest.approx(expected, rel=1e-5)
    assert ema.initial_share() == pytest.approx(share)


def test_the_share_is_that_of_the_initial_weights_in_the_average() -> None:
    """Weights that become 0 at once and stay 0 leave only the initial weights' share."""
    for warmup, expected in ((False, 0.99**40), (True, 1 / 2054455634)):  # 40! 9! / 49!
        net = nn.Linear(1, 1, bias=False)
        nn.init.constant_(net.weight, 1.0)
        ema = EMA(net, 0.99, warmup)
        nn.init.zeros_(net.weight)
        for _ in range(40):
            ema.update(GO)
        assert ema.shadow["weight"].item() == pytest.approx(ema.initial_share(), rel=1e-4)
        assert ema.initial_share() == pytest.approx(expected)


@pytest.mark.parametrize("decay", [0.0, 1 / 3, 0.9, 0.99, 0.9995, 0.9999])
def test_without_a_warm_up_the_average_is_unchanged_bit_for_bit(decay: float) -> None:
    """θ_ema += (1−d)·(1−bad)·(θ−θ_ema), with one rounding for each product and sum or with fewer."""
    net = model()
    ema = EMA(net, decay, warmup=False)
    before = [p.detach().clone() for p in net.parameters()]
    for step in range(50):
        bad = SKIP if step % 7 == 0 else GO
        set_gradients(net, step)
        with torch.no_grad():
            for p in net.parameters():
                p.add_(p.grad)
            for average, p in zip(before, net.parameters(), strict=True):
                average.lerp_(p, (1.0 - decay) * (1.0 - bad))
        ema.update(bad)
    assert same(list(ema.shadow.values()), before)


@pytest.mark.slow
@pytest.mark.parametrize("warmup", ["false", "true"])
def test_an_average_resumes_exactly(build_trainer: Callable[..., Any], warmup: str) -> None:
    """Two steps, a checkpoint and four more steps equal six steps without a stop; one of the first two is skipped."""

    def updated(trainer: Any, steps: range) -> Any:
        for step in steps:
            batches = trainer.reader.read(step)
            if step == 1:
                batches[0].x0[0] = torch.nan
            trainer.update(step, batches, with_tap_gradients=False)
        return trainer

    settings = (f"trainer.ema_warmup={warmup}", "trainer.max_steps=6")
    first = updated(build_trainer(*settings), range(2))
    first.save(2)
    found = checkpoint.newest(first.folder / "checkpoints")
    assert found is not None
    assert found.state["ema_updates"] == 1
    assert found.tensors("ema").keys() == first.ema.shadow.keys()
    without = replace(found, state={k: v for k, v in found.state.items() if k != "ema_updates"})
    whole = updated(build_trainer(*settings), range(6))
    for begin in (found, without):  # the second is a checkpoint of before
        second = build_trainer(*settings)
        assert second.restore(begin, None) == 2
        assert int(second.ema.updates) == 1
        updated(second, range(2, 6))
        assert int(second.ema.updates) == 5
        assert all(torch.equal(x, whole.ema.shadow[name]) for name, x in second.ema.shadow.items())
