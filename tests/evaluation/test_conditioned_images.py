"""Evaluations of images under captions and images on a small NanoDiT: values by hand, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from captioned_photos import write_nanodit_run
from contexts import context_of
from PIL import Image
from sklearn.neighbors import NearestCentroid

import urepa
from urepa.core import random_draws
from urepa.core.conditions import Condition, Part
from urepa.core.errors import UserError
from urepa.core.part_names import CLS, PATCHES, TEXT
from urepa.evaluation.conditioned_images import (
    exchange,
    generate,
    layout_of,
    mean_pairwise_distance,
    own_condition,
    withhold,
)
from urepa.evaluation.context import Context, Incomplete
from urepa.evaluation.encoders.cifar_cnn import CifarCNN
from urepa.evaluation.encoders.pixels import Pixels
from urepa.evaluation.features import held_out_samples, subset
from urepa.evaluation.measures.attention_mass import AttentionMass
from urepa.evaluation.measures.caption_change import CaptionChange
from urepa.evaluation.measures.caption_change_math import other_captions
from urepa.evaluation.measures.image_reconstruction import ImageReconstruction
from urepa.evaluation.measures.image_swap import ImageSwap
from urepa.evaluation.measures.image_swap_math import compare
from urepa.evaluation.measures.text_only import TextOnly
from urepa.models.teachers.efficientnet_lite0 import EfficientNetLite0
from urepa.reports.comparison.arms import group_runs
from urepa.reports.comparison.evaluation_pictures import evaluation_pictures
from urepa.reports.comparison.page import page
from urepa.reports.comparison.read_runs import find_folders, load_curves
from urepa.reports.comparison.results import summarise
from urepa.reports.comparison.sample_grids import list_in_folder, read_file

Compose = Callable[..., dict[str, Any]]
BUCKET, GRID, SHAPE = "48x80", (6, 10), (48, 12, 20)
HOW: dict[str, Any] = {"steps": 2, "guidance_text": 3.0, "guidance_image": 2.0}


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory, compose: Compose) -> Iterator[tuple[Any, Any, Path]]:
    """A run of random weights, its caches and its folder."""
    place = tmp_path_factory.mktemp("nanodit")
    run, _ = write_nanodit_run(place, compose)
    found = urepa.load(run, device="cpu")
    cache = found.track.open(None)
    yield found, cache, run
    cache.close()


@pytest.fixture(scope="module")
def context(opened: tuple[Any, Any, Path]) -> Context:
    """The context of the lying images."""
    run, cache, folder = opened
    (bucket,) = (one for one in cache.buckets if one.bucket == BUCKET)
    return replace(context_of(run, bucket, folder, 10), track=run.track_of(BUCKET))


def by_hand(context: Context, condition: Condition, sample_id: str, variant: int = 0) -> np.ndarray:
    """The image [3,H,W] of one sample after two Euler steps with guidance 3 by the text and 2 by the image."""
    all_1 = torch.ones(1, dtype=torch.bool)
    passes = [condition.drop(dict.fromkeys(names, all_1)) for names in (("text", "image"), ("image",), ("text",))]
    rng = random_draws.generator(random_draws.digest64("conditioned", sample_id), "noise", variant)
    x = random_draws.normal(SHAPE, rng)[None].double()
    for t in (1.0, 0.5):
        with torch.no_grad():
            u, text, image = (
                context.model.backbone(x.float(), torch.tensor([t]), one).prediction_RCHW.double() for one in passes
            )
        x = x - (u + 3 * (text - u) + 2 * (image - u)) / 2
    return (context.track.to_rgb(x.float())[0] * 255).round().numpy() / 255


def tokens_by_hand(context: Context, images: np.ndarray) -> np.ndarray:
    """The encoder's tokens [N,T,D] of images, by the mean and deviation of all training patches."""
    network = EfficientNetLite0(image_size=128, grid=[8, 8], stride=16).build()
    tokens = network.states(torch.from_numpy(images).float(), GRID)[1].x_BND
    mean, deviation = context.cache.conditions.statistics.patches  # type: ignore[attr-defined]
    return ((tokens - mean) / deviation).numpy()


