"""NanoDiT, compared with its formulas: context, dropped parts, padding, buckets, parameters and gradients."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from urepa.core.conditions import Condition, Part, draw_withheld
from urepa.core.errors import UserError
from urepa.core.part_names import CLS, PATCHES, POOLED, TEXT
from urepa.method.guidance import guided_predictor
from urepa.models.backbones.nanodit import NanoDiT
from urepa.models.backbones.nanodit_net import NanoDiTNetwork

SMALL: dict[str, Any] = {"patch": 2, "depth": 2, "width": 16, "heads": 2, "cls": "both", "cls_with_time": True}
SMALL |= {"patches": True, "patch_positions": False, "gradient_checkpointing": False}
LENGTH, TEXT_WIDTH, CLS_WIDTH, PATCH_WIDTH = 5, 12, 10, 6
WIDTHS = {TEXT: TEXT_WIDTH, CLS: CLS_WIDTH, PATCHES: PATCH_WIDTH}
SQUARE, LYING = ((3, 8, 8), (4, 4)), ((3, 6, 10), (3, 5))  # x0 and the image encoder's grid


def small(**changes: Any) -> NanoDiTNetwork:
    """A network whose parameters are all random: those that are 0 at first would hide the others."""
    torch.manual_seed(0)
    network = NanoDiT(**(SMALL | changes)).build(latent_shape=SQUARE[0], num_classes=1, widths=WIDTHS)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.3)
    return network.eval()


def inputs(bucket: Any = SQUARE, batch: int = 4) -> tuple[Tensor, Tensor, Condition]:
    """x_t, t and a condition whose texts have 5, 4, 3, 2 tokens."""
    shape, (rows, columns) = bucket
    random = torch.Generator().manual_seed(1)
    x_t, t_B = torch.randn(batch, *shape, generator=random), torch.rand(batch, generator=random)
    mask_BL = torch.arange(LENGTH) < LENGTH - torch.arange(batch)[:, None]
    text = torch.randn(batch, LENGTH, TEXT_WIDTH, generator=random)
    cls = torch.randn(batch, CLS_WIDTH, generator=random)
    patches = torch.randn(batch, rows * columns, PATCH_WIDTH, generator=random)
    parts = {TEXT: Part.of(text, mask_BL), CLS: Part.of(cls), PATCHES: Part.of_image(patches, (rows, columns))}
    return x_t, t_B, Condition(parts)


def withheld(condition: Condition, name: str, where: list[bool]) -> Condition:
    return condition.drop({name: torch.tensor(where)})


# --- the definition -----------------------------------------------------------------------------------------


def norm(x: Tensor, eps: float = 1e-6) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + eps).sqrt()


def silu(x: Tensor) -> Tensor:
    return x / (1 + (-x).exp())


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def place(row: int, column: int, width: int) -> Tensor:
    frequencies = [10_000 ** (-i / (width // 4)) for i in range(width // 4)]
    return torch.tensor([f(x * w) for x in (column, row) for f in (math.sin, math.cos) for w in frequencies])


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Attention of one sample, head by head."""
    outs = []
    for own in torch.arange(q.shape[1]).chunk(heads):
        weights = torch.softmax(q[:, own] @ k[:, own].T / math.sqrt(len(own)), dim=1)
        outs.append(weights @ v[:, own])
    return torch.cat(outs, dim=1)


