"""The heads: the description's parameter counts, and grids whose order is kept."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from urepa.config.conf_options import CONF
from urepa.config.declared import declaration_of
from urepa.core.errors import UserError
from urepa.core.protocols import Head
from urepa.core.types import Tokens
from urepa.method.heads.conv_net import ConvHead
from urepa.method.heads.layer_norm_linear_net import LayerNormLinearHead
from urepa.method.heads.mlp_net import MLPHead, ResizedMLPHead, TimeMLPHead
from urepa.method.heads.spatial_net import HiddenSpatialHead, SpatialHead
from urepa.training.assembly import check_takes_grid
from urepa.training.checks.combinations import check_keys

T = torch.tensor([0.1, 0.9])  # the times of two samples, for heads that do not look at them


@pytest.mark.parametrize(("depth", "parameters"), [(1, 1_311_744), (2, 2_360_320), (3, 3_408_896)])
def test_parameter_counts_are_the_documents(depth: int, parameters: int) -> None:
    with torch.device("meta"):
        head = ConvHead(depth, "after", in_width=1280, out_width=1024)
    assert sum(p.numel() for p in head.parameters()) == parameters


@pytest.mark.parametrize("depth", [0, -1])
def test_a_head_without_layers_is_an_error(depth: int) -> None:
    with pytest.raises(UserError, match=f"head.depth={depth}.*loss=none"):
        ConvHead(depth, "after", in_width=4, out_width=4)


def by_hand(head: ConvHead, map_BDhw: Tensor, upsample: str, grid: tuple[int, int]) -> Tensor:
    """The head's output as matrix products over pixels."""
    convolutions = [layer for layer in head.layers if isinstance(layer, torch.nn.Conv2d)]

    def resized(x: Tensor) -> Tensor:
        return F.interpolate(x, size=grid, mode="bilinear", align_corners=False)

    x = resized(map_BDhw) if upsample == "before" else map_BDhw
    for i, layer in enumerate(convolutions):
        x = torch.einsum("bdhw,ed->behw", x if i == 0 else F.gelu(x), layer.weight[:, :, 0, 0])
        x = x if layer.bias is None else x + layer.bias[:, None, None]
    x = resized(x) if upsample == "after" else x
    return F.normalize(x.permute(0, 2, 3, 1).flatten(1, 2), dim=-1)


@pytest.mark.parametrize("upsample", ["after", "before"])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_the_head_projects_and_resizes_in_the_order_asked_for(depth: int, upsample: str) -> None:
    torch.manual_seed(0)
    head = ConvHead(depth, upsample, in_width=6, out_width=5)
    map_BDhw = torch.randn(2, 6, 2, 3)
    out = head(Tokens.from_map(map_BDhw), T, (4, 6))
    assert out.grid == (4, 6)
    torch.testing.assert_close(out.x_BND, by_hand(head, map_BDhw, upsample, (4, 6)))


def test_the_two_orders_differ_from_depth_2_on() -> None:
    """A single 1x1 convolution commutes with resizing; GELU does not."""
    tapped = Tokens.from_map(torch.randn(2, 6, 2, 3))
    for depth, alike in ((1, True), (2, False)):
        heads = [ConvHead(depth, u, in_width=6, out_width=5) for u in ("after", "before")]
        convolutions = [[m for m in head.layers if isinstance(m, torch.nn.Conv2d)] for head in heads]
        for one, other in zip(*convolutions, strict=True):
            other.load_state_dict(one.state_dict())
        after, before = (head(tapped, T, (4, 6)).x_BND for head in heads)
        assert torch.allclose(after, before, atol=1e-5) == alike


def identity_head(width: int) -> ConvHead:
    head = ConvHead(1, "after", in_width=width, out_width=width)
    with torch.no_grad():
        head.layers[0].weight.copy_(torch.eye(width)[:, :, None, None])
        head.layers[0].bias.zero_()
    return head


def test_equal_grids_are_not_resized() -> None:
    tapped = Tokens.from_map(torch.randn(2, 5, 2, 3))
    torch.testing.assert_close(identity_head(5)(tapped, T, (2, 3)).x_BND, F.normalize(tapped.x_BND, dim=-1))