def cosine_distance(a: np.ndarray, b: np.ndarray) -> float:
    """1 less the cosine of rows of [...,D], averaged."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(1 - ((a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)).mean())


@pytest.mark.slow
def test_reconstructions_are_compared_with_their_originals(context: Context) -> None:
    """Images by hand; tokens by the encoder itself, standardised by the training patches' own mean and deviation."""
    asked = ImageReconstruction(images=4, shown=3, encoders={"coarse": Pixels(grid=2)}, **HOW)
    found = asked(context)
    samples = subset(held_out_samples(context), 4)
    made = np.stack([by_hand(context, own_condition(context, [s]), s.sample_id) for s in samples])
    real = np.stack([(context.track.to_rgb(context.cache.x0([s]))[0] * 255).round().numpy() / 255 for s in samples])
    assert found["final/image_pixel_error"] == pytest.approx(np.square(made - real).mean(), rel=1e-4)
    others = np.square(np.roll(real, 1, axis=0) - real).mean()
    assert found["final/image_pixel_error_other"] == pytest.approx(others, rel=1e-6)

    m, r = (tokens_by_hand(context, images) for images in (made, real))
    assert found["final/image_token_distance"] == pytest.approx(cosine_distance(m, r), rel=1e-3)
    coarse = [(2 * x - 1).reshape(4, 3, 2, 24, 2, 40).mean((3, 5)).reshape(4, -1) for x in (made, real)]
    assert found["final/image_distance/coarse"] == pytest.approx(cosine_distance(*coarse), rel=1e-3)
    assert found["final/image_distance"] == found["final/image_distance/coarse"]
    sheet = Image.open(context.folder / "samples" / "image_reconstruction_00000010.png")
    assert sheet.size[0] > 3 * 80
    assert sheet.size[1] == 2 + 3 * (48 + 2)


@pytest.mark.slow
def test_networks_without_weights_are_named_and_the_rest_is_measured(context: Context) -> None:
    encoders = {"pixels": Pixels(grid=2), "lost": CifarCNN(weights="nowhere.safetensors")}
    with pytest.raises(Incomplete, match=r"encoders\.lost: .*nowhere") as caught:
        ImageReconstruction(images=2, shown=1, encoders=encoders, **(HOW | {"steps": 1}))(context)
    assert {"final/image_distance/pixels", "final/image_token_distance"} <= caught.value.metrics.keys()
    assert "final/image_distance" not in caught.value.metrics, "a mean over other networks than were asked for"


@pytest.mark.slow
def test_images_of_a_sample_begin_with_the_same_noise_and_take_only_what_is_exchanged(context: Context) -> None:
    samples = subset(held_out_samples(context), 3)
    condition = own_condition(context, samples)
    donor = condition.rows(torch.tensor([1, 2, 0]))
    mixed = exchange(condition, donor, "image.cls")
    assert torch.equal(mixed[CLS].value, donor[CLS].value)
    assert torch.equal(mixed[PATCHES].value, condition[PATCHES].value)
    assert torch.equal(mixed[TEXT].value, condition[TEXT].value)
    asked = ImageSwap(pairs=3, **HOW)
    expected = by_hand(context, exchange(condition, donor, "image").rows(torch.tensor([1])), samples[1].sample_id)
    made = generate(asked, context, samples, exchange(condition, donor, "image"))
    np.testing.assert_allclose(made[1].numpy(), expected, atol=1.01 / 255)
    assert not torch.equal(made, generate(asked, context, samples, condition))
    assert not torch.equal(made, generate(asked, context, samples, exchange(condition, donor, "image"), variant=1))
    alone = withhold(condition, "image")
    assert [bool(alone[part].given_B.any()) for part in (TEXT, CLS, PATCHES)] == [True, False, False]


def test_similarities_are_by_position_to_donor_original_and_third_images() -> None:
    """Orthogonal originals; a picture with 3 of 4 positions of its donor and 1 of its original."""
    originals = torch.eye(12).view(3, 4, 12)
    mixed = originals.roll(-1, dims=0).clone()
    mixed[:, 0] = originals[:, 0]
    found = compare({"both": mixed}, originals)
    assert found["final/swap_tokens/both"] == pytest.approx(3 / 4)
    assert found["final/swap_tokens_own/both"] == pytest.approx(1 / 4)
    assert found["final/swap_tokens_chance/both"] == pytest.approx(0)
    constant = originals + 100.0  # the same everywhere: no part of a layout
    shifted = compare({"both": constant.roll(-1, dims=0)}, originals)
    assert shifted["final/swap_layout/both"] == pytest.approx(1, abs=1e-4)
    assert shifted["final/swap_tokens/both"] < 0.6
    assert "final/swap_layout_real" in compare({}, originals)


