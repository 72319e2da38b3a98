"""A user's mistake ends in one line and exit code 1, in a real process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ENVIRONMENT = {k: v for k, v in os.environ.items() if k not in ("HYDRA_FULL_ERROR", "WORLD_SIZE", "RANK")}
TINY = "data.root=nowhere/digits data.build_on_first_use=false"

# (arguments, what the line must say); the first of them never load torch
QUICK = [
    ("foo=1", "no key 'foo'"),
    ("loss.lambdamax=1", "did you mean 'loss.lambda_max'?"),
    ("loss=repa", "loss has no option 'repa'; choose one of: none, urepa"),
    ("+experiment=cifar", "experiment has no option 'cifar'; choose one of: cifar10"),
    ("nogroup=x", "no key 'nogroup'"),
    ("loss.level=pixel", "loss.level=pixel: Invalid value 'pixel', expected one of [sample, token, both]"),
    ("trainer.max_steps=many", "trainer.max_steps=many: Value 'many'"),
    ("loss.taps.midd=1", "to add one, write +loss.taps.midd=VALUE"),
    ("foo", "missing EQUAL"),
    ("loss=none head.depth=1", "head.depth has no effect with loss=none"),
    ("+ablation=lambda_0 +experiment=cifar10", "write +experiment=... first, then +ablation=..."),
    ("+experiment=cifar10 +ablation=lora_16", "+ablation=lora_16 is for the backbone sd15, not for tiny_unet"),
    ("-m +experiment=cifar10 +ablation=glob(lora_*)", "+ablation=lora_16 is for the backbone sd15"),
    ("-m +ablation=glob(lambda_*) +experiment=cifar10", "write +experiment=... first, then +ablation=..."),
    ("-m +ablation=glob(lambada*)", "glob(lambada*) matches no option of ablation; there are: baseline,"),
    ("+ablation=lambda_0 loss=none", "there is no key 'loss.lambda_max' beside the other parts"),
    ("trainer.batch_size=63 trainer.accumulation=2 loss.level=token", "does not divide"),
    ("trainer.log_every=0", "trainer.log_every=0: give 1 or more"),
    ("resume=nowhere", "resume=nowhere is not a run's folder"),
]
SLOWER = [
    ("+loss.taps.midd=1", "no tap 'midd'; it has mid, enc_last, dec_first"),
    (TINY, "there is no cache at nowhere/digits/"),
    (f"trainer.batch_size=1 {TINY}", "a batch has 1"),
    (f"loss.lambda_max=-1 {TINY}", "loss.lambda_max=-1.0: give 0 or more"),
]
CASES = [*QUICK, *SLOWER]

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def run(arguments: list[str], folder: Path, *python: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *python, "-m", *arguments]
    return subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def mistakes(
    tmp_path_factory: pytest.TempPathFactory, small_run: list[str]
) -> dict[str, subprocess.CompletedProcess[str]]:
    """All cases, two processes at a time, each in an empty folder with small_run's caches elsewhere."""
    folder = tmp_path_factory.mktemp("mistakes")
    caches = [o for o in small_run if o.startswith(("data.", "teacher.", "backbone."))]

    def answer(case: tuple[str, str]) -> tuple[str, subprocess.CompletedProcess[str]]:
        with_caches = caches if "midd" in case[0] else []
        return case[0], run(["urepa.train", *with_caches, *case[0].split(), "tracking=none"], folder)

    with ThreadPoolExecutor(2) as pool:
        return dict(pool.map(answer, CASES))


@pytest.mark.parametrize(("arguments", "words"), CASES, ids=[c[0].removesuffix(TINY).strip() for c in CASES])
def test_a_mistake_is_said_in_one_line(
    mistakes: dict[str, subprocess.CompletedProcess[str]], arguments: str, words: str
) -> None:
    done = mistakes[arguments]
    lines = done.stderr.splitlines()
    assert done.returncode == 1
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    assert words in lines[0]
    assert "Traceback" not in done.stdout + done.stderr


def test_the_preprocess_door_says_it_in_one_line_too(tmp_path: Path) -> None:
    for argument, words in (("data=digit", "did you mean 'digits'?"), ("data.limt=3", "did you mean 'data.limit'?")):
        done = run(["urepa.preprocess", argument], tmp_path)
        assert done.returncode == 1
        assert [line.startswith("error: ") and words in line for line in done.stderr.splitlines()] == [True]


def test_mistakes_leave_nothing_behind(tmp_path: Path) -> None:
    run(["urepa.train", "loss.level=pixel"], tmp_path)
    assert list(tmp_path.iterdir()) == []


def imported(done: subprocess.CompletedProcess[str]) -> set[str]:
    """Top-level packages that -X importtime saw."""
    lines = (line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines() if line.startswith("import time:"))
    return {line.split(".")[0] for line in lines}


def test_help_lists_the_groups_without_loading_torch(tmp_path: Path) -> None:
    done = run(["urepa.train", "--help"], tmp_path, "-X", "importtime")
    assert done.returncode == 0
    for group in ("backbone", "head", "teacher", "objective", "loss", "data", "optimizer", "trainer", "experiment"):
        assert f"\n{group}: " in done.stdout
    assert "+experiment=NAME" in done.stdout
    assert "hydra" in imported(done)
    assert not imported(done) & {"torch", "diffusers", "mlflow", "sklearn"}


def test_a_mistyped_key_is_found_without_loading_torch(tmp_path: Path) -> None:
    done = run(["urepa.train", "loss.lambdamax=1"], tmp_path, "-X", "importtime")
    assert done.returncode == 1
    assert not imported(done) & {"torch", "diffusers", "mlflow", "sklearn"}


def test_a_traceback_comes_when_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENVIRONMENT, "HYDRA_FULL_ERROR", "1")
    done = run(["urepa.train", "trainer.log_every=0"], tmp_path)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "UserError: trainer.log_every=0" in done.stderr