def test_resizing_to_a_grid_that_is_not_square_keeps_the_rows() -> None:
    """A map whose values are its positions, (row, column, 1), resampled on a 4x6 grid with half-pixel centres."""
    rows, columns = torch.meshgrid(torch.arange(2.0), torch.arange(3.0), indexing="ij")
    where = torch.stack([rows, columns, torch.ones(2, 3)])[None]
    out = identity_head(3)(Tokens.from_map(where), T, (4, 6)).x_BND[0]
    read = out[:, :2] / out[:, 2:]
    expected = [
        [min(max((r + 0.5) / 2 - 0.5, 0), 1), min(max((c + 0.5) / 2 - 0.5, 0), 2)] for r in range(4) for c in range(6)
    ]
    torch.testing.assert_close(read, torch.tensor(expected))


def test_tokens_have_unit_length_in_fp32_under_autocast() -> None:
    head = ConvHead(2, "after", in_width=6, out_width=5)
    with torch.autocast("cpu", torch.bfloat16):
        tokens = head(Tokens.from_map(torch.randn(2, 6, 2, 3)), T, (4, 6)).x_BND
    assert tokens.dtype == torch.float32
    torch.testing.assert_close(tokens.norm(dim=-1), torch.ones(2, 24))


# --- REPA's -------------------------------------------------------------------------------------------------


def test_repas_head_is_three_dense_layers_with_silu() -> None:
    torch.manual_seed(0)
    head = MLPHead(7, in_width=6, out_width=5)
    weights = list(head.parameters())
    assert [tuple(w.shape) for w in weights] == [(7, 6), (7,), (7, 7), (7,), (5, 7), (5,)]
    with torch.no_grad():
        for bias in weights[1::2]:
            bias.normal_()
    tapped = Tokens(torch.randn(2, 6, 6), (2, 3))
    x = tapped.x_BND
    for i in (0, 2, 4):
        x = torch.einsum("bnd,ed->bne", x if i == 0 else x * torch.sigmoid(x), weights[i]) + weights[i + 1]
    out = head(tapped, T, (2, 3))
    assert out.grid == (2, 3)
    torch.testing.assert_close(out.x_BND, x / x.norm(dim=-1, keepdim=True))


def test_repas_head_begins_xavier_uniform_without_biases() -> None:
    """As REPA's initialize_weights does: bound √(6 / (in + out)), while torch's default is 1/√in."""
    torch.manual_seed(0)
    for layer in MLPHead(512, in_width=64, out_width=32).layers[::2]:
        bound = math.sqrt(6 / sum(layer.weight.shape))
        assert 0.99 * bound < layer.weight.abs().max().item() <= bound
        assert not layer.bias.any()


def test_repas_head_has_the_papers_size() -> None:
    """SiT-XL to DINOv2-B: 1152·2048 + 2048² + 2048·768 and the biases."""
    with torch.device("meta"):
        head = MLPHead(2048, in_width=1152, out_width=768)
    assert sum(p.numel() for p in head.parameters()) == 8_131_328


def test_repas_head_resizes_nothing() -> None:
    head = MLPHead(4, in_width=6, out_width=5)
    with pytest.raises(UserError, match=r"the tap has 2x8 tokens and the teacher 4x4, .*head=conv"):
        head(Tokens(torch.randn(2, 16, 6), (2, 8)), T, (4, 4))


@pytest.mark.parametrize("grid", [(2, 3), (4, 5)])
def test_flextoks_head_projects_first_and_resizes_then(grid: tuple[int, int]) -> None:
    torch.manual_seed(0)
    head = ResizedMLPHead(7, in_width=6, out_width=5)
    tapped = Tokens(torch.randn(2, 6, 6), (2, 3))
    out = head(tapped, T, grid)
    map_BEhw = head.layers(tapped.x_BND).transpose(1, 2).unflatten(2, (2, 3))
    resized = F.interpolate(map_BEhw, size=grid, mode="bilinear", align_corners=False).flatten(2).transpose(1, 2)
    torch.testing.assert_close(out.x_BND, F.normalize(resized, dim=-1))
    assert out.grid == grid
    masked = Tokens(tapped.x_BND, (2, 3), torch.tensor([[False, True, True, True, True, True]] * 2))
    moved = Tokens(masked.x_BND.clone(), (2, 3), masked.mask_BN)
    moved.x_BND[:, 0] += 9
    one, other = (head(tokens, T, grid) for tokens in (masked, moved))
    assert one.mask_BN is not None
    assert torch.equal(one.x_BND[one.mask_BN], other.x_BND[one.mask_BN])


