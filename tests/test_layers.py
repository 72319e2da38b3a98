"""The house has floors: a module imports from its own or a lower one, and Hydra stays at the top."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import urepa

ROOT = Path(urepa.__file__).parent
FLOORS = {
    0: "ranks errors nested contracts dense draws files hub losses markup objectives pictures progress schedules "
    "strata sinusoid weights config averaging json_lines hashing summary allocator "
    "layout measured checkpoint_folders classifier_file",
    1: "sampling flow_sampling speed backbones heads lora teachers data",
    2: "alignment counting checkpoint tracking metrics optimizer parallel guards signals sensors evaluation runs "
    "code_state mlflow_store mlflow_run provenance upgrades stored_config curves comparison",
    3: "trainer",
}
FLOOR_OF = {module: floor for floor, modules in FLOORS.items() for module in modules.split()}
MODULES = sorted(p for p in ROOT.rglob("*.py"))


def floor_of(dotted: str) -> int:
    """Of `urepa.data.reader`, say; what is not listed is a door, and so is `urepa` itself."""
    parts = dotted.split(".")
    return FLOOR_OF.get(parts[1], 4) if len(parts) > 1 else 4


def imports(path: Path) -> Iterator[str]:
    """Everything a file imports, also inside functions; `from urepa import x` as urepa.x."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            assert node.module is not None
            yield from (f"urepa.{a.name}" for a in node.names) if node.module == "urepa" else (node.module,)


def dotted(path: Path) -> str:
    return ".".join(("urepa", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_a_module_imports_from_lower_floors_only(path: Path) -> None:
    own = floor_of(dotted(path))
    too_high = [name for name in imports(path) if name.split(".")[0] == "urepa" and floor_of(name) > own]
    assert not too_high, f"{dotted(path)} is on floor {own}"


@pytest.mark.parametrize("path", [p for p in MODULES if floor_of(dotted(p)) < 4], ids=dotted)
def test_hydra_is_for_doors(path: Path) -> None:
    allowed = {"hydra.core.config_store"} if dotted(path) == "urepa.config" else set()
    assert {name for name in imports(path) if name.split(".")[0] == "hydra"} <= allowed


@pytest.mark.parametrize("name", ["losses", "schedules", "objectives"])
def test_the_mathematics_needs_torch_alone(name: str) -> None:
    roots = {module.split(".")[0] for module in imports(ROOT / f"{name}.py")}
    assert roots <= {"__future__", "abc", "collections", "math", "numpy", "torch", "urepa"}


def test_the_list_names_modules_that_are_there() -> None:
    there = {dotted(path).split(".")[1] for path in MODULES if dotted(path) != "urepa"}
    assert set(FLOOR_OF) <= there


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_nothing_imports_launchers(path: Path) -> None:
    assert "launchers" not in {name.split(".")[0] for name in imports(path)}