def one_sample(
    w: dict[str, Tensor], size: dict[str, Any], x: Tensor, t: float, text: list[Tensor], cls: Tensor, patches: Any
) -> Tensor:
    """The prediction for one latent [C,H,W] by the formulas. `text`: the tokens that count. `patches`: the tokens with
    their row and column."""
    p, width = size["patch"], size["width"]
    rows, columns = x.shape[1] // p, x.shape[2] // p

    def dense(name: str, y: Tensor) -> Tensor:
        return y @ w[f"{name}.weight"].T + w.get(f"{name}.bias", torch.tensor(0.0))

    angles = [1000 * t * 10_000 ** (-i / 128) for i in range(128)]
    waves = torch.tensor([math.cos(a) for a in angles] + [math.sin(a) for a in angles])
    time = dense("t_embedder.mlp.2", silu(dense("t_embedder.mlp.0", waves)))
    vector = dense("dino_proj", cls)
    context = [dense("text_proj", token) for token in text]
    if size["cls"] in ("both", "context"):
        context.append(vector + time if size["cls_with_time"] else vector)
    if size["patches"]:
        for token, row, column in patches:
            fixed = place(row, column, width) if size["patch_positions"] else 0
            context.append(dense("dino_patch_proj", token) + fixed)
    g = time if size["cls"] == "context" else vector + time
    tokens = []
    for row in range(rows):
        for column in range(columns):
            cell = x[:, row * p : (row + 1) * p, column * p : (column + 1) * p]
            token = (w["x_embedder.proj.weight"] * cell).sum((1, 2, 3)) + w["x_embedder.proj.bias"]
            tokens.append(token + place(row, column, width))
    h, s = torch.stack(tokens), torch.stack(context)
    for k in range(size["depth"]):
        b = f"blocks.{k}"
        shift1, scale1, shift2, scale2, shift3, scale3 = dense(f"{b}.adaLN_modulation.1", silu(g)).split(width)
        q, key, v = dense(f"{b}.attn.qkv", norm(h) * (1 + scale1) + shift1).split(width, dim=1)
        h = h + dense(f"{b}.attn.proj", attend(q, key, v, size["heads"]))
        q = dense(f"{b}.cross_attn.q", norm(h) * (1 + scale2) + shift2)
        key, v = dense(f"{b}.cross_attn.kv", s).split(width, dim=1)
        h = h + dense(f"{b}.cross_attn.proj", attend(q, key, v, size["heads"]))
        h = h + dense(f"{b}.mlp.fc2", gelu(dense(f"{b}.mlp.fc1", norm(h) * (1 + scale3) + shift3)))
    out = dense("output.linear", norm(h) * w["output.norm.weight"] + w["output.norm.bias"])
    latent = torch.zeros_like(x)
    for n, values in enumerate(out):
        row, column = divmod(n, columns)
        cell = values.view(p, p, -1).permute(2, 0, 1)
        latent[:, row * p : (row + 1) * p, column * p : (column + 1) * p] = cell
    return nn.functional.conv2d(latent[None], w["output.conv.weight"], w["output.conv.bias"], padding=1)[0]


def by_the_formulas(network: NanoDiTNetwork, size: dict[str, Any], x_t: Tensor, t_B: Tensor, c: Condition) -> Tensor:
    """The predictions for a batch whose parts may be withheld."""
    w, outs = network.state_dict(), []
    text, cls, patches = c[TEXT], c[CLS], c[PATCHES]
    assert text.mask_BL is not None
    assert patches.grid is not None
    places = [(row, column) for row in range(patches.grid[0]) for column in range(patches.grid[1])]
    for i in range(len(c)):
        words = [token for token, counts in zip(text.value[i], text.mask_BL[i], strict=True) if counts]
        words = words if text.given_B[i] else [w["null_text"][0, 0]] * LENGTH
        vector = cls.value[i] if cls.given_B[i] else w["null_dino"][0]
        null = w.get("null_dino_patch_token", torch.zeros(1, 1, 1))[0, 0]
        own = [patches.value[i, n] if patches.given_B[i] else null for n in range(len(places))]
        tokens = [(token, *at) for token, at in zip(own, places, strict=True)]
        outs.append(one_sample(w, size, x_t[i], float(t_B[i]), words, vector, tokens))
    return torch.stack(outs)


ARMS: list[dict[str, Any]] = [{}, {"patch_positions": True}, {"patches": False}, {"cls": "adaln"}, {"cls": "context"}]
ARMS += [{"cls_with_time": False}]


