"""Declarations of teachers, which need no torch, agree with what they build."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from urepa.cli import CONF
from urepa.config.declared import declaration_of
from urepa.config.parts import KINDS, PACKAGES, networks
from urepa.core.errors import UserError
from urepa.core.protocols import OneTeacher
from urepa.core.teacher_names import ALONE
from urepa.training.assembly import load_modules
from urepa.training.checks.inputs import check_teachers_files

Compose = Callable[..., dict[str, Any]]
NAMES = sorted(file.stem for file in (Path(CONF) / "teacher").glob("*.yaml") if file.stem != "several")

# files of their authors, not of a hub, and one of one's own
OF_FILES = dict.fromkeys(("mocov3_b", "pe_core_b16", "pe_core_l14", "pe_spatial_g14"), "does not exist")
OF_FILES |= {"own_mae": "there is no data/.*/own_mae.safetensors: .*`python -m urepa.train_encoder"}


@pytest.mark.fast(2)
@pytest.mark.parametrize("name", NAMES)
def test_a_declared_teacher_is_what_the_protocol_says(compose: Compose, name: str) -> None:
    declared: OneTeacher = declaration_of(compose(f"teacher={name}")["teacher"])
    assert declared.members() == {ALONE: declared}
    declared.check()
    if name in OF_FILES:
        with pytest.raises(UserError, match=OF_FILES[name]):
            declared.check_files()
    else:
        declared.check_files()
    network = declared.build()
    assert (network.grid, network.image_size) == (tuple(declared.grid), declared.stored_as()["image_size"])
    assert declared.stored_as().items() <= network.manifest().items()
    assert declared.stored_as().get("positions") == network.manifest().get("positions")
    assert declared.description().endswith(".")
    assert f"{network.width:,}" in declared.description()


def test_positions_that_are_resampled_name_a_store(compose: Compose) -> None:
    for size, found in ((224, {"positions": "timm"}), (518, {})):
        config = compose("teacher=dinov2_b", f"teacher.image_size={size}", *(["teacher.positions=timm"] * bool(found)))
        expected = {"model": "dinov2-base", "image_size": size} | found
        assert declaration_of(config["teacher"]).stored_as() == expected


def test_members_of_several_teachers_answer_for_themselves(compose: Compose, tmp_path: Path) -> None:
    one, other = ("+teacher@teacher.teachers.a=dinov2_b", "+teacher@teacher.teachers.b=dinov2_b_224")
    config = compose("teacher=several", one, other, f"teacher.teachers.b.model={tmp_path}/lost.pth")
    several = declaration_of(config["teacher"])
    assert list(several.members()) == ["a", "b"]
    assert several.hub_files() == {"facebook/dinov2-base": ["config.json", "model.safetensors"]}
    with pytest.raises(UserError, match=r"^teacher.model=.*lost.pth does not exist$"):
        check_teachers_files(declaration_of(config["data"] | {"root": str(tmp_path)}), config["teacher"])
    config["teacher"]["teachers"]["b"]["patch"] = 15
    with pytest.raises(UserError, match="must be a multiple of its patch of 15 pixels"):
        declaration_of(config["teacher"]).check()


def test_targets_that_are_no_part_are_reported() -> None:
    with pytest.raises(UserError, match="^fractions.Fraction declares no part: it has no build"):
        declaration_of({"_target_": "fractions.Fraction", "numerator": 1})
    for plain in (5, {"grid": [4, 4]}):
        with pytest.raises(UserError, match="is not a part: choose one of conf/ instead, GROUP=NAME$"):
            declaration_of(plain)
    with pytest.raises(UserError, match=r"^Flow cannot be built with paht=linear \(TypeError: .*paht"):
        declaration_of({"_target_": "urepa.method.objectives.flow.Flow", "paht": "linear"})


@pytest.mark.slow
def test_declarations_load_without_torch_and_a_run_loads_what_they_build_with(compose: Compose) -> None:
    code = "import sys; from urepa.config.parts import KINDS; assert KINDS['teacher'] and 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    load_modules(compose())
    for kind in ("head", "teacher", "objective", "loss"):
        assert networks(PACKAGES[kind])
        assert all(name in sys.modules for name in networks(PACKAGES[kind]))
        assert not any(name.endswith(("_net", "_math")) for name in KINDS[kind])
