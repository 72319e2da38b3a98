"""Guidance, compared with its formula: classifier-free guidance of one part, guidance of several parts, and parts that
are not guided."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from urepa.core.conditions import Condition, Part
from urepa.core.errors import UserError
from urepa.core.types import Denoised
from urepa.method.ddpm_sampling import sample_by
from urepa.method.flow_sampling import guided_velocity
from urepa.method.guidance import guided_predictor, scales_of
from urepa.method.objectives.ddpm_math import EpsilonMath
from urepa.method.objectives.flow_math import FlowMath

NULL = 3


class Classes(nn.Module):
    """A small network conditioned on a class, with rows for three classes and none. `plain` takes ids directly."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rows, self.convolution = nn.Embedding(NULL + 1, 4), nn.Conv2d(4, 4, 3, padding=1)
        self.sizes: list[int] = []

    def plain(self, x: Tensor, t_B: Tensor, ids_B: Tensor) -> Tensor:
        return self.convolution(torch.tanh(x + self.rows(ids_B)[:, :, None, None])) * (1 + t_B.view(-1, 1, 1, 1))

    def forward(self, x: Tensor, t_B: Tensor, condition: Condition) -> Denoised:
        self.sizes.append(len(x))
        classes = condition["class"]
        return Denoised(self.plain(x, t_B, classes.where_given(classes.ids_B, NULL)))


@pytest.mark.parametrize("guidance", [0.0, 1.8, 4.0])
@torch.no_grad()
def test_one_part_is_classifier_free_guidance_bit_for_bit(guidance: float) -> None:
    """One batch for both passes, the null pass first; DDPM combines them in fp32, flow in fp64."""
    model, x, t, ids = Classes(), torch.randn(2, 4, 5, 5), torch.tensor(0.4), torch.tensor([2, 0])
    both = torch.cat([torch.tensor([NULL, NULL]), ids])
    u, c = model.plain(torch.cat([x, x]), t.expand(4), both).chunk(2)
    condition = Condition.of_classes(ids)
    predict = guided_predictor(model, condition, {"class": guidance}, torch.float32)
    assert torch.equal(predict(x, t), u + guidance * (c - u))
    velocity = guided_velocity(model, condition, {"class": guidance}, (0.0, 1.0))
    expected = u.double() + guidance * (c.double() - u.double())
    assert torch.equal(velocity(x.double(), t.double()), expected)
    assert model.sizes == [4, 4]
    outside = guided_velocity(model, condition, {"class": guidance}, (0.5, 1.0))
    assert torch.equal(outside(x.double(), t.double()), model.plain(x, t.expand(2), ids).double())
    assert model.sizes == [4, 4, 2]


@torch.no_grad()
def test_a_scale_of_one_is_one_pass() -> None:
    model, x, t, ids = Classes(), torch.randn(2, 4, 5, 5), torch.tensor(0.4), torch.tensor([2, 0])
    for scales in ({"class": 1.0}, {}):
        predict = guided_predictor(model, Condition.of_classes(ids), scales, torch.float32)
        assert torch.equal(predict(x, t), model.plain(x, t.expand(2), ids))
    assert model.sizes == [2, 2]


