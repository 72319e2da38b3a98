"""TREAD on a SiT: tokens that skip blocks, by hand; nothing changes in eval mode; runs of one and two rows."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from class_ids import of_ids

from urepa.config.declared import declaration_of
from urepa.core.errors import UserError
from urepa.models.backbones.routed_sit_net import PURPOSE, RoutedSiTNetwork
from urepa.models.backbones.sit_net import SiTNetwork
from urepa.models.token_draws import hand_out, uniform_of_tokens

Build = Callable[..., Any]
SIZES: tuple[Any, ...] = ((3, 8, 8), 3, 2, 5, 16, 2, False, "sincos")
U = torch.tensor([0.1, 0.6, 0.8])
T = torch.tensor([0.1, 0.5, 0.9])
CLASSES = of_ids(torch.tensor([0, 1, 2]), 3)


def pair(share: float = 0.4) -> tuple[RoutedSiTNetwork, SiTNetwork]:
    """The network with routing and one without, with the same weights, none of which is 0."""
    torch.manual_seed(0)
    routed = RoutedSiTNetwork(*SIZES, route=(1, 3), share=share)
    with torch.no_grad():
        for p in routed.parameters():
            p.add_(0.1 * torch.randn_like(p))
    plain = SiTNetwork(*SIZES)
    plain.load_state_dict(routed.state_dict())
    hand_out(routed, {PURPOSE: U})
    return routed, plain


def by_hand(net: SiTNetwork, x_t: torch.Tensor) -> torch.Tensor:
    """Blocks 1 to 3 of each image alone, on 10 of its 16 tokens."""
    outputs = []
    for b in range(len(x_t)):
        order = uniform_of_tokens(U[b : b + 1], 16)[0].sort().indices[:10]
        x = net.x_embedder(x_t[b : b + 1]) + net.pos_embed
        c = net.t_embedder(T[b : b + 1]) + net.y_embedder(of_ids(torch.tensor([b]), 3)["class"])
        x = net.blocks[0](x, c)
        inner = x[:, order]
        for k in (1, 2, 3):
            inner = net.blocks[k](inner, c)
        whole = x.clone()
        whole[:, order] = inner
        x = net.final_layer(net.blocks[4](whole, c), c)
        outputs.append(net._unpatchify(x, net.grid))
    return torch.cat(outputs)


def test_a_share_of_the_tokens_skips_the_blocks_and_is_put_back() -> None:
    routed, plain = pair()
    x_t = torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        out = routed(x_t, T, CLASSES, ("block_0", "block_3"))
        torch.testing.assert_close(out.prediction_RCHW, by_hand(plain, x_t), atol=1e-5, rtol=1e-4)
        tapped = out.features["block_3"].x_BND
        before = out.features["block_0"].x_BND
    same = (tapped == before).all(-1)
    assert (same.sum(1) == 6).all(), "6 of 16 tokens are as they were before"


def test_a_time_for_each_token_goes_with_the_token() -> None:
    """With loss=self_flow each token has a time of its own, in all blocks of the route."""
    routed, _ = pair()
    x_t = torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        expected = routed(x_t, T, CLASSES).prediction_RCHW
        same = routed(x_t, T[:, None, None].expand(-1, 4, 4), CLASSES).prediction_RCHW
        torch.testing.assert_close(same, expected, atol=1e-5, rtol=1e-4)
        # a token that skips the blocks is changed by its own time in the others alone, as one that stays is
        stays = uniform_of_tokens(U[:1], 16)[0].sort().indices[:10]
        t_Bhw = T[:, None, None].expand(-1, 4, 4).clone()
        t_Bhw[0].view(-1)[stays] = 0.7
        seen: dict[int, torch.Tensor] = {}
        for k in (1, 2, 3):
            routed.blocks[k].register_forward_hook(lambda _, given, out, k=k: seen.update({k: given[1][0]}))
        routed(x_t, t_Bhw, CLASSES)
    ten = routed.t_embedder(torch.full((10,), 0.7)) + routed.y_embedder(CLASSES["class"])[0]
    for k in (1, 2, 3):
        torch.testing.assert_close(seen[k], ten, atol=1e-5, rtol=1e-4)


def test_in_eval_mode_it_is_the_sit_of_the_same_weights() -> None:
    routed, plain = pair()
    x_t = torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        ours = routed.eval()(x_t, T, CLASSES, ("block_2",))
        theirs = plain.eval()(x_t, T, CLASSES, ("block_2",))
    assert torch.equal(ours.prediction_RCHW, theirs.prediction_RCHW)
    assert torch.equal(ours.features["block_2"].x_BND, theirs.features["block_2"].x_BND)
    assert routed.state_dict().keys() == plain.state_dict().keys()


def test_rows_and_copies_keep_their_tokens() -> None:
    """Behind the deepest tap only some rows are computed; a copy has hooks of its own."""
    routed, _ = pair()
    x_t, rows = torch.randn(3, 3, 8, 8), torch.tensor([0, 2])
    whole = routed(x_t, T, CLASSES, ("block_0",)).prediction_RCHW
    some = routed(x_t, T, CLASSES, ("block_0",), rows).prediction_RCHW
    torch.testing.assert_close(some, whole[rows], atol=1e-5, rtol=1e-4)
    copied = deepcopy(routed)
    torch.testing.assert_close(copied(x_t, T, CLASSES).prediction_RCHW, whole, atol=1e-5, rtol=1e-4)
    hand_out(copied, {PURPOSE: U.flip(0)})
    assert not torch.allclose(copied(x_t, T, CLASSES).prediction_RCHW, whole, atol=1e-3)
    torch.testing.assert_close(routed(x_t, T, CLASSES).prediction_RCHW, whole, atol=1e-5, rtol=1e-4)


def test_all_weights_get_gradients() -> None:
    routed, _ = pair()
    routed(torch.randn(3, 3, 8, 8), T, CLASSES).prediction_RCHW.square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for name, p in routed.named_parameters() if "y_emb" not in name)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("backbone.route=[2,3]", r"go together: give two blocks and a share"),
        ("backbone.route_share=0.5", r"go together: give two blocks and a share"),
        (
            "backbone.route=[3,2] backbone.route_share=0.5",
            r"give the first and the last block that tokens skip",
        ),
        ("backbone.route=[1,99] backbone.route_share=0.5", r"of the 6 from 0 to 5"),
    ],
)
def test_routes_that_do_not_fit_are_refused(compose: Build, settings: str, words: str) -> None:
    declared = declaration_of(compose("+experiment=repa_cifar10_cpu", *settings.split())["backbone"])
    with pytest.raises(UserError, match=words):
        declared.check((3, 32, 32))


def test_a_tap_within_the_route_is_refused(compose: Build) -> None:
    overrides = ("backbone.route=[1,3]", "backbone.route_share=0.5")
    declared = declaration_of(compose("+experiment=repa_cifar10_cpu", *overrides)["backbone"])
    for tap in ("block_1", "block_2"):
        with pytest.raises(UserError, match=rf"some tokens skip {tap} in training; give a tap before block 1, block_3"):
            declared.check_tap(tap)
    for tap in ("block_0", "block_3", "block_4"):
        declared.check_tap(tap)
    for tap in ("block_1", "block_2", "block_3"):
        with pytest.raises(
            UserError, match=rf"some tokens skip {tap} in training, so its attention is not that of all"
        ):
            declared.check_attention(tap)
    for tap in ("block_0", "block_4"):
        declared.check_attention(tap)