@pytest.mark.parametrize("bucket", [SQUARE, LYING], ids=["square", "lying"])
@pytest.mark.parametrize("changes", ARMS, ids=[next(iter(a), "documented") for a in ARMS])
def test_the_forward_pass_is_the_written_definition(changes: dict[str, Any], bucket: Any) -> None:
    network, (x_t, t_B, condition) = small(**changes), inputs(bucket)
    condition = withheld(withheld(condition, "text", [False, True, False, True]), "image", [False, False, True, True])
    expected = by_the_formulas(network, SMALL | changes, x_t, t_B, condition)
    torch.testing.assert_close(network(x_t, t_B, condition).prediction_RCHW, expected, rtol=1e-4, atol=1e-4)


def test_a_batch_equals_its_samples_one_by_one() -> None:
    network, (x_t, t_B, condition) = small(), inputs(LYING)
    taps = ("block_0", "block_1")
    whole = network(x_t, t_B, condition, taps)
    for i in range(len(x_t)):
        row = torch.tensor([i])
        one = network(x_t[row], t_B[row], condition.rows(row), taps)
        torch.testing.assert_close(one.prediction_RCHW, whole.prediction_RCHW[row], rtol=1e-5, atol=1e-5)
        ours, theirs = (found.features["block_0"].x_BND for found in (one, whole))
        torch.testing.assert_close(ours, theirs[row], rtol=1e-5, atol=1e-4)
        assert whole.features["block_1"].grid == (3, 5)
        chosen = network(x_t, t_B, condition, ("block_0",), row).prediction_RCHW
        torch.testing.assert_close(chosen, one.prediction_RCHW, rtol=1e-5, atol=1e-5)


def test_recomputed_blocks_have_the_same_gradients() -> None:
    x_t, t_B, condition = inputs()
    found = []
    for recompute in (False, True):
        network = small(gradient_checkpointing=recompute).train()
        network(x_t, t_B, condition).prediction_RCHW.pow(2).sum().backward()
        found.append({name: p.grad for name, p in network.named_parameters()})
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-4)


# --- context and nulls --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["text", "image", "text+image"])
def test_dropping_parts_equals_giving_their_nulls(name: str) -> None:
    network, (x_t, t_B, condition) = small(), inputs()
    nulls = {TEXT: network.null_text, CLS: network.null_dino, PATCHES: network.null_dino_patch_token}
    given = dict(condition.parts)
    for part in [p for p in given if any(p.startswith(one) for one in name.split("+"))]:
        value = nulls[part].detach().expand_as(given[part].value).clone()
        if part == TEXT:
            given[part] = Part.of(value, torch.ones(len(value), LENGTH, dtype=torch.bool))
        else:
            given[part] = Part.of(value, given[part].mask_BL, grid=given[part].grid)
    dropped = network(x_t, t_B, withheld(condition, name, [True] * 4)).prediction_RCHW
    torch.testing.assert_close(dropped, network(x_t, t_B, Condition(given)).prediction_RCHW)
    assert (dropped - network(x_t, t_B, condition).prediction_RCHW).abs().max() > 0.01


def test_text_padding_has_no_influence() -> None:
    network, (x_t, t_B, condition) = small(), inputs()
    text = condition[TEXT]
    assert text.mask_BL is not None
    padded = torch.where(text.mask_BL[..., None], text.value, torch.tensor(7.0))
    other = Condition({**condition.parts, TEXT: Part.of(padded, text.mask_BL)})
    ours, theirs = (network(x_t, t_B, c).prediction_RCHW for c in (condition, other))
    torch.testing.assert_close(ours, theirs)
    all_count = Condition({**condition.parts, TEXT: Part.of(padded, torch.ones_like(text.mask_BL))})
    assert (network(x_t, t_B, all_count).prediction_RCHW - ours).abs().max() > 0.01