class Parts(nn.Module):
    """A class, a vector and tokens, each of which changes the effect of the others. Records which parts each sample
    had."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[tuple[list[bool], ...]] = []

    def forward(self, x: Tensor, t_B: Tensor, condition: Condition) -> Denoised:
        classes, vector, text = condition["class"], condition["pose"], condition["text"]
        self.given.append(tuple(part.given_B.tolist() for part in (classes, vector, text)))
        a_B = classes.where_given(classes.ids_B.float(), torch.tensor(-1.0))
        b_B = vector.where_given(vector.vector_BD.sum(1), torch.tensor(0.5))
        c_B = text.where_given((text.tokens_BLD * text.mask_BL.unsqueeze(2)).sum((1, 2)), torch.tensor(7.0))
        return Denoised(x + by_hand(a_B, b_B, c_B).view(-1, 1, 1, 1))


def by_hand(a: Tensor | float, b: Tensor | float, c: Tensor | float) -> Tensor:
    return torch.as_tensor(a * b + a * a + 3 * b + c * (a - b))


def three() -> Condition:
    tokens, mask = torch.tensor([[[1.0], [9.0]], [[2.0], [2.0]]]), torch.tensor([[True, False], [True, True]])
    pose = Part.of(torch.tensor([[1.0, 2.0], [0.0, -1.0]]))
    return Condition({"class": Part.of(torch.tensor([2, 5])), "pose": pose, "text": Part.of(tokens, mask)})


A, B, C = torch.tensor([2.0, 5.0]), torch.tensor([3.0, -1.0]), torch.tensor([1.0, 4.0])  # what the parts give


def test_several_parts_follow_the_formula_and_the_others_are_given_throughout() -> None:
    """u + s_1(c_1 − u) + s_2(c_2 − u) for a class and a vector; the text is not guided."""
    model, x, t = Parts(), torch.randn(2, 1, 1, 1), torch.tensor(0.3)
    u, by_class, by_pose = by_hand(-1.0, 0.5, C), by_hand(A, 0.5, C), by_hand(-1.0, B, C)
    expected = u + 3 * (by_class - u) + 2.5 * (by_pose - u)
    found = guided_predictor(model, three(), {"class": 3.0, "pose": 2.5}, torch.float32)(x, t)
    torch.testing.assert_close((found - x).flatten(), expected, rtol=1e-5, atol=1e-5)
    (given,) = model.given
    assert given[0] == [False, False, True, True, False, False]
    assert given[1] == [False, False, False, False, True, True]
    assert given[2] == [True] * 6


def test_scales_of_one_for_several_parts_are_not_a_single_pass() -> None:
    model, x, t = Parts(), torch.zeros(2, 1, 1, 1), torch.tensor(0.3)
    u, by_class, by_pose = by_hand(-1.0, 0.5, C), by_hand(A, 0.5, C), by_hand(-1.0, B, C)
    found = guided_predictor(model, three(), {"class": 1.0, "pose": 1.0}, torch.float32)(x, t)
    torch.testing.assert_close(found.flatten(), by_class + by_pose - u)


def test_a_number_guides_all_parts_together() -> None:
    assert scales_of(2.0, ("class",)) == {"class": 2.0}
    model, x, t = Parts(), torch.zeros(2, 1, 1, 1), torch.tensor(0.3)
    u, c = by_hand(-1.0, 0.5, 7.0), by_hand(A, B, C)
    found = guided_predictor(model, three(), scales_of(2.0, three().names), torch.float32)(x, t)
    torch.testing.assert_close(found.flatten(), u + 2 * (c - u))
    joint = guided_predictor(model, three(), {"text+class": 2.0}, torch.float32)(x, t)
    u = by_hand(-1.0, B, 7.0)
    torch.testing.assert_close(joint.flatten(), u + 2 * (by_hand(A, B, C) - u))


def test_parts_that_the_condition_lacks_are_in_no_pass() -> None:
    model = Parts()
    lacking = three().drop({"pose": torch.tensor([True, False])})
    guided_predictor(model, lacking, {"class": 3.0, "pose": 2.0}, torch.float32)(
        torch.zeros(2, 1, 1, 1), torch.ones(())
    )
    assert model.given[0][1] == [False, False, False, False, False, True]


@pytest.mark.parametrize(
    ("objective", "sampler"), [(FlowMath("linear", "uniform"), "euler"), (EpsilonMath(0.1, 0.2, "linear", 10), "ddim")]
)
@torch.no_grad()
def test_both_samplers_take_scales_by_name(objective: FlowMath | EpsilonMath, sampler: str) -> None:
    model, noise = Parts(), torch.randn(2, 1, 1, 1)
    sample_by(model, objective, noise, three(), [], sampler, 2, {"class": 3.0, "pose": 2.5})
    assert [len(given) for given, *_ in model.given] == [6, 6]
    for guidance, said in (
        ({"clas": 2.0}, "guidance: this run's condition has no part 'clas'; it has class, pose, text"),
        ({"class": 2.0, "text+class": 3.0}, "guidance: two names cover the part 'class'; give each part one scale"),
    ):
        with pytest.raises(UserError, match=said.replace("+", r"\+")):
            sample_by(model, objective, noise, three(), [], sampler, 2, guidance)
