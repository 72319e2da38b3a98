"""Teachers that are controls: random weights, and tokens in another order."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from urepa.config.declared import declaration_of
from urepa.models.teachers.control_teachers_net import RandomLite0Network, ShuffledLite0Network, order_of
from urepa.models.teachers.efficientnet_net import EfficientNetLite0Network
from urepa.training.assembly import build_part


def images(count: int) -> torch.Tensor:
    rng = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, 32, 32), generator=rng) / 255


def test_random_weights_are_those_of_their_seed() -> None:
    one, same, other = (RandomLite0Network(64, [4, 4], 16, weights_seed=seed) for seed in (0, 0, 1))
    torch.manual_seed(5)  # the caller's generator has no influence, and keeps its state
    state = torch.get_rng_state()
    tokens = one.tokens(images(2)).x_BND
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(tokens, same.tokens(images(2)).x_BND)
    assert one.weights_sha256() == same.weights_sha256() != other.weights_sha256()
    assert (tokens - other.tokens(images(2)).x_BND).abs().max() > 0.1
    assert one.manifest()["model"] == "efficientnet-lite0-random-0-s16"
    spread = tokens.flatten(0, 1).std(0).norm()
    assert spread > 0.05, "tokens differ between positions"
    with torch.no_grad():
        by_hand = one._model.eval().extract_features((images(2) * 255 - 127) / 128)
    assert by_hand.shape[1] == 1280


def test_shuffled_tokens_are_the_teachers_in_another_order() -> None:
    own = EfficientNetLite0Network(64, [4, 4], 16).tokens(images(3))
    shuffled = ShuffledLite0Network(64, [4, 4], 16).tokens(images(3))
    assert own.grid == shuffled.grid == (4, 4)
    for own_ND, shuffled_ND in zip(own.x_BND, shuffled.x_BND, strict=True):
        assert not torch.equal(own_ND, shuffled_ND)
        assert torch.equal(own_ND.sort(0).values, shuffled_ND.sort(0).values)
    one = ShuffledLite0Network(64, [4, 4], 16).tokens(images(3)[1:2]).x_BND[0]
    torch.testing.assert_close(one, shuffled.x_BND[1])  # whatever the batch
    orders = [order_of(image, 16).tolist() for image in images(3)]
    assert len({tuple(order) for order in orders}) == 3
    assert all(sorted(order) == list(range(16)) for order in orders)


@pytest.mark.parametrize(
    ("name", "model"), [("random", "efficientnet-lite0-random-0-s16"), ("shuffled", "efficientnet-lite0-shuffled-s16")]
)
def test_they_have_stores_of_their_own(compose: Any, name: str, model: str) -> None:
    config = compose(f"teacher={name}_lite0_s16")["teacher"]
    declared = compose("teacher=efficientnet_lite0_s16")["teacher"]
    assert declaration_of(config).stored_as()["model"] == model != declaration_of(declared).stored_as()["model"]
    assert build_part(config).manifest()["model"] == model
    assert build_part(config).width == 112
