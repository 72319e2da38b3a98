"""A user's mistake ends in one line and exit code 1, in a real process."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import mkdtemp

import pytest

from urepa.doors import FIRST_SPEAKS, one_line_mistakes
from urepa.errors import UserError

ENVIRONMENT = {k: v for k, v in os.environ.items() if k not in ("HYDRA_FULL_ERROR", "WORLD_SIZE", "RANK")}
TINY = "data.root=nowhere/digits data.build_on_first_use=false"

# (arguments, what the line must say); the first two lists never load torch
QUICK = [
    ("foo=1", "no key 'foo'"),
    ("loss.lambdamax=1", "did you mean 'loss.lambda_max'?"),
    ("loss=rapa", "loss has no option 'rapa'; choose one of: none, repa"),
    ("+experiment=cifar10 +ablation=lora_16", "+ablation=lora_16 is for the backbone sd15, not for tiny_unet"),
    ("-m +ablation=glob(lambada*)", "glob(lambada*) matches no option of ablation; there are: baseline,"),
    ("trainer.log_every=0", "trainer.log_every=0: give 1 or more"),
    ("resume=nowhere", "resume=nowhere is not a run's folder"),
]
MORE = [
    ("+experiment=cifar", "experiment has no option 'cifar'; choose one of: cifar10"),
    ("nogroup=x", "no key 'nogroup'"),
    ("loss.level=pixel", "loss.level=pixel: Invalid value 'pixel', expected one of [sample, token, both]"),
    ("experiment=cifar10", "write it with a plus, +experiment=NAME"),
    ("seed=0,1", "seed=0,1 is several values: add -m to sweep over them"),
    ("trainer.max_steps=many", "trainer.max_steps=many: Value 'many'"),
    ("loss.taps.midd=1", "to add one, write +loss.taps.midd=VALUE"),
    ("foo", "missing EQUAL"),
    ("loss=none head.depth=1", "head.depth has no effect with loss=none"),
    ("+ablation=lambda_0 +experiment=cifar10", "write +experiment=... first, then +ablation=..."),
    ("-m +experiment=cifar10 +ablation=glob(lora_*)", "+ablation=lora_16 is for the backbone sd15"),
    ("-m +ablation=glob(lambda_*) +experiment=cifar10", "write +experiment=... first, then +ablation=..."),
    ("-m seed=0,1 --cfg job", "--cfg shows one composed config and -m sweeps over several"),
    ("+ablation=lambda_0 loss=none", "there is no key 'loss.lambda_max' beside the other parts"),
    ("trainer.batch_size=63 trainer.accumulation=2 loss.level=token", "does not divide"),
]
SLOWER = [
    ("+loss.taps.midd=1", "no tap 'midd'; it has mid, enc_last, dec_first"),
    (TINY, "there is no cache at nowhere/digits/"),
    (f"trainer.batch_size=1 {TINY}", "a batch has 1"),
    (f"loss.lambda_max=-1 {TINY}", "loss.lambda_max=-1.0: give 0 or more"),
]
CASES = [*QUICK, *(pytest.param(*case, marks=pytest.mark.slow) for case in (*MORE, *SLOWER))]

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def run(arguments: list[str], folder: Path, *python: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *python, "-m", *arguments]
    return subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def mistakes(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[subprocess.CompletedProcess[str], set[str]]]:
    """What the cases whose tests run ended in, and what each left in its folder; two processes at a time."""
    asked = {item.callspec.params["arguments"] for item in request.session.items if "mistakes" in item.fixturenames}

    root = tmp_path_factory.mktemp("mistakes")  # not by the threads: the first folder of a session clears its place

    def answer(arguments: str) -> tuple[str, tuple[subprocess.CompletedProcess[str], set[str]]]:
        folder = Path(mkdtemp(dir=root))
        done = run(["urepa.train", *arguments.split(), "tracking=none"], folder)
        return arguments, (done, {str(path.relative_to(folder)) for path in folder.rglob("*")})

    with ThreadPoolExecutor(2) as pool:
        return dict(pool.map(answer, sorted(asked)))


@pytest.mark.parametrize(("arguments", "words"), CASES)
def test_a_mistake_is_said_in_one_line_and_leaves_nothing(
    mistakes: dict[str, tuple[subprocess.CompletedProcess[str], set[str]]], arguments: str, words: str
) -> None:
    done, left = mistakes[arguments]
    lines = done.stderr.splitlines()
    assert done.returncode == 1
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    assert words in lines[0]
    assert "Traceback" not in done.stdout + done.stderr
    of_a_sweep = {"outputs", "outputs/multirun.yaml", "outputs/.jobs"}  # Hydra's, and the copy of conf/
    left = {name for name in left if not name.startswith("outputs/.jobs/conf")}
    assert left <= (of_a_sweep if arguments.startswith("-m") else set())


def test_the_preprocess_door_says_it_in_one_line_too(tmp_path: Path) -> None:
    for argument, words in (("data=digit", "did you mean 'digits'?"), ("data.limt=3", "did you mean 'data.limit'?")):
        done = run(["urepa.preprocess", argument], tmp_path)
        assert done.returncode == 1
        assert [line.startswith("error: ") and words in line for line in done.stderr.splitlines()] == [True]


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"RANK": "1"}, "RANK=1 without WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT in the environment: start"),
        ({"RANK": "3", "WORLD_SIZE": "two"}, "WORLD_SIZE=two, which is no whole number, in the environment"),
    ],
)
@pytest.mark.parametrize("command", ["urepa.train trainer.log_every=0", "urepa.compare", "launchers.status"])
def test_ranks_that_are_none_are_said(
    command: str, variables: dict[str, str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setitem(ENVIRONMENT, name, value)
    done = run(command.split(), tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {words}")
    assert len(done.stderr.splitlines()) == 1


def test_another_rank_prints_its_own_mistake(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Later than the first rank, whose end ends it in most cases; without torchrun too."""
    waited: list[float] = []
    monkeypatch.setattr("time.sleep", waited.append)
    ranks = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "x", "MASTER_PORT": "1"}
    for name, value in ranks.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit), one_line_mistakes():
        raise UserError("only here")
    assert capsys.readouterr().err == "error: only here\n"
    assert waited == [FIRST_SPEAKS]