@pytest.mark.slow
def test_a_swap_reports_what_is_exchanged(context: Context) -> None:
    found = ImageSwap(pairs=3, **(HOW | {"steps": 1}))(context)
    names = {
        f"final/swap_{what}{kind}/{name}"
        for what in ("layout", "tokens")
        for kind in ("", "_own", "_chance")
        for name in ("none", "vector", "patches", "both")
    }
    assert found.keys() == names | {"final/swap_layout_real", "final/swap_tokens_real"}
    assert (context.folder / "samples" / "image_swap_00000010.png").exists()
    with pytest.raises(UserError, match="there are 2 held-out images and it needs 3"):
        ImageSwap(pairs=2, **HOW)(context)


def test_a_layout_has_no_part_in_what_is_the_same_everywhere() -> None:
    tokens = torch.randn(2, 5, 3)
    torch.testing.assert_close(layout_of(tokens + torch.randn(2, 1, 3)), layout_of(tokens))
    turned = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]], [[-1.0, 0.0]]])
    assert mean_pairwise_distance(turned) == pytest.approx((1 + 2 + 1) / 3)


def test_a_condition_without_an_image_is_refused() -> None:
    other = Condition({TEXT: Part.of(torch.zeros(1, 2, 3), torch.ones(1, 2, dtype=torch.bool))})
    with pytest.raises(AssertionError, match="names no part"):
        exchange(other, other, "image")


@pytest.mark.slow
def test_attention_is_reported_by_part_block_and_time(context: Context) -> None:
    found = AttentionMass(images=3, timesteps=[0.25, 0.75])(context)
    for kind in ("", "_uniform"):
        shares = [found[f"final/attention_mass{kind}/{part}"] for part in (TEXT, CLS, PATCHES)]
        assert sum(shares) == pytest.approx(1, abs=1e-5)
    for part in (TEXT, CLS, PATCHES):
        own = [value for key, value in found.items() if key.startswith(f"final/attention_mass_{part}_by_t/")]
        assert len(own) == 2 * 2
        assert found[f"final/attention_mass/{part}"] == pytest.approx(np.mean(own), rel=1e-5)
    words = own_condition(context, subset(held_out_samples(context), 3))[TEXT].mask_BL
    assert words is not None
    expected = np.mean([n / (n + 1 + 60) for n in words.sum(1).tolist()])
    assert found[f"final/attention_mass_uniform/{TEXT}"] == pytest.approx(expected, rel=1e-5)
    assert Image.open(context.folder / "evaluation" / "attention_mass_step_00000010.png").width > 300
    with pytest.raises(UserError, match=r"1\.5 is not a time"):
        AttentionMass(images=1, timesteps=[1.5])(context)


def test_each_image_gets_the_caption_of_the_next_one_of_another_class() -> None:
    assert other_captions(np.array([0, 0, 1, 0]), ["a", "b", "c", "d"]).tolist() == [2, 2, 3, 2]
    assert other_captions(np.array([1, 1, 1]), ["a", "a", "b"]).tolist() == [2, 2, 0]
    with pytest.raises(UserError, match="are all alike"):
        other_captions(np.array([0, 0]), ["a", "a"])


@pytest.mark.slow
def test_a_changed_caption_is_compared_with_another_noise_and_named_by_the_nearest_mean(context: Context) -> None:
    """The images by hand; the nearest mean by scikit-learn."""
    asked = CaptionChange(images=4, shown=2, train_images=100, **HOW)
    found = asked(context)
    samples = subset(held_out_samples(context), 4)
    givers = other_captions(np.array([s.class_id for s in samples]), [s.sample_id for s in samples])
    condition = own_condition(context, samples)
    changed = exchange(condition, condition.rows(torch.from_numpy(givers)), "text")
    rows = [torch.tensor([i]) for i in range(4)]

    def images(of: Condition, variant: int = 0) -> np.ndarray:
        return np.stack(
            [by_hand(context, of.rows(row), s.sample_id, variant) for row, s in zip(rows, samples, strict=True)]
        )

    own, other, again = images(condition), images(changed), images(condition, 1)
    tokens = [tokens_by_hand(context, x) for x in (own, other, again)]
    assert found["final/caption_change_tokens"] == pytest.approx(cosine_distance(tokens[0], tokens[1]), rel=1e-2)
    assert found["final/caption_change_tokens_noise"] == pytest.approx(cosine_distance(tokens[0], tokens[2]), rel=1e-2)
    assert found["final/caption_change_pixels"] == pytest.approx(np.square(own - other).mean(), rel=1e-3)

    conditions, train = context.cache.conditions, list(context.cache.splits["train"])
    vectors = conditions.of_samples(train)[CLS].value.numpy()
    nearest = NearestCentroid().fit(vectors, [s.class_id for s in train])
    mean, deviation = conditions.statistics.vectors  # type: ignore[attr-defined]
    network = EfficientNetLite0(image_size=128, grid=[8, 8], stride=16).build()
    seen = (network.states(torch.from_numpy(other).float(), GRID)[0] - mean) / deviation
    wanted = np.array([samples[i].class_id for i in givers])
    assert found["final/caption_named/exchanged"] == pytest.approx((nearest.predict(seen.numpy()) == wanted).mean())
    assert found["final/caption_named_chance"] == 0.5
    assert found.keys() >= {f"final/caption_named/{name}" for name in ("own", "text")}
    assert (context.folder / "samples" / "caption_change_00000010.png").exists()