def test_the_order_of_patches_matters_only_with_positions() -> None:
    x_t, t_B, condition = inputs()
    patches = condition[PATCHES]
    assert patches.grid is not None
    turned = Condition({**condition.parts, PATCHES: Part.of_image(patches.value.flip(1), patches.grid)})
    for positions in (False, True):
        network = small(patch_positions=positions)
        moved = (network(x_t, t_B, turned).prediction_RCHW - network(x_t, t_B, condition).prediction_RCHW).abs().max()
        assert bool(moved > 0.01) is positions


@pytest.mark.parametrize(
    ("pixels", "grid", "length"),
    [
        ((1024, 1024), (64, 64), 4609),
        ((832, 1216), (52, 76), 4465),
        ((1280, 768), (80, 48), 4353),
        ((704, 1344), (44, 84), 4209),
    ],
)
def test_context_lengths_of_the_description(pixels: tuple[int, int], grid: tuple[int, int], length: int) -> None:
    """512 text tokens, the vector and one patch of 16 pixels per token of the latent; the grid is the teacher's own."""
    from urepa.models.teachers.rectangle_sizes import grid_for
    from urepa.models.teachers.vit import ViT

    encoder = ViT(family="dinov3", model="m", image_size=1024, patch=16, grid=[64, 64], width=PATCH_WIDTH)  # type: ignore[arg-type]
    assert grid_for(encoder, pixels, 1024) == grid == (pixels[0] // 16, pixels[1] // 16)
    patches = Part.of_image(torch.zeros(1, grid[0] * grid[1], PATCH_WIDTH), grid)
    text = Part.of(torch.zeros(1, 512, TEXT_WIDTH), torch.ones(1, 512, dtype=torch.bool))
    condition = Condition({TEXT: text, CLS: Part.of(torch.zeros(1, CLS_WIDTH)), PATCHES: patches})
    _, context_BSD, mask_BS = small().global_and_context(torch.zeros(1), condition)
    assert context_BSD.shape[1] == mask_BS.shape[1] == length


def test_patches_off_by_one_do_not_fill_their_grid() -> None:
    with pytest.raises(AssertionError, match="15 tokens do not fill the grid"):
        Part.of_image(torch.zeros(2, 15, PATCH_WIDTH), (4, 4))
    with pytest.raises(AssertionError, match="tokens have a mask"):
        Part.of(torch.zeros(2, LENGTH, TEXT_WIDTH))


def test_guidance_is_the_documented_sum_of_three_passes_in_one_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    network, (x_t, t_B, condition) = small(), inputs(LYING)
    t = t_B[0]

    def velocity(*away: str) -> Tensor:
        all_B = torch.ones(4, dtype=torch.bool)
        return network(x_t, t.expand(4), condition.drop(dict.fromkeys(away, all_B))).prediction_RCHW

    neither, text, image = velocity("text", "image"), velocity("image"), velocity("text")
    expected = neither + 3 * (text - neither) + 2.5 * (image - neither)
    calls, forward = [], network.forward
    monkeypatch.setattr(network, "forward", lambda *given: calls.append(len(given[0])) or forward(*given))
    found = guided_predictor(network, condition, {"text": 3, "image": 2.5}, torch.float32)(x_t, t)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert calls == [12]


# --- parameters and gradients -------------------------------------------------------------------------------


def counted(depth: int, width: int, text: int, image: int) -> int:
    """The parameters by the formula of docs/nanodit.md, for patches of 2x2 of 16 channels."""
    block = 22 * width**2  # attention 4, cross-attention 4, MLP 8, modulations 6
    embeddings = (64 * width + width) + (256 * width + width) + (width**2 + width)
    inputs = (text * width + width) + 2 * (image * width + width) + text + 2 * image
    output = 2 * width + (64 * width + 64) + (16 * 16 * 9 + 16)
    return depth * block + embeddings + inputs + output


SIZES = {("nanodit", 4096): 239_188_304, ("nanodit_nano", 4096): 41_594_192}
SIZES |= {("nanodit", 1024): 236_825_936, ("nanodit_nano", 1024): 40_411_472}


@pytest.mark.parametrize(("name", "text"), SIZES)
def test_parameters_are_those_of_the_formula(name: str, text: int, compose: Any) -> None:
    declared = {key: value for key, value in compose(f"backbone={name}")["backbone"].items() if key != "_target_"}
    with torch.device("meta"):
        known = {"latent_shape": (16, 128, 128), "num_classes": 1, "widths": {TEXT: text, CLS: 1024, PATCHES: 1024}}
        network = NanoDiT(**declared).build(**known)
    count = sum(p.numel() for p in network.parameters())
    assert count == counted(declared["depth"], declared["width"], text, 1024) == SIZES[name, text]
    biases = [n for n, _ in network.named_parameters() if n.startswith("blocks.") and n.endswith("bias")]
    assert not biases


def test_gradients_of_all_inputs_begin_after_the_first_step() -> None:
    """The output is 0 at first, so that only its convolution has a gradient at step 0; then all inputs have one."""
    torch.manual_seed(0)
    network = NanoDiT(**SMALL).build(latent_shape=SQUARE[0], num_classes=1, widths=WIDTHS)
    x_t, t_B, condition = inputs()
    condition = withheld(condition, "text", [True, False, False, False])
    condition = withheld(condition, "image", [True, True, False, False])
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    for step in range(2):
        optimizer.zero_grad()
        prediction = network(x_t, t_B, condition).prediction_RCHW
        assert (prediction.abs().max() == 0) == (step == 0)
        (prediction - x_t).pow(2).mean().backward()
        norms = {name: float(p.grad.norm()) for name, p in network.named_parameters() if p.grad is not None}
        assert len(norms) == len(list(network.parameters())), "every parameter is in the graph"
        if step == 0:
            assert {name for name, value in norms.items() if value > 0} == {"output.conv.weight", "output.conv.bias"}
        optimizer.step()
    inputs_of = ("dino_patch_proj.weight", "dino_proj.weight", "text_proj.weight", "null_text", "null_dino")
    for name in (*inputs_of, "null_dino_patch_token", "blocks.0.adaLN_modulation.1.weight"):
        assert norms[name] > 0, name


def test_every_null_is_in_the_graph_of_a_batch_that_withholds_nothing() -> None:
    network, (x_t, t_B, condition) = small(), inputs()
    network(x_t, t_B, condition).prediction_RCHW.sum().backward()
    for null in (network.null_text, network.null_dino, network.null_dino_patch_token):
        assert null.grad is not None
        assert null.grad.abs().max() == 0


def test_shares_of_the_documented_dropout() -> None:
    u_B = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    drawn = draw_withheld({"text+image": 0.1, "image": 0.3, "text": 0.05}, u_B)
    assert {name: int(mask.sum()) for name, mask in drawn.items()} == {"text+image": 100, "image": 300, "text": 50}
    assert int(sum(drawn.values()).max()) == 1, "one outcome a sample"  # type: ignore[union-attr, arg-type]


# --- mistakes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cls": "adaln", "cls_with_time": False}, "cls_with_time=false has no effect"),
        ({"patches": False, "patch_positions": True}, "patch_positions has no effect"),
        ({"width": 18}, "give a multiple of 4"),
        ({"patch": 3}, "does not divide"),
    ],
)
def test_settings_without_effect_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        NanoDiT(**(SMALL | changes)).check(SQUARE[0])


def test_shuffled_patches_need_positions() -> None:
    NanoDiT(**(SMALL | {"patch_positions": True})).check_shuffled()
    with pytest.raises(UserError, match="does not depend on the order"):
        NanoDiT(**SMALL).check_shuffled()


def test_a_pooled_text_is_left_unused() -> None:
    from urepa.core.backbone_protocols import takes_parts

    assert takes_parts(NanoDiT, (TEXT, POOLED, CLS, PATCHES))
    assert not takes_parts(NanoDiT, (TEXT,))
