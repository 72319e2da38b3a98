"""Generated images compared with real ones: the images of the generate command, metrics recomputed by hand, and cached
features of real images."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contexts import Built, context_of
from PIL import Image
from scipy import linalg
from toy_runs import small_sd, write_run

from urepa.core.errors import UserError
from urepa.data.lists.samples import Sample
from urepa.evaluation.classifier_training import train_classifier
from urepa.evaluation.context import Context, run_each
from urepa.evaluation.encoders.cifar_cnn import CifarCNN
from urepa.evaluation.encoders.inception import Inception
from urepa.evaluation.encoders.inception_net import InceptionNetwork
from urepa.evaluation.encoders.pixels import Pixels
from urepa.evaluation.encoders.pixels_net import PixelsNetwork
from urepa.evaluation.frechet_and_kid import Moments, frechet_distance
from urepa.evaluation.images.generated_images import GeneratedImages
from urepa.evaluation.images.generated_images_math import batches_of
from urepa.evaluation.measures import image_distances_math as image_distances
from urepa.evaluation.measures.dense_math import Pictures
from urepa.evaluation.measures.generation import Generation
from urepa.evaluation.measures.image_distances_math import image_features, real_features
from urepa.evaluation.measures.inception_score import InceptionScore
from urepa.generate import check_run_request
from urepa.inference.image_request import generate
from urepa.inference.open_run import load
from urepa.training.assembly import build_part

Compose = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, compose: Compose, small_run: list[str]) -> Path:
    return write_run(tmp_path_factory.mktemp("outputs") / "quickstart" / "seed0", compose(*small_run), 10)


@pytest.fixture(scope="module")
def opened(run: Path) -> Any:
    return load(run, "cpu")


@pytest.fixture
def context(run: Path, opened: Any, tmp_path: Path) -> Any:
    """The run as evaluations get it, with its images in the test's own folder."""
    cache = opened.track.open(build_part(opened.config["teacher"]))
    yield context_of(opened, cache, tmp_path, 10)
    cache.close()


@pytest.fixture(autouse=True)
def _features_of_its_own(opened: Any) -> Any:
    """Tests share a track; the features that one stores beside it must not be used by the next."""
    folder = opened.track.folder / "features"
    for file in folder.glob("*"):
        file.unlink()


def images(count: int = 20, batch_size: int = 8) -> GeneratedImages:
    return GeneratedImages(count=count, sampler="ddim", steps=2, guidance=1.0, batch_size=batch_size)


def evaluation(**changes: Any) -> Generation:
    settings: dict[str, Any] = {
        "images": images(),
        "encoders": {"pixels": Pixels(grid=2)},
        "reference_images": None,
        "subset": 20,
        "kid_subsets": 5,
        "kid_subset_size": 10,
        "neighbours": 3,
    }
    return Generation(**(settings | changes))


# --- images -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_images_are_those_of_the_generate_command(
    context: Context, run: Path, compose: Compose, tmp_path: Path
) -> None:
    ours: dict[tuple[int, int], np.ndarray] = {}
    made = images(count=15)
    for batch, (ids, rgb) in zip(batches_of(made, 10), made.rgb(context), strict=True):
        assert ids == [class_id for class_id, _ in batch]
        ours |= dict(zip(batch, np.rint(rgb.numpy() * 255).astype(int), strict=True))
    assert sorted(ours) == [(c, i) for c in range(10) for i in range(2 - c % 2)]
    out = tmp_path / "images"
    generate(check_run_request(compose(f"run='{run}'", "steps=2", "n=2", f"out={out}", root="generate")))
    for (class_id, index), pixels in ours.items():
        png = np.asarray(Image.open(out / "images" / f"c{class_id:04d}_{index:05d}.png")).astype(int)
        assert np.abs(png.transpose(2, 0, 1) - pixels).max() <= 1  # they are computed beside others


