"""Published weights of a SiT without a run: the same pixels as the run from which they were exported, and what is
refused."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from published import REQUEST, Compose, files
from safetensors.torch import load_file, save_file
from toy_runs import write_run

import urepa
from urepa.core.backbone_protocols import WeightsKind
from urepa.core.errors import UserError
from urepa.inference.export_weights import export
from urepa.inference.image_request import generate
from urepa.inference.published_weights import Published, digest_of, find
from urepa.training.assembly import build_part


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("published")


@pytest.fixture(scope="module")
def sit_parts(small_sit: list[str]) -> list[str]:
    """The parts of a small SiT's config on which its weights depend; data.root is empty."""
    kept = [o for o in small_sit if o.startswith(("+experiment", "data=", "data.image_size", "data.unsh", "backbone."))]
    return [*kept, "data.root=nowhere"]


@pytest.fixture(scope="module")
def sit_run(folder: Path, compose: Compose, small_sit: list[str]) -> Path:
    run = folder / "outputs" / "repa_cifar10_pixels,backbone.depth=4,backbone.width=32,loss.lambda_max=1" / "seed0"
    return write_run(run, compose(*small_sit), 10)


@pytest.fixture(scope="module")
def sit_export(sit_run: Path, compose: Compose) -> Path:
    return export(compose(f"run='{sit_run}'", root="export"))


@pytest.mark.slow
def test_a_sit_comes_back_from_its_export_bit_for_bit(
    sit_run: Path, sit_export: Path, sit_parts: list[str], ask: Any, folder: Path
) -> None:
    more = ["sampler=sde", "guidance_interval=[0,0.7]"]
    generate(ask(f"run='{sit_run}'", *REQUEST, *more, f"out={folder / 'of_run'}"))
    for name, weights in (("whole", sit_export), ("file", sit_export / "model.safetensors")):
        generate(ask(f"checkpoint='{weights}'", *sit_parts, *REQUEST, *more, f"out={folder / name}"))
        assert files(folder / name) == files(folder / "of_run")
    assert len(files(folder / "of_run")) == 2
    there = load_file(sit_export / "model.safetensors")
    opened = urepa.load(sit_run, device="cpu")
    assert there.keys() - opened.model.backbone.state_dict().keys() == {"pos_embed"}
    assert {"x_embedder.proj.weight", "blocks.0.adaLN_modulation.1.weight"} <= there.keys()
    assert load_file(sit_export / "heads.safetensors").keys() == opened.model.heads.state_dict().keys()
    card = (sit_export / "README.md").read_text()
    command = "checkpoint=FOLDER +experiment=repa_cifar10_pixels backbone.depth=4 backbone.width=32 guidance=1.8"
    assert f"python -m urepa.generate {command}" in card
    assert "The whole transformer was trained, aligned at block\\_3" in card
    assert "**The model predicts the velocity of the linear path**" in card
    assert "diffusers" not in card.split("## Config")[0]


@pytest.mark.slow
def test_a_sit_trains_on_from_its_export(
    sit_run: Path, sit_export: Path, compose: Compose, small_sit: list[str]
) -> None:
    config = compose(*small_sit, f"backbone.weights='{sit_export}/model.safetensors'")
    backbone = build_part(config["backbone"], latent_shape=(1, 16, 16), num_classes=10)
    ema = urepa.load(sit_run, device="cpu").model.backbone.state_dict()
    assert all(torch.equal(value, ema[name]) for name, value in backbone.state_dict().items())


@pytest.fixture(scope="module")
def sit_config(compose: Compose, small_sit: list[str]) -> dict[str, Any]:
    return compose(*small_sit)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("option", "more", "says"),
    [
        ("flow_cosine", {}, "objective.path=cosine, here linear"),
        ("ddpm_v", {}, "prediction_type v_prediction, here flow"),
        ("ddpm_eps_scaled", {"timesteps": 500}, "prediction_type epsilon, here flow"),
    ],
)
def test_a_sits_export_of_another_objective_is_refused(
    tmp_path: Path, compose: Compose, sit_config: dict[str, Any], option: str, more: dict[str, Any], says: str
) -> None:
    """For the folder and for the file in it; with the objective that the message names it is accepted."""
    trained = sit_config | {"objective": compose(f"objective={option}")["objective"] | more}
    run = write_run(tmp_path / "outputs" / "other" / "seed0", trained, 10)
    elsewhere: dict[str, Any] = {"data": {"root": None, "vae": None}, "backbone": {"weights": None}}
    folder = export({"run": str(run), "checkpoint": None, "out": None, "format": "diffusers", "push": None} | elsewhere)
    give = " ".join([f"objective={option}", *(f"objective.{key}={value}" for key, value in more.items())])
    for place in (folder, folder / "model.safetensors"):
        with pytest.raises(UserError, match=f"says {says}.*: give {give}$"):
            find(str(place), sit_config)
        assert find(str(place), trained).kind == WeightsKind.backbone
    shutil.rmtree(folder / "scheduler", ignore_errors=True)  # what a config alone says
    for text in (stored := (folder / "config.yaml").read_text(), before_rooms(stored)):
        (folder / "config.yaml").write_text(text)
        with pytest.raises(UserError, match=f"config.yaml says .*: give {give}$"):
            find(str(folder), sit_config)
        assert find(str(folder), trained).kind == WeightsKind.backbone


