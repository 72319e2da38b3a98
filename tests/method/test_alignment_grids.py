"""The grid on which a tap and a teacher are compared: compared with maps that are resized by hand, rectangular and with
several teachers.

Shapes: B samples, N tokens, D width of the teacher, h/w rows and columns.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from class_ids import of_ids
from torch import Tensor

from urepa.config.alterations import alters
from urepa.core.comparability import ALIGNMENT, MANIFOLD, TOTAL
from urepa.core.errors import UserError
from urepa.core.types import Batch, Tokens
from urepa.method.alignment_grids import check_policy, compared_on, description, policy_of
from urepa.method.heads.conv_net import ConvHead
from urepa.method.losses import loss_math
from urepa.method.losses.urepa_loss import URepaLoss
from urepa.method.losses.urepa_loss_math import AlignmentLoss
from urepa.method.schedules.constant import Constant
from urepa.method.training_step import Aligned, AlignedModel
from urepa.models.backbones.unet_net import tiny_unet
from urepa.models.layers import resize_tokens

T = torch.tensor([10, 600])
POLICIES = ["teacher", "student", "smaller", [3, 5]]
PIXELS = torch.zeros(2, 1, 2, 2)


def declared(**changes: Any) -> URepaLoss:
    settings: dict[str, Any] = {"lambda_max": 0.5, "warmup_steps": 0, "manifold_weight": 3.0, "level": "token"}
    settings |= {"taps": {"mid": 1.0}, "spike_threshold": 0.1}
    return URepaLoss(**(settings | changes))


def loss_of(**changes: Any) -> AlignmentLoss:
    return declared(**changes).build(schedule=Constant(), max_steps=10)


def batch_of(teachers: dict[str, Tokens]) -> Batch:
    return Batch([], PIXELS, PIXELS, T, of_ids(torch.zeros(2, dtype=torch.long), 3), teachers)


def map_of(tokens_BND: Tensor, grid: tuple[int, int]) -> Tensor:
    """The map [B,D,h,w], filled token by token."""
    map_BDhw = torch.empty(len(tokens_BND), tokens_BND.shape[2], *grid, dtype=tokens_BND.dtype)
    for n in range(tokens_BND.shape[1]):
        map_BDhw[:, :, n // grid[1], n % grid[1]] = tokens_BND[:, n]
    return map_BDhw


def by_hand(student_BND: Tensor, teacher_BDhw: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """1 − cosine, and the squared difference of the similarities of all pairs of tokens, token by token, in float64."""
    teacher = F.interpolate(teacher_BDhw.double(), size=grid, mode="bilinear", align_corners=False)
    places = [(i, j) for i in range(grid[0]) for j in range(grid[1])]
    theirs = F.normalize(torch.stack([teacher[:, :, i, j] for i, j in places], dim=1), dim=-1)
    ours = F.normalize(student_BND.double(), dim=-1)
    token = 1 - torch.stack([(ours[:, n] * theirs[:, n]).sum(-1) for n in range(len(places))]).mean()
    pairs = [
        ((ours[:, m] * ours[:, n]).sum(-1) - (theirs[:, m] * theirs[:, n]).sum(-1)).pow(2)
        for m in range(len(places))
        for n in range(len(places))
        if m != n
    ]
    return token, torch.stack(pairs).mean()


# --- the choice ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "tap", "teacher", "grid"),
    [
        ("teacher", (8, 8), (16, 16), (16, 16)),
        ("student", (8, 8), (16, 16), (8, 8)),
        ("student", (20, 12), (4, 4), (20, 12)),
        ("smaller", (8, 8), (16, 16), (8, 8)),
        ("smaller", (32, 32), (16, 16), (16, 16)),
        ("smaller", (8, 11), (7, 12), (7, 12)),  # 88 and 84 tokens: one of the two grids, not 7x11
        ("smaller", (4, 6), (6, 4), (6, 4)),  # as many: the teacher's
        ([3, 5], (8, 8), (16, 16), (3, 5)),
    ],
)
def test_the_grid_of_each_policy(
    policy: Any, tap: tuple[int, int], teacher: tuple[int, int], grid: tuple[int, int]
) -> None:
    assert compared_on(policy, tap, teacher) == grid


@pytest.mark.parametrize("policy", ["tap", "", [4], [4, 4, 4], [0, 4], [4, 2.5], [True, 4], None, 4, "[4,4]"])
def test_invalid_grids_are_refused(policy: Any) -> None:
    with pytest.raises(UserError, match=r"^loss.grid=.*: give teacher, student, smaller, or rows and columns"):
        declared(grid=policy).check()


def test_a_loss_without_the_setting_compares_on_the_teachers_grid() -> None:
    assert policy_of(object()) == "teacher"
    assert (policy_of(declared()), policy_of(loss_of(grid=[2, 3]))) == ("teacher", [2, 3])


def test_alignment_losses_on_two_grids_are_not_comparable_and_diffusion_losses_are() -> None:
    config = {"loss._target_": "urepa.method.losses.urepa_loss.URepaLoss", "loss.grid": "student"}
    config |= {"loss.manifold_diagonal": "True"}
    assert alters("loss.grid", config, config) == set(ALIGNMENT)
    assert alters("loss.manifold_diagonal", config, config) == {MANIFOLD, TOTAL}


# --- the terms ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("student_grid", "teacher_grid"),
    [((2, 3), (4, 6)), ((6, 4), (2, 2)), ((3, 5), (4, 2))],
    ids=["upwards", "downwards", "crosswise"],
)
def test_the_teachers_tokens_are_resized_as_a_map_and_compared_at_unit_length(
    student_grid: tuple[int, int], teacher_grid: tuple[int, int]
) -> None:
    """Values and the student's gradient, with fp16 tokens as in a store."""
    torch.manual_seed(0)
    n, count = student_grid[0] * student_grid[1], teacher_grid[0] * teacher_grid[1]
    student = torch.randn(2, n, 7, requires_grad=True)
    teacher = F.normalize(torch.randn(2, count, 7), dim=-1).half()
    output = Aligned(PIXELS, {}, {"mid": Tokens(student, student_grid)})
    diffusion = torch.rand(2)
    terms = loss_of(grid="student")(diffusion, output, batch_of({"": Tokens(teacher, teacher_grid)}), 5, lambda x: x)
    token, manifold = by_hand(student, map_of(teacher, teacher_grid), student_grid)
    torch.testing.assert_close(terms.per_sample["token"].mean().double(), token, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(terms.manifold.double(), manifold, rtol=1e-5, atol=1e-6)
    total = diffusion.double().mean() + 0.5 * (token + 3.0 * manifold)
    torch.testing.assert_close(terms.total.double(), total, rtol=1e-5, atol=1e-6)
    (found,), (expected,) = (torch.autograd.grad(value, student) for value in (terms.total, total))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_on_the_teachers_grid_nothing_is_resized_bit_for_bit() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 6, 7), F.normalize(torch.randn(2, 6, 7), dim=-1).half()
    diffusion, tokens = torch.rand(2), Tokens(teacher, (2, 3))
    assert resize_tokens(tokens, (2, 3)) is tokens
    token_B = 1 - (F.normalize(student, dim=-1) * F.normalize(teacher.float(), dim=-1)).sum(-1).mean(1)
    ours, theirs = F.normalize(student, dim=-1), F.normalize(teacher.float(), dim=-1)
    squares = (ours @ ours.mT - theirs @ theirs.mT).pow(2) * ~torch.eye(6, dtype=torch.bool)
    plain = diffusion.mean() + 0.5 * (token_B.mean() + 3.0 * (squares.sum() / (2 * 6 * 5)))
    for policy in ("teacher", "student", "smaller", [2, 3]):
        output = Aligned(PIXELS, {}, {"mid": Tokens(student, (2, 3))})
        terms = loss_of(grid=policy)(diffusion, output, batch_of({"": tokens}), 5, lambda x: x)
        assert torch.equal(terms.total, plain)


