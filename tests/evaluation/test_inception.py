"""FID's Inception-v3: its architecture compared with published figures, its weights files, and the encoder's
preprocessing."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from urepa.core.errors import UserError
from urepa.evaluation.encoders.inception_net import InceptionNetwork, InceptionV3, read
from urepa.evaluation.measures.image_distances_math import image_features

MEANS = [[2, 2.5, 3], [3.5, 4, 4.5], [5, 5.5, 6]]  # of 0 to 8 on a 3x3 grid: over 4 places in a corner, 6 at an edge
MAXIMA = [[4, 5, 5], [7, 8, 8], [7, 8, 8]]


def on_meta() -> InceptionV3:
    with torch.device("meta"):
        return InceptionV3()


def random_value(name: str, like: Tensor) -> Tensor:
    """Random values with which activations neither vanish nor explode."""
    if name.endswith("num_batches_tracked"):
        return torch.tensor(7)
    if name.endswith(("running_var", "bn.weight")):
        return torch.rand(like.shape) + 0.5
    spread = (2 / like[0].numel()) ** 0.5 if like.dim() > 1 else 0.1
    return torch.randn(like.shape) * spread


@pytest.fixture(scope="module")
def network() -> InceptionV3:
    torch.manual_seed(0)
    weights = {name: random_value(name, like) for name, like in on_meta().state_dict().items()}
    made = on_meta()
    made.load_state_dict(weights, assign=True)
    return made.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def published(network: InceptionV3, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its weights as a torch file with an auxiliary head and, as in old files, without counters."""
    state = {name: value for name, value in network.state_dict().items() if not name.endswith("num_batches_tracked")}
    file = tmp_path_factory.mktemp("inception") / "inception.pth"
    torch.save(state | {"AuxLogits.fc.bias": torch.zeros(1000)}, file)
    return file


# --- the network --------------------------------------------------------------------------------------------


def test_as_many_parameters_as_torchvisions() -> None:
    # 23,834,568 of 1000 classes without the auxiliary head, and 8 classes of 2048 weights and a bias
    assert sum(p.numel() for p in on_meta().parameters()) == 23_834_568 + 8 * 2049 == 23_850_960


def test_shapes_through_the_network_are_the_papers() -> None:
    network, shapes = on_meta().eval(), {}
    for name, part in network.named_children():
        part.register_forward_hook(lambda *hooked, name=name: shapes.update({name: tuple(hooked[2].shape[1:])}))
    assert network(torch.empty(2, 3, 299, 299, device="meta")).shape == (2, 2048)
    assert shapes == {
        "Conv2d_1a_3x3": (32, 149, 149),
        "Conv2d_2a_3x3": (32, 147, 147),
        "Conv2d_2b_3x3": (64, 147, 147),
        "Conv2d_3b_1x1": (80, 73, 73),
        "Conv2d_4a_3x3": (192, 71, 71),
        "Mixed_5b": (256, 35, 35),
        "Mixed_5c": (288, 35, 35),
        "Mixed_5d": (288, 35, 35),
        "Mixed_6a": (768, 17, 17),
        "Mixed_6b": (768, 17, 17),
        "Mixed_6c": (768, 17, 17),
        "Mixed_6d": (768, 17, 17),
        "Mixed_6e": (768, 17, 17),
        "Mixed_7a": (1280, 8, 8),
        "Mixed_7b": (2048, 8, 8),
        "Mixed_7c": (2048, 8, 8),
    }


KERNELS = {  # of torchvision's convolutions in the blocks; all others are 1x1
    "5": {"branch5x5_2": (5, 5), "branch3x3dbl_2": (3, 3), "branch3x3dbl_3": (3, 3)},
    "6a": {"branch3x3": (3, 3), "branch3x3dbl_2": (3, 3), "branch3x3dbl_3": (3, 3)},
    "6": {"branch7x7_2": (1, 7), "branch7x7_3": (7, 1)}
    | {"branch7x7dbl_2": (7, 1), "branch7x7dbl_3": (1, 7), "branch7x7dbl_4": (7, 1), "branch7x7dbl_5": (1, 7)},
    "7a": {"branch3x3_2": (3, 3), "branch7x7x3_2": (1, 7), "branch7x7x3_3": (7, 1), "branch7x7x3_4": (3, 3)},
    "7": {"branch3x3_2a": (1, 3), "branch3x3_2b": (3, 1)}
    | {"branch3x3dbl_2": (3, 3), "branch3x3dbl_3a": (1, 3), "branch3x3dbl_3b": (3, 1)},
}