def before_rooms(config: str) -> str:
    """The config as an earlier version exported it."""
    return re.sub(r"urepa\.method\.objectives\.\w+\.", "urepa.objectives.", config)


def test_the_distribution_of_training_times_does_not_matter_to_images(
    sit_export: Path, sit_config: dict[str, Any], compose: Compose, tmp_path: Path
) -> None:
    """And another program's config.yaml has no effect on the objective."""
    find(str(sit_export), sit_config | {"objective": compose("objective=flow_lognormal")["objective"]})
    (tmp_path / "model.safetensors").touch()
    for text in ("objective: ddpm", "objective: {_target_: theirs.Flow, path: cosine}", "[1, 2]", ""):
        (tmp_path / "config.yaml").write_text(text)
        find(str(tmp_path), sit_config)
    (tmp_path / "config.yaml").write_text("a: [1")
    with pytest.raises(UserError, match=r"config\.yaml is damaged, or not YAML.*; it is beside the weights"):
        find(str(tmp_path), sit_config)


@pytest.mark.slow
def test_a_sits_lora_is_added_to_its_weights(
    folder: Path, sit_export: Path, compose: Compose, small_sit: list[str]
) -> None:
    base = sit_export / "model.safetensors"
    config = compose(*small_sit, "lora=all_attention", f"backbone.weights='{base}'", "optimizer=adamw_lora")
    run = write_run(folder / "outputs" / "lora" / "seed0", config, 10)
    merged = load_file(export(compose(f"run='{run}'", root="export")) / "model.safetensors")
    before, ema = load_file(base), urepa.load(run, device="cpu").model.backbone.state_dict()
    assert merged.keys() == before.keys()
    name = "blocks.2.attn.qkv"
    a, b = (ema[f"{name}.lora_{side}.default.weight"] for side in "AB")
    torch.testing.assert_close(merged[f"{name}.weight"], before[f"{name}.weight"] + b @ a)
    assert (b @ a).abs().max() > 0.01
    assert torch.equal(merged["blocks.2.mlp.fc1.weight"], before["blocks.2.mlp.fc1.weight"])


@pytest.mark.slow
def test_the_command_without_a_run(sit_export: Path, sit_parts: list[str], folder: Path) -> None:
    """The command itself: where the images are written, that they are not made again, and that other weights are
    refused."""
    here = folder / "here"
    here.mkdir()
    shutil.copy(sit_export / "model.safetensors", here / "sit.safetensors")

    def run(*overrides: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "urepa.generate", "checkpoint=sit.safetensors", *sit_parts, *overrides]
        return subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=300)

    done = run(*REQUEST)
    assert done.returncode == 0, done.stderr
    (made,) = (here / "generated").iterdir()
    digest = digest_of([here / "sit.safetensors"])
    assert made.name == f"sit.safetensors-{digest[:8]}"
    (request,) = made.iterdir()
    assert request.name == "euler2,n=1,guidance=2,seed=0,classes=1+7"
    assert f"2 images (2 new) in generated/{made.name}/{request.name}/" in done.stdout
    stored = json.loads((request / "request.json").read_text())
    assert (stored["weights"], stored["backbone.heads"], stored["objective.path"]) == (digest, 2, "linear")
    assert sorted(p.name for p in here.iterdir()) == ["generated", "sit.safetensors"]
    done = run("run=outputs/x")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith("error: run= and checkpoint= are two models; give one: python -m urepa.generate run=")


