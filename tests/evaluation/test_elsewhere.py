"""A run evaluated on the data of another one, the base of its LoRA fine-tuning: the base's own values while the
adapters have no effect, other values after training, and what is refused before anything is computed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from captioned import clip_at, overrides, write_captioned
from omegaconf import OmegaConf
from PIL import Image, ImageOps
from transformers import CLIPTextModel

from urepa.config.declared import declaration_of
from urepa.core.errors import UserError
from urepa.evaluate import evaluation_config
from urepa.inference.export_weights import export
from urepa.reports.comparison.evaluation_protocol import Setting, differences, protocol
from urepa.reports.comparison.metric_columns import is_beside, metrics_of
from urepa.reports.comparison.read_runs import as_text
from urepa.runs.run_folder import RunFolder, require_config
from urepa.training.checks.inputs import check_run_inputs
from urepa.training.run_lifecycle import Session

pytestmark = pytest.mark.slow
Compose = Callable[..., dict[str, Any]]
SIZES = ("backbone=sd15_text_tiny", "backbone.block_out_channels=[32,32]", "backbone.attention=[false,true]")
SMALL = ("data.image_size=16", "data.unshuffle=1", "backbone.head_dim=16", "objective=ddpm_v", "trainer.threads=1")
SHORT = ("trainer.log_every=1", "trainer.validate_every=3", "trainer.checkpoint_every=3", "trainer.ema_decay=0.1")
TEACHER = ("teacher.image_size=64", "teacher.grid=[2,2]")
FEW = ("images.count=8", "images.steps=2", "images.batch_size=4", "subset=8", "kid_subsets=2", "kid_subset_size=4")
GENERATED = (
    *FEW,
    "neighbours=2",
    "encoders.efficientnet_lite0.image_size=64",
    "encoders.efficientnet_lite0.grid=[2,2]",
)
ELSEWHERE = "evaluation.elsewhere.evaluations.generation."
A, B = Setting("A"), Setting("B")
ENCODERS = ("pixels", "efficientnet_lite0")


@dataclass(frozen=True)
class Runs:
    """A base, and overrides of fine-tunings of it on other images."""

    place: Path
    base: Path
    tuned: list[str]

    def asked(self) -> list[str]:
        """The evaluation on the base's data."""
        return [f"evaluation.elsewhere.run='{self.base}'", *(f"{ELSEWHERE}{one}" for one in GENERATED)]


def train(compose: Compose, folder: Path, *given: str) -> Path:
    Session(OmegaConf.create(compose(*given)), str(folder), [], choices={}).run()
    return folder


def metrics(run: Path) -> dict[str, float]:
    found: dict[str, float] = json.loads((run / "summary.json").read_text())["metrics"]
    return found


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, compose: Compose) -> Runs:
    place = tmp_path_factory.mktemp("elsewhere")
    for name in ("old", "new"):
        write_captioned(place / name)
    for file in (place / "new").rglob("*.png"):
        ImageOps.mirror(ImageOps.invert(Image.open(file))).save(file)
    for file in (place / "new").rglob("*.txt"):
        file.write_text(f"the {file.stem}\n")
    clip_at(place)

    def given(name: str, *more: str) -> list[str]:
        known = [*SIZES, *SMALL, *SHORT, "data.num_classes=2", *more]
        return [*overrides(place / name, place / f"{name}_caches", place / "clip"), *known]

    own = [f"evaluation.generation.{one}" for one in GENERATED]
    base = given("old", "loss=none", "trainer.max_steps=3", "evaluation=generation", *own)
    base = [o for o in base if o not in ("backbone=text_unet", "evaluation=none") and "cross_attention_dim" not in o]
    run = train(compose, place / "outputs" / "base" / "seed0", *base)
    places = {"data": {"root": None, "vae": None}, "backbone": {"weights": None}, "push": None}
    export(places | {"run": str(run), "checkpoint": None, "out": str(place / "export"), "format": "diffusers"})
    tuned = given("new", *TEACHER, f"backbone.weights={place / 'export'}", "lora=all_attention", "lora.rank=2")
    tuned += ["optimizer=adamw_lora", "loss=urepa_token", "head=layer_norm_linear"]
    tuned = [o for o in tuned if o not in ("backbone=text_unet", "evaluation=none") and "cross_attention_dim" not in o]
    return Runs(place, run, tuned)


