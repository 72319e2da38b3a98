"""What is refused about buckets before torch loads, in one line each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aspects import bucketed, write_aspects

from urepa.core.errors import UserError
from urepa.models.teachers.efficientnet_lite0 import EfficientNetLite0
from urepa.training.checks.combinations import check

Compose = Callable[..., dict[str, Any]]
TAPS = ("~loss.taps.mid", "+loss.taps.block_1=1.0")
SIT = ("backbone=sit_tiny", *TAPS, "head=repa_mlp")


@pytest.fixture
def refused(tmp_path: Path, compose: Compose) -> Callable[..., str]:
    images = write_aspects(tmp_path / "images", 1, 1)

    def message(buckets: str, *more: str, without: tuple[str, ...] = ()) -> str:
        own = [o for o in bucketed(images, tmp_path, buckets=buckets) if not o.startswith(without or "no such")]
        with pytest.raises(UserError) as caught:
            check(compose(*own, *more), [])
        text = str(caught.value)
        assert "\n" not in text
        return text

    return message


def test_a_head_that_does_not_resize_is_checked_in_every_bucket(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A teacher whose own rule gives landscape images a grid other than the taps'."""
    monkeypatch.setattr(EfficientNetLite0, "grid_at", lambda self, shape, side: (5, 8))
    said = refused("[[64,64],[32,64]]", *SIT, "teacher.grid=[4,4]", without=("backbone.", "head="))
    assert said.startswith("in bucket 32x64: this SiT has 2x4 patches and the teacher 5x8 tokens")


def test_a_head_that_does_not_resize_without_buckets(refused: Callable[..., str]) -> None:
    assert "give auto, or 1 to 16 pairs" in refused("[[64]]", *SIT, without=("backbone.", "head="))


def test_a_teacher_of_squares_refuses_rectangles(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(EfficientNetLite0, "grid_at")
    assert "takes square images alone, and there are some of 32x64" in refused("[[64,64],[32,64]]")


def test_learned_positions_refuse_several_grids(refused: Callable[..., str]) -> None:
    said = refused(
        "[[64,64],[32,64]]",
        *("backbone=sit_tiny", "backbone.positions=learned", *TAPS),
        without=("backbone.",),
    )
    assert said.startswith("backbone.positions=learned learns the positions of one grid")


def test_sides_that_a_unet_cannot_halve(refused: Callable[..., str]) -> None:
    assert "9x16 is not a multiple of 2" in refused("[[64,64],[36,64]]")