@pytest.mark.slow
def test_other_weights_in_the_same_folder_are_refused(
    sit_export: Path, sit_parts: list[str], ask: Any, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other, out = folder / "other.safetensors", folder / "one_folder"
    values = load_file(sit_export / "model.safetensors")
    save_file(values | {"final_layer.linear.bias": values["final_layer.linear.bias"] + 1}, other)
    asked = ["classes=[3]", "n=1", "steps=1", f"out={out}"]
    generate(ask(f"checkpoint='{sit_export}'", *sit_parts, *asked))
    generate(ask(f"checkpoint='{sit_export}/model.safetensors'", *sit_parts, *asked))
    assert "1 images (0 new)" in capsys.readouterr().out, "the same weights by another name"
    with pytest.raises(UserError, match=r"holds other images \(weights: [0-9a-f]{64} there, [0-9a-f]{64} here\)"):
        generate(ask(f"checkpoint={other}", *sit_parts, *asked))
    heads = [o.replace("backbone.heads=2", "backbone.heads=4") for o in sit_parts]
    with pytest.raises(UserError, match="backbone.heads: 2 there, 4 here"):
        generate(ask(f"checkpoint='{sit_export}'", *heads, *asked))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["checkpoint=nowhere.pt"], "checkpoint=nowhere.pt is not there; give a path, or a file on the hub as OWNER"),
        (["checkpoint=.", "run=x"], "run= and checkpoint= are two models; give one"),
        (["checkpoint=null"], "say which run or checkpoint: python -m urepa.generate run="),
        (["run=null"], "say which run or checkpoint"),
        (["checkpoint=.", "head=irepa"], "head has no effect on published weights' images; drop it"),
        (["checkpoint=.", "data.limit=3"], "data.limit has no effect"),
        (["checkpoint=.", "classes=[10]"], "there is no class 10; this experiment's are 0 to 9"),
        (
            ["checkpoint=.", "guidance_interval=[0,0.5]"],
            "no effect on this experiment.*it is the quickstart: .experiment=NAME says",
        ),
        (["checkpoint=.", "backbone.layers_per_block=0"], "give 1 or more"),
    ],
)
def test_what_is_refused_before_torch(ask: Any, overrides: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        ask(*overrides)


@pytest.mark.slow
def test_a_sit_unlike_the_composed_one_is_reported(
    sit_export: Path, sit_parts: list[str], ask: Any, folder: Path
) -> None:
    whole = [f"checkpoint='{sit_export}'", *sit_parts]
    for change, said in (
        ("against=base", "against=base: the checkpoint has all weights of the backbone"),
        (f"backbone.weights='{sit_export}'", "backbone.weights has no effect beside all weights of a backbone"),
        ("backbone.depth=5", "does not fit this backbone"),
        ("sampler=ddim", "sampler=ddim cannot sample this run's objective; give one of euler, heun, sde"),
    ):
        with pytest.raises(UserError, match=said):
            generate(ask(*whole, change, *REQUEST, f"out={folder / 'refused'}"))
        assert not (folder / "refused").exists()
    with pytest.raises(UserError, match=r"has no model\.safetensors, which a SiT's export has"):
        generate(ask(f"checkpoint='{folder}'", *sit_parts))


def test_weights_behind_a_link_have_the_links_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "xl.pt").symlink_to(tmp_path / "0f3a")
    assert Published(WeightsKind.backbone, tmp_path / "xl.pt", (), "").name == "xl.pt"
    monkeypatch.chdir(tmp_path)
    assert Published(WeightsKind.backbone, Path("."), (), "").name == tmp_path.name


# --- the hub ------------------------------------------------------------------------------------------------


def test_a_file_on_the_hub(tmp_path: Path) -> None:
    """In the hub's own cache, as a download leaves it; and missing there with the hub switched off."""
    revision = "ab" * 20
    repository = tmp_path / "hub" / "models--owner--name"
    (repository / "snapshots" / revision / "sit").mkdir(parents=True)
    (repository / "snapshots" / revision / "sit" / "xl.pt").write_text("weights")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(revision)
    code = """
import sys
from urepa.core.errors import UserError
from urepa.core.hub_names import ensure_local
for name in sys.argv[1:]:
    try:
        print(ensure_local(name, "checkpoint").read_text())
    except UserError as error:
        print(error)
"""
    names = ["owner/name/sit/xl.pt", f"owner/name@{revision}/sit/xl.pt", "owner/name@v1/sit/xl.pt", "owner/name"]
    given = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    given |= {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code, *names], env=given, capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.splitlines() == [
        "weights",
        "weights",
        "checkpoint=owner/name@v1/sit/xl.pt is not on this disk and could not be fetched from the hub: HF_HUB_OFFLINE "
        "is set, and it is not in the hub's local cache: run `hf download owner/name sit/xl.pt --revision v1` where "
        "there is internet",
        "checkpoint=owner/name is not there; give a path, or a file on the hub as OWNER/NAME/FILE",
    ], done.stderr
