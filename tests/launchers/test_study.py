"""A study's jobs: which commands, on how many GPUs, and what waits for what."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra import compose as compose_hydra
from hydra import initialize_config_dir

from launchers.ablation_grid import settings_of, split
from launchers.hours import training_hours
from launchers.study import Run, Stage, arms_of, compose_run, stages_of
from urepa.costs import Device, plan
from urepa.doors import CONF
from urepa.errors import UserError
from urepa.plan import hours
from urepa.runs import plain

TRACK_A = ["+experiment=track_a", "data.root=/data"]


@pytest.fixture(autouse=True)
def _prepared(compose: Callable[..., Any]) -> None:
    """Schema and resolvers are known to Hydra."""


def runs_of(*arms: str, rest: list[str] = TRACK_A, gpus: int = 8, seeds: tuple[int, ...] = (0, 1)) -> list[Run]:
    return [compose_run([*rest, f"+ablation={arm}", f"seed={s}"], gpus) for arm in arms for s in seeds]


def stages(runs: list[Run], *own: str, gpus: int = 8) -> list[Stage]:
    return stages_of(runs, settings_of(["cluster=slurm", "shards=2", *own]), gpus)


def commands(stage: Stage) -> list[str]:
    return [" ".join(command) for job in stage.jobs for command in job.commands]


def test_a_latent_track_from_images_to_the_table() -> None:
    manifest, shards, verify, train, evaluate, compare = stages(runs_of("baseline", "lora_16"), "evaluate=digits")
    caches = "urepa.preprocess data=track_a teacher=dinov2_l data.root='/data'"
    assert commands(manifest) == [f"{caches} stage=manifest", f"{caches} stage=prompts"]
    assert commands(shards) == [
        f"{caches} shard={i}/2 stage={stage}" for i in (0, 1) for stage in ("images", "latents", "tokens")
    ]
    assert commands(verify) == [f"{caches} stage=verify"]
    assert commands(train)[3] == "urepa.train +experiment=track_a data.root=/data +ablation=lora_16 seed=1"
    assert train.jobs[3].run == str(Path("outputs/track_a+lora_16/seed1").absolute())
    assert commands(evaluate)[3] == "urepa.evaluate run='outputs/track_a+lora_16/seed1' evaluation=digits"
    assert commands(compare)[0].startswith("urepa.compare ids=['track_a+baseline/seed0',")
    assert [s.after for s in (manifest, shards, verify, train, evaluate)] == [None, manifest, shards, verify, train]
    assert evaluate.each
    assert compare.after_any == [manifest, shards, verify, train, evaluate]
    assert [s.gpus for s in (manifest, shards, verify, train, evaluate, compare)] == [1, 1, 0, 8, 1, 0]


def test_a_small_track_is_made_in_one_go() -> None:
    made, verify, train, _evaluate, _compare = stages(runs_of("baseline", rest=[], gpus=1), gpus=1)
    assert commands(made) == ["urepa.preprocess data=digits teacher=efficientnet_lite0 stage=all"]
    assert (verify.after, train.after) == (made, verify)


def test_caches_that_lie_together_are_made_one_after_the_other() -> None:
    """The larger track first; of the others what is their own."""
    runs = runs_of("samples_100k", "baseline", "teacher_224", seeds=(0,))
    first, shards, tokens_list, tokens, smaller = (s for s in stages(runs) if s.name == "preprocess")
    assert "data=track_a teacher" in commands(first)[0]
    assert {c.rpartition("stage=")[2] for c in commands(shards)} == {"images", "latents", "tokens"}
    assert [c.rpartition("stage=")[2] for c in commands(tokens_list)] == ["manifest"]
    assert all("data=track_a_224 teacher=dinov2_l_224" in c and c.endswith("stage=tokens") for c in commands(tokens))
    assert [c.split()[1] for c in commands(smaller)] == ["data=track_a_minus"]
    assert [c.rpartition("stage=")[2] for c in commands(smaller)] == ["manifest"]
    assert [s.after for s in (first, shards, tokens_list, tokens, smaller)] == [
        None,
        first,
        shards,
        tokens_list,
        tokens,
    ]


def test_what_changes_nothing_in_the_caches_makes_no_others() -> None:
    assert len({run.caches for run in runs_of("baseline", "no_cfg_dropout", "lora_32", "lambda_0")}) == 1


def test_stages_by_choice(capsys: pytest.CaptureFixture[str]) -> None:
    runs = runs_of("baseline")
    assert [s.name for s in stages(runs, "stages=[train]")] == ["train"]
    assert stages(runs, "stages=[train]")[0].after is None
    assert "evaluate" not in [s.name for s in stages(runs)]
    assert "evaluate: left out, the runs have evaluation=none" in capsys.readouterr().out
    with pytest.raises(UserError, match="stages: there is no fit; choose of preprocess, verify"):
        stages(runs, "stages=[train,fit]")


def test_all_arms_that_are_for_the_backbone(capsys: pytest.CaptureFixture[str]) -> None:
    arms = arms_of(None, [], 1)
    assert {"baseline", "lambda_0", "lambda_08"} <= set(arms)
    assert "lora_16" not in arms
    assert "left out: +ablation=lora_16 is for the backbone sd15, not for tiny_unet" in capsys.readouterr().out
    assert arms_of(["lora_16"], [], 1) == ["lora_16"]
    with pytest.raises(UserError, match="for the backbone sd15"):
        runs_of("lora_16", rest=[])


def test_arguments_are_the_study_s_or_its_runs() -> None:
    own, rest = split(["+experiment=track_a", "arms=a,b", "seeds=0,1", "cluster.gpus=2", "data.root=/d", "arms=null"])
    assert own == ["arms=[a,b]", "seeds=[0,1]", "cluster.gpus=2", "arms=null"]
    assert rest == ["+experiment=track_a", "data.root=/d"]
    with pytest.raises(UserError, match="seeds=0,1,2"):
        split(["seed=0"])
    with pytest.raises(UserError, match="arms=a,b,c"):
        split(["+ablation=lora_16"])


def test_hours_are_those_of_the_plan() -> None:
    """Of each arm once for each seed."""
    runs = runs_of("baseline", "lambda_0", rest=[], gpus=1)
    with initialize_config_dir(CONF, version_base="1.3"):
        parts = plain(compose_hydra("plan"))
    one = plan(parts, Device(**parts["device"]), None)
    assert one.floor_hours is not None
    said = training_hours(runs, None)
    assert said == f"training, GPU-hours on H200: {hours(4 * one.floor_hours)} at least, expected: pending"


def test_the_batch_divides_over_the_gpus() -> None:
    with pytest.raises(UserError, match="does not divide into 7 processes"):
        runs_of("baseline", gpus=7)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ("arms=baseline trainer.maxsteps=3", "there is no key 'trainer.maxsteps' (did you mean 'trainer.max_steps'?)"),
        ("arms=nothing", "ablation has no option 'nothing'"),
        ("arms=baseline clusterr=slurm", "there is no key 'clusterr'"),
        ("arms=baseline cluster=slum", "cluster has no option 'slum'; choose one of: local, slurm"),
        ("arms=baseline seeds=[]", "there is no arm to run"),
        ("arms=baseline shard=3", "there is no key 'shard'"),
    ],
)
def test_mistakes_in_one_line(tmp_path: Path, arguments: str, error: str) -> None:
    command = [sys.executable, "-m", "launchers.ablation_grid", *arguments.split(), "dry_run=true"]
    environment = {k: v for k, v in os.environ.items() if k != "HYDRA_FULL_ERROR"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {error}")
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert not list(tmp_path.iterdir())
