"""Evaluations of a tokenizer on a small FlexTok: against values by hand, and what they say of a run that is none."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from contexts import context_of
from PIL import Image
from scipy.linalg import sqrtm
from toy_runs import write_run

import urepa
from urepa.core import random_draws
from urepa.core.errors import UserError
from urepa.evaluation.context import Context, Incomplete
from urepa.evaluation.encoders.cifar_cnn import CifarCNN
from urepa.evaluation.encoders.pixels import Pixels
from urepa.evaluation.features import held_out_samples, subset
from urepa.evaluation.image_tokens import codes_of, powers_of_two, vectors_of
from urepa.evaluation.images.generated_images_math import decode_rgb
from urepa.evaluation.knn_and_linear import linear_scores
from urepa.evaluation.measures.code_usage import CodeUsage
from urepa.evaluation.measures.code_usage_math import perplexity
from urepa.evaluation.measures.reconstruction import Reconstruction
from urepa.evaluation.measures.reconstruction_math import _decode, picture
from urepa.evaluation.measures.token_classes import TokenClasses
from urepa.evaluation.measures.token_classes_math import silhouette

Compose = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory, compose: Compose, small_flextok: list[str]) -> Iterator[Context]:
    run = write_run(tmp_path_factory.mktemp("outputs") / "flextok" / "seed0", compose(*small_flextok), 10)
    opened = urepa.load(run, device="cpu")
    cache = opened.track.open(None)
    yield context_of(opened, cache, run, 10)
    cache.close()


@pytest.mark.parametrize(("most", "expected"), [(1, [1]), (8, [1, 2, 4, 8]), (6, [1, 2, 4, 6])])
def test_powers_of_two_end_at_all(most: int, expected: list[int]) -> None:
    assert powers_of_two(most) == expected


@pytest.mark.slow
def test_reconstructions_are_compared_with_their_images(context: Context) -> None:
    found = Reconstruction(images=5, shown=3, steps=2, encoders={}, guidance=1.0)(context)
    names = [f"final/reconstruction_{what}/{k}" for k in (1, 2, 4, 8) for what in ("mse", "psnr")]
    assert found.keys() == {*names, "final/reconstruction_mse_other", "final/reconstruction_mse_null"}
    backbone, errors = context.model.backbone, []
    for s in subset(held_out_samples(context), 5):
        x0 = context.cache.x0([s])
        rng = random_draws.generator(random_draws.digest64("reconstruction", s.sample_id), "noise")
        x, condition = random_draws.normal((4, 8, 8), rng)[None].double(), None
        condition = backbone.condition_of(backbone.encode(x0), torch.tensor([2]))
        for t in (1.0, 0.5):
            with torch.no_grad():
                x = x - backbone(x.float(), torch.tensor([t]), condition).prediction_RCHW.double() / 2
        made, real = ((context.track.to_rgb(y.float()) * 255).round() / 255 for y in (x, x0))
        errors.append(float((made.double() - real.double()).pow(2).mean()))
    assert found["final/reconstruction_mse/2"] == pytest.approx(np.mean(errors), rel=1e-4)
    assert found["final/reconstruction_psnr/2"] == pytest.approx(
        np.mean([-10 * math.log10(e) for e in errors]), rel=1e-4
    )
    sheet = Image.open(context.folder / "samples" / "reconstructions_00000010.png")
    assert sheet.size[1] > 3 * 16


@pytest.mark.slow
def test_distances_are_of_each_number_of_tokens(context: Context) -> None:
    """Against scipy's matrix root and cosines, on means of a quarter of the image in [-1,1] by numpy."""
    asked = Reconstruction(images=12, shown=1, steps=2, encoders={"coarse": Pixels(grid=2)}, guidance=1.0)
    found = asked(context)
    samples = subset(held_out_samples(context), 12)
    codes = codes_of(context, samples)

    def features(images: torch.Tensor) -> np.ndarray:
        side = images.shape[-1] // 2
        averages = (2 * images.double().numpy() - 1).reshape(12, 3, 2, side, 2, side).mean((3, 5))
        return averages.transpose(0, 2, 3, 1).reshape(12, -1)

    real = features(decode_rgb(context, context.cache.x0(samples)).cpu())
    for count in (1, 8):
        made = features(_decode(asked, context, samples, codes, count))
        a, b = (np.cov(x, rowvar=False) + 1e-12 * np.eye(12) for x in (real, made))
        expected = np.square(real.mean(0) - made.mean(0)).sum() + np.trace(a + b - 2 * sqrtm(a @ b).real)
        assert found[f"final/reconstruction_fd/coarse_{count}"] == pytest.approx(expected, rel=1e-2, abs=1e-5)
        cosines = (real * made).sum(1) / np.linalg.norm(real, axis=1) / np.linalg.norm(made, axis=1)
        assert found[f"final/reconstruction_distance/coarse_{count}"] == pytest.approx(1 - cosines.mean(), abs=1e-6)
    others = features(_decode(asked, context, samples, codes.roll(1, dims=0), 8))
    cosines = (real * others).sum(1) / np.linalg.norm(real, axis=1) / np.linalg.norm(others, axis=1)
    assert found["final/reconstruction_distance_other/coarse"] == pytest.approx(1 - cosines.mean(), abs=1e-6)
    assert "final/circular/coarse_1" not in found


