"""Steps of transformers whose shapes depend on values are counted without values."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers_tiny import CASES, backbone_of, texts, write_tiny

from urepa.core.backbone_protocols import ShapesFromValues
from urepa.core.conditions import Condition
from urepa.costs.counting import Flops, on_fake_cpu


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_operations_without_values_are_those_with_values(tmp_path: Path, case: str) -> None:
    """Of texts without padding."""
    backbone = backbone_of(write_tiny(tmp_path, case), case).train()
    x, condition, t_B = torch.randn(2, *CASES[case].latent), texts(case, 5, 5), torch.tensor([0.25, 0.5])

    def counted() -> int:
        with Flops() as counter:
            backbone(x, t_B, condition, ("block_1",)).prediction_RCHW.square().sum().backward()
        return int(counter.total)

    expected = counted()
    if isinstance(backbone, ShapesFromValues):
        backbone.fix_shapes()
    with on_fake_cpu(backbone):
        x, t_B = torch.empty(x.shape), torch.empty(2)
        condition = Condition({name: part.map(torch.empty_like) for name, part in condition.parts.items()})
        assert counted() == expected > 0
