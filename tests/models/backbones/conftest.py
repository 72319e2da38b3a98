"""Inputs for the small SiT."""

from __future__ import annotations

import pytest
import torch
from class_ids import of_ids
from tiny_sit import SHAPE
from torch import Tensor

from urepa.core.conditions import Condition


@pytest.fixture(scope="module")
def inputs() -> tuple[Tensor, Tensor, Condition]:
    torch.manual_seed(1)
    return torch.randn(3, *SHAPE), torch.tensor([0.0, 0.37, 1.0]), of_ids(torch.tensor([0, 4, 5]), null_id=5)