@pytest.mark.slow
def test_existing_images_are_reused_and_other_weights_make_new_ones(
    context: Context, opened: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = torch.cat([rgb for _, rgb in images().rgb(context)])
    (folder,) = (context.folder / "generated").iterdir()
    assert len(list(folder.iterdir())) == 3
    (folder / "batch_000001.safetensors").unlink()
    (folder / ".batch_000001.safetensors.dead.tmp").write_bytes(b"half")
    before = {p.name: p.stat().st_mtime_ns for p in folder.glob("batch_*")}
    assert torch.equal(torch.cat([rgb for _, rgb in images().rgb(context)]), first)
    after = {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}
    assert after.keys() - before.keys() == {"batch_000001.safetensors"}
    assert before.items() <= after.items()

    weight = next(opened.model.backbone.parameters())
    weight.requires_grad_(True)
    try:
        list(images().rgb(context))
        with torch.no_grad():
            weight.add_(1e-3)
        list(images().rgb(context))
    finally:
        with torch.no_grad():
            weight.sub_(1e-3)
        weight.requires_grad_(False)
    assert len(list((context.folder / "generated").iterdir())) == 3


@pytest.mark.slow
def test_images_of_steps_that_do_not_divide_the_timesteps_have_folders_of_their_own(context: Context) -> None:
    """Images of earlier versions were different."""
    for steps, named in ((2, "ddim2,n=4"), (3, "ddim3,timesteps=1000,n=4")):
        before = set((context.folder / "generated").glob("*"))
        list(GeneratedImages(count=4, sampler="ddim", steps=steps, guidance=1.5, batch_size=4).rgb(context))
        (folder,) = set((context.folder / "generated").iterdir()) - before
        assert f",{named},guidance=1.5," in folder.name


def test_more_steps_than_timesteps_are_refused(context: Context) -> None:
    with pytest.raises(UserError, match=r"images\.steps=1001: this run has 1000 timesteps"):
        list(GeneratedImages(count=4, sampler="ddim", steps=1001, guidance=1.0, batch_size=4).rgb(context))


# --- numbers ------------------------------------------------------------------------------------------------


def by_hand(rgb_B3SS: torch.Tensor) -> np.ndarray:
    half = rgb_B3SS.shape[-1] // 2
    levels = np.rint(rgb_B3SS.double().numpy() * 255) / 255  # as image files have them
    return levels.reshape(-1, 3, 2, half, 2, half).mean((3, 5)).reshape(-1, 12) * 2 - 1


def frechet(x: np.ndarray, y: np.ndarray) -> float:
    a, b = (np.cov(z, rowvar=False) + 1e-9 * np.eye(12) for z in (x, y))  # grey images: singular without
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(a + b - 2 * np.real(linalg.sqrtm(a @ b))))


def test_metrics_are_those_of_the_images_by_hand(context: Context, capsys: pytest.CaptureFixture[str]) -> None:
    found = evaluation()(context)
    kinds = ("fd", "fd_se", "kid", "precision", "recall")
    assert found.keys() == {f"{w}/{k}/pixels" for w in ("final", "floor") for k in kinds} | {"final/kid_sd/pixels"}
    fake = by_hand(torch.cat([rgb for _, rgb in images().rgb(context)]))
    splits = context.cache.splits
    train, val, test = (by_hand(context.track.to_rgb(context.cache.x0(splits[s]))) for s in ("train", "val", "test"))
    assert found["final/fd/pixels"] == pytest.approx(frechet(train, fake), rel=1e-3)
    left = [np.delete(fake, part, axis=0) for part in np.array_split(np.arange(20), 10)]
    without = [frechet(train, part) for part in left]
    assert found["final/fd_se/pixels"] == pytest.approx(np.std(without) * 3, rel=0.02)
    # 40 held-out images for 20 generated ones: some 20 of them
    both = np.concatenate([val, test])
    assert 0 < found["floor/fd/pixels"] < 5 * frechet(train, both) < found["final/fd/pixels"]
    assert found["floor/precision/pixels"] > found["final/precision/pixels"]
    assert "circular" not in capsys.readouterr().out
    assert evaluation()(context) == found


@pytest.mark.slow
def test_a_track_s_own_classifier_is_an_encoder(context: Context, opened: Any, tmp_path: Path) -> None:
    weights = tmp_path / "cifar_cnn.safetensors"
    train_classifier(build_part(opened.config["data"]), epochs=1, seed=0, out=weights)
    found = evaluation(encoders={"cifar_cnn": CifarCNN(weights=str(weights))})(context)
    splits, encoder = context.cache.splits, CifarCNN(weights=str(weights)).build()

    def features(rgb: torch.Tensor) -> np.ndarray:
        return image_features(encoder.tokens((rgb * 255).round() / 255)).double().numpy()

    train = features(context.track.to_rgb(context.cache.x0(splits["train"])))
    fake = features(torch.cat([rgb for _, rgb in images().rgb(context)]))
    expected = frechet_distance(*(moments_of(x) for x in (train, fake)))
    assert found["final/fd/cifar_cnn"] == pytest.approx(expected, rel=1e-3)
    assert "final/circular/cifar_cnn" not in found


def moments_of(x_nD: np.ndarray) -> Moments:
    found = Moments(x_nD.shape[1])
    found.add(x_nD)
    return found


@pytest.mark.slow
def test_the_floor_needs_as_many_held_out_images(context: Context, capsys: pytest.CaptureFixture[str]) -> None:
    found = evaluation(images=images(count=41))(context)
    assert "40 held-out images give no floor for 41 generated ones" in capsys.readouterr().out
    assert not [key for key in found if key.startswith("floor/")]


