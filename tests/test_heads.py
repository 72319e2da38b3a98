"""The convolutional head: the document's parameter counts, and grids that keep their order."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from urepa.contracts import Tokens
from urepa.errors import UserError
from urepa.heads import ConvHead


@pytest.mark.parametrize(("depth", "parameters"), [(1, 1_311_744), (2, 2_360_320), (3, 3_408_896)])
def test_parameter_counts_are_the_documents(depth: int, parameters: int) -> None:
    with torch.device("meta"):
        head = ConvHead(depth, "after", in_width=1280, out_width=1024, grid=(16, 16))
    assert sum(p.numel() for p in head.parameters()) == parameters


@pytest.mark.parametrize("depth", [0, -1])
def test_a_head_without_layers_is_an_error(depth: int) -> None:
    with pytest.raises(UserError, match=f"head.depth={depth}.*loss=none"):
        ConvHead(depth, "after", in_width=4, out_width=4, grid=(2, 2))


def by_hand(head: ConvHead, map_BDhw: Tensor, upsample: str) -> Tensor:
    """The head as matrix products over pixels."""
    convolutions = [layer for layer in head.layers if isinstance(layer, torch.nn.Conv2d)]

    def resized(x: Tensor) -> Tensor:
        return F.interpolate(x, size=head.grid, mode="bilinear", align_corners=False)

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
    head = ConvHead(depth, upsample, in_width=6, out_width=5, grid=(4, 6))
    map_BDhw = torch.randn(2, 6, 2, 3)
    out = head(Tokens.from_map(map_BDhw))
    assert out.grid == (4, 6)
    torch.testing.assert_close(out.x_BND, by_hand(head, map_BDhw, upsample))


def test_the_two_orders_differ_from_depth_2_on() -> None:
    """A single 1x1 convolution commutes with the resizing; GELU does not."""
    tapped = Tokens.from_map(torch.randn(2, 6, 2, 3))
    for depth, alike in ((1, True), (2, False)):
        heads = [ConvHead(depth, u, in_width=6, out_width=5, grid=(4, 6)) for u in ("after", "before")]
        convolutions = [[m for m in head.layers if isinstance(m, torch.nn.Conv2d)] for head in heads]
        for one, other in zip(*convolutions, strict=True):
            other.load_state_dict(one.state_dict())
        after, before = (head(tapped).x_BND for head in heads)
        assert torch.allclose(after, before, atol=1e-5) == alike


def identity_head(width: int, grid: tuple[int, int]) -> ConvHead:
    head = ConvHead(1, "after", in_width=width, out_width=width, grid=grid)
    with torch.no_grad():
        head.layers[0].weight.copy_(torch.eye(width)[:, :, None, None])
        head.layers[0].bias.zero_()
    return head


def test_equal_grids_are_not_resized() -> None:
    tapped = Tokens.from_map(torch.randn(2, 5, 2, 3))
    torch.testing.assert_close(identity_head(5, (2, 3))(tapped).x_BND, F.normalize(tapped.x_BND, dim=-1))


def test_resizing_to_a_grid_that_is_not_square_keeps_the_rows() -> None:
    """A map that says where it is, (row, column, 1), read again on a 4x6 grid: half-pixel centres."""
    rows, columns = torch.meshgrid(torch.arange(2.0), torch.arange(3.0), indexing="ij")
    where = torch.stack([rows, columns, torch.ones(2, 3)])[None]
    out = identity_head(3, (4, 6))(Tokens.from_map(where)).x_BND[0]
    read = out[:, :2] / out[:, 2:]
    expected = [
        [min(max((r + 0.5) / 2 - 0.5, 0), 1), min(max((c + 0.5) / 2 - 0.5, 0), 2)] for r in range(4) for c in range(6)
    ]
    torch.testing.assert_close(read, torch.tensor(expected))


def test_tokens_have_unit_length_in_fp32_under_autocast() -> None:
    head = ConvHead(2, "after", in_width=6, out_width=5, grid=(4, 6))
    with torch.autocast("cpu", torch.bfloat16):
        tokens = head(Tokens.from_map(torch.randn(2, 6, 2, 3))).x_BND
    assert tokens.dtype == torch.float32
    torch.testing.assert_close(tokens.norm(dim=-1), torch.ones(2, 24))
