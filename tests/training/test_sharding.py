"""What trainer.sharding=fsdp2 refuses, and the copy of a model for its evaluations. Runs are in
tests/process/test_sharded_training.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_model import model
from torch import nn

from urepa.core.errors import UserError
from urepa.core.shards import copy_into, gathered, is_sharded, own_part, part_like, whole
from urepa.training.checks.combinations import check_trainer
from urepa.training.sharding import Shards, _without_weights, check_sharding

CPU = torch.device("cpu")


def test_it_needs_several_processes_and_contiguous_weights(compose: Callable[..., dict[str, Any]]) -> None:
    trainer = compose("trainer.sharding=fsdp2")["trainer"]
    assert trainer["sharding"] == "fsdp2"
    check_sharding(trainer, 2)
    check_trainer(trainer, 2)
    check_sharding(trainer | {"sharding": None}, 1)
    with pytest.raises(UserError, match="this run has one: start it with torchrun"):
        check_sharding(trainer, 1)
    with pytest.raises(UserError, match=r"give trainer\.channels_last=false"):
        check_trainer(trainer | {"channels_last": True}, 2)


@pytest.mark.parametrize(
    ("regions", "averaged", "frozen", "said"),
    [
        ((), (), (), "divides a backbone by its repeated blocks"),
        (("Linear",), ("mid",), (), "states at the averaged weights"),
        (("Linear",), (), ("mid",), "states at an earlier run's weights"),
    ],
)
def test_models_that_cannot_be_divided(
    regions: tuple[str, ...], averaged: tuple[str, ...], frozen: tuple[str, ...], said: str
) -> None:
    net: Any = model()
    net.backbone.regions, net.averaged_taps, net.frozen_taps = regions, averaged, frozen
    with pytest.raises(UserError, match=said):
        Shards(net, CPU)


def test_a_copy_has_no_memory_for_weights_and_leaves_the_model_alone() -> None:
    net = model()
    net.backbone.register_buffer("prompts", torch.arange(3.0))
    before = {name: p.clone() for name, p in net.named_parameters()}
    copied = _without_weights(net, CPU)
    assert [name for name, _ in copied.named_parameters()] == list(before)
    assert all(p.is_meta and not p.requires_grad for p in copied.parameters())
    assert torch.equal(dict(copied.named_buffers())["backbone.prompts"], torch.arange(3.0))
    assert all(torch.equal(p, before[name]) and p.requires_grad for name, p in net.named_parameters())


def test_ordinary_tensors_pass_unchanged() -> None:
    own, other = nn.Parameter(torch.ones(2)), torch.arange(2.0)
    assert not is_sharded(own)
    assert whole(own) is own_part(own) is own
    assert part_like(other, own) is other
    assert gathered({"weights": {"a": own}}, keep=False)["weights"]["a"] is own
    copy_into(own, other)
    assert torch.equal(own, other)