def test_a_resized_target_counts_if_all_its_sources_count() -> None:
    """The last of three columns is masked. The last three of six resized columns depend on it and do not affect the
    loss."""
    torch.manual_seed(0)
    mask = torch.tensor([[1, 1, 0, 1, 1, 0]] * 2, dtype=torch.bool)
    teacher = torch.randn(2, 6, 7)
    student = torch.randn(2, 12, 7, requires_grad=True)
    output = Aligned(PIXELS, {}, {"mid": Tokens(student, (2, 6))})
    values = []
    for hidden in (1e3, float("nan")):
        own = teacher.masked_fill(~mask[..., None], hidden)
        batch = batch_of({"": Tokens(own, (2, 3), mask)})
        values.append(loss_of(grid="student", manifold_weight=0.0)(torch.zeros(2), output, batch, 0, lambda x: x))
    resized = F.interpolate(map_of(teacher, (2, 3)), size=(2, 6), mode="bilinear", align_corners=False)
    counts = [0, 1, 2, 6, 7, 8]
    theirs = resized.flatten(2).mT[:, counts]
    expected = 1 - F.cosine_similarity(student[:, counts], theirs, dim=-1).mean(1)
    for terms in values:
        torch.testing.assert_close(terms.per_sample["token"], expected)
    (gradient,) = torch.autograd.grad(values[0].total, student)
    assert gradient.abs().sum(-1)[0].nonzero().flatten().tolist() == counts