@pytest.mark.slow
def test_features_of_the_runs_own_teacher_are_said_to_be_circular(
    context: Context, opened: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = build_part(opened.config["teacher"])
    other_grid = build_part(opened.config["teacher"] | {"image_size": 32, "grid": [1, 1]})
    found = evaluation(encoders={"own": Built(teacher), "pixels": Pixels(grid=2), "smaller": Built(other_grid)})(
        context
    )
    assert {k for k in found if "circular" in k} == {"final/circular/own", "final/circular/smaller"}
    assert "own is the teacher that this run aligns to" in capsys.readouterr().out
    without = replace(context, cache=replace(context.cache, tokens={}))
    assert "final/circular/own" not in evaluation(encoders={"own": Built(teacher)})(without)


@pytest.mark.fast(3)
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"subset": 21}, "20 generated ones are too few for subset=21: give subset=20$"),
        ({"kid_subset_size": 21}, "20 generated ones are too few for kid_subset_size=21: give kid_subset_size=10$"),
        ({"neighbours": 20}, "too few for neighbours=20: give neighbours=19$"),
        (
            {"reference_images": 41},
            "40 training images .* are too few for reference_images=41: give reference_images=null$",
        ),
        ({"encoders": {"a/b": Pixels(grid=2)}}, "'a/b' is not a valid column name"),
        ({"encoders": {"inception": Inception(weights="nowhere.pth")}}, "there is no nowhere.pth"),
        (
            {"encoders": {"cnn": CifarCNN(weights="x.safetensors")}},
            "there is no x.safetensors: .*urepa.train_classifier data=",
        ),
    ],
)
def test_impossible_requests_are_reported_before_sampling(context: Context, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        evaluation(**changes)(context)
    assert not (context.folder / "generated").exists()


def test_a_missing_encoder_does_not_affect_the_others(context: Context) -> None:
    asked = {"generation": {"pixels": Pixels(grid=2), "inception": Inception(weights="nowhere.pth")}}
    found = run_each(context, asked, lambda encoders: evaluation(encoders=encoders))
    assert found.metrics == evaluation(encoders={"pixels": Pixels(grid=2)})(context)
    assert list(found.failures) == ["generation.encoders.inception"]
    assert found.failures["generation.encoders.inception"].startswith("there is no nowhere.pth")


class BrightestPixel(InceptionNetwork):
    """Ten classes: the position of the brightest of an image's first pixels."""

    def weights_sha256(self) -> str:
        return "none"

    def probabilities(self, images_B3HW: torch.Tensor) -> torch.Tensor:
        return (images_B3HW[:, 0, 0, :10] * 10).softmax(1)


def test_inception_score_of_the_runs_images(context: Context) -> None:
    encoder = BrightestPixel("unread")
    found = InceptionScore(images=images(), encoder=Built(encoder), splits=1)(context)
    p = torch.cat([encoder.probabilities(rgb) for _, rgb in images().rgb(context)]).double()
    expected = (p * (p / p.mean(0)).log()).nan_to_num().sum(1).mean().exp()
    assert found["final/inception_score"] == pytest.approx(float(expected), rel=1e-4)
    assert found["final/inception_score"] > 1.01


def test_an_inception_score_without_weights_is_refused_before_sampling(context: Context) -> None:
    with pytest.raises(UserError, match="there is no nowhere.pth"):
        InceptionScore(images=images(), encoder=Inception(weights="nowhere.pth"), splits=1)(context)
    assert not (context.folder / "generated").exists()


@pytest.mark.slow
def test_a_latent_track_is_decoded_for_both_sides(tmp_path: Path, compose: Compose) -> None:
    run = write_run(tmp_path / "outputs" / "track_a" / "seed42", compose(*small_sd(tmp_path)), 4)
    manifest = tmp_path / "data" / "vae_latents_lmdb" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"image_size": 64}))
    opened = load(run, "cpu")
    cache = opened.track.open(None)
    context = context_of(opened, cache, run, 4)
    changes = {"subset": 2, "kid_subset_size": 2, "neighbours": 1, "encoders": {"pixels": Pixels(grid=2)}}
    networks = {"pixels": PixelsNetwork(2)}
    found = evaluation(images=images(count=2, batch_size=2), **changes)(context)
    fake = torch.cat([rgb for _, rgb in images(count=2, batch_size=2).rgb(context)])
    assert fake.shape == (2, 3, 64, 64)
    real, held_out = (by_hand(opened.track.to_rgb(cache.x0(cache.splits[s]))) for s in ("train", "val"))
    assert found["final/fd/pixels"] == pytest.approx(frechet(real, by_hand(fake)), rel=1e-2)
    assert found["floor/fd/pixels"] == pytest.approx(frechet(real, held_out), rel=1e-2)
    features = cache.latents.folder.parent / "features"
    real_features(context, networks, cache.splits["train"], 2)
    before = set(features.iterdir())
    with torch.no_grad():
        opened.track.autoencoder.encoder.conv_in.bias.add_(0.1)  # has no part in decoding
        real_features(context, networks, cache.splits["train"], 2)
        opened.track.autoencoder.encoder.conv_in.bias.sub_(0.1)
    assert set(features.iterdir()) == before
    with torch.no_grad():
        opened.track.autoencoder.decoder.conv_in.bias.add_(0.1)  # another VAE of the same latents
    moved = real_features(context, networks, cache.splits["train"], 2)["pixels"].moments.mean_D
    assert len(set(features.iterdir())) == len(before) + 1
    now = by_hand(opened.track.to_rgb(cache.x0(cache.splits["train"])))
    np.testing.assert_allclose(moved, now.mean(0), atol=1e-6)
    with torch.no_grad():
        opened.track.autoencoder.decoder.conv_in.bias.sub_(0.1)
    pictures = tmp_path / "pictures" / "images"
    pictures.mkdir(parents=True)
    Image.fromarray(np.full((70, 90, 3), 128, dtype=np.uint8)).save(pictures / "a.png")
    sample = Sample("a", 0, str(pictures / "a.png"), "train")
    grey = opened.track.to_x0(torch.full((1, 3, 64, 64), 128 / 255))
    torch.testing.assert_close(Pictures(context).x0([sample]), grey, atol=1e-3, rtol=0)
    cache.close()


