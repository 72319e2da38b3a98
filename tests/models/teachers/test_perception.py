"""Files of Perception Encoder give the tokens of a second implementation, which is written with complex rotations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from urepa.core.errors import UserError
from urepa.models.teachers.perception_net import without_weights
from urepa.models.teachers.vit_net import ViTNetwork

Compose = Callable[..., dict[str, Any]]
State = dict[str, Tensor]
SIDE, PATCH, BLOCKS = 4, 4, 2
CASES = [("pe", 128, 2, False, True), ("pe_g", 1536, 16, True, False)]  # family, width, heads, scales, last norm


def state_of(family: str, width: int, scaled: bool, normed: bool) -> State:
    """Random weights by the names in the authors' files, with a pooling and a projection behind the tokens."""
    random = torch.Generator().manual_seed(width)

    def draw(*shape: int, about: float = 0.0, spread: float = 0.3) -> Tensor:
        return about + spread * torch.randn(*shape, generator=random)

    has_class, hidden = family == "pe", 40
    state = {"conv1.weight": draw(width, 3, PATCH, PATCH), "proj": draw(width, 8)}
    state["positional_embedding"] = draw(has_class + SIDE**2, width)
    if has_class:
        state["class_embedding"] = draw(width)
    norms = ["ln_pre", *(["ln_post"] if normed else [])]
    for k in range(BLOCKS):
        own, narrow = f"transformer.resblocks.{k}", width**-0.5
        state[f"{own}.attn.in_proj_weight"] = draw(3 * width, width, spread=2 * narrow)
        state[f"{own}.attn.in_proj_bias"] = draw(3 * width)
        state[f"{own}.attn.out_proj.weight"] = draw(width, width, spread=narrow)
        state[f"{own}.attn.out_proj.bias"] = draw(width)
        state[f"{own}.mlp.c_fc.weight"], state[f"{own}.mlp.c_fc.bias"] = (
            draw(hidden, width, spread=narrow),
            draw(hidden),
        )
        state[f"{own}.mlp.c_proj.weight"], state[f"{own}.mlp.c_proj.bias"] = draw(width, hidden), draw(width)
        norms += [f"{own}.ln_1", f"{own}.ln_2"]
        if scaled:
            state |= {f"{own}.ls_{i}.gamma": draw(width, about=0.5) for i in (1, 2)}
    for name in norms:
        state[f"{name}.weight"], state[f"{name}.bias"] = draw(width, about=1.0), draw(width)
    return state | {"attn_pool.probe": draw(1, 1, width)}