def test_targets_are_normalised_over_the_teachers_own_positions_before_resizing() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 6, 7), torch.randn(2, 8, 7)
    output = Aligned(PIXELS, {}, {"mid": Tokens(student, (2, 3))})
    batch = batch_of({"": Tokens(teacher, (4, 2))})
    found = loss_of(grid="student", spatial_norm=0.6)(torch.zeros(2), output, batch, 0, lambda x: x)
    normalised = (teacher - 0.6 * teacher.mean(1, keepdim=True)) / (teacher.std(1, keepdim=True) + 1e-6)
    token, _ = by_hand(student, map_of(normalised, (4, 2)), (2, 3))
    torch.testing.assert_close(found.per_sample["token"].mean().double(), token, rtol=1e-5, atol=1e-6)


# --- the model ----------------------------------------------------------------------------------------------


def unet(**sizes: Any) -> Any:
    torch.manual_seed(0)
    return tiny_unet([32, 64], [False, True], 1, cross_attention_dim=32, head_dim=32, num_classes=3, **sizes)


@pytest.mark.fast(1)
@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_each_tap_is_compared_with_each_teacher_on_its_own_grid(policy: Any) -> None:
    """A rectangular image, two taps with two grids, two teachers with two other grids; heads project first."""
    teachers = {"a": (4, 2), "b": (9, 6)}
    own = {"mid": (4, 6), "dec_first": (8, 12)}
    heads = {f"{tap}/{name}": ConvHead(2, "after", in_width=64, out_width=7) for tap in own for name in teachers}
    model = AlignedModel(unet(latent_shape=(4, 8, 12)), heads, policy)
    condition = of_ids(torch.tensor([0, 1]), 3)
    output = model(torch.randn(2, 4, 8, 12), T, condition, None, teachers)
    assert {tap: output.features[tap].grid for tap in own} == own
    tokens = {name: Tokens(torch.randn(2, g[0] * g[1], 7), g) for name, g in teachers.items()}
    loss = loss_of(grid=policy, taps={"mid": 3.0, "dec_first": 1.0}, teachers={"a": 2.0})
    terms = loss(torch.zeros(2), output, batch_of(tokens), 5, lambda x: x)
    expected: Any = 0.0
    for tap, weight in (("mid", 0.75), ("dec_first", 0.25)):
        for name, share in (("a", 2 / 3), ("b", 1 / 3)):
            tap_grid, teacher_grid = own[tap], teachers[name]
            small = min(tap_grid, teacher_grid, key=lambda g: g[0] * g[1])
            grid = {"teacher": teacher_grid, "student": tap_grid, "smaller": small}.get(str(policy), (3, 5))
            projected = heads[f"{tap}/{name}"].layers(output.features[tap].to_map())
            student = F.interpolate(projected, size=grid, mode="bilinear", align_corners=False).flatten(2).mT
            assert output.tokens[f"{tap}/{name}"].grid == grid
            token, manifold = by_hand(student, map_of(tokens[name].x_BND, teacher_grid), grid)
            expected = expected + weight * share * (token + 3.0 * manifold)
    torch.testing.assert_close(terms.alignment.double(), expected, rtol=1e-4, atol=1e-5)


def test_a_batch_without_a_teacher_keeps_the_heads_in_the_graph_on_the_taps_own_grid() -> None:
    head = ConvHead(1, "after", in_width=64, out_width=7)
    model = AlignedModel(unet(latent_shape=(4, 8, 8)), {"mid": head}, [3, 5])
    output = model(torch.randn(2, 4, 8, 8), T, of_ids(torch.tensor([0, 1]), 3))
    assert output.tokens["mid"].grid == (4, 4)
    terms = loss_of(grid=[3, 5])(torch.rand(2, requires_grad=True), output, batch_of({}), 5, lambda x: x)
    terms.total.backward()
    assert head.layers[0].weight.grad.abs().sum() == 0


