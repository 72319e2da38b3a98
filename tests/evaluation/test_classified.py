"""Generated images that a classifier names: shares as counted by hand, prompts of test images, and none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from captioned import clip_at, overrides, write_captioned
from contexts import context_of
from PIL import Image, ImageOps
from toy_runs import write_run

from urepa.core.errors import UserError
from urepa.core.part_names import POOLED, TEXT
from urepa.evaluation.context import Context
from urepa.evaluation.image_conditions import condition_of_images
from urepa.evaluation.images.captioned_images import CaptionedImages
from urepa.evaluation.images.generated_images_math import batches_of
from urepa.evaluation.measures.classified import Classified
from urepa.evaluation.measures.classified_math import wilson_interval
from urepa.inference.open_run import load
from urepa.method.ddpm_sampling import sample_images


@dataclass
class ByBrightness:
    """Names an image by its mean, from 0 to 1, as a class of two."""

    accuracy: float = 0.9
    num_classes: int = 2

    def build(self) -> "ByBrightness":
        return self

    def probabilities(self, images_B3SS: torch.Tensor) -> torch.Tensor:
        bright_B = images_B3SS.mean((1, 2, 3))
        return torch.stack([1 - bright_B, bright_B], 1)


@dataclass
class Given:
    """Images that are there already: flat ones."""

    of: dict[bool, list[tuple[int, float]]]  # by whether the condition is withheld: class, brightness
    captions_of: str = "test"

    def rgb(self, context: Any, withheld: bool = False) -> Iterator[tuple[list[int], torch.Tensor]]:
        for class_id, brightness in self.of[withheld]:
            yield [class_id], torch.full((1, 3, 2, 2), brightness)


def test_shares_are_those_counted_by_hand() -> None:
    """Three of four under the condition; with it withheld, when all images are dark, the two of class 0."""
    images = Given({False: [(0, 0.1), (0, 0.9), (1, 0.9), (1, 0.8)], True: [(0, 0.1), (0, 0.2), (1, 0.1), (1, 0.0)]})
    cache = SimpleNamespace(conditions=SimpleNamespace(captions={}))  # of classes: nothing is known of prompts
    context: Any = SimpleNamespace(cache=cache, track=SimpleNamespace(num_classes=2), device=torch.device("cpu"))
    found = Classified(images=images, classifier=ByBrightness())(context)
    assert found["final/classified/correct"] == 0.75
    assert found["final/classified/withheld"] == 0.5
    assert found["final/classified/real"] == 0.9
    assert (found["final/classified/correct_low"], found["final/classified/correct_high"]) == wilson_interval(3, 4)
    assert (found["final/classified/withheld_low"], found["final/classified/withheld_high"]) == wilson_interval(2, 4)
    assert not any("prompts" in key for key in found)
    with pytest.raises(UserError, match="the classifier has 3 classes and this run's track 2"):
        Classified(images=images, classifier=ByBrightness(num_classes=3))(context)


@pytest.mark.parametrize(("right", "count"), [(0, 10), (3, 4), (336, 1000), (1000, 1000)])
def test_an_intervals_ends_lie_196_standard_errors_from_the_share(right: int, count: int) -> None:
    low, high = wilson_interval(right, count)
    for end in (low, high):
        if 0 < end < 1:
            assert abs(right / count - end) == pytest.approx(1.959964 * (end * (1 - end) / count) ** 0.5, rel=1e-5)
    assert 0 <= low <= right / count <= high <= 1
    assert (low, high) != (0, 1)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images in two splits; captions of test images are of their own."""
    place = tmp_path_factory.mktemp("classified")
    for split in ("train", "test"):
        write_captioned(place / "images" / split)
    for file in (place / "images" / "test").rglob("*.png"):
        ImageOps.mirror(Image.open(file)).save(file)  # equal images would be left out
    for file in (place / "images" / "test").rglob("*.txt"):
        file.write_text(f"look, {file.parent.name} {file.stem}!\n")
    clip_at(place)
    return place


@pytest.fixture(scope="module")
def context(place: Path, compose: Callable[..., Any]) -> Iterator[Context]:
    """A small run on these images."""
    asked = overrides(place / "images", place / "root", place / "clip", "data.image_size=16", "data.unshuffle=1")
    config = compose(*asked, "data.num_classes=2", "loss=none")
    run = write_run(place / "outputs" / "captions" / "seed0", config, 10)
    opened = load(run, "cpu")
    cache = opened.track.open(None)
    yield context_of(opened, cache, run, 10)
    cache.close()


ASKED: dict[str, Any] = {"sampler": "ddim", "steps": 2, "guidance": 3.0, "batch_size": 4}


@pytest.mark.slow
def test_images_are_under_captions_of_test_images(context: Context) -> None:
    """Those that the sampler makes of the same noises under these prompts, and under none."""
    asked = CaptionedImages(count=4, **ASKED)
    (batch,) = batches_of(asked, 2)
    own = {c: [s for s in context.cache.splits["test"] if s.class_id == c] for c in (0, 1)}
    texts = [context.cache.conditions.captions[own[c][i].sample_id][0] for c, i in batch]
    assert all(text.startswith("look, ") for text in texts)
    prompted = context.cache.conditions.of_prompts(texts)
    found = condition_of_images(context.cache, batch, "test")
    for name in (TEXT, POOLED):
        assert torch.equal(found[name].value, prompted[name].value)
    how: dict[str, Any] = {"sampler": "ddim", "steps": 2, "seed": context.seed}
    model, shape = context.model.backbone, context.track.latent_shape
    for withheld, condition, guidance in ((False, prompted, 3.0), (True, prompted.null(), 1.0)):
        with torch.no_grad():
            x0 = sample_images(model, context.objective, batch, shape, condition, guidance=guidance, **how)
        ((ids, rgb),) = asked.rgb(context, withheld)
        assert ids == [class_id for class_id, _ in batch]
        torch.testing.assert_close(rgb, (context.track.to_rgb(x0) * 255).round() / 255, atol=1.01 / 255, rtol=0)


@pytest.mark.slow
def test_prompts_of_training_images_are_counted(context: Context, capsys: pytest.CaptureFixture[str]) -> None:
    found = Classified(images=CaptionedImages(count=4, **ASKED), classifier=ByBrightness())(context)
    assert found["final/classified/prompts"] == 4
    assert found["final/classified/prompts_trained_on"] == 0
    assert "4 different prompts, 0 of them captions of training images" in capsys.readouterr().out
    of_val = CaptionedImages(count=4, **ASKED)
    of_val.captions_of = "val"  # type: ignore[misc]  # their captions are like those of training images
    found = Classified(images=of_val, classifier=ByBrightness())(context)
    assert found["final/classified/prompts_trained_on"] > 0


def test_a_missing_classifier_costs_no_sampling(context: Context) -> None:
    from urepa.evaluation.encoders.cifar_cnn import CifarCNN

    before = sorted((context.folder / "generated").glob("*"))
    asked = Classified(images=CaptionedImages(count=6, **ASKED), classifier=CifarCNN(weights="nowhere.safetensors"))
    with pytest.raises(UserError, match=r"there is no nowhere\.safetensors: cifar_cnn needs a classifier"):
        asked(context)
    assert sorted((context.folder / "generated").glob("*")) == before