def test_repas_tokens_have_unit_length_in_fp32_under_autocast() -> None:
    head = MLPHead(4, in_width=6, out_width=5)
    with torch.autocast("cpu", torch.bfloat16):
        tokens = head(Tokens(torch.randn(2, 6, 6), (2, 3)), T, (2, 3)).x_BND
    assert tokens.dtype == torch.float32
    torch.testing.assert_close(tokens.norm(dim=-1), torch.ones(2, 6))


def test_irepas_head_is_one_convolution_over_the_grid() -> None:
    torch.manual_seed(0)
    head = SpatialHead(3, in_width=6, out_width=5)
    weight, bias = head.parameters()
    assert tuple(weight.shape) == (5, 6, 3, 3)
    map_BDhw = torch.randn(2, 6, 2, 3)
    padded = F.pad(map_BDhw, (1, 1, 1, 1))
    expected = bias[:, None, None].repeat(2, 1, 2, 3)
    for row in range(3):
        for column in range(3):
            seen = padded[:, :, row : row + 2, column : column + 3]
            expected = expected + torch.einsum("bdhw,ed->behw", seen, weight[:, :, row, column])
    out = head(Tokens.from_map(map_BDhw), T, (2, 3))
    torch.testing.assert_close(out.x_BND, F.normalize(expected.flatten(2).transpose(1, 2), dim=-1))
    assert head(Tokens.from_map(map_BDhw), T, (4, 6)).x_BND.shape == (2, 24, 5)


@pytest.mark.parametrize("grid", [(2, 3), (4, 6), (1, 2)])
def test_irepas_head_with_a_hidden_layer_is_two_convolutions_and_then_the_teachers_grid(grid: tuple[int, int]) -> None:
    torch.manual_seed(0)
    head = HiddenSpatialHead(7, in_width=6, out_width=5)
    first, first_bias, last, last_bias = head.parameters()
    assert [tuple(w.shape) for w in (first, first_bias, last, last_bias)] == [(7, 6, 3, 3), (7,), (5, 7, 1, 1), (5,)]
    map_BDhw = torch.randn(2, 6, 2, 3)
    hidden = F.conv2d(map_BDhw, first, first_bias, padding=1)
    hidden = hidden * torch.sigmoid(hidden)
    projected = torch.einsum("bhyx,eh->beyx", hidden, last[:, :, 0, 0]) + last_bias[:, None, None]
    if grid != (2, 3):
        projected = F.interpolate(projected, size=grid, mode="bilinear", align_corners=False)
    out = head(Tokens.from_map(map_BDhw), T, grid)
    assert out.grid == grid
    torch.testing.assert_close(out.x_BND, F.normalize(projected.flatten(2).transpose(1, 2), dim=-1))


def test_irepas_tokens_have_unit_length_in_fp32_under_autocast() -> None:
    head = HiddenSpatialHead(7, in_width=6, out_width=5)
    with torch.autocast("cpu", torch.bfloat16):
        tokens = head(Tokens.from_map(torch.randn(2, 6, 2, 3)), T, (4, 6)).x_BND
    assert tokens.dtype == torch.float32
    torch.testing.assert_close(tokens.norm(dim=-1), torch.ones(2, 24))


# --- of the time --------------------------------------------------------------------------------------------


def test_a_time_conditioned_head_begins_as_the_plain_one() -> None:
    """With the same seed both have the same weights."""
    made = []
    for kind in (MLPHead, TimeMLPHead):
        torch.manual_seed(0)
        made.append(kind(7, in_width=6, out_width=5))
    plain, timed = made
    tapped = Tokens(torch.randn(2, 6, 6), (2, 3))
    assert torch.equal(timed(tapped, T, (2, 3)).x_BND, plain(tapped, T, (2, 3)).x_BND)
    assert timed.state_dict().keys() > plain.state_dict().keys()
    timed(tapped, T, (2, 3)).x_BND[..., 0].sum().backward()
    assert timed.time[2].weight.grad.abs().sum() > 0  # what is zero learns from the first step on