# --- words --------------------------------------------------------------------------------------------------


def test_the_description_states_the_grid_unless_it_is_the_teachers() -> None:
    said = {str(policy): " ".join(description(policy)) for policy in POLICIES}
    assert said.pop("teacher") == ""
    assert "on the tap's grid. If the teacher's own grid differs" in said["student"]
    assert "on the smaller of the tap's and the teacher's grid" in said["smaller"]
    assert "on a grid of 3×5" in said["[3, 5]"]
    text = [str(part) for part in declared(grid="student").description(schedule=Constant(), max_steps=10)]
    assert said["student"] in text
    check_policy([3, 5])


# --- the manifold loss with its diagonal --------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 3), (5, 2), (7, 7)])
def test_with_its_diagonal_the_manifold_loss_is_n_minus_1_over_n_of_the_other(shape: tuple[int, int]) -> None:
    """(N − 1)/N at token level and (G − 1)/G at sample level, because the diagonals of both sides are 1; gradients
    too."""
    torch.manual_seed(0)
    samples, count = 4, shape[0] * shape[1]
    student = torch.randn(samples, count, 6, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(samples, count, 6, dtype=torch.float64)
    for off, on, n in (
        (
            loss_math.manifold_loss_token(student, teacher),
            loss_math.manifold_loss_token(student, teacher, diagonal=True),
            count,
        ),
        (
            loss_math.manifold_loss_sample(*(loss_math.pool_tokens(x) for x in (student, teacher))),
            loss_math.manifold_loss_sample(*(loss_math.pool_tokens(x) for x in (student, teacher)), diagonal=True),
            samples,
        ),
    ):
        torch.testing.assert_close(on, off * (n - 1) / n, rtol=1e-5, atol=0)
        gradients = [torch.autograd.grad(value, student, retain_graph=True)[0] for value in (on, off)]
        torch.testing.assert_close(gradients[0], gradients[1] * (n - 1) / n, rtol=1e-4, atol=1e-9)


def test_with_its_diagonal_it_is_the_squared_frobenius_norm_over_all_pairs() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(3, 6, 5), torch.randn(3, 6, 5)
    ours, theirs = (F.normalize(x, dim=-1) for x in (student, teacher))
    norms = [torch.linalg.matrix_norm(o @ o.T - t @ t.T) ** 2 / 36 for o, t in zip(ours, theirs, strict=True)]
    expected = torch.stack(norms).mean()
    torch.testing.assert_close(loss_math.manifold_loss_token(student, teacher, diagonal=True), expected)


def test_with_a_mask_the_share_is_that_of_the_tokens_that_count() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 6, 5), torch.randn(2, 6, 5)
    mask = torch.tensor([[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 0]], dtype=torch.bool)
    found = loss_math.manifold_loss_token(student, teacher, mask, diagonal=True)
    one = [loss_math.manifold_loss_token(*(x[i : i + 1, :n] for x in (student, teacher))) for i, n in ((0, 3), (1, 5))]
    torch.testing.assert_close(found, (one[0] * 2 / 3 + one[1] * 4 / 5) / 2)


def test_one_token_is_still_an_error_with_the_diagonal() -> None:
    with pytest.raises(ValueError, match="at least 2 vectors"):
        loss_math.manifold_loss_token(torch.randn(2, 1, 5), torch.randn(2, 1, 5), diagonal=True)


@pytest.mark.parametrize("level", ["sample", "token", "both"])
def test_the_loss_takes_the_diagonal_at_every_level(level: str) -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(4, 6, 5), torch.randn(4, 6, 5)
    units = loss_math.UnitTokens(student), loss_math.UnitTokens(teacher)
    off, on = (
        loss_of(level=level, manifold_diagonal=diagonal).manifold(*units, lambda x: x) for diagonal in (False, True)
    )
    sample = loss_math.manifold_loss_sample(loss_math.pool_tokens(student), loss_math.pool_tokens(teacher))
    token = loss_math.manifold_loss_token(student, teacher)
    plain = {"sample": (sample, 3 / 4 * sample), "token": (token, 5 / 6 * token)}
    plain["both"] = ((sample + token) / 2, (3 / 4 * sample + 5 / 6 * token) / 2)
    torch.testing.assert_close(off, plain[level][0])
    torch.testing.assert_close(on, plain[level][1])