@pytest.mark.slow
def test_the_diversity_of_a_captions_images_is_over_their_noises(context: Context) -> None:
    found = TextOnly(captions=2, variants=3, **HOW)(context)
    samples = subset(held_out_samples(context), 2)
    alone = withhold(own_condition(context, samples), "image")
    distances, layouts = [], []
    for i, sample in enumerate(samples):
        own = [by_hand(context, alone.rows(torch.tensor([i])), sample.sample_id, variant) for variant in range(3)]
        tokens = tokens_by_hand(context, np.stack(own))
        centred = tokens - tokens.mean(1, keepdims=True)
        for a, b in ((0, 1), (0, 2), (1, 2)):
            distances.append(cosine_distance(tokens[a], tokens[b]))
            layouts.append(cosine_distance(centred[a], centred[b]))
    assert found["final/diversity_tokens/text"] == pytest.approx(np.mean(distances), rel=1e-2)
    assert found["final/diversity_layout/text"] == pytest.approx(np.mean(layouts), rel=1e-2)
    names = {f"final/diversity_{what}{of}" for what in ("tokens", "layout") for of in ("/text", "/both", "_real")}
    assert found.keys() == names
    assert (context.folder / "samples" / "text_only_00000010.png").exists()


@pytest.mark.slow
def test_every_picture_is_declared_and_in_the_report(context: Context, tmp_path: Path) -> None:
    """The files of all five evaluations in a run's folder and in one of its buckets."""
    run = tmp_path / "outputs" / "seed0"
    shutil.copytree(context.folder, run, ignore=shutil.ignore_patterns("*.png"))
    how = HOW | {"steps": 1}
    asked = (
        ImageReconstruction(images=3, shown=3, encoders={"coarse": Pixels(grid=2)}, **how),
        ImageSwap(pairs=3, **how),
        CaptionChange(images=3, shown=3, train_images=20, **how),
        TextOnly(captions=3, variants=2, **how),
        AttentionMass(images=3, timesteps=[0.25, 0.75]),
    )
    values: dict[str, float] = {}
    for folder in (run, run / "buckets" / BUCKET):
        folder.mkdir(exist_ok=True, parents=True)
        for one in asked:
            values |= one(replace(context, folder=folder))
        written = {str(path.relative_to(folder)) for path in folder.rglob("*.png") if "buckets" not in path.parts[-3:]}
        assert written == {picture.file(10) for one in asked for picture in one.pictures}
    row = {"step": 300, "time": 0, "val/diffusion": 1.0, "floor/zero_predictor": 2.0} | values
    (run / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    summary = {"experiment": "nanodit_smoke", "ablation": "baseline", "seed": 0, "step": 300}
    summary |= {"seconds": {"training": 1.0}, "device": "cpu", "processes": 1, "threads": 1, "peak_memory_bytes": 1}
    summary |= {"parameters": {"backbone": 1, "heads": 0, "heads_trainable": 0}, "metrics": row, "evaluation": {}}
    summary |= {"git_commit": "0" * 40, "code_state": "clean"}
    (run / "summary.json").write_text(json.dumps(summary))
    results = summarise(group_runs(load_curves(find_folders(str(tmp_path))), [], None))
    found = evaluation_pictures(results.study, list_in_folder, read_file)
    assert {one.title for one in found} == {picture.title for one in asked for picture in one.pictures}
    html = page(results, [], [], None, None, found)
    section = html[html.index('<section id="pictures">') :].split("</section>")[0]
    assert section.count('<img src="data:image/jpeg;base64,') == 2 * len(asked)