@pytest.fixture(scope="module")
def unchanged(runs: Runs, compose: Compose) -> Path:
    """A fine-tuning whose adapters stay without effect, evaluated at the end of its training."""
    more = ("trainer.max_steps=1", "optimizer.lr.lora=0", "evaluation=elsewhere", *runs.asked())
    return train(compose, runs.place / "outputs" / "unchanged" / "seed0", *runs.tuned, *more)


@pytest.fixture(scope="module")
def changed(runs: Runs, compose: Compose) -> Path:
    """A fine-tuning that changes the model, evaluated afterwards."""
    more = ("trainer.max_steps=3", "optimizer.lr.lora=1", "evaluation=none")
    run = train(compose, runs.place / "outputs" / "changed" / "seed0", *runs.tuned, *more)
    asked = compose(f"run='{run}'", "evaluation=elsewhere", *runs.asked(), root="evaluate")
    Session(OmegaConf.create(evaluation_config(asked)), folder=str(run), overrides=[], choices={}).evaluate()
    return run


def test_an_unchanged_model_has_the_values_of_its_base(runs: Runs, unchanged: Path) -> None:
    own, found = metrics(runs.base), metrics(unchanged)
    assert found["final/elsewhere_diffusion"] == pytest.approx(own["val/diffusion"], rel=1e-5)
    assert found["floor/elsewhere_zero_predictor"] == pytest.approx(own["floor/zero_predictor"], rel=1e-6)
    assert found["val/diffusion"] != pytest.approx(own["val/diffusion"], rel=1e-3)  # of its own images
    assert found["final/elsewhere_untrained_diffusion"] == pytest.approx(own["val/diffusion"], rel=1e-5)
    for encoder in ENCODERS:
        assert found[f"final/elsewhere_fd/{encoder}"] == pytest.approx(own[f"final/fd/{encoder}"], rel=1e-4)
        assert found[f"floor/elsewhere_fd/{encoder}"] == own[f"floor/fd/{encoder}"]
    assert found["final/elsewhere_circular/efficientnet_lite0"] == 1
    assert "final/circular/efficientnet_lite0" not in own, "the base is aligned to nothing"


def test_a_changed_model_has_others(runs: Runs, changed: Path) -> None:
    own, found = metrics(runs.base), metrics(changed)
    assert found["final/elsewhere_diffusion"] != pytest.approx(own["val/diffusion"], rel=1e-3)
    assert found["final/elsewhere_untrained_diffusion"] == pytest.approx(own["val/diffusion"], rel=1e-5)
    assert found["final/elsewhere_fd/pixels"] != pytest.approx(own["final/fd/pixels"], rel=1e-3)
    assert found["floor/elsewhere_fd/pixels"] == own["floor/fd/pixels"]


def test_the_values_are_columns_of_their_own_with_their_references(unchanged: Path) -> None:
    keys = set(metrics(unchanged))
    titles = [metric.title for metric in metrics_of(keys) if metric.key.startswith("final/")]
    assert titles[0] == "elsewhere: diffusion loss\u00a0↓"
    assert "elsewhere: FD(pixels)\u00a0↓" in titles
    assert "elsewhere: FD(efficientnet_lite0, circular)\u00a0↓" in titles
    assert not any("elsewhere_" in title for title in titles), "every key is declared"
    assert is_beside("final/elsewhere_kid_sd/pixels")
    assert is_beside("final/elsewhere_circular/efficientnet_lite0")
    (fd,) = (metric for metric in metrics_of(keys) if metric.key == "final/elsewhere_fd/pixels")
    assert next(one.key for one in fd.beside) == "floor/elsewhere_fd/pixels"


