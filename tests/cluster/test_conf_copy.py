"""The copy of conf/ from which a sweep composes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra import compose as compose_hydra
from hydra import initialize_config_dir
from omegaconf import OmegaConf

from urepa.cli import CONF
from urepa.cluster.conf_copy import PLACE, copy_configs

LAUNCHER = ("hydra/launcher=local", "hydra.launcher.at_once=1", "hydra.launcher.gpus=[]")


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        file = folder / f"{name.replace('__', '/')}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return folder


def test_equal_content_shares_one_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Later folders add files that earlier ones lack, as in Hydra's search path; a damaged copy is made again."""
    monkeypatch.chdir(tmp_path)
    first = write(tmp_path / "first", root="a: 1\n", group__x="b: 1\n")
    second = write(tmp_path / "second", root="a: 2\n", group__y="b: 2\n")
    (first / "group" / ".x.yaml.swp").write_text("an editor's")
    copy = copy_configs([first, second])
    assert copy.parent == (tmp_path / PLACE)
    assert {p.relative_to(copy).as_posix(): p.read_text() for p in copy.rglob("*") if p.is_file()} == {
        "root.yaml": "a: 1\n",
        "group/x.yaml": "b: 1\n",
        "group/y.yaml": "b: 2\n",
    }
    (copy / "root.yaml").write_text("")
    assert copy_configs([first, second]) == copy
    assert (copy / "root.yaml").read_text() == "a: 1\n"
    write(first, root="a: 3\n")
    assert copy_configs([first, second]) != copy
    assert (copy / "root.yaml").read_text() == "a: 1\n"
    assert len(list((tmp_path / PLACE).iterdir())) == 2


@pytest.mark.slow
def test_the_copy_composes_as_conf_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compose: Callable[..., Any]
) -> None:
    """`compose` registers the schema and the resolvers."""
    monkeypatch.chdir(tmp_path)
    copy = str(copy_configs([Path(CONF)]))
    both = []
    for folder in (CONF, copy):
        with initialize_config_dir(folder, version_base="1.3"):
            both.append(OmegaConf.to_yaml(compose_hydra("train", ["+experiment=cifar10", "+ablation=lambda_0"])))
    assert both[0] == both[1]


@pytest.mark.slow
def test_edits_after_a_launcher_has_started_change_no_run(tmp_path: Path) -> None:
    """The launcher's runs are processes that compose for themselves, the second after the first. Here each ends with an
    error that the original configs cause; --config-dir applies to them too."""
    files = [tmp_path / name for name in ("first", "second")]
    for file in files:
        file.write_text("no checkpoint")
    mine = ["# @package _global_\n" + f"warm_start:\n  checkpoint: {file}\n" for file in files]
    own = write(tmp_path / "own", ablation__mine=mine[0])
    command = [sys.executable, "-m", "urepa.train", "-m", "--config-dir", str(own), "+ablation=mine", *LAUNCHER]
    launcher = subprocess.Popen(
        [*command, "tracking=none", "seed=0,1"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert launcher.stdout is not None
    assert launcher.stdout.readline().startswith("caches in data/digits are made first")
    assert launcher.stdout.readline().startswith("2 runs, 1 at a time")
    write(own, ablation__mine=mine[1])
    said, _ = launcher.communicate()
    assert launcher.returncode == 1
    for seed in (0, 1):
        (line,) = (line for line in said.splitlines() if line.startswith(f"FAILED  seed={seed}: "))
        assert str(files[0]) in line
