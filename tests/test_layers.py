"""Packages have an order: each imports only itself and lower ones, and Hydra is imported only at the top."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import urepa

ROOT = Path(urepa.__file__).parent
FLOORS = (
    ("core",),
    ("config",),
    ("models", "runs"),
    ("method",),
    ("data",),
    ("evaluation", "cluster"),
    ("training",),
    ("inference", "costs"),
    ("reports",),
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
COMMANDS = len(FLOORS)  # the floor of what lies beside the rooms
MOST_ROOMS = 30
COMPOSE = ("config", "cluster")  # rooms that may use Hydra, as commands do
MODULES = sorted(p for p in ROOT.rglob("*.py"))


def room_of(dotted: str) -> str:
    """The package of a module, for example of `urepa.data.reader`; a command is its own package, and so is `urepa`
    itself."""
    return dotted.split(".")[1] if "." in dotted else ""


def floor_of(dotted: str) -> int:
    return FLOOR_OF.get(room_of(dotted), COMMANDS)


@cache
def imports(path: Path) -> tuple[str, ...]:
    """All imports of a file, also inside functions; `from urepa import x` as urepa.x."""
    return tuple(_imports(path))


def _imports(path: Path) -> Iterator[str]:
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
def test_a_package_imports_only_itself_and_lower_ones(path: Path) -> None:
    own = dotted(path)
    ours = [name for name in imports(path) if name.split(".")[0] == "urepa"]
    others = [name for name in ours if room_of(name) != room_of(own)]
    floor = floor_of(own)
    if floor < COMMANDS:
        assert [name for name in others if floor_of(name) >= floor] == [], f"{own} is on floor {floor}"


def importing(package: str) -> set[str]:
    """The modules that import it."""
    return {dotted(path) for path in MODULES if package in {name.split(".")[0] for name in imports(path)}}


def test_only_composing_modules_import_hydra() -> None:
    """In addition, the module that builds the parts that a config names."""
    below = {own for own in importing("hydra") if floor_of(own) < COMMANDS and room_of(own) not in COMPOSE}
    assert {own for own in below if own != "urepa.training.assembly" and ".checks." not in own} == set()


MATHEMATICS = [
    "losses/loss_math",
    "step_schedules",
    *(f"objectives/{name}_math" for name in ("objective", "ddpm", "flow")),
]


@pytest.mark.parametrize("name", MATHEMATICS)
def test_the_mathematics_needs_torch_alone(name: str) -> None:
    roots = {module.split(".")[0] for module in imports(ROOT / "method" / f"{name}.py")}
    assert roots <= {"__future__", "abc", "collections", "math", "numpy", "torch", "urepa"}


def test_the_order_lists_existing_packages() -> None:
    rooms = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert set(FLOOR_OF) == rooms
    commands = {path.stem for path in ROOT.glob("*.py")} - {"__init__"}
    assert len(rooms | commands) <= MOST_ROOMS


def test_nothing_imports_launchers() -> None:
    assert importing("launchers") == set()
