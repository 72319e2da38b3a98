"""The training of a masked autoencoder on a track's images: its masks, its file, and its loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from urepa.core.errors import UserError
from urepa.core.weights_metadata import read_metadata
from urepa.evaluation.classifier_training import Labelled, read_split
from urepa.models.teachers.own_mae_net import MaskedAutoencoder
from urepa.models.teachers.own_mae_sizes import KEY, EncoderSettings
from urepa.training import encoder_training
from urepa.training.encoder_training import Kept, _optimizer, fit, loss_of, train_encoder, training_mask

TINY = EncoderSettings(8, 2, 64, 1, 0.75, 1e-3, epochs=1, seed=0)


def test_the_visible_patches_depend_on_seed_step_and_position_alone() -> None:
    masks = {(seed, step): training_mask(replace(TINY, seed=seed), step, 5) for seed in (0, 1) for step in (0, 1)}
    assert all(mask.shape == (5, 4) and mask.max() < 16 for mask in masks.values())
    assert torch.equal(training_mask(replace(TINY, epochs=9, width=128), 1, 3), masks[0, 1][:3])
    everything = {tuple(row.tolist()) for mask in masks.values() for row in mask}
    assert len(everything) > 17, "of 20 draws among 1,820"
    counts_N = np.bincount(training_mask(TINY, 7, 2000).flatten().numpy(), minlength=16)
    assert abs(counts_N - 500).max() < 5 * (2000 * 0.25 * 0.75) ** 0.5, "each patch as often"


def gradients(count: int = 64) -> Labelled:
    """Images that are smooth, so that the visible patches say something of the others."""
    rng = np.random.default_rng(0)
    start_R311, slope_R311 = rng.uniform(0.2, 0.8, (count, 3, 1, 1)), rng.uniform(-0.2, 0.2, (count, 3, 1, 1))
    ramp_SS = np.linspace(-1, 1, 8)[:, None] + np.linspace(-1, 1, 8)
    pixels = (255 * np.clip(start_R311 + slope_R311 * ramp_SS, 0, 1)).astype(np.uint8)
    return Labelled(torch.from_numpy(pixels), torch.zeros(count, dtype=torch.int64), "")


@pytest.mark.slow
def test_the_loss_falls_and_the_last_weights_are_those_of_the_seed() -> None:
    train, ids = gradients(), [str(i) for i in range(64)]
    losses = {e: loss_of(fit(train, replace(TINY, epochs=e)), TINY, train, ids) for e in (1, 30)}
    assert losses[30] < 0.7 * losses[1]
    one, same, other = (fit(train, replace(TINY, seed=seed)).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["encoder.embed.proj.weight"], other["encoder.embed.proj.weight"])


def test_matrices_decay_and_nothing_else() -> None:
    network = MaskedAutoencoder(2, 64, 1)
    decaying = {id(p) for p in _optimizer(network, 1e-3).param_groups[0]["params"]}
    names = {name for name, p in network.named_parameters() if id(p) in decaying}
    assert names == {name for name, _ in network.named_parameters() if name.endswith("weight") and "norm" not in name}


@pytest.mark.slow
def test_the_command_s_file(make_track: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What it states, that it has the encoder alone, and that another training gives it again, or is refused."""
    track, out = make_track(), tmp_path / "own.safetensors"
    train_encoder(track, TINY, out)
    said = capsys.readouterr().out.splitlines()
    assert said[-3] == "training own_mae on 30 images of tiny (4 of 16 patches visible), 1 epochs"
    told = read_metadata(out, KEY)
    assert said[-1].startswith(f"masked loss {float(told['train_loss']):.3f} on 30 training and ")
    cache = track.open(None)
    train, val = (read_split(track, cache, split) for split in ("train", "val"))
    ids = list(cache.splits["val"].ids())
    cache.close()
    trained = fit(train, TINY)
    assert (told["train_images"], told["train_samples"], told["validation_images"]) == ("30", train.digest, "6")
    assert float(told["validation_loss"]) == pytest.approx(loss_of(trained, TINY, val, ids), rel=1e-5)
    tensors = load_file(out)
    assert tensors.keys() == trained.encoder.state_dict().keys()
    assert all(torch.equal(tensors[name], value) for name, value in trained.encoder.state_dict().items())
    assert [place.name for place in tmp_path.glob("own*")] == [out.name]
    before = out.read_bytes()
    train_encoder(track, TINY, out)
    assert "is there already, of these images and settings" in capsys.readouterr().out
    for changed, images, error in (
        (replace(TINY, epochs=2), {}, "epochs: 1 there, 2 here"),
        (TINY, {"limit": 15}, "train_images: 30 there, 15 here"),
    ):
        with pytest.raises(UserError, match=error):
            train_encoder(make_track(**images), changed, out)
    assert out.read_bytes() == before


@pytest.mark.slow
def test_a_stopped_training_ends_with_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is stopped within the third epoch, and continues after the second."""
    train, settings, kept = gradients(), replace(TINY, epochs=4), Kept(tmp_path / "a.partial", "these")
    whole = fit(train, settings).state_dict()
    monkeypatch.setattr(encoder_training, "KEPT_EVERY", 0.0)
    masks: list[int] = []

    def stopping(settings: EncoderSettings, step: int, size: int) -> torch.Tensor:
        masks.append(step)
        if len(masks) == 3:
            raise KeyboardInterrupt
        return training_mask(settings, step, size)

    monkeypatch.setattr(encoder_training, "training_mask", stopping)
    with pytest.raises(KeyboardInterrupt):
        fit(train, settings, kept)
    continued = fit(train, settings, kept).state_dict()
    assert "continuing after epoch 2" in capsys.readouterr().out
    assert masks == [0, 1, 2, 2, 3], "one batch per epoch"
    assert all(torch.equal(whole[name], continued[name]) for name in whole)
    fit(train, settings, replace(kept, of="others"))
    assert "is of other settings or images and is not used" in capsys.readouterr().out
    assert masks[5:] == [0, 1, 2, 3]


def test_test_images_are_not_read(
    make_track: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def read(track: Any, cache: Any, split: str) -> Labelled:
        asked.append(split)
        return read_split(track, cache, split)

    monkeypatch.setattr("urepa.training.encoder_training.read_split", read)
    train_encoder(make_track(), TINY, tmp_path / "own.safetensors")
    assert asked == ["train", "val"]


def test_a_loss_that_is_not_finite_is_told() -> None:
    with pytest.raises(UserError, match="loss is not finite.*give a smaller learning_rate"):
        fit(gradients(8), replace(TINY, learning_rate=1e30, epochs=3))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"patch": 3}, "patch_size=3 does not divide the images' side of 8"),
        ({"patch": 1}, "patch_size=1: "),
        ({"width": 96}, "width=96: give a multiple of 64"),
        ({"mask_ratio": 0.0}, "mask_ratio=0 leaves 16 of 16 patches visible"),
        ({"mask_ratio": 1.0}, "mask_ratio=1 leaves 0 of 16"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes: dict[str, Any], said: str) -> None:
    TINY.check()
    with pytest.raises(UserError, match=said):
        replace(TINY, **changes).check()
