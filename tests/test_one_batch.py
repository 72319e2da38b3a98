"""`python -m urepa.one_batch` in real processes: tables against the trainer's own values, mistakes, memory."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forks
import pytest
import torch
from torch import nn

from urepa.core.errors import UserError
from urepa.core.memory_errors import memory_errors
from urepa.training.one_update import tables


def run(folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    return forks.run(["-m", "urepa.one_batch", *overrides], folder)


def row(text: str, name: str) -> list[str]:
    """The cells of the first row that begins with this name."""
    return next(line.split()[len(name.split()) :] for line in text.splitlines() if line.strip().startswith(name))


@pytest.mark.slow
def test_the_tables_of_flextok_and_no_run(tmp_path: Path, small_flextok: list[str]) -> None:
    done = run(tmp_path, *small_flextok)
    assert (done.returncode, done.stderr) == (0, "")
    assert row(done.stdout, "tap decoder_block_1") == ["8x16x48", "4x4", "float32", "cpu"]
    assert row(done.stdout, "projected decoder_block_1") == ["8x4x1280", "2x2", "float32", "cpu"]
    assert row(done.stdout, "teacher") == ["8x4x1280", "2x2", "float16", "cpu"]
    assert row(done.stdout, "condition image ")[0] == "8x64x4"
    assert not os.listdir(tmp_path)


@pytest.mark.slow
def test_the_values_are_the_trainers(trainer_of: Callable[..., Any], small_flextok: list[str]) -> None:
    torch.set_num_threads(1)
    text = "\n".join(tables(trainer_of(*small_flextok)))
    trainer = trainer_of(*small_flextok)
    (batch,) = trainer.reader.read(0)
    terms, _ = trainer.forward(batch, 0)
    for name in ("diffusion", "token"):
        shown = float(row(text, f"train/{name}:")[-1])
        assert shown == pytest.approx(terms.per_sample[name].mean().item(), abs=1e-4)
    assert float(row(text, "train/total:")[-1]) == pytest.approx(terms.total.item(), abs=1e-4)
    terms.total.backward()
    for group in trainer.optimizer.param_groups:
        tensors, count, rate, norm, _ = row(text, group["name"])
        own: list[nn.Parameter] = group["params"]
        assert int(tensors) == len(own)
        assert int(count.replace(",", "")) == sum(p.numel() for p in own)
        assert float(rate) == pytest.approx(4e-4)
        expected = torch.nn.utils.get_total_norm([p.grad for p in own if p.grad is not None]).item()
        assert float(norm) == pytest.approx(expected, rel=1e-3)


@pytest.mark.slow
def test_without_a_teacher_there_is_no_tap(trainer_of: Callable[..., Any], small_flextok: list[str]) -> None:
    text = "\n".join(tables(trainer_of(*small_flextok, "loss=none")))
    assert "train/diffusion" in text
    assert not any(word in text for word in ("tap", "projected", "teacher", "train/token", "head"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["+loss.taps.decoder_block_9=1.0"], "no tap 'decoder_block_9'; it has decoder_block_0 to decoder_block_2"),
        (["resume=outputs/a/seed0"], "leave resume out"),
        (["backbone.registers=1000000"], "out of memory.*allocate.*trainer.batch_size.*urepa.plan"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, small_flextok: list[str], overrides: list[str], words: str) -> None:
    done = run(tmp_path, *small_flextok, *overrides)
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    with pytest.raises(UserError, match=words):
        raise UserError(line)
    assert done.returncode == 1
    assert not os.listdir(tmp_path)


def test_other_errors_stay_as_they_are() -> None:
    with pytest.raises(UserError, match=r"^out of memory \(CUDA out of memory\. Tried"), memory_errors():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB.\nmore")
    with pytest.raises(RuntimeError, match="shapes"), memory_errors():
        raise RuntimeError("shapes do not fit")