def test_runs_with_other_data_elsewhere_are_set_apart(compose: Compose) -> None:
    one, other = (as_text(compose("evaluation=elsewhere", f"evaluation.elsewhere.run={run}")) for run in "AB")
    assert differences(protocol(one, {}), protocol(other, {})) == [("evaluation.elsewhere.run", A, B)]
    # also of runs that were evaluated after their training
    told = compose("evaluation=elsewhere", "evaluation.elsewhere.run=B")["evaluation"]
    trained = as_text(compose("evaluation=none"))
    assert ("evaluation.elsewhere.run", A, B) in differences(protocol(one, {}), protocol(trained, {"evaluation": told}))


def test_a_stored_config_names_evaluations_only_where_they_belong(unchanged: Path, tmp_path: Path) -> None:
    config = require_config(unchanged)
    nested = config["evaluation"]["elsewhere"]["evaluations"]
    assert declaration_of(nested["generation"]).encoders.keys() == set(ENCODERS)
    config["evaluation"]["generation"] = nested["generation"] | {"encoders": {"one": nested["generation"]}}
    RunFolder(tmp_path).store_config(config)
    with pytest.raises(UserError, match=r"evaluation.generation.encoders.one names .*Generation.*which is not a"):
        require_config(tmp_path)


def test_images_of_several_other_runs_are_kept_apart(unchanged: Path) -> None:
    (folder,) = (unchanged / "elsewhere").iterdir()
    assert list(folder.glob("generated/*/batch_000001.safetensors"))
    assert not (unchanged / "generated").exists()


def test_an_evaluation_that_needs_the_teacher_says_so_and_the_others_remain(
    runs: Runs, changed: Path, compose: Compose
) -> None:
    given = (f"evaluation.elsewhere.run='{runs.base}'", "evaluation@evaluation.elsewhere.evaluations=alignment")
    few = ("alignment.images=4", "alignment.neighbours=2")
    few = tuple(f"evaluation.elsewhere.evaluations.{one}" for one in few)
    run = runs.place / "copy" / "seed0"
    shutil.copytree(changed, run)
    asked = evaluation_config(compose(f"run='{run}'", "evaluation=elsewhere", *given, *few, root="evaluate"))
    with pytest.raises(UserError, match=r"^evaluation\.elsewhere\.evaluations\.alignment: .*teacher"):
        Session(OmegaConf.create(asked), folder=str(run), overrides=[], choices={}).evaluate()
    assert metrics(run)["final/elsewhere_diffusion"] == metrics(changed)["final/elsewhere_diffusion"]


def test_classifiers_of_the_study_are_those_of_each_track(compose: Compose, tmp_path: Path) -> None:
    base = compose("+experiment=captions_cifar10", "data.images=DIR", "data.root=data/old", "evaluation=none")
    RunFolder(tmp_path).store_config(base)
    given = ("data.images=DIR", "data.root=data/new", f"evaluation.elsewhere.run='{tmp_path}'")
    asked = compose("+experiment=finetune_cifar10", *given)["evaluation"]
    for evaluations, root in ((asked, "data/new"), (asked["elsewhere"]["evaluations"], "data/old")):
        weights = f"{root}/cifar_cnn.safetensors"
        assert evaluations["classified"]["classifier"]["weights"] == weights
        assert evaluations["generation"]["encoders"]["cifar_cnn"]["weights"] == weights


# --- what is refused ------------------------------------------------------------------------------------------


