"""`classes=...` of a request for images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from urepa.core.errors import UserError
from urepa.inference.chosen_classes import choose_classes, names_of

NAMES = ["bag", "crane", "10", "red bag", "crane"]


@pytest.mark.parametrize(
    ("asked", "ids"),
    [
        (None, [0, 1, 2, 3, 4]),
        (3, [3]),
        ("bag", [0]),
        (["red bag", 0, "bag"], [0, 3]),
        (["10", 4], [2, 4]),
        ([4, 1, 4], [1, 4]),
    ],
)
def test_ids_and_names(asked: Any, ids: list[int]) -> None:
    assert choose_classes(asked, 5, NAMES, "this run") == ids


@pytest.mark.parametrize(
    ("asked", "names", "words"),
    [
        ([], NAMES, r"classes=\[\]: give at least one"),
        (5, NAMES, "there is no class 5; this run's are 0 to 4"),
        ([0, -1], NAMES, "there is no class -1"),
        ("bga", NAMES, r"no class bga \(did you mean 'bag'\?\)"),
        ("RED BAG", NAMES, r"no class RED BAG \(did you mean 'red bag'\?\)"),
        ("zebra\x1b", NAMES, r"no class zebra\?; this run's are bag, crane, 10, red bag, crane$"),
        ("crane", NAMES, "1 and 4 are both called crane; give the id"),
        ("bag", [], "the names of this run's classes are not known; give ids, 0 to 4"),
        (["bag", True], NAMES, "True is neither an id nor a name"),
        (1.5, NAMES, "1.5 is neither an id nor a name"),
        ({"a": 1}, NAMES, "is neither an id nor a name"),
    ],
)
def test_unknown_classes_are_reported_in_one_sentence(asked: Any, names: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        choose_classes(asked, 5, names, "this run")


def test_names_of_the_config_take_precedence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], compose: Callable[..., Any]
) -> None:
    (tmp_path / "names.txt").write_text("one\ntwo\n")
    digits, latents = compose(), compose("+experiment=track_a")
    assert names_of(digits, ["kept"]) == ["kept"], "a track of pixels has no file of names"
    for file, names in ((f"{tmp_path}/names.txt", ["one", "two"]), (None, ["kept"]), ("gone.txt", [])):
        latents["data"]["class_names"] = file
        assert names_of(latents, ["kept"]) == names
    assert "the classes have no names here" in capsys.readouterr().out
