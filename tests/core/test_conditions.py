"""Conditions keep all their parts, and a dropped part equals one that was never given."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from urepa.core import random_draws
from urepa.core.conditions import (
    Condition,
    Part,
    check_dropout,
    check_names,
    covered_parts,
    draw_withheld,
    without_never_given,
)
from urepa.core.errors import UserError

NAMES = ("class", "image.cls", "image.patches", "text")
MASK = torch.tensor([[True, True, False], [True, False, False], [True, True, True], [False, True, True]])
SOME = torch.tensor([False, True, False, True])
ALL = torch.ones(4, dtype=torch.bool)


def condition(seed: int = 0) -> Condition:
    """A condition of four samples: ids, a vector, and two sequences with masks, one of them in fp16."""
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng)

    ids_B = torch.randint(1, 9, (4,), generator=rng)
    parts = {
        "class": Part.of(ids_B),
        "image.cls": Part.of(normal(4, 5)),
        "image.patches": Part.of(normal(4, 3, 2).half(), MASK),
        "text": Part.of(normal(4, 3, 6), ~MASK),
    }
    return Condition(parts)


def same(one: Condition, other: Condition) -> bool:
    """Whether two conditions are equal bit for bit, in types and in all parts."""

    def alike(a: Tensor | None, b: Tensor | None) -> bool:
        return a is b if a is None or b is None else a.dtype == b.dtype and torch.equal(a, b)

    fields = ("value", "given_B", "mask_BL")
    return one.names == other.names and all(
        alike(getattr(one[name], field), getattr(other[name], field)) for name in one.names for field in fields
    )


# --- dropping ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_dropped_part_is_as_null_says_and_the_others_are_as_they_were(name: str) -> None:
    whole, dropped = condition(), condition().drop({name: SOME})
    null = whole.null()
    for part in NAMES:
        for row in range(4):
            expected = null if part == name and SOME[row] else whole
            rows = torch.tensor([row])
            assert same(Condition({"": dropped.rows(rows)[part]}), Condition({"": expected.rows(rows)[part]}))
    assert torch.equal(dropped[name].given_B, ~SOME)
    assert same(whole, condition()), "conditions are values"


def test_a_withheld_value_leaves_no_trace() -> None:
    assert not same(condition(0), condition(1))
    assert same(condition(0).null(), condition(1).null())
    assert not any(part.given_B.any() or part.value.any() for part in condition().null().parts.values())
    assert condition().null()["text"].mask_BL is not None
    assert bool(condition().null()["text"].mask_BL.all())  # type: ignore[union-attr]


def with_nulls() -> Condition:
    """The same condition with null values for its text and its vector."""
    parts, null_mask_L = condition().parts, torch.tensor([True, False, False])
    text, vector = parts["text"], parts["image.cls"]
    null_LD, null_D = torch.arange(18.0).view(3, 6), torch.arange(5.0)
    nulls = {
        "text": Part.of(text.tokens_BLD, text.mask_BL, null_LD, null_mask_L),
        "image.cls": Part.of(vector.vector_BD, None, null_D),
    }
    return Condition({**parts, **nulls})


def test_a_parts_own_null_replaces_withheld_values() -> None:
    """With the null's mask; other parts are as without nulls. The null is kept when the condition is moved or
    batched."""
    whole, plain = with_nulls(), condition()
    dropped = whole.drop({"text+image": SOME})
    for name, null in (("text", torch.arange(18.0).view(3, 6)), ("image.cls", torch.arange(5.0))):
        assert torch.equal(dropped[name].value[SOME], null.expand(2, *null.shape))
        assert torch.equal(dropped[name].value[~SOME], whole[name].value[~SOME])
    assert dropped["text"].mask_BL is not None
    assert dropped["text"].mask_BL[SOME].tolist() == [[True, False, False]] * 2
    assert torch.equal(dropped["text"].mask_BL[~SOME], (~MASK)[~SOME])
    assert same(
        Condition({"": dropped["image.patches"]}), Condition({"": plain.drop({"image": SOME})["image.patches"]})
    )
    assert same(dropped.drop({"text": SOME}), dropped)
    rows = torch.tensor([2, 0])
    for other in (whole.rows(rows), whole.to(torch.device("cpu")).rows(rows), Condition.cat([whole, whole]).rows(rows)):
        assert same(other.null(), whole.null().rows(rows))
    assert {t.device.type for t in tensors(whole.to(torch.device("meta")))} == {"meta"}
    assert len(tensors(whole)) == 13
    with pytest.raises(AssertionError, match="have the same nulls"):
        Condition.cat([whole, plain])


def test_a_null_is_of_the_parts_shape() -> None:
    with pytest.raises(AssertionError, match="a sample's null"):
        Part.of(torch.zeros(2, 3), None, torch.zeros(4))
    with pytest.raises(AssertionError, match="a null of tokens has a mask"):
        Part.of(torch.zeros(2, 3, 4), torch.ones(2, 3, dtype=torch.bool), torch.zeros(3, 4))
    with pytest.raises(AssertionError, match="ids have no null"):
        Part.of(torch.zeros(2, dtype=torch.int64), None, torch.zeros((), dtype=torch.int64))


def test_what_is_withheld_stays_withheld() -> None:
    once = condition().drop({"text": SOME})
    assert same(once.drop({"text": ~ALL}), once)
    assert same(once.drop({"text": ~SOME}), condition().drop({"text": ALL}))


def test_a_name_covers_the_parts_that_go_together() -> None:
    names = ("image", "image.cls", "text", "imagenet")
    assert covered_parts("image", names) == ["image", "image.cls"]
    assert covered_parts("image.cls", names) == ["image.cls"]
    assert covered_parts("text+image", names) == ["image", "image.cls", "text"]
    by_group, by_part = condition().drop({"image": SOME}), condition().drop({"image.cls": SOME, "image.patches": SOME})
    assert same(by_group, by_part)
    with pytest.raises(AssertionError, match="'clip' names no part of a condition that has image"):
        covered_parts("image+clip", names)
    with pytest.raises(UserError, match=r"^guidance: this run's condition has no part 'img'; it has class, image\.cls"):
        check_names(["class", "text+img"], NAMES, "guidance")
    check_names(["class", "text+image"], NAMES, "guidance")


# --- batches -----------------------------------------------------------------------------------------------


def test_cat_and_rows_keep_every_part() -> None:
    one, other = condition(0).drop({"text": SOME}), condition(1).drop({"image": ~SOME})
    both = Condition.cat([one, other])
    assert (len(one), len(both), both.names) == (4, 8, NAMES)
    assert same(both.rows(torch.arange(4)), one)
    assert same(both.rows(torch.arange(4, 8)), other)
    assert same(both.rows(torch.tensor([6, 1])), Condition.cat([other.rows(torch.tensor([2])), one.rows(SOME)]).rows(
        torch.tensor([0, 1])
    ))  # fmt: skip
    with pytest.raises(AssertionError, match="have the same parts"):
        Condition.cat([one, Condition.of_classes(torch.tensor([1]))])


def tensors(of: Condition) -> list[Tensor]:
    fields = ("value", "given_B", "mask_BL", "null", "null_mask_L")
    found = (getattr(part, field) for part in of.parts.values() for field in fields)
    return [t for t in found if t is not None]


def test_a_condition_moves_whole() -> None:
    moved = condition().to(torch.device("meta"))
    assert len(tensors(moved)) == len(tensors(condition())) == 10
    assert {t.device.type for t in tensors(moved)} == {"meta"}
    assert moved.device == torch.device("meta")
    assert [t.dtype for t in tensors(moved)] == [t.dtype for t in tensors(condition())]
    assert same(condition().to(torch.device("cpu")), condition())


def test_a_condition_is_pinned_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pinning needs a GPU; here a copy replaces it."""
    pinned: list[Tensor] = []
    monkeypatch.setattr(Tensor, "pin_memory", lambda x: pinned.append(x.clone()) or pinned[-1])
    whole = condition().pin()
    assert same(whole, condition())
    assert {id(t) for t in tensors(whole)} == {id(t) for t in pinned}