def other_run(runs: Runs, name: str, **data: Any) -> Path:
    """The folder of a run with the base's config and other settings of data."""
    config = require_config(runs.base)
    run = runs.place / "others" / name
    run.mkdir(parents=True)
    RunFolder(run).store_config(config | {"data": config["data"] | data})
    return run


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("size", {"image_size": 32}, r"x0 is 3x32x32 there and 3x16x16 here"),
        ("scale", {"scale": 0.5}, r"data.scale is 0.5 there and 2.0 here"),
        ("class", {"captions": None, "text_encoder": None}, r"conditions is {'class': 0} there and {'text': 16.* here"),
        ("caches", {"test_images": 5}, r"there is no cache at .*; run `python -m urepa.preprocess data=captions` with"),
    ],
)
def test_data_that_do_not_fit_are_refused_before_torch(
    runs: Runs, compose: Compose, tmp_path: Path, name: str, data: dict[str, Any], message: str
) -> None:
    run = other_run(runs, name, **data)
    config = compose(*runs.tuned, "evaluation=elsewhere", f"evaluation.elsewhere.run='{run}'")
    with pytest.raises(UserError, match=rf"^evaluation\.elsewhere\.run={run}.*{message}"):
        check_run_inputs(config, tmp_path)


def test_no_run_and_a_nested_one_are_refused(runs: Runs, changed: Path, compose: Compose, tmp_path: Path) -> None:
    config = compose(*runs.tuned, "evaluation=elsewhere")
    with pytest.raises(
        UserError, match="^name the run whose data are used: evaluation.elsewhere.run=outputs/NAME/seed0"
    ):
        check_run_inputs(config, tmp_path)
    asked = compose(f"run='{changed}'", "evaluation=elsewhere", f"evaluation.elsewhere.run={tmp_path}", root="evaluate")
    with pytest.raises(
        UserError, match=f"^evaluation.elsewhere.run={tmp_path} is not a run's folder: it has no config"
    ):
        evaluation_config(asked)
    nested = compose(*runs.tuned, "evaluation=elsewhere", "evaluation@evaluation.elsewhere.evaluations=elsewhere")
    with pytest.raises(
        UserError, match="^evaluation.elsewhere.evaluations.elsewhere is evaluated on the data of a run"
    ):
        check_run_inputs(nested, tmp_path)


def test_the_number_of_classes_matters_where_they_are_the_condition(compose: Compose, tmp_path: Path) -> None:
    here = compose("evaluation=elsewhere", f"evaluation.elsewhere.run='{tmp_path}'")
    RunFolder(tmp_path).store_config(here | {"data": here["data"] | {"num_classes": 4}})
    with pytest.raises(UserError, match="data.num_classes is 4 there and 10 here"):
        declaration_of(here["evaluation"]["elsewhere"]).check_run(here, "evaluation.elsewhere.")


def test_another_text_encoder_is_refused_before_step_0(runs: Runs, compose: Compose, tmp_path: Path) -> None:
    """Of the same name and sizes, with other weights."""
    images, clip = tmp_path / "images", tmp_path / "clip"
    shutil.copytree(runs.place / "new", images)
    shutil.copytree(runs.place / "clip", clip)
    model = CLIPTextModel.from_pretrained(clip / "text_encoder")
    with torch.no_grad():
        next(model.parameters()).add_(0.1)
    model.save_pretrained(clip / "text_encoder")
    moved = [f"data.images={images}", f"data.root={tmp_path / 'caches'}", f"data.text_encoder.model={clip}"]
    more = ("trainer.max_steps=1", "evaluation=elsewhere", *runs.asked())
    with pytest.raises(UserError, match=r"has data that do not fit.*text_encoder.weights_sha256 is \w+ there and"):
        train(compose, tmp_path / "run", *runs.tuned, *moved, *more)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_too_few_images_there_are_told_before_step_0(runs: Runs, compose: Compose, tmp_path: Path) -> None:
    """Numbers that fit the run's own images are not enough: those of the other run count."""
    more = ("trainer.max_steps=1", "evaluation=elsewhere", *runs.asked(), f"{ELSEWHERE}reference_images=1000")
    with pytest.raises(UserError, match=rf"give {ELSEWHERE}reference_images=null"):
        train(compose, tmp_path / "run", *runs.tuned, *more)
