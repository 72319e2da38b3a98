"""AdamW and clipping, compared with torch and closed forms; a skipped step leaves everything unchanged."""

from __future__ import annotations

import pytest
import torch
from tiny_model import GO, SKIP, model, same, set_gradients
from torch import Tensor, nn

from urepa.core.errors import UserError
from urepa.method.step_schedules import cosine_with_warmup
from urepa.training.optimizer import clip_by_global_norm, groups_of, step_unless
from urepa.training.optimizers.adamw import AdamW


def adamw() -> AdamW:
    return AdamW(
        lr={"backbone": 1e-2, "head": 3e-2},
        weight_decay={"backbone": 0.0, "head": 0.1},
        betas=[0.9, 0.99],
        eps=1e-8,
        warmup_ratio=0.2,
    )


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


def test_a_group_of_zero_gradients_does_not_change_the_others() -> None:
    """This is why loss.lambda_max=0 trains the same backbone as loss=none."""
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


def test_a_skipped_first_step_does_not_count() -> None:
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


def test_learning_rates_depend_on_the_step_alone() -> None:
    """There is no state: a resumed run sets the same rates as an uninterrupted one."""
    ours = adamw()
    optimizer = ours.build(groups_of(model(), "backbone"))
    ours.set_lr(optimizer, 50, 100)
    at_50 = [group["lr"] for group in optimizer.param_groups]
    for step in range(51):
        ours.set_lr(optimizer, step, 100)
    assert [group["lr"] for group in optimizer.param_groups] == at_50
    assert at_50[1] / at_50[0] == pytest.approx(3)
    assert at_50[0] == pytest.approx(1e-2 * cosine_with_warmup(50, 100, 0.2))
