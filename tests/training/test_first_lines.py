"""The lines that a run prints before its first step."""

from __future__ import annotations

import platform
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from urepa.training.first_lines import classes, device, parameters, start_lines


@pytest.mark.slow
def test_a_run_prints_a_line_on_each_part(build_trainer: Callable[..., Any]) -> None:
    """20 of 40 digits are for validation, so 40 train: 5 steps of 8 per epoch."""
    trainer = build_trainer("trainer.max_steps=12", "trainer.ema_warmup=true")
    said = dict(line.split(maxsplit=1) for line in start_lines(trainer).splitlines())
    trainer.reader.cache.close()
    assert list(said) == ["device", "parameters", "samples", "classes"]
    assert said["device"] == f"CPU ({platform.machine()}), 1 process, 1 thread, fp32"
    backbone, head = (
        sum(p.numel() for p in part.parameters()) for part in (trainer.model.backbone, trainer.model.heads)
    )
    assert said["parameters"] == f"backbone {backbone:,} (all trainable), no LoRA, heads {head:,} (all trainable)"
    assert said["samples"] == "40 training, 20 validation, 20 test; 12 steps of 8 are 2.4 epochs"
    assert said["classes"].startswith("10")


@pytest.mark.fast(1)
@pytest.mark.parametrize(("steps", "says"), [(150, "22 %"), (298, "5 %"), (299, "")])
def test_a_lag_of_the_average_is_reported_before_the_first_step(
    build_trainer: Callable[..., Any], steps: int, says: str
) -> None:
    """0.99^150 = 0.22 is more than 5 %, and so is 0.99^298 = 0.0500; the next power is not."""
    trainer = build_trainer(f"trainer.max_steps={steps}", "trainer.ema_decay=0.99")
    said = dict(line.split(maxsplit=1) for line in start_lines(trainer).splitlines())
    trainer.reader.cache.close()
    assert ("averages" in said) == bool(says)
    if says:
        assert said["averages"] == (
            f"at the last step, the EMA weights, which validation and evaluations use, will still hold {says} of the "
            f"initial weights (trainer.ema_decay=0.99 over {steps} updates): train longer, lower trainer.ema_decay, or "
            "set trainer.ema_warmup=true"
        )


class Adapted(nn.Module):
    """4 frozen weights and 3 of an adapter, without heads."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.ModuleDict({"frozen": nn.Linear(3, 1), "lora_A": nn.Linear(2, 1)})
        self.heads = nn.ModuleDict()
        self.backbone["frozen"].requires_grad_(False)


def test_adapters_are_counted_separately() -> None:
    assert parameters(Adapted()) == "backbone 4 (0 trainable), LoRA 3 (all trainable), no heads"
    model = Adapted()
    model.heads["mid"] = nn.Linear(999, 1)
    model.heads["mid"].bias.requires_grad_(False)
    assert parameters(model).endswith("heads 1,000 (999 trainable)")


def test_only_the_first_names_of_many_classes_are_listed() -> None:
    assert classes(1000, ()) == "1,000"
    assert classes(2, ["cat", "dog"]) == "2: cat, dog"
    assert classes(7, list("abcdefg")) == "7: a, b, c, d, e, ..."
    assert "\n" not in classes(1, ["x\ny"])


def test_the_threads_of_each_process_are_reported() -> None:
    several: Any = SimpleNamespace(device=torch.device("cpu"), num_processes=2)
    assert "2 processes, 1 thread each, bf16" in device(several, "bf16")