@pytest.mark.parametrize("t_B", [torch.tensor([0.1, 0.9]), torch.tensor([3, 990])], ids=["flow", "DDPM"])
def test_a_head_scales_and_shifts_by_the_time(t_B: Tensor) -> None:
    torch.manual_seed(0)
    head = TimeMLPHead(7, in_width=6, out_width=5)
    for p in head.parameters():
        torch.nn.init.normal_(p)
    w = {name: p.detach().double() for name, p in head.named_parameters()}
    x = torch.randn(2, 6, 6)
    expected = []
    for t, own in zip(t_B.tolist(), x.double(), strict=True):
        angles = torch.tensor([t * 10_000 ** (-i / 128) for i in range(128)], dtype=torch.float64)
        embedded = w["time.0.weight"] @ torch.cat([angles.cos(), angles.sin()]) + w["time.0.bias"]
        embedded = w["time.2.weight"] @ F.silu(embedded) + w["time.2.bias"]
        scale_1, shift_1, scale_2, shift_2 = embedded.split(7)
        own = F.silu(own @ w["layers.0.weight"].T + w["layers.0.bias"]) * (1 + scale_1) + shift_1
        own = F.silu(own @ w["layers.2.weight"].T + w["layers.2.bias"]) * (1 + scale_2) + shift_2
        expected.append(F.normalize(own @ w["layers.4.weight"].T + w["layers.4.bias"], dim=-1))
    out = head(Tokens(x, (2, 3)), t_B, (2, 3))
    torch.testing.assert_close(out.x_BND.double(), torch.stack(expected), rtol=0, atol=2e-4)
    assert not torch.allclose(out.x_BND, head(Tokens(x, (2, 3)), t_B.flip(0), (2, 3)).x_BND, atol=0.05)


@pytest.mark.parametrize("name", sorted(file.stem for file in (Path(CONF) / "head").glob("*.yaml")))
def test_a_declared_head_is_what_the_protocol_says(compose: Callable[..., dict[str, Any]], name: str) -> None:
    head: Head = declaration_of(compose(f"head={name}")["head"])
    head.check()
    network = head.build(in_width=8, out_width=5).eval()  # in training some draw by address
    for grid in [(2, 3), (4, 6)] if head.resizes else [(2, 3)]:
        tapped = Tokens(torch.randn(2, grid[0] * grid[1], 8, generator=torch.Generator().manual_seed(0)), grid)
        tokens = network(tapped, torch.tensor([0.1, 0.9]), (2, 3))
        assert tokens.grid == (2, 3)
        assert tokens.x_BND.shape == (2, 6, 5)
        assert tokens.x_BND.dtype == torch.float32
        torch.testing.assert_close(tokens.x_BND.norm(dim=-1), torch.ones(2, 6))
    if not head.resizes:
        with pytest.raises(UserError, match="resizes neither"):
            network(Tokens(torch.randn(2, 24, 8), (4, 6)), torch.zeros(2), (2, 3))
    assert not head.description()[0].isupper()  # it stands within a sentence
    assert not head.description().endswith(".")


@pytest.mark.slow
def test_declarations_load_without_torch() -> None:
    code = "import sys; from urepa.config.parts import KINDS; assert KINDS['head'] and 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_exchanged_target_needs_its_own_keys(compose: Callable[..., dict[str, Any]]) -> None:
    time = "urepa.method.heads.time_mlp.TimeMLP"
    config = compose(f"head._target_={time}")
    said = f"^{time} needs head.hidden, which this head does not set: choose another head$"
    with pytest.raises(UserError, match=said):
        check_keys(config)
    config["head"] = {"_target_": "urepa.method.heads.spatial.Spatial", "hidden": 8}
    with pytest.raises(
        UserError, match="urepa.method.heads.spatial.Spatial needs head.kernel, which this head does not set"
    ):
        check_keys(config)
    check_keys(compose("head=repa_mlp", f"head._target_={time}"))


