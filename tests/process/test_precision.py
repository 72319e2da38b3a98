"""A run in bf16 autocast equals the fp32 run to bf16's precision, and its weights stay in fp32."""

from __future__ import annotations

import torch
from safetensors.torch import load_file
from workspace import Workspace, last_checkpoint

from urepa.runs.metrics import read_rows


def test_bf16_follows_fp32(work: Workspace, reference: Workspace) -> None:
    work.train("trainer.precision=bf16", "tracking=none")
    ours, theirs = (read_rows(here.run / "metrics.jsonl") for here in (work, reference))
    for key in ("train/diffusion", "train/token", "val/diffusion", "val/token"):
        a, b = ([float(row[key]) for row in rows if key in row] for rows in (ours, theirs))
        assert len(a) == len(b) > 1
        assert all(abs(x - y) < 0.03 * abs(y) for x, y in zip(a, b, strict=True)), key
        assert a != b, "autocast did nothing"
    weights = load_file(last_checkpoint(work.run) / "weights.safetensors")
    assert {w.dtype for w in weights.values()} == {torch.float32}