def test_names_and_kernels_are_torchvisions() -> None:
    state = on_meta().state_dict()
    kernels = {name.removesuffix(".conv.weight"): tuple(w.shape[2:]) for name, w in state.items() if w.dim() == 4}
    norm = ("bn.weight", "bn.bias", "bn.running_mean", "bn.running_var", "bn.num_batches_tracked")
    suffixes = ("conv.weight", *norm)
    assert state.keys() == {f"{unit}.{s}" for unit in kernels for s in suffixes} | {"fc.weight", "fc.bias"}
    assert len(kernels) == 94
    blocks = {name.split(".")[0] for name in kernels if name.startswith("Mixed")}
    for block in blocks:
        found = {name.split(".")[1]: k for name, k in kernels.items() if name.startswith(block) and k != (1, 1)}
        stage = block.removeprefix("Mixed_")
        assert found == KERNELS.get(stage, KERNELS[stage[0]]), block


@pytest.mark.parametrize(
    ("block", "order"),
    [
        ("Mixed_5b", "branch1x1 branch5x5_2 branch3x3dbl_3 branch_pool"),
        ("Mixed_6a", "branch3x3 branch3x3dbl_3"),
        ("Mixed_6b", "branch1x1 branch7x7_3 branch7x7dbl_5 branch_pool"),
        ("Mixed_7a", "branch3x3_2 branch7x7x3_4"),
        ("Mixed_7b", "branch1x1 branch3x3_2a branch3x3_2b branch3x3dbl_3a branch3x3dbl_3b branch_pool"),
    ],
)
def test_branches_are_joined_in_torchvisions_order(network: InceptionV3, block: str, order: str) -> None:
    blank = deepcopy(getattr(network, block))
    for tensor in blank.state_dict().values():
        tensor.zero_()
    expected: list[float] = []
    for value, branch in enumerate(order.split(), 1):
        norm = getattr(blank, branch).bn
        norm.bias.fill_(value)
        expected += [value] * len(norm.bias)
    wide_in = next(m for m in blank.modules() if isinstance(m, nn.Conv2d)).in_channels
    expected += [9] * (wide_in if "branch_pool" not in order else 0)  # pooled without a convolution, and last
    assert blank(torch.full((1, wide_in, 3, 3), 9.0))[0, :, 0, 0].tolist() == expected


@pytest.mark.parametrize(
    ("block", "expected"),
    [(f"Mixed_{name}", MEANS) for name in ("5b", "5c", "5d", "6b", "6c", "6d", "6e", "7b")] + [("Mixed_7c", MAXIMA)],
)
def test_neighbours_are_averaged_without_padding_and_in_the_last_block_the_largest_counts(
    network: InceptionV3, block: str, expected: list[list[float]]
) -> None:
    part = deepcopy(getattr(network, block))
    conv, norm = part.branch_pool.conv, part.branch_pool.bn
    conv.weight.zero_()[0, 0] = 1  # the first channel is passed on
    for tensor, value in ((norm.weight, 1), (norm.bias, 0), (norm.running_mean, 0), (norm.running_var, 1)):
        tensor.fill_(value)
    x = torch.zeros(1, conv.in_channels, 3, 3)
    x[0, 0] = torch.arange(9.0).reshape(3, 3)
    found = part(x)[0, -conv.out_channels]
    torch.testing.assert_close(found, torch.tensor(expected) / 1.001**0.5, rtol=1e-5, atol=0)


# --- files --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_both_formats_give_the_same_features(network: InceptionV3, published: Path, tmp_path: Path) -> None:
    save_file(network.state_dict(), tmp_path / "inception.safetensors")
    images = torch.rand(2, 3, 75, 75) * 2 - 1
    features = network(images)
    assert features.std(0).mean() > 0.01
    for file in (published, tmp_path / "inception.safetensors"):
        found = read(file)
        assert not found.training
        torch.testing.assert_close(found(images), features)


