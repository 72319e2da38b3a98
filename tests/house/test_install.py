"""The pinned versions cover pyproject.toml; the container recipes use files that exist, and pass a linter. No image is
built here."""

from __future__ import annotations

import re
import subprocess
import sys
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


def instructions(recipe: str) -> list[tuple[str, str]]:
    """The instructions of a Dockerfile, with their continued lines as one."""
    text = re.sub(r"\\\n", " ", "\n".join(line for line in recipe.splitlines() if not line.startswith("#")))
    return [(line.split()[0], line.partition(" ")[2].strip()) for line in text.splitlines() if line]


def post_lines() -> list[str]:
    """The shell lines that build the Apptainer image."""
    found = re.search(r"^%post\n(.*?)^%", (ROOT / "urepa.def").read_text(), re.S | re.M)
    assert found is not None
    return [line.strip() for line in found[1].splitlines() if line.strip()]


def lint(dockerfile: str, *ignored: str) -> str:
    command = [Path(sys.executable).with_name("hadolint"), "--no-color", *(f"--ignore={rule}" for rule in ignored), "-"]
    return subprocess.run(command, input=dockerfile, capture_output=True, text=True).stdout


def test_both_recipes_pass_a_linter() -> None:
    """hadolint reads Dockerfiles, and shell commands with ShellCheck. The shell lines of the Apptainer recipe are given
    to it as one RUN, in which `cd` has no WORKDIR instead."""
    assert lint((ROOT / "Dockerfile").read_text()) == ""
    shell = " \\\n && ".join(post_lines())
    as_docker = f"FROM python:3.11-slim-bookworm\nRUN {shell}\n"
    assert lint(as_docker, "DL3003", "DL3008") == ""
    assert "SC2086" in lint(as_docker.replace("cd /opt", "cd $HOME/opt"), "DL3003", "DL3008"), (
        "it reads the shell lines"
    )


def test_both_recipes_are_pinned_and_without_secrets() -> None:
    docker, apptainer = (ROOT / "Dockerfile").read_text(), (ROOT / "urepa.def").read_text()
    of_docker = instructions(docker)
    (base,) = (value for name, value in of_docker if name == "FROM")
    assert re.fullmatch(r"python:\d+\.\d+-[a-z]+-[a-z]+", base), "a tag of a Python and of a release of Debian"
    assert re.search(r"^From: (\S+)$", apptainer, re.M)[1] == base  # type: ignore[index]
    assert [value for name, value in of_docker if name == "USER"] == ["1000:1000"], "not root's"
    runs = " && ".join(value for name, value in of_docker if name == "RUN")
    for shell, variant in ((runs, "${VARIANT}"), ("; ".join(post_lines()), "{{ variant }}")):
        (install,) = re.findall(r"pip install [^&;]+", shell)
        assert f'-c "constraints-{variant}.txt"' in install
        assert set(re.findall(r"gcc|git|libc6-dev|curl|wget", shell)) == {"gcc", "git", "libc6-dev"}
    for text in (docker, apptainer):
        assert not re.search(r"(?i)token|password|secret|api_?key|https?://\S+:\S+@", text)