def test_a_network_that_takes_no_grid_is_refused() -> None:
    """Such as networks of a user's own package for an earlier version, which passed the grid to the constructor."""

    class Former(torch.nn.Module):
        def forward(self, tapped: Tokens, t_B: Tensor) -> Tokens:
            return tapped

    with pytest.raises(UserError, match=r"^head._target_=mine.Former: .* called as forward\(tapped, t_B, grid\)"):
        check_takes_grid("mine.Former", Former())
    for head in (ConvHead(1, "after", in_width=4, out_width=4), MLPHead(4, in_width=4, out_width=4)):
        check_takes_grid("ours", head)


def test_names_of_weights_are_those_of_stored_runs() -> None:
    """If a layer did the resizing, its number stays unused."""
    names = {
        ConvHead(2, "after", in_width=6, out_width=5): "0.weight 0.bias 2.weight",
        ConvHead(2, "before", in_width=6, out_width=5): "1.weight 1.bias 3.weight",
        SpatialHead(3, in_width=6, out_width=5): "0.weight 0.bias",
        HiddenSpatialHead(7, in_width=6, out_width=5): "0.weight 0.bias 2.weight 2.bias",
    }
    for head, expected in names.items():
        assert list(head.state_dict()) == [f"layers.{name}" for name in expected.split()]


# --- LayerNorm and one dense layer ----------------------------------------------------------------------------


def test_layer_norm_linear_is_a_norm_and_a_matrix_product_before_the_resizing() -> None:
    """Computed by hand in float64, for a rectangular grid, with the gradients of all weights."""
    torch.manual_seed(0)
    head = LayerNormLinearHead(in_width=6, out_width=5)
    norm, dense = head.layers
    assert isinstance(norm, torch.nn.LayerNorm)
    assert isinstance(dense, torch.nn.Linear)
    with torch.no_grad():
        norm.weight.normal_(), norm.bias.normal_(), dense.bias.normal_()
    map_BDhw = torch.randn(2, 6, 2, 3)
    found = head(Tokens.from_map(map_BDhw), T, (5, 4))
    x = map_BDhw.double()
    mean, variance = x.mean(1, keepdim=True), x.var(1, keepdim=True, unbiased=False)
    x = (x - mean) / (variance + norm.eps).sqrt() * norm.weight[:, None, None] + norm.bias[:, None, None]
    x = torch.einsum("bdhw,ed->behw", x, dense.weight.double()) + dense.bias[:, None, None]
    x = F.interpolate(x, size=(5, 4), mode="bilinear", align_corners=False)
    expected = F.normalize(x.flatten(2).mT, dim=-1)
    assert (found.grid, found.x_BND.dtype) == ((5, 4), torch.float32)
    torch.testing.assert_close(found.x_BND.double(), expected, rtol=1e-5, atol=1e-6)
    weights = list(head.parameters())
    ours, theirs = (torch.autograd.grad(y.double().pow(3).sum(), weights) for y in (found.x_BND, expected))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_layer_norm_linear_is_initialised_as_repas_dense_layers_and_has_the_documented_size() -> None:
    torch.manual_seed(0)
    head = LayerNormLinearHead(in_width=1280, out_width=1536)
    assert sum(p.numel() for p in head.parameters()) == 2 * 1280 + 1280 * 1536 + 1536
    norm, dense = head.layers
    assert [(p.min(), p.max()) for p in (norm.weight, norm.bias, dense.bias)] == [(1, 1), (0, 0), (0, 0)]
    bound = math.sqrt(6 / (1280 + 1536))
    assert 0.999 * bound < dense.weight.abs().max() <= bound
    assert dense.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.01)


def test_masked_tokens_do_not_affect_layer_norm_linear() -> None:
    head = LayerNormLinearHead(in_width=4, out_width=3)
    mask = torch.tensor([[True, True, False, True, True, False]])
    x_BND = torch.randn(1, 6, 4)
    x_BND[:, [2, 5]] = float("nan")
    found = head(Tokens(x_BND, (2, 3), mask), T[:1], (2, 6))
    assert found.mask_BN is not None
    assert found.mask_BN.view(2, 6).tolist() == [[True, True, True, False, False, False]] * 2
    found.x_BND[found.mask_BN].sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())