def nothing(state: dict[str, Any]) -> None:
    state.clear()


def one_missing(state: dict[str, Any]) -> None:
    del state["Mixed_7c.branch1x1.bn.running_var"]


def one_more(state: dict[str, Any]) -> None:
    state["Mixed_8a.conv.weight"] = torch.zeros(1)


def other_classes(state: dict[str, Any]) -> None:
    state["fc.bias"] = torch.zeros(1000)


@pytest.mark.fast(1)
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (nothing, r"is not FID's Inception-v3: 472 of its weights differ by name or shape \(Conv2d_1a_3x3\.bn\.bias\)"),
        (one_missing, r"1 of its weights differ by name or shape \(Mixed_7c\.branch1x1\.bn\.running_var\)"),
        (one_more, r"1 of its weights differ by name or shape \(Mixed_8a\.conv\.weight\)"),
        (other_classes, r"1 of its weights differ by name or shape \(fc\.bias\); give pt_inception-2015-12-05"),
    ],
)
def test_weights_of_another_network_are_one_sentence(tmp_path: Path, change: Any, said: str) -> None:
    state = {k: torch.zeros((), dtype=v.dtype).expand(v.shape) for k, v in on_meta().state_dict().items()}
    change(state)
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(UserError, match=said):
        read(tmp_path / "other.pth")


class Anything:
    pass


@pytest.mark.parametrize("name", ["other.pth", "other.safetensors"])
def test_a_file_that_holds_no_weights_or_more_than_weights(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    for content in (b"no network", b"hello", b""):  # each is another error of torch's
        file.write_bytes(content)
        with pytest.raises(UserError, match="cannot be read as weights alone; give pt_inception"):
            InceptionNetwork(str(file)).tokens(torch.rand(1, 3, 8, 8))
    torch.save({"fc.bias": Anything()}, file)
    with pytest.raises(UserError, match="cannot be read as weights alone"):
        read(file)
    if file.suffix == ".pth":
        torch.save({"state_dict": {"fc.bias": torch.zeros(1008)}}, file)
        with pytest.raises(UserError, match="is not a state dict of tensors by name"):
            read(file)


def test_a_file_that_is_missing() -> None:
    with pytest.raises(UserError, match=r"there is no nowhere\.pth: FID and the Inception Score need pt_inception"):
        InceptionNetwork("nowhere.pth").weights_sha256()


# --- the encoder --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_features_and_probabilities_are_the_networks(network: InceptionV3, published: Path) -> None:
    levels = torch.randint(0, 256, (1, 3, 299, 299))
    encoder = InceptionNetwork(str(published))
    features = network(levels / 127.5 - 1)
    found = image_features(encoder.tokens(levels / 255 + 0.001))  # quantised to the nearest level
    torch.testing.assert_close(found, features, rtol=1e-3, atol=1e-3)
    logits = features.double() @ network.fc.weight.double().T
    expected = (logits - logits.logsumexp(1, keepdim=True)).exp()
    torch.testing.assert_close(encoder.probabilities(levels / 255).double(), expected, rtol=1e-2, atol=1e-6)
    assert len(encoder.weights_sha256()) == 64


def test_images_are_quantised_and_resized_between_the_centres_of_pixels() -> None:
    encoder = InceptionNetwork("unread")
    encoder.__dict__["_network"] = nn.Identity()  # what the network would be given
    given = encoder._features(torch.tensor([0.1, 0.9]).expand(1, 3, 5, 2))
    assert given.shape == (1, 3, 299, 299)
    left, right = np.array([26, 230]) / 255 * 2 - 1  # of 25.5, to even, and 229.5
    place = np.clip((np.arange(299) + 0.5) * 2 / 299 - 0.5, 0, 1)
    expected = torch.tensor(left + (right - left) * place).float().expand(1, 3, 299, 299)
    torch.testing.assert_close(given, expected, rtol=0, atol=1e-5)
