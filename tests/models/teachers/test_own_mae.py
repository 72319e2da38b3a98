"""The masked autoencoder of one's own images: its loss, what its encoder sees, and its encoder as a teacher."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from urepa.config.declared import declaration_of
from urepa.core import random_draws
from urepa.core.errors import UserError
from urepa.core.hashing import file_sha256
from urepa.core.weights_metadata import as_metadata
from urepa.costs.counting import Flops
from urepa.data.lists.paths import tokens_name
from urepa.models.backbones.sit_net import sine_cosine
from urepa.models.teachers.own_mae import OwnMAE
from urepa.models.teachers.own_mae_net import (
    Decoder,
    Encoder,
    MaskedAutoencoder,
    OwnMAENetwork,
    masked_loss,
    normalised_patches,
)
from urepa.models.teachers.own_mae_sizes import KEY, EncoderSettings

SIZES = EncoderSettings(8, 2, 64, 2, 0.75, 1e-3, epochs=1, seed=0)
VISIBLE = torch.tensor([[0, 3, 9, 14], [2, 5, 6, 15]])
OWN: dict[str, Any] = {"image_size": 8, "patch": 2, "grid": [4, 4], "width": 64, "depth": 2}
STATED = asdict(SIZES) | {"train_images": 30, "train_samples": "0123456789abcdef"}


def images(count: int = 2, side: int = 8) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def encoder(depth: int = 2) -> Encoder:
    """With weights that are not those of an initialisation, where all biases are 0."""
    with random_draws.torch_seed(0, "test"):
        network = Encoder(2, 64, depth)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
    return network.eval().requires_grad_(False)


def file_of(folder: Path, network: Encoder, **stated: object) -> Path:
    save_file(network.state_dict(), folder / "own.safetensors", as_metadata(KEY, STATED | stated))
    return folder / "own.safetensors"


def teacher(file: Path, **settings: Any) -> OwnMAENetwork:
    return OwnMAE(**{"weights": str(file)} | OWN | settings).build()


def test_the_masked_loss_is_that_of_its_formula() -> None:
    """Each patch is cut out, normalised and compared by itself, in fp64."""
    shown, predicted_BNP = images().double().numpy(), torch.randn(2, 16, 12).numpy()
    expected = []
    for image, predicted, visible in zip(shown, predicted_BNP, VISIBLE.tolist(), strict=True):
        errors = []
        for number in set(range(16)) - set(visible):
            row, column = divmod(number, 4)
            pixels = 2 * image[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].reshape(-1) - 1
            target = (pixels - pixels.mean()) / np.sqrt(((pixels - pixels.mean()) ** 2).sum() / 11 + 1e-6)
            errors.append(((predicted[number] - target) ** 2).mean())
        assert len(errors) == 12
        expected.append(np.mean(errors))
    found_B = masked_loss(torch.from_numpy(predicted_BNP), normalised_patches(images(), 2), VISIBLE)
    np.testing.assert_allclose(found_B.numpy(), expected, rtol=1e-4)


def test_the_masked_loss_is_transformers() -> None:
    """That of its own prediction and mask. It lists a patch's pixels by row, column and channel."""
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    sizes = {"image_size": 8, "patch_size": 2, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    decoder = {"decoder_hidden_size": 8, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 1}
    theirs = ViTMAEForPreTraining(ViTMAEConfig(**sizes, **decoder, norm_pix_loss=True))
    found = theirs(images() * 2 - 1)
    predicted_BNP = found.logits.unflatten(2, (2, 2, 3)).permute(0, 1, 4, 2, 3).flatten(2)
    visible_BK = (found.mask == 0).nonzero()[:, 1].view(2, 4)
    ours_B = masked_loss(predicted_BNP, normalised_patches(images(), 2), visible_BK)
    torch.testing.assert_close(ours_B.mean(), found.loss)


def test_the_encoder_sees_the_visible_patches_alone() -> None:
    network, shown = encoder(), images().requires_grad_()
    encoded = network(shown, VISIBLE)
    assert encoded.shape == (2, 4, 64)
    encoded.square().sum().backward()
    assert shown.grad is not None
    seen_BN = (F.pixel_unshuffle(shown.grad, 2).flatten(2) != 0).any(1)
    assert [row.nonzero().flatten().tolist() for row in seen_BN] == VISIBLE.tolist()
    changed = shown.detach().clone()
    changed[0, :, :2, 2:6] = 0.5  # the patches 1 and 2
    assert torch.equal(network(changed, VISIBLE)[0], encoded[0])
    changed[0, 0, 0, 0] += 0.1  # of patch 0
    assert not torch.equal(network(changed, VISIBLE)[0], encoded[0])


def test_the_decoder_predicts_masked_patches_from_visible_ones_in_their_places() -> None:
    """Against a second writing of its input, and for another order of the visible patches."""
    with random_draws.torch_seed(0, "test"):
        decoder = Decoder(2, 64).eval()
    encoded = torch.randn(2, 4, 64)
    found = decoder(encoded, VISIBLE, (4, 4))
    places = sine_cosine((4, 4), 96)[0]
    rows = torch.empty(2, 16, 96)
    for image in range(2):
        for number in range(16):
            visible = VISIBLE[image].tolist()
            token = (
                decoder.embed(encoded[image, visible.index(number)]) if number in visible else decoder.mask_token[0, 0]
            )
            rows[image, number] = (token + places[number]).detach()
    torch.testing.assert_close(found, decoder.pixels(decoder.norm(decoder.blocks(rows))))
    order = [2, 0, 3, 1]
    torch.testing.assert_close(decoder(encoded[:, order], VISIBLE[:, order], (4, 4)), found)


def test_the_loss_of_an_image_trains_every_parameter_and_depends_on_its_own_mask() -> None:
    with random_draws.torch_seed(0, "test"):
        network = MaskedAutoencoder(2, 64, 1)
    losses_B = network(images(), VISIBLE)
    losses_B.sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []
    alone = network(images()[:1], VISIBLE[:1])
    torch.testing.assert_close(alone, losses_B[:1])
    assert not torch.allclose(network(images()[:1], VISIBLE[1:]), alone)


def test_its_tokens_are_the_encoders_with_nothing_masked(tmp_path: Path) -> None:
    network = encoder()
    file = file_of(tmp_path, network)
    everything = torch.arange(16).expand(2, -1)
    expected = network(images(), everything)
    raw = teacher(file, unit_length=False).tokens(images())
    assert (torch.equal(raw.x_BND, expected), raw.grid) == (True, (4, 4))
    torch.testing.assert_close(teacher(file).tokens(images()).x_BND, F.normalize(expected, dim=-1))
    first = network.blocks[0](network.embed(images() * 2 - 1) + sine_cosine((4, 4), 64))
    assert torch.equal(teacher(file, block=0, unit_length=False).tokens(images()).x_BND, first)
    last = teacher(file, block=1, unit_length=False).tokens(images()).x_BND
    torch.testing.assert_close(network.norm(last), expected)
    pooled = teacher(file, grid=[2, 2], unit_length=False).tokens(images()).x_BND
    torch.testing.assert_close(pooled, expected.unflatten(1, (2, 2, 2, 2)).mean((2, 4)).flatten(1, 2))
    vector_BD, tokens = teacher(file).states(images())
    torch.testing.assert_close(vector_BD, tokens.x_BND.mean(1))


def test_a_patch_of_a_larger_image_has_the_position_of_its_row_and_column(tmp_path: Path) -> None:
    """Of a larger image only the patches of the upper left corner are visible: they are as in an image of its own."""
    network, large = encoder(), images(side=12)
    corner = torch.tensor([[6 * row + column for row in range(4) for column in range(4)]]).expand(2, -1)
    torch.testing.assert_close(network(large, corner), network(large[:, :, :8, :8]))
    file = file_of(tmp_path, network)
    wide = teacher(file, image_size=12, grid=[6, 6]).tokens(large)
    torch.testing.assert_close(wide.x_BND, F.normalize(network(large), dim=-1))
    assert teacher(file).grid_at((8, 12), 8) == (4, 6)
    rectangle = teacher(file).tokens(large[:, :, :8], (4, 6))
    torch.testing.assert_close(rectangle.x_BND, F.normalize(network(large[:, :, :8]), dim=-1))


def test_the_file_gives_back_each_bit_and_other_weights_have_another_store(tmp_path: Path) -> None:
    network = encoder()
    file = file_of(tmp_path, network)
    built = teacher(file)
    read = built.build_without_weights().state_dict()
    assert {name: value.shape for name, value in read.items()} == {n: v.shape for n, v in network.state_dict().items()}
    again = teacher(file)
    again.tokens(images())
    assert all(torch.equal(value, again._encoder.state_dict()[name]) for name, value in load_file(file).items())
    digest = file_sha256(file)
    declared = OwnMAE(weights=str(file), **OWN)
    assert again.weights_sha256() == again.manifest()["weights_sha256"] == digest
    kinds: list[dict[str, Any]] = [{}, {"unit_length": False}, {"block": 0}]
    names = [replace(declared, **kind).stored_as()["model"] for kind in kinds]
    assert names == [f"own_mae-{digest[:12]}{end}" for end in ("", "-raw", "-block0")]
    assert [replace(declared, **kind).build().manifest()["model"] for kind in kinds] == names
    before = tokens_name(**{k: declared.stored_as()[k] for k in ("model", "image_size")}, grid=[4, 4], rule=None)
    with torch.no_grad():
        network.norm.bias[0] += 1e-6
    file_of(tmp_path, network)
    after = tokens_name(**{k: declared.stored_as()[k] for k in ("model", "image_size")}, grid=[4, 4], rule=None)
    assert before != after


def test_its_cost_is_counted_without_the_file(tmp_path: Path) -> None:
    built = teacher(tmp_path / "lost")
    with torch.device("meta"):
        built.build_without_weights()
        with Flops() as counter:
            built.tokens(torch.empty(1, 3, 8, 8))
    embedded, blocks, attention = 12 * 64, 2 * 12 * 64**2, 2 * 2 * 16 * 64  # multiplications for each of 16 tokens
    assert counter.total == 2 * 16 * (embedded + blocks + attention)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"image_size": 9}, "image_size=9 must be a multiple of its patch of 2"),
        ({"grid": [5, 4]}, r"grid=\[5, 4\] two numbers of at most image_size/2"),
        ({"width": 65}, "teacher.width=65: give a multiple of 64"),
        ({"block": 2}, "teacher.block=2: the last block of teacher.depth=2 is 1"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        OwnMAE(**{"weights": "x"} | OWN | settings).check()


def test_files_that_are_not_its_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no .*lost: teacher=own_mae needs .* `python -m urepa.train_encoder"):
        teacher(tmp_path / "lost").tokens(images())
    file = file_of(tmp_path, encoder())
    with pytest.raises(UserError, match=r"of other sizes .*teacher.depth=3; give teacher.patch=2 .*teacher.depth=2"):
        teacher(file, depth=3).tokens(images())
    save_file({"a": torch.zeros(1)}, file)
    with pytest.raises(UserError, match="is not what `python -m urepa.train_encoder` writes"):
        teacher(file).tokens(images())
    file.write_bytes(b"no tensors")
    with pytest.raises(UserError, match="is not a complete safetensors file"):
        teacher(file).tokens(images())


def test_its_description_says_what_it_was_trained_on(tmp_path: Path, compose: Callable[..., dict[str, Any]]) -> None:
    given = ("teacher=own_mae", f"teacher.weights={file_of(tmp_path, encoder())}")
    told = declaration_of(compose(*given)["teacher"]).description()
    assert "trained for 1 epochs on 30 images (list 0123456789), with 75 % of their patches masked" in told
    assert "It was trained" not in declaration_of(compose("teacher=own_mae")["teacher"]).description()


@pytest.mark.parametrize("root", ["train", "preprocess"])
def test_the_file_lies_with_the_track(compose: Callable[..., dict[str, Any]], root: str) -> None:
    config = compose("teacher=own_mae", "data.root=here", root=root)
    assert config["teacher"]["weights"] == "here/own_mae.safetensors"
