"""Runs in tests/stored, from the version before the package was divided into folders: this version composes the same
configs from the same commands, so the runs continue, are evaluated and are compared as the same arms."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from urepa.core.nested_dicts import flatten
from urepa.reports.comparison.excluded_runs import identity
from urepa.reports.comparison.read_mlflow import _run_from_mlflow
from urepa.reports.comparison.read_runs import Run, as_text, find_folders
from urepa.runs.identity import is_identity
from urepa.runs.mlflow_run import FACTS_TAG, describe
from urepa.runs.mlflow_store import connect
from urepa.runs.run_folder import RunFolder
from urepa.runs.stored_config import read_config, read_plain
from urepa.runs.upgrades import SCHEMA, SCHEMA_TAG

BEFORE = Path(__file__).parent / "stored" / "before_rooms"
SMALL = [
    *("trainer.max_steps=12", "trainer.batch_size=8", "trainer.log_every=2", "trainer.validate_every=4"),
    *("trainer.validation_group=10", "trainer.checkpoint_every=6", "trainer.threads=1"),
]
DIGITS = ["data.limit=100", "data.validation_images=20", "data.test_images=20", "data.root=digits"]
UNET = ["backbone.block_out_channels=[32,32,32]", "backbone.cross_attention_dim=32", *SMALL, *DIGITS]
SIT = [
    *("+experiment=repa_cifar10_pixels", "data=digits", "teacher=efficientnet_lite0", "evaluation=none"),
    *("backbone.depth=4", "backbone.width=64", "backbone.heads=2", *SMALL, *DIGITS),
]
COMMANDS = {
    "quickstart": [
        *(*UNET, "loss.warmup_steps=4", "evaluation=digits", "evaluation.samples.per_class=1"),
        *("evaluation.samples.sampler_steps=2", "evaluation.samples.knn=1"),
    ],
    "control": [*UNET, "loss=none", "objective=ddpm_eps", "evaluation=none"],
    "sit": SIT,
    "several": [
        *(*SIT, "teacher=several", "+teacher@teacher.teachers.fine=efficientnet_lite0"),
        *("+teacher@teacher.teachers.coarse=efficientnet_lite0", "teacher.teachers.coarse.image_size=160"),
    ],
    "track_a": [
        *("+experiment=track_a", "backbone.weights=material/sd", "trainer.precision=fp32", *SMALL),
        *("trainer.validation_group=8", "data.root=cache", "data.images=material/photos", "data.train_images=64"),
        *("data.val_images=16", "data.image_size=64", "data.vae=material/sd", "data.text=material/sd"),
        *("data.class_names=material/names.txt", "data.latent_shape=[4,8,8]", "data.num_classes=2", "data.flip=true"),
        *("data.token_dtype=int8", "data.moments=true", "teacher.model=material/dino", "teacher.image_size=56"),
        *("teacher.grid=[4,4]", "teacher.width=128"),
    ],
}
OTHERWISE = {"track_a": {"teacher.positions": ("transformers", "meta")}}  # what the code did then, and does by default


@pytest.mark.fast(2)
@pytest.mark.parametrize("kind", COMMANDS)
def test_the_same_command_composes_the_stored_run(compose: Callable[..., dict[str, Any]], kind: str) -> None:
    folder = RunFolder(BEFORE / kind / "seed0")
    composed, stored = compose(*COMMANDS[kind]), read_config(folder.config_file)
    del composed["arm"]
    before, now = flatten(stored), flatten(composed)
    differing = {k: (before.get(k), now.get(k)) for k in before.keys() | now if before.get(k) != now.get(k)}
    assert {k: v for k, v in differing.items() if is_identity(k)} == OTHERWISE.get(kind, {})
    agreed = as_text(folder.merge_config(composed))
    assert identity(agreed, seed=True) == identity(as_text(stored), seed=True)


def test_a_stored_folder_is_a_run_of_the_same_arm(compose: Callable[..., dict[str, Any]]) -> None:
    composed = compose(*COMMANDS["quickstart"])
    del composed["arm"]
    (run,) = find_folders(str(BEFORE / "quickstart"))
    assert (run.status, run.experiment, run.ablation) == ("finished", "quickstart", "baseline")
    assert identity(run.config) == identity(as_text(composed))
    assert run.facts["evaluation"] == composed["evaluation"]


@pytest.fixture
def in_mlflow(tmp_path: Path, empty_db: Path) -> Any:
    """A store with that run, as its version left it: a client and the run's id."""
    client = connect(f"sqlite:///{shutil.copy(empty_db, tmp_path / 'mlflow.db')}")
    parameters = flatten(read_plain(BEFORE / "quickstart" / "seed0" / "config.yaml"))
    run = client.create_run("0", tags=json.loads((BEFORE / "quickstart" / "seed0" / "tags.json").read_text()))
    describe(client, run, parameters, {}, print)
    client.set_terminated(run.info.run_id)
    return client, run.info.run_id


@pytest.mark.slow
def test_mlflow_has_the_contents_of_the_folder(in_mlflow: Any) -> None:
    """Also after this version has written to it: existing parameters are unchanged, and new ones are added."""
    client, run_id = in_mlflow
    (folder,) = find_folders(str(BEFORE / "quickstart"))
    assert FACTS_TAG in client.get_run(run_id).data.tags

    def agrees(run: Run) -> bool:
        return (run.config, run.facts, run.status) == (folder.config, folder.facts, folder.status)

    assert agrees(_run_from_mlflow(client.get_run(run_id)))
    config = flatten(read_config(BEFORE / "quickstart" / "seed0" / "config.yaml"))
    describe(client, client.get_run(run_id), config, {SCHEMA_TAG: str(SCHEMA)}, print)
    assert agrees(_run_from_mlflow(client.get_run(run_id)))