def by_hand(state: State, pixels: Tensor, heads: int, last: bool = True) -> Tensor:
    """All tokens of one image [N,D] in float64; `last` False: before the norm behind the blocks."""
    w = {name: tensor.double() for name, tensor in state.items()}
    width, rows, columns = len(w["conv1.weight"]), pixels.shape[1] // PATCH, pixels.shape[2] // PATCH
    has_class = "class_embedding" in w
    patches = [
        torch.einsum("dcyx,cyx->d", w["conv1.weight"], pixels.double()[:, r : r + PATCH, c : c + PATCH])
        for r in range(0, rows * PATCH, PATCH)
        for c in range(0, columns * PATCH, PATCH)
    ]
    learned = w["positional_embedding"]
    if (rows, columns) != (SIDE, SIDE):
        square = learned[has_class:].T.reshape(1, width, SIDE, SIDE)
        resampled = F.interpolate(square, size=(rows, columns), mode="bilinear", align_corners=False)
        learned = torch.cat([learned[:has_class], resampled.reshape(width, -1).T])
    x = torch.stack([*([w["class_embedding"]] if has_class else []), *patches]) + learned
    places = [(0, 0)] if has_class else []
    places += [(column + has_class, row + has_class) for row in range(rows) for column in range(columns)]

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]

    def turned(vector: Tensor, place: tuple[int, int]) -> Tensor:
        pairs = torch.view_as_complex(vector.reshape(-1, 2).contiguous())
        per_axis = len(pairs) // 2
        angles = [place[axis] * 10_000 ** (-i / per_axis) for axis in (0, 1) for i in range(per_axis)]
        return torch.view_as_real(pairs * torch.polar(torch.ones(len(pairs)).double(), torch.tensor(angles).double()))

    def attention(x: Tensor, own: str) -> Tensor:
        q, k, v = (x @ w[f"{own}.in_proj_weight"].T + w[f"{own}.in_proj_bias"]).split(width, dim=1)
        out = []
        for h in range(heads):
            part = slice(h * width // heads, (h + 1) * width // heads)
            qs, ks = (torch.stack([turned(one[n, part], places[n]).flatten() for n in range(len(x))]) for one in (q, k))
            out.append(torch.softmax(qs @ ks.T / (width // heads) ** 0.5, dim=1) @ v[:, part])
        return torch.cat(out, dim=1) @ w[f"{own}.out_proj.weight"].T + w[f"{own}.out_proj.bias"]

    x = norm(x, "ln_pre")
    for k in range(BLOCKS):
        own = f"transformer.resblocks.{k}"
        x = x + attention(norm(x, f"{own}.ln_1"), f"{own}.attn") * w.get(f"{own}.ls_1.gamma", 1.0)
        inner = F.gelu(norm(x, f"{own}.ln_2") @ w[f"{own}.mlp.c_fc.weight"].T + w[f"{own}.mlp.c_fc.bias"])
        x = x + (inner @ w[f"{own}.mlp.c_proj.weight"].T + w[f"{own}.mlp.c_proj.bias"]) * w.get(
            f"{own}.ls_2.gamma", 1.0
        )
    return norm(x, "ln_post") if last and "ln_post.weight" in w else x


def teacher(path: Path, family: str, width: int, side: int = SIDE, **more: Any) -> ViTNetwork:
    return ViTNetwork(family, str(path), PATCH * side, PATCH, [side, side], width, unit_length=False, **more)


@pytest.mark.fast(1)
@pytest.mark.parametrize(("family", "width", "heads", "scaled", "normed"), CASES)
@pytest.mark.parametrize("side", [SIDE, 3])
def test_tokens_are_those_of_another_implementation(
    family: str, width: int, heads: int, scaled: bool, normed: bool, side: int, tmp_path: Path
) -> None:
    """At the positions' own grid and at another; of the last block and of the first."""
    state = state_of(family, width, scaled, normed)
    as_clip = {f"visual.{name}": tensor for name, tensor in state.items()}
    torch.save(as_clip | {"logit_scale": torch.ones(()), "positional_embedding": torch.ones(3, 3)}, tmp_path / "m.pt")
    save_file(state, tmp_path / "m.safetensors")
    images = torch.rand(2, 3, PATCH * side, PATCH * side, generator=torch.Generator().manual_seed(0))
    expected = torch.stack([by_hand(state, (image - 0.5) / 0.5, heads) for image in images])
    own = teacher(tmp_path / "m.pt", family, width, side)
    vector_BD, tokens = own.states(images)
    has_class = family == "pe"
    torch.testing.assert_close(tokens.x_BND.double(), expected[:, has_class:], atol=2e-4, rtol=1e-3)
    of_image = expected[:, 0] if has_class else expected.mean(1)
    torch.testing.assert_close(vector_BD.double(), of_image, atol=2e-4, rtol=1e-3)
    again = teacher(tmp_path / "m.safetensors", family, width, side)
    assert torch.equal(again.tokens(images).x_BND, own.tokens(images).x_BND)
    last = teacher(tmp_path / "m.pt", family, width, side, block=BLOCKS - 1).states(images)[1]
    raw = torch.stack([by_hand(state, (image - 0.5) / 0.5, heads, last=False) for image in images])
    torch.testing.assert_close(last.x_BND.double(), raw[:, has_class:], atol=2e-4, rtol=1e-3)


def test_an_image_that_is_no_square_has_its_own_rows_and_columns(tmp_path: Path) -> None:
    state = state_of("pe", 128, False, True)
    torch.save(state, tmp_path / "m.pt")
    images = torch.rand(1, 3, PATCH * 3, PATCH * 5)
    tokens = teacher(tmp_path / "m.pt", "pe", 128).tokens(images, (3, 5))
    assert tokens.grid == (3, 5)
    expected = by_hand(state, (images[0] - 0.5) / 0.5, 2)[1:]
    torch.testing.assert_close(tokens.x_BND[0].double(), expected, atol=2e-4, rtol=1e-3)


def test_its_attention_is_that_with_which_it_computes(tmp_path: Path) -> None:
    torch.save(state_of("pe", 128, False, True), tmp_path / "m.pt")
    own, images = teacher(tmp_path / "m.pt", "pe", 128), torch.rand(2, 3, 16, 16)
    before = own.tokens(images)
    tokens, attention = own.tokens_and_attention(images, [1])
    assert torch.equal(tokens.x_BND, before.x_BND)
    assert attention[1].q_BANE.shape == (2, 2, SIDE**2, 64)
    with pytest.raises(UserError, match="has 2 blocks, counted from 0"):
        own.tokens_and_attention(images, [2])


def test_other_files_are_refused(tmp_path: Path) -> None:
    state = state_of("pe", 128, False, True)
    torch.save(state, path := tmp_path / "m.pt")
    with pytest.raises(UserError, match="has a class token; give teacher.family=pe$"):
        _ = teacher(path, "pe_g", 128).network
    torch.save({"blocks.0.weight": torch.ones(1)}, path)
    with pytest.raises(UserError, match="is not a file of Perception Encoder: it lacks conv1.weight"):
        _ = teacher(path, "pe", 128).network
    torch.save(state | {"transformer.resblocks.0.more": torch.ones(1)}, path)
    with pytest.raises(UserError, match="1 of its weights differ by name or shape"):
        _ = teacher(path, "pe", 128).network
    with pytest.raises(UserError, match="give the file that its authors publish"):
        _ = teacher(Path("facebook/PE-Core-B16-224"), "pe", 128).network
    torch.save(state, path)
    with pytest.raises(UserError, match="has width 128 and patches of 4"):
        _ = teacher(path, "pe", 256).network


@pytest.mark.parametrize(
    ("family", "width", "patch", "size", "millions"),
    [("pe", 768, 16, 224, 86), ("pe", 1024, 14, 336, 304), ("pe_g", 1536, 14, 448, 1880)],
)
def test_costs_are_counted_for_the_published_sizes(
    family: str, width: int, patch: int, size: int, millions: int
) -> None:
    """In millions: those of a ViT-B/16 and a ViT-L/14, and the 1.88 billion of the G tower (README, from memory)."""
    with torch.device("meta"):
        tower = without_weights(family, width, patch, size)
    count = sum(p.numel() for p in tower.parameters()) / 1e6
    assert abs(count / millions - 1) < 0.02