# --- real images --------------------------------------------------------------------------------------------


def test_features_of_real_images_are_made_once_for_all_runs(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = context.cache.splits["train"]
    encoders = {"pixels": PixelsNetwork(2)}
    first = real_features(context, encoders, samples, 12)["pixels"]
    expected = by_hand(context.track.to_rgb(context.cache.x0(samples)))
    np.testing.assert_allclose(first.moments.covariance_DD, np.cov(expected, rowvar=False), atol=1e-6)
    np.testing.assert_allclose(first.rows_nD, expected[:12], atol=1e-6)
    with monkeypatch.context() as patched:
        patched.delattr(image_distances, "decode_rgb")  # not looked at again
        again = real_features(context, encoders, samples, 12)["pixels"]
    assert np.array_equal(again.moments.scatter_DD, first.moments.scatter_DD)
    assert np.array_equal(again.rows_nD, first.rows_nD)

    def files() -> int:
        return len(list((context.cache.latents.folder.parent / "features").glob("*.safetensors")))

    for other in (({"pixels": PixelsNetwork(4)}, samples, 12), (encoders, samples[1:], 12), (encoders, samples, 13)):
        before = files()
        real_features(context, *other)
        assert files() == before + 1
    os.utime(context.cache.latents.folder / "manifest.json", ns=(1, 1))  # latents that were made anew
    real_features(context, encoders, samples, 12)
    assert files() == 5


def test_a_kill_among_real_images_changes_nothing(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_distances, "CHUNK", 4)
    monkeypatch.setattr(image_distances, "KEPT_EVERY", 8)
    samples, encoders = context.cache.splits["train"], {"pixels": PixelsNetwork(2), "other": PixelsNetwork(4)}
    whole = real_features(context, encoders, samples, 12)
    _remove(context)
    plain, seen = image_distances.decode_rgb, []

    def dying(context: Context, x0: torch.Tensor) -> torch.Tensor:
        seen.append(len(x0))
        if len(seen) == 6:
            raise KeyboardInterrupt
        return plain(context, x0)

    monkeypatch.setattr(image_distances, "decode_rgb", dying)
    with pytest.raises(KeyboardInterrupt):
        real_features(context, encoders, samples, 12)
    resumed = real_features(context, encoders, samples, 12)
    assert sum(seen) == 24 + 40 - 16, "16 images had been kept"
    for name in encoders:
        assert np.array_equal(resumed[name].moments.scatter_DD, whole[name].moments.scatter_DD)
        assert np.array_equal(resumed[name].rows_nD, whole[name].rows_nD)


def _remove(context: Context) -> None:
    for file in (context.cache.latents.folder.parent / "features").iterdir():
        file.unlink()


def test_features_are_not_cached_if_the_folder_cannot_be_written(
    context: Context, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = context.cache.latents.folder.parent / "features"
    if folder.exists():
        folder.rmdir()
    folder.write_text("in the way")
    try:
        found = real_features(context, {"pixels": PixelsNetwork(2)}, context.cache.splits["val"], 12)
    finally:
        folder.unlink()
    assert found["pixels"].count == 20
    assert "warning: the features of the real images are not kept" in capsys.readouterr().out