def imported(done: subprocess.CompletedProcess[str]) -> set[str]:
    """Top-level packages that -X importtime saw."""
    lines = (line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines() if line.startswith("import time:"))
    return {line.split(".")[0] for line in lines}


@pytest.mark.slow
def test_help_lists_the_groups_without_loading_torch(tmp_path: Path) -> None:
    done = run(["urepa.train", "--help"], tmp_path, "-X", "importtime")
    assert done.returncode == 0
    for group in ("backbone", "head", "teacher", "objective", "loss", "data", "optimizer", "trainer", "experiment"):
        assert re.search(rf"^  \+?{group}  ", done.stdout, re.MULTILINE)
    assert "+experiment=NAME" in done.stdout
    assert list(tmp_path.iterdir()) == []
    assert "hydra" in imported(done)
    assert not imported(done) & {"torch", "diffusers", "mlflow", "sklearn"}


def test_help_of_published_weights_is_their_own(tmp_path: Path) -> None:
    done = run(["urepa.generate", "checkpoint=some/file,v=1.pt", "-h"], tmp_path, "-X", "importtime")
    assert done.returncode == 0
    assert done.stdout.startswith("urepa.generate: makes images of published weights, without a run")
    assert re.search(r"^  checkpoint +some/file,v=1.pt  published weights", done.stdout, re.MULTILINE)
    assert not imported(done) & {"torch", "diffusers", "mlflow", "sklearn"}
    assert list(tmp_path.iterdir()) == []


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
