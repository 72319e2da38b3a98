"""A data set of the hub with captions, from its files to reports: three text encoders, two arms on a real SLURM, and
what is made of their runs."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from captioned import write_captioned
from captioned_sources import rows_of, serve_hub, write_parquet
from cluster import Cluster
from families import write_family
from photos import write_clip_text
from test_slurm_sweep import LAUNCHER
from text_folders import write_t5
from workspace import Workspace, ended, environment

EACH = 250  # images of each of two classes
PROMPT = "a red b"


def text_encoders(place: Path) -> dict[str, list[str]]:
    """Overrides of each; the small ones lie in `place`."""
    write_clip_text(place / "clip", seed=0)
    write_t5(place / "t5")
    small = {"clip": ["length=12"], "t5": ["length=20", "computed_in=float32"]}
    found = {
        name: [f"text_encoder@data.text_encoder={name}"]
        + [f"data.text_encoder.{key}" for key in (f"model={place / name}", "width=16", *more)]
        for name, more in small.items()
    }
    return found | ({} if find_spec("all_minilm_l6_v2") is None else {"minilm": []})


def checked(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def test_a_data_set_of_the_hub_from_its_files_to_reports(slurm: Cluster, work: Workspace, tmp_path: Path) -> None:
    """The hub is asked by the first command alone: the others do not reach it."""
    encoders = text_encoders(tmp_path)
    files = {"train.parquet": write_parquet(tmp_path / "train.parquet", rows_of(write_captioned(tmp_path / "i", EACH)))}
    data = ["data=captions", "data.source=hub", "data.images=owner/captioned", "data.num_classes=2"]
    data += [f"data.root={tmp_path}/caches", "data.limit=400", "data.validation_images=40", "data.test_images=40"]
    data += ["teacher=efficientnet_lite0_s16", "teacher.image_size=64", "teacher.grid=[4,4]"]
    commands = [["-m", "urepa.preprocess", *data, *text] for text in encoders.values()]
    with serve_hub(files) as address:
        env = {k: v for k, v in environment().items() if not k.startswith("HF_")}
        env |= {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "hf")}
        command = [sys.executable, *commands[0]]
        first = subprocess.run(command, env=env, cwd=work.folder, capture_output=True, text=True, check=False)
    assert "400 train, 40 val, 40 test" in checked(first)
    for command in commands[1:]:
        checked(ended(command, work.folder))
    assert len(list((tmp_path / "caches").rglob("captions.jsonl"))) == 1
    assert len(list((tmp_path / "caches").rglob("text_*/manifest.json"))) == len(encoders)

    channels = {"in_channels": 48, "out_channels": 48, "sample_size": 16}
    unet = write_family(tmp_path / "sd15", "sd15", cross_attention_dim=16, **channels)
    given = [*data, *encoders["t5"], "backbone=sd15_text", f"backbone.weights={unet}", "objective=ddpm_eps_scaled"]
    given += ["lora=mid_attention", "lora.rank=2", "optimizer=adamw_lora", "head=irepa", "trainer.max_steps=4"]
    given += ["trainer.batch_size=4", "trainer.validation_group=4", "trainer.log_every=1", "trainer.validate_every=2"]
    given += ["trainer.checkpoint_every=2", "trainer.threads=1", "evaluation=none", "tracking=none"]
    sweep = [sys.executable, "-m", "urepa.train", *given, "loss.lambda_max=0,0.5", *LAUNCHER, "-m"]
    known = environment() | slurm.environment
    checked(subprocess.run(sweep, env=known, cwd=work.folder, capture_output=True, text=True, check=False))
    runs = work.runs()
    assert [json.loads((run / "summary.json").read_text())["step"] for run in runs] == [4, 4]

    knn = [f"evaluation.knn.{key}" for key in ("train_images=40", "test_images=40", "k=3")]
    asked = [f"run='{runs[1]}'", "evaluation=knn", *knn, "tracking=none"]
    checked(ended(["-m", "urepa.evaluate", *asked], work.folder))
    assert any("knn" in key for key in json.loads((runs[1] / "summary.json").read_text())["metrics"])
    made = [f"run='{runs[1]}'", f"prompt={PROMPT}", "n=1", "steps=2", f"out={tmp_path}/made"]
    checked(ended(["-m", "urepa.generate", *made], work.folder))
    assert json.loads((tmp_path / "made" / "request.json").read_text())["prompts"] == [PROMPT]
    assert len(list((tmp_path / "made" / "images").glob("*.png"))) == 1
    checked(ended(["-m", "urepa.compare", "runs=outputs", "out=all.json"], work.folder))
    arms = json.loads((work.folder / "all.json").read_text())["arms"]
    assert sorted(arm["label"] for arm in arms) == ["lambda_max=0", "lambda_max=0.5"]
    said = checked(ended(["-m", "urepa.describe", *given], work.folder))
    assert "Captions are encoded in lower case by the T5 of t5, frozen" in said
