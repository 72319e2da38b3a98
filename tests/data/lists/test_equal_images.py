"""The rules that decide which of several equal images move to another split."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from urepa.core.errors import UserError
from urepa.core.random_draws import unit_interval
from urepa.data.lists.equal_images import EqualImages
from urepa.data.lists.splits import split_rows
from urepa.data.sources.source_image import SourceImage


def row(name: str, split: str = "all", class_id: int = 0) -> SourceImage:
    return SourceImage(name, class_id, split, lambda: np.zeros(0), f"{name}.png")


def names(rows: Sequence[SourceImage]) -> set[str]:
    return {r.name for r in rows}


@pytest.mark.parametrize(
    ("group", "left_out", "train_only"),
    [
        ("t1 t2", "", ""),  # all in training
        ("v1 v2", "", ""),  # all in validation
        ("p1 p2", "", ""),  # all among the test images that the publisher keeps apart
        ("t1 v1", "", "v1"),
        ("t1 v1 v2", "", "v1 v2"),
        ("t1 p1", "p1", ""),
        ("v1 p1 p2", "p1 p2", ""),
        ("t1 v1 p1", "p1", "v1"),
        ("v1 e1", "", "v1 e1"),  # of images that were drawn for validation and for test
    ],
)
def test_images_in_several_splits_move(group: str, left_out: str, train_only: str) -> None:
    splits = {"train": [row("t1"), row("t2")], "val": [row("v1"), row("v2")], "test": [row("e1")]}
    splits["test"] += [row("p1", "test"), row("p2", "test")]
    equal = EqualImages()
    assert equal.keep_apart(splits, [group.split()]) == bool(left_out or train_only)
    assert (equal.left_out, equal.train_only) == (set(left_out.split()), set(train_only.split()))
    assert not equal.keep_apart(splits, [group.split()]), "it was noted"


def test_before_splitting_images_with_copies_are_assigned_to_training(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [row("a"), row("b"), row("c"), row("p", "test"), row("q", "test"), row("r", "test")]
    equal = EqualImages()
    equal.settle(rows, [["a", "b"], ["c", "p"], ["q", "r"]])
    assert (equal.left_out, equal.train_only) == ({"p"}, {"a", "b"})
    equal.print_line()
    assert capsys.readouterr().out == (
        "equal images: 1 of the images that the source keeps apart equal others and are left out (p.png = c.png), "
        "2 stay in training with images that they equal (a.png = b.png)\n"
    )
    EqualImages().print_line()
    assert capsys.readouterr().out == ""


def test_the_next_image_of_its_class_replaces_one_that_moves() -> None:
    """Splits are those of the drawn order, with and without images that only training may have."""
    rows = [row(f"{c}_{i}", class_id=c) for c in range(2) for i in range(10)]
    drawn = [
        [r.name for r in sorted(rows, key=lambda r: unit_interval("split", r.name)) if r.class_id == c] for c in (0, 1)
    ]
    plain = split_rows(rows, 2, {"val": 4, "test": 4}, None)
    for split, at in (("test", slice(0, 2)), ("val", slice(2, 4)), ("train", slice(4, 10))):
        assert [r.name for r in plain[split]] == [name for own in drawn for name in own[at]]
    held = {drawn[0][0], drawn[1][3]}
    moved = split_rows(rows, 2, {"val": 4, "test": 4}, None, held)
    assert [r.name for r in moved["test"]] == [*drawn[0][1:3], *drawn[1][0:2]]
    assert [r.name for r in moved["val"]] == [*drawn[0][3:5], drawn[1][2], drawn[1][4]]
    assert [r.name for r in moved["train"]] == [drawn[0][0], *drawn[0][5:], drawn[1][3], *drawn[1][5:]]
    with pytest.raises(UserError, match="data.validation_images=4 asks for 2 images of one class; there are 1 left"):
        split_rows(rows, 2, {"val": 4, "test": 4}, None, set(drawn[0][:7]))
