"""What a store's manifest must contain before the store is read, and what a missing key of an old manifest means."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from urepa.core.errors import UserError
from urepa.data.cache import UNKNOWN, refuse_differing, write_begun
from urepa.models.teachers.vit_net import ViTNetwork


def of(size: int, rule: str | None, family: str = "dinov2") -> dict[str, Any]:
    """What a run expects of its token store."""
    return {"teacher": ViTNetwork(family, "m", size, 14, [16, 16], 32, rule).manifest()}


def old(size: int, family: str = "dinov2") -> dict[str, Any]:
    """The manifest of a store that was made before there was a choice."""
    teacher = of(size, "meta" if family == "dinov2" else None, family)["teacher"]
    return {"teacher": {k: v for k, v in teacher.items() if k != "positions"} | {"weights_sha256": "ab"}}


def read(manifest: dict[str, Any], expected: dict[str, Any]) -> None:
    refuse_differing(Path("tokens"), manifest, expected, "make it again")


@pytest.mark.parametrize("size", [224, 448])
def test_an_old_store_off_the_native_size_holds_transformers_tokens(size: int) -> None:
    read(old(size), of(size, "transformers"))
    for rule in ("meta", "timm"):
        with pytest.raises(UserError, match=rf"\(teacher.positions: 'transformers' there, '{rule}' here\)"):
            read(old(size), of(size, rule))
        read(of(size, rule), of(size, rule))
    with pytest.raises(UserError, match=r"\(teacher.positions: 'timm' there, 'meta' here\)"):
        read(of(size, "timm"), of(size, "meta"))


def test_at_the_native_size_and_in_other_families_old_stores_go_on() -> None:
    read(old(518), of(518, "meta"))
    for family in ("dinov2_registers", "clip"):
        read(old(224, family), of(224, None, family))


def test_the_rule_of_positions_is_named_only_if_it_applies() -> None:
    """A store at 518 px has no rule of positions, nor has a store of another family."""
    for manifest in (old(518), of(518, "meta")):
        with pytest.raises(UserError, match=r"image_size: 518 there, 224 here") as refused:
            read(manifest, of(224, "meta"))
        assert "'transformers'" not in str(refused.value)
    with pytest.raises(UserError, match="family: 'clip' there, 'dinov2' here") as refused:
        read(old(224, "clip"), of(224, "meta"))
    assert "'transformers'" not in str(refused.value)


def test_the_rule_of_an_adopted_store_is_unknown() -> None:
    read({"teacher": dict.fromkeys(of(518, "meta")["teacher"], UNKNOWN)}, of(224, "meta"))


def test_a_build_begun_under_another_rule_is_not_continued(tmp_path: Path) -> None:
    write_begun(tmp_path / "tokens", old(224), "make it again")
    write_begun(tmp_path / "tokens", of(224, "transformers"), "make it again")
    with pytest.raises(UserError, match="teacher.positions: 'transformers' there, 'meta' here"):
        write_begun(tmp_path / "tokens", of(224, "meta"), "make it again")