def test_the_kind_of_a_part_follows_from_its_shape() -> None:
    whole = condition()
    assert whole["class"].ids_B.shape == (4,)
    assert whole["image.cls"].vector_BD.shape == (4, 5)
    assert whole["text"].tokens_BLD.shape == (4, 3, 6)
    with pytest.raises(AssertionError, match=r"a part of shape \(4, 5\) has no ids"):
        _ = whole["image.cls"].ids_B
    with pytest.raises(AssertionError, match="no part 'pose'; it has class, image"):
        _ = whole["pose"]
    for wrong in ({"value": torch.zeros(2, 3, 4)}, {"value": torch.zeros(2)}, {"value": torch.zeros(2, 2).long()}):
        with pytest.raises(AssertionError):
            Part.of(**wrong)
    with pytest.raises(AssertionError, match="of one batch"):
        Condition({"a": Part.of(torch.tensor([1])), "b": Part.of(torch.tensor([1, 2]))})


# --- dropout -----------------------------------------------------------------------------------------------

POLICY = {"text+image": 0.1, "image": 0.3, "text": 0.05}


def test_one_name_is_withheld_where_u_is_below_its_probability() -> None:
    drawn = [random_draws.generator(3, "drop", step, p).random() for step in range(20) for p in range(16)]
    for probability in (0.0, 0.1, 1 / 3, 1.0, drawn[7], drawn[9]):
        (name, withheld), *more = draw_withheld(
            {"class": probability}, torch.tensor(drawn, dtype=torch.float64)
        ).items()
        assert (name, more) == ("class", [])
        assert withheld.tolist() == [u < probability for u in drawn]


