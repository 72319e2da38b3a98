"""The declaration of every optimiser, and what it builds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from urepa.cli import CONF
from urepa.config import own_package
from urepa.config.declared import declaration_of
from urepa.core.errors import UserError
from urepa.core.run_protocols import Optimizer
from urepa.training.optimizer import step_unless

Compose = Callable[..., dict[str, Any]]
NAMES = sorted(file.stem for file in (Path(CONF) / "optimizer").glob("*.yaml"))


@pytest.mark.fast(2)
@pytest.mark.parametrize("name", NAMES)
def test_a_declared_optimizer_is_what_the_protocol_says(compose: Compose, name: str) -> None:
    declared: Optimizer = declaration_of(compose(f"optimizer={name}")["optimizer"])
    assert own_package._members(Optimizer) <= set(dir(declared))
    declared.check()
    layers = {part: nn.Linear(3, 2) for part in ("lora" if "lora" in name else "backbone", "head")}
    optimizer = declared.build({part: list(layer.parameters()) for part, layer in layers.items()})
    assert [group["name"] for group in optimizer.param_groups] == list(layers)
    peaks = [group["lr"] for group in optimizer.param_groups]
    rates = [declared.rate(step, 40) for step in range(41)]
    assert 0 <= min(rates) <= max(rates) <= 1
    for step in (0, 8, 20, 39):
        declared.set_lr(optimizer, step, 40)
        expected = [peak * rates[step] for peak in peaks]
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx(expected, rel=1e-12)
    declared.set_lr(optimizer, 20, 40)
    before = {part: layer.weight.clone() for part, layer in layers.items()}
    sum(layer(torch.ones(1, 3)).sum() for layer in layers.values()).backward()
    step_unless(optimizer, torch.tensor(1.0))
    assert all(torch.equal(before[part], layer.weight) for part, layer in layers.items()), "a skipped step"
    step_unless(optimizer, torch.tensor(0.0))
    assert not any(torch.equal(before[part], layer.weight) for part, layer in layers.items())
    kept = [value for state in optimizer.state.values() for value in state.values() if value.numel() > 1]
    assert sum(v.numel() for v in kept) == declared.states * sum(
        p.numel() for layer in layers.values() for p in layer.parameters()
    )
    first, *_, table = declared.description(dict.fromkeys(layers, 8), 40, None)
    assert "Gradients are not clipped." in str(first)
    assert len(table.rows) == len(layers)  # type: ignore[union-attr]
    with pytest.raises(UserError, match="optimizer has no lr and weight_decay for 'other', which trains"):
        declared.build({"other": list(layers["head"].parameters())})


def test_moments_have_two_rates_below_one(compose: Compose) -> None:
    settings = compose()["optimizer"]
    for betas in ([0.9], [0.9, 1.0], [-0.1, 0.9]):
        with pytest.raises(UserError, match="^optimizer.betas=.*: give two numbers from 0 up to, but not"):
            declaration_of(settings | {"betas": betas}).check()