def test_encoders_without_weights_are_named_and_the_rest_is_measured(context: Context) -> None:
    encoders = {"pixels": Pixels(grid=2), "lost": CifarCNN(weights="nowhere.safetensors")}
    with pytest.raises(Incomplete, match=r"encoders\.lost: .*nowhere") as caught:
        Reconstruction(images=3, shown=1, steps=1, encoders=encoders, guidance=1.0)(context)
    names = {key for key in caught.value.metrics if "fd" in key}
    assert names == {f"final/reconstruction_fd/pixels_{k}" for k in (1, 2, 4, 8)}
    with pytest.raises(UserError, match="'a/b' is not a valid column name"):
        Reconstruction(images=3, shown=1, steps=1, encoders={"a/b": 1}, guidance=1.0).check_images(None)


def test_the_picture_has_a_row_for_each_image_and_a_column_for_each_number() -> None:
    columns = [torch.full((2, 3, 64, 64), value) for value in (0.0, 0.5, 1.0)]
    columns[1][1] = 0.25
    sheet = np.asarray(Image.open(io.BytesIO(picture(columns, ["a", "b"]))))
    tiles = sheet[:, -3 * 66 :]
    seen = [[int(tiles[2 + 66 * row + 30, 66 * column + 30].mean()) for column in range(3)] for row in range(2)]
    assert seen == [[0, 128, 255], [0, 64, 255]]


def test_the_use_of_codes_is_counted_by_position(context: Context) -> None:
    found = CodeUsage(images=20)(context)
    codes = codes_of(context, held_out_samples(context)).numpy()
    assert codes.shape == (20, 8)
    assert found["final/codes_used"] == len(np.unique(codes)) / 64_000
    for position in (1, 2, 4, 8):
        _, counts = np.unique(codes[:, position - 1], return_counts=True)
        shares = counts / 20
        assert found[f"final/codes_used_at/{position}"] == len(counts)
        assert found[f"final/code_perplexity/{position}"] == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))


def test_perplexity_counts_equally_frequent_codes() -> None:
    assert perplexity(torch.tensor([5, 7, 5, 7])) == pytest.approx(2)
    assert perplexity(torch.tensor([3, 3, 3])) == pytest.approx(1)
    assert perplexity(torch.arange(50)) == pytest.approx(50)


def test_tokens_of_separate_classes_have_a_silhouette_and_a_probe(context: Context) -> None:
    """Codes of the class alone, at the first position, and of noise at the others."""
    rng = np.random.default_rng(0)

    class OfClasses(torch.nn.Module):
        registers, encoder = 8, context.model.backbone.encoder

        def encode(self, x0: torch.Tensor) -> torch.Tensor:
            codes = torch.from_numpy(rng.integers(0, 64_000, (len(x0), 8)))
            codes[:, 0] = torch.tensor([by_x0[x.numpy().tobytes()] * 7 for x in x0.cpu()])
            return codes

    samples = [s for split in ("train", "test") for s in context.cache.splits[split]]
    by_x0 = {context.cache.x0([s])[0].numpy().tobytes(): s.class_id for s in samples}
    model = type("Model", (), {"backbone": OfClasses()})()
    found = TokenClasses(train_images=40, test_images=20)(replace(context, model=model))
    assert found["final/token_silhouette/1"] == pytest.approx(1)
    parts = subset(context.cache.splits["train"], 40), subset(context.cache.splits["test"], 20)
    labels = tuple(np.array([s.class_id for s in part]) for part in parts)
    first = tuple(
        np.stack([[(c * 7 % 8 - 4) / 4, (c * 7 // 8 - 4) / 4, -1, -1, -1, -1] for c in own]) for own in labels
    )
    assert found["final/token_probe/1"] == linear_scores(first, labels)[""] > 0.3  # type: ignore[arg-type]
    assert found["final/token_silhouette/8"] < 0.5
    assert found["final/untrained_token_silhouette/1"] < 0.5
    for count in (1, 2, 4, 8):
        share = found[f"final/token_probe/{count}"]
        for end in ("low", "high"):  # Wilson's interval: where the share is 1.96 standard errors away
            bound = found[f"final/token_probe_{end}/{count}"]
            assert (share - bound) ** 2 == pytest.approx(1.95996**2 * bound * (1 - bound) / 20, rel=1e-4)
        assert found[f"final/token_probe_low/{count}"] < share < found[f"final/token_probe_high/{count}"]
    most_frequent = np.bincount(labels[0]).argmax()
    assert found["final/token_probe_chance"] == np.mean(labels[1] == most_frequent)
    assert {key.rpartition("/")[2] for key in found} == {"1", "2", "4", "8", "token_probe_chance"}


def test_a_silhouette_is_rousseeuws() -> None:
    points, labels = np.array([[0.0], [1.0], [10.0], [14.0]]), np.array([0, 0, 1, 1])
    by_hand = [1 - 1 / 12, 1 - 1 / 11, 1 - 4 / 9.5, 1 - 4 / 13.5]
    assert silhouette(points, labels) == pytest.approx(np.mean(by_hand))


def test_vectors_are_what_codes_stand_for(context: Context) -> None:
    samples = list(held_out_samples(context))[:3]
    vectors = context.model.backbone.encoder(context.cache.x0(samples))
    torch.testing.assert_close(vectors_of(context, codes_of(context, samples)), vectors)


def test_other_backbones_have_no_tokens(context: Context) -> None:
    other = replace(context, model=type("Model", (), {"backbone": torch.nn.Identity()})())
    for evaluation in (CodeUsage(images=5), TokenClasses(train_images=5, test_images=5)):
        with pytest.raises(
            UserError, match="this run's backbone does not encode images as codes; leave this evaluation out"
        ):
            evaluation(other)