def test_names_are_withheld_one_at_a_time_by_their_share() -> None:
    u_B = torch.arange(20_000, dtype=torch.float64) / 20_000
    withheld = draw_withheld(POLICY, u_B)
    assert list(withheld) == list(POLICY)
    counts_B = torch.stack(list(withheld.values())).sum(0)
    assert int(counts_B.max()) == 1
    shares = {name: where_B.double().mean().item() for name, where_B in withheld.items()}
    assert shares == pytest.approx(POLICY, abs=1e-4)
    in_order = torch.cat([u_B[where_B] for where_B in withheld.values()])
    assert torch.equal(in_order, u_B[: len(in_order)]), "cumulative, in the order listed"
    random_B = torch.tensor(
        [random_draws.generator(0, "drop", 0, p).random() for p in range(4000)], dtype=torch.float64
    )
    drawn = draw_withheld(POLICY, random_B)
    assert {n: w.double().mean().item() for n, w in drawn.items()} == pytest.approx(POLICY, abs=0.025)


def test_what_is_drawn_is_what_is_dropped() -> None:
    u_B = torch.tensor([0.05, 0.2, 0.42, 0.7], dtype=torch.float64)  # both, image, text, nothing
    dropped = condition().drop(draw_withheld(POLICY, u_B))
    given = {name: dropped[name].given_B.tolist() for name in NAMES}
    assert given["text"] == [False, True, False, True]
    assert given["image.cls"] == given["image.patches"] == [False, False, True, True]
    assert given["class"] == [True] * 4


@pytest.mark.parametrize(
    ("dropout", "said"),
    [
        ({"text": 0.6, "image": 0.5}, "add up to 1.1; give 1 or less in all"),
        ({"text": -0.1}, "the probability of 'text' is -0.1; give 0 or more"),
        ({"text": float("nan")}, "the probability of 'text' is nan"),
        ({"txt": 0.1}, "no part 'txt'"),
    ],
)
def test_a_dropout_that_is_no_distribution_is_a_user_error(dropout: dict[str, float], said: str) -> None:
    with pytest.raises(UserError, match=f"^data.dropout: .*{said}"):
        check_dropout(dropout, NAMES, "data.dropout")


@pytest.mark.parametrize("dropout", [{}, {"text": 1.0}, POLICY, {"text": 0.7, "image": 0.2, "text+image": 0.1}])
def test_a_distribution_passes(dropout: dict[str, float]) -> None:
    check_dropout(dropout, NAMES, "data.dropout")


def test_outside_training_a_part_that_was_never_given_is_withheld() -> None:
    assert same(without_never_given(condition(), POLICY), condition())
    assert same(without_never_given(condition(), {"text": 0.999}), condition())
    assert same(without_never_given(condition(), {"image": 1.0}), condition().drop({"image": ALL}))
    shared = {"text+image": 0.7, "image": 0.2, "image+class": 0.1}
    assert same(without_never_given(condition(), shared), condition().drop({"image": ALL}))


# --- a learned null ----------------------------------------------------------------------------------------


class Learned(nn.Module):
    """Projects a vector and a sequence; a learned row and one learned token replace withheld values."""

    def __init__(self) -> None:
        super().__init__()
        self.project_vector, self.project_tokens = nn.Linear(5, 4), nn.Linear(6, 4)
        self.null_D, self.null_token_D = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4))

    def forward(self, asked: Condition) -> Tensor:
        vector, text = asked["image.cls"], asked["text"]
        x_BD = vector.where_given(self.project_vector(vector.vector_BD), self.null_D)
        x_BLD = text.where_given(self.project_tokens(text.tokens_BLD), self.null_token_D)
        return x_BD + x_BLD.mean(1)


def test_a_learned_null_is_in_every_graph() -> None:
    """Even if no sample of the batch uses it; the projections are in the graph even if all samples use it."""
    for asked, idle in ((condition(), "null"), (condition().null(), "project")):
        torch.manual_seed(0)
        model = Learned()
        model(asked).sum().backward()
        gradients: dict[str, Any] = {name: p.grad for name, p in model.named_parameters()}
        assert all(g is not None for g in gradients.values())
        assert {n for n, g in gradients.items() if not g.any()} == {n for n in gradients if n.startswith(idle)}


def test_a_learned_null_replaces_withheld_values() -> None:
    model = Learned()
    half = model(condition().drop({"image": SOME, "text": SOME}))
    assert torch.equal(half[SOME], torch.full((2, 4), 2.0))
    torch.testing.assert_close(half[~SOME], model(condition())[~SOME])
