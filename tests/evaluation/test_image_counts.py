"""Numbers of images: more than there are are refused before any computation; classes have equal shares."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from urepa.core.errors import UserError
from urepa.core.evaluation_protocols import ImageCounts
from urepa.evaluation.image_counts import cache_counts, image_counts
from urepa.evaluation.images.generated_images import GeneratedImages
from urepa.evaluation.images.generated_images_math import batches_of
from urepa.training.checks.inputs import check_evaluations, check_run_inputs
from urepa.training.run_lifecycle import Session

Compose = Callable[..., dict[str, Any]]
FEW = ImageCounts(train=320, held_out=15, classes=4)
EVERY = "evaluation=[knn,linear_probe,generation,alignment,cifar10,spatial]"


def refusal(evaluations: dict[str, Any], there: ImageCounts) -> str:
    with pytest.raises(UserError) as error:
        check_evaluations(evaluations, there)
    return str(error.value)


def test_possible_numbers_are_not_refused(compose: Compose) -> None:
    check_evaluations(
        compose("+experiment=cifar10", "data.source=folder", EVERY)["evaluation"], ImageCounts(9000, 99, 4)
    )


@pytest.mark.fast(2)
@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["evaluation=generation"],
            "evaluation.generation: 320 training images and 1,000 generated ones are too few for subset=1000 and "
            "kid_subset_size=500: give evaluation.generation.subset=320 evaluation.generation.kid_subset_size=160",
        ),
        (
            [
                *("evaluation=generation", "evaluation.generation.images.count=3"),
                "evaluation.generation.reference_images=400",
            ],
            "evaluation.generation: 320 training images and 3 generated ones are too few for reference_images=400 and "
            "subset=1000 and kid_subset_size=500 and neighbours=3: give evaluation.generation.reference_images=null "
            "evaluation.generation.subset=3 evaluation.generation.kid_subset_size=2 evaluation.generation.neighbours=2",
        ),
        (
            ["evaluation=knn", "evaluation.knn.train_images=10"],
            "evaluation.knn: 10 training images are too few for k=20: give evaluation.knn.k=10",
        ),
        (
            ["evaluation=[digits,alignment]", "evaluation.samples.knn=321", "evaluation.alignment.neighbours=15"],
            "evaluation.samples: 320 training images are too few for knn=321: give evaluation.samples.knn=320; "
            "evaluation.alignment: 15 held-out images are too few for neighbours=15: give "
            "evaluation.alignment.neighbours=14",
        ),
        (
            ["evaluation=inception", "evaluation.inception.images.count=4", "~evaluation.inception"],
            "evaluation.inception_score: 4 generated images are too few for splits=10: give "
            "evaluation.inception_score.splits=4",
        ),
        (
            ["evaluation=clip_score"],
            "evaluation.clip_score: class_names=imagenet has 1000 names; this run has 4 classes: give "
            "evaluation.clip_score.class_names=FILE, a file with one name per line",
        ),
        (
            ["evaluation=dense"],
            "evaluation.dense: give evaluation.dense.folder=FOLDER with images/NAME.jpg and masks/NAME.png",
        ),
    ],
)
def test_one_message_lists_all_settings_to_change(compose: Compose, overrides: list[str], said: str) -> None:
    """The values that the message proposes are accepted."""
    if "~evaluation.inception" in overrides:
        evaluations = compose(*overrides[:-1])["evaluation"]
        del evaluations["inception"]
    else:
        evaluations = compose(*overrides)["evaluation"]
    assert refusal(evaluations, FEW) == said
    if "FILE" in said or "FOLDER" in said:
        return
    for given in [word.rstrip(";") for word in said.split() if word.startswith("evaluation.") and "=" in word]:
        key, _, value = given.partition("=")
        *path, last = key.split(".")
        node = {"evaluation": evaluations}
        for part in path:
            node = node[part]
        node[last] = None if value == "null" else int(value)
    check_evaluations(evaluations, FEW)


def test_probes_need_more_than_one_class(compose: Compose) -> None:
    said = refusal(compose("evaluation=linear_probe")["evaluation"], ImageCounts(320, 15, 1))
    assert said.startswith("evaluation.linear_probe: a linear probe needs two classes or more")


def test_readers_are_scored_on_the_test_split_or_the_validation_split() -> None:
    assert image_counts({"train": 9, "val": 5, "test": 3}, 2) == ImageCounts(9, 3, 2)
    assert image_counts({"train": 9, "val": 5}, 2) == ImageCounts(9, 5, 2)
    cache = SimpleNamespace(splits={"train": range(9), "val": range(5)}, num_classes=2)
    assert cache_counts(cache) == ImageCounts(9, 5, 2)


@pytest.mark.slow
def test_a_run_is_refused_before_step_0_and_before_its_caches(
    compose: Compose, small_run: list[str], tmp_path: Path
) -> None:
    """40 digits to train: without caches the settings tell, with caches the caches do. A run that continues is not
    refused."""
    asked = ["evaluation=knn", "evaluation.knn.k=41"]
    said = "evaluation.knn: 40 training images are too few for k=41: give evaluation.knn.k=40"
    without_caches = compose(*small_run, *asked, f"data.root={tmp_path / 'none'}")
    with pytest.raises(UserError, match=said):
        check_run_inputs(without_caches, tmp_path / "run")
    config = compose(*small_run, *asked)
    check_run_inputs(config, tmp_path / "run")
    with pytest.raises(UserError, match=said):
        Session(OmegaConf.create(config), str(tmp_path / "run"), [], choices={}).run()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("count", "classes"), [(50_000, 1000), (1000, 10), (7, 10), (25, 10)])
def test_classes_have_equal_shares_in_any_order(count: int, classes: int) -> None:
    images = GeneratedImages(count=count, sampler="ddim", steps=2, guidance=1.0, batch_size=100)
    batches = batches_of(images, classes)
    every = [image for batch in batches for image in batch]
    assert len(set(every)) == len(every) == count
    assert {len(batch) for batch in batches[:-1]} <= {100}
    shares = np.bincount([c for c, _ in every], minlength=classes)
    assert shares.max() - shares.min() <= 1
    assert all(sorted(i for c, i in every if c == class_id) == list(range(shares[class_id])) for class_id in (0, 3, 6))
    if count == 1000:
        assert np.bincount([c for c, _ in every[:200]], minlength=10).min() > 5, "a first part holds all classes"
