"""AdamW, clipping and EMA against torch and closed forms; a skipped step leaves everything alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from urepa.core.errors import UserError
from urepa.method.step_schedules import cosine_with_warmup
from urepa.method.training_step import AlignedModel
from urepa.models.weight_files import trainable
from urepa.runs import checkpoint
from urepa.training.ema import EMA
from urepa.training.optimizer import clip_by_global_norm, groups_of, step_unless
from urepa.training.optimizers.adamw import AdamW

GO, SKIP = torch.tensor(0.0), torch.tensor(1.0)


def model() -> AlignedModel:
    torch.manual_seed(0)
    return AlignedModel(nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3)), {"mid": nn.Linear(3, 5)})


def adamw() -> AdamW:
    return AdamW(
        lr={"backbone": 1e-2, "head": 3e-2},
        weight_decay={"backbone": 0.0, "head": 0.1},
        betas=[0.9, 0.99],
        eps=1e-8,
        warmup_ratio=0.2,
    )


def set_gradients(net: nn.Module, seed: int, scale: float = 1.0) -> None:
    random = torch.Generator().manual_seed(seed)
    for p in net.parameters():
        p.grad = scale * torch.randn(p.shape, generator=random)


# --- groups -------------------------------------------------------------------------------------------------


def test_every_trainable_parameter_is_in_exactly_one_group() -> None:
    net = model()
    net.backbone[0].requires_grad_(False)
    groups = groups_of(net, "lora")
    assert {name: len(parameters) for name, parameters in groups.items()} == {"lora": 2, "head": 2}
    found = [id(p) for parameters in groups.values() for p in parameters]
    assert sorted(found) == sorted(id(p) for p in net.parameters() if p.requires_grad)


def test_a_trainers_optimizer_holds_every_trainable_parameter_once(build_trainer: object) -> None:
    trainer = build_trainer()  # type: ignore[operator]
    groups = trainer.optimizer.param_groups
    found = [id(p) for group in groups for p in group["params"]]
    assert [group["name"] for group in groups] == ["backbone", "head"]
    assert sorted(found) == sorted(id(p) for p in trainer.model.parameters())
    assert all((id(p) in found) == p.requires_grad for p in trainer.model.parameters())


def test_groups_have_their_own_settings() -> None:
    optimizer = adamw().build(groups_of(model(), "backbone"))
    settings = {g["name"]: (g["lr"], g["weight_decay"], g["betas"]) for g in optimizer.param_groups}
    assert settings == {"backbone": (1e-2, 0.0, (0.9, 0.99)), "head": (3e-2, 0.1, (0.9, 0.99))}


def test_a_group_without_a_learning_rate_is_a_user_error() -> None:
    with pytest.raises(UserError, match="no lr and weight_decay for 'lora'"):
        adamw().build(groups_of(model(), "lora"))


# --- clipping -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.001, 1.0, 1000.0])
def test_clipping_is_torchs(scale: float) -> None:
    net, reference = model(), model()
    set_gradients(net, 1, scale)
    set_gradients(reference, 1, scale)
    norms = clip_by_global_norm(adamw().build(groups_of(net, "backbone")), 1.0)
    expected = torch.nn.utils.clip_grad_norm_(reference.parameters(), 1.0)
    torch.testing.assert_close(norms["all"], expected)
    for p, q in zip(net.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-6, atol=0)


def test_norms_are_given_by_group_before_clipping() -> None:
    net = model()
    set_gradients(net, 1)
    parts = {"backbone": list(net.backbone.parameters()), "head": list(net.heads.parameters())}
    by_hand = {
        name: torch.cat([p.grad.flatten() for p in parameters]).norm()  # type: ignore[union-attr]
        for name, parameters in parts.items()
    }
    norms = clip_by_global_norm(adamw().build(groups_of(net, "backbone")), 1e-3)
    assert norms["backbone"].item() == pytest.approx(by_hand["backbone"].item(), rel=1e-6)
    assert norms["head"].item() == pytest.approx(by_hand["head"].item(), rel=1e-6)
    assert norms["all"].item() == pytest.approx((norms["backbone"] ** 2 + norms["head"] ** 2).sqrt().item())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("scale", [0.001, 1.0, 100.0])
def test_every_gradient_is_multiplied_by_the_one_factor(dtype: torch.dtype, scale: float) -> None:
    """g · min(1, limit / (norm + 1e-6)), rounded once, as one multiplication of each tensor gives it."""
    net = model().to(dtype)
    random = torch.Generator().manual_seed(1)
    for p in net.parameters():
        p.grad = (scale * torch.randn(p.shape, generator=random)).to(dtype)
    before = [p.grad.clone() for p in net.parameters()]
    norm = clip_by_global_norm(adamw().build(groups_of(net, "backbone")), 2.0)["all"]
    factor = (2.0 / (norm + 1e-6)).clamp(max=1.0)
    assert (factor < 1) == (scale >= 1)
    assert same([p.grad for p in net.parameters()], [gradient * factor for gradient in before])


@pytest.mark.parametrize("max_norm", [None, 1e9])
def test_small_gradients_and_no_limit_change_no_bit(max_norm: float | None) -> None:
    net, reference = model(), model()
    set_gradients(net, 1)
    set_gradients(reference, 1)
    clip_by_global_norm(adamw().build(groups_of(net, "backbone")), max_norm)
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(net.parameters(), reference.parameters(), strict=True))


def test_a_group_of_zero_gradients_leaves_the_others_bits() -> None:
    """What makes loss.lambda_max=0 train the backbone that loss=none trains."""
    with_head, without = model(), model()
    for net in (with_head, without):
        set_gradients(net.backbone, 2, 10.0)
    for p in with_head.heads.parameters():
        p.grad = torch.zeros_like(p)
    clip_by_global_norm(adamw().build(groups_of(with_head, "backbone")), 1.0)
    clip_by_global_norm(adamw().build({"backbone": list(without.backbone.parameters())}), 1.0)
    pairs = zip(with_head.backbone.parameters(), without.backbone.parameters(), strict=True)
    assert all(torch.equal(p.grad, q.grad) for p, q in pairs)


# --- the step -----------------------------------------------------------------------------------------------


def state_of(net: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    parts = [p.detach().clone() for p in net.parameters()]
    for p in net.parameters():
        parts += [value.detach().clone() for _, value in sorted(optimizer.state[p].items())]
    return parts


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("value", [1.0, torch.nan, torch.inf])
def test_a_bad_step_touches_neither_weights_nor_adams_state(value: float) -> None:
    net = model()
    optimizer = adamw().build(groups_of(net, "backbone"))
    for i in range(3):
        set_gradients(net, i)
        step_unless(optimizer, GO)
    before = state_of(net, optimizer)
    assert {name for p in net.parameters() for name in optimizer.state[p]} == {"exp_avg", "exp_avg_sq", "step"}
    set_gradients(net, 9, value)
    step_unless(optimizer, SKIP)
    assert same(state_of(net, optimizer), before)
    set_gradients(net, 9)
    step_unless(optimizer, GO)
    assert not any(torch.equal(a, b) for a, b in zip(before, state_of(net, optimizer), strict=True))


def test_a_bad_first_step_counts_as_none() -> None:
    skipped, plain = model(), model()
    optimizers = [adamw().build(groups_of(net, "backbone")) for net in (skipped, plain)]
    set_gradients(skipped, 9, torch.nan)
    step_unless(optimizers[0], SKIP)
    for i in range(3):
        for net, optimizer in zip((skipped, plain), optimizers, strict=True):
            set_gradients(net, i)
            step_unless(optimizer, GO)
    assert same(state_of(skipped, optimizers[0]), state_of(plain, optimizers[1]))


def test_the_trajectory_is_plain_adamws_under_the_schedule() -> None:
    net, reference = model(), model()
    ours = adamw()
    optimizer = ours.build(groups_of(net, "backbone"))
    parts = [
        {"params": list(reference.backbone.parameters()), "weight_decay": 0.0},
        {"params": list(reference.heads.parameters()), "weight_decay": 0.1},
    ]
    plain = torch.optim.AdamW(parts, lr=0.0, betas=(0.9, 0.99), eps=1e-8, foreach=False, fused=False)
    steps = 20
    for i in range(steps):
        set_gradients(net, i)
        set_gradients(reference, i)
        ours.set_lr(optimizer, i, steps)
        factor = cosine_with_warmup(i, steps, 0.2)
        plain.param_groups[0]["lr"], plain.param_groups[1]["lr"] = 1e-2 * factor, 3e-2 * factor
        step_unless(optimizer, GO)
        plain.step()
    for p, q, start in zip(net.parameters(), reference.parameters(), model().parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-6)
        assert (p - start).abs().max() > 0.05


def test_learning_rates_follow_the_step_and_nothing_else() -> None:
    """No state: a resumed run sets what the first would have set."""
    ours = adamw()
    optimizer = ours.build(groups_of(model(), "backbone"))
    ours.set_lr(optimizer, 50, 100)
    at_50 = [group["lr"] for group in optimizer.param_groups]
    for step in range(51):
        ours.set_lr(optimizer, step, 100)
    assert [group["lr"] for group in optimizer.param_groups] == at_50
    assert at_50[1] / at_50[0] == pytest.approx(3)
    assert at_50[0] == pytest.approx(1e-2 * cosine_with_warmup(50, 100, 0.2))


# --- EMA ----------------------------------------------------------------------------------------------------


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
def test_an_ema_that_cannot_be_is_a_user_error(decay: float) -> None:
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
    """An average over weights that move at each step, and the weights at the beginning and after each step."""
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


def test_the_share_is_what_the_average_holds_of_the_initial_weights() -> None:
    """Weights that jump to 0 at once and stay there leave the initial ones' share alone."""
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
def test_without_a_warm_up_no_bit_of_the_average_is_another(decay: float) -> None:
    """θ_ema += (1−d)·(1−bad)·(θ−θ_ema), in one rounding for each product and sum or in fewer."""
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


@pytest.mark.parametrize("warmup", ["false", "true"])
def test_an_average_resumes_exactly(build_trainer: Callable[..., Any], warmup: str) -> None:
    """Two steps, a checkpoint, four more: as six in one go; one of the first two is skipped."""

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
