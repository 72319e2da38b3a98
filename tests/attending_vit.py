"""A small DINOv2 of random weights, for tests of losses that compare attention maps."""

from __future__ import annotations

from pathlib import Path

import torch

BLOCKS = 3
HEADS = 2


def write(folder: Path) -> list[str]:
    """Writes it to a folder. Returns the overrides that choose it: 4x4 patches without pooling."""
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "patch_size": 14, "image_size": 56}
    network = Dinov2Model(Dinov2Config(num_hidden_layers=BLOCKS, num_attention_heads=HEADS, **sizes))
    with torch.no_grad():
        for parameter in network.parameters():  # attention of fresh weights is almost the same everywhere
            parameter.add_(0.3 * torch.randn_like(parameter))
    network.save_pretrained(folder)
    return [
        "teacher=dinov2_s_112",
        f"teacher.model={folder}",
        *("teacher.image_size=56", "teacher.grid=[4,4]", "teacher.width=32"),
        "data.online_teacher=true",
    ]
