"""The forward pass of the averaged weights is counted, up to the target's block."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from class_ids import of_ids

from urepa.core.types import no_rows
from urepa.costs.counting import Flops
from urepa.costs.estimate import count
from urepa.training.assembly import build_backbone_without_weights, build_part


@pytest.mark.slow
def test_the_averaged_weights_are_counted(compose: Callable[..., dict[str, Any]]) -> None:
    sizes = ("+experiment=repa_cifar10_cpu", "data.source=folder", "data.images=DIR", "backbone.width=32")
    counted = {name: count(compose(*sizes, f"loss={name}"), "cuda") for name in ("layer_sync", "self_representation")}
    config = compose(*sizes)
    track = build_part(config["data"])
    backbone = build_backbone_without_weights(config, track)
    batch = config["trainer"]["batch_size"]
    inputs = torch.zeros(batch, *track.latent_shape), torch.full((batch,), 0.5), of_ids(torch.zeros(batch).long(), 10)
    with torch.no_grad(), Flops() as target:
        backbone(*inputs, ("block_3",), no_rows(torch.device("cpu")))
    with torch.no_grad(), Flops() as head:
        tokens = torch.zeros(batch * 64, 32)
        tokens @ torch.zeros(32, 64)
        torch.zeros(batch * 64, 64) @ torch.zeros(64, 32)
    extra = [sum(counted[name].step.forward.values()) for name in ("self_representation", "layer_sync")]
    assert extra[0] - extra[1] == target.total + head.total
    assert counted["self_representation"].parameters["head"]["trainable"] == 32 * 64 + 64 + 64 * 32 + 32
    assert "head" not in counted["layer_sync"].parameters
