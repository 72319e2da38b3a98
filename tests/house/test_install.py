"""The pinned versions cover pyproject.toml, and the container recipes use files that exist."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
ASKED = [Requirement(text) for part in (PROJECT["dependencies"], *EXTRAS.values()) for text in part]
OF_CUDA = re.compile(r"nvidia-(?!ml-py)|cuda-|triton$")  # brought by torch's CUDA builds alone


def pins(name: str) -> dict[str, Version]:
    """Versions by name. Nothing else is in the file, no host and no build of this machine."""
    lines = [line for line in (ROOT / name).read_text().splitlines() if not line.startswith("#")]
    assert lines == sorted(lines)
    found = {}
    for line in lines:
        assert re.fullmatch(r"[a-z0-9-]+==[0-9A-Za-z.]+", line), line
        package, version = line.split("==")
        assert package == canonicalize_name(package)
        found[package] = Version(version)
    assert len(found) == len(lines)
    return found


@pytest.mark.parametrize("name", ["constraints-cpu.txt", "constraints-cuda.txt"])
def test_every_dependency_is_pinned_in_its_range(name: str) -> None:
    there = pins(name)
    for asked in ASKED:
        assert asked.specifier.contains(there[canonicalize_name(asked.name)]), asked


def test_both_files_pin_the_same_besides_the_cuda_libraries() -> None:
    cpu, cuda = pins("constraints-cpu.txt"), pins("constraints-cuda.txt")
    assert cpu == {package: version for package, version in cuda.items() if not OF_CUDA.match(package)}
    assert len(cuda) > len(cpu)


def test_the_images_have_every_folder_and_extra_that_the_package_needs() -> None:
    docker, apptainer = (ROOT / "Dockerfile").read_text(), (ROOT / "urepa.def").read_text()
    copied = {word for line in re.findall(r"^COPY (.+)$", docker, re.M) for word in line.split()[:-1]}
    packages = {"urepa", "launchers", "hydra_plugins"}
    assert copied >= {"conf", "pyproject.toml", *packages}
    assert all((ROOT / name).exists() for name in copied)
    files = dict(re.findall(r"^    (\S+) /opt/urepa/(\S+)$", apptainer, re.M))
    assert files == {name: name for name in copied}
    allowed = (ROOT / ".dockerignore").read_text().splitlines()
    assert all(f"!{name}" in allowed or name.startswith("constraints-") for name in copied)
    for recipe in (docker, apptainer):
        extras = re.search(r"(?i)extras=(\S+)", recipe)
        assert extras is not None
        assert set(extras[1].split(",")) == EXTRAS.keys() - {"test"}
