"""Every mistake ends in one line that says what to do, with exit code 1, and leaves no files."""

from __future__ import annotations

import contextlib
import gc
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import edge
import light
import pytest
from disks import fill, small_disk
from mistakes import Mistake, others, runs, tiny, training, typed
from mistakes.parts import FILE, HERE, RUN, SUMMARY, TINY, write

from urepa.config.commands import COMMANDS

pytestmark = pytest.mark.long

LONGEST = 410  # characters of a line that a person reads
# what progress bars have drawn before
BAR = re.compile(r"(?:\r?[^\r\n]*(?:\d+%\||\[\d\d:\d\d, )[^\r\n]*)+\r?\n?| *\r|\x1b\[A| {20,}")
EVERY = [*typed.ALL, *training.ALL, *runs.ALL, *others.ALL]


def is_light(mistake: Mistake) -> bool:
    """Whether the mistake must be reported before a heavy package is imported. This does not hold if a run or an export
    must be read."""
    return not (mistake.reads or mistake.bound or {"run", "export"} & set(mistake.beside.split()))


LIGHT = [mistake for mistake in EVERY if is_light(mistake)]
OTHERS = [mistake for mistake in EVERY if not is_light(mistake)]
# of the fast part, which makes neither a run nor caches for them
QUICK = [mistake for mistake in LIGHT if not mistake.beside][::15]
BATCHES = (QUICK, [mistake for mistake in LIGHT if mistake not in QUICK])


def name(mistake: Mistake) -> str:
    return f"{mistake.command} {mistake.typed[-60:]}"


def cases(mistakes: list[Mistake]) -> pytest.MarkDecorator:
    """One test for each mistake."""
    params = [m if m in QUICK else pytest.param(m, marks=pytest.mark.slow) for m in mistakes]
    return pytest.mark.parametrize("mistake", params, ids=[name(m) for m in mistakes])


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Path:
    """PARTS/{caches,run,export,images}: each as in a user's folder."""
    root, work = tmp_path_factory.mktemp("parts"), tmp_path_factory.mktemp("work")
    edge.must("urepa.train", [*TINY, HERE], work)
    edge.must("urepa.export", [f"run={RUN}", "out=exported"], work)
    for part, folder in (("caches", "data"), ("run", "outputs"), ("export", "exported")):
        (root / part).mkdir()
        shutil.move(work / folder, root / part / folder)
    shutil.copytree(images, root / "images" / "images")
    gc.collect()
    gc.freeze()  # what all commands have imported: Hydra makes much garbage beside it
    return root


def laid_out(mistake: Mistake, parts: Path, here: Path) -> Path:
    """The folder in which the mistake is made."""
    here.mkdir()
    for part in mistake.beside.split():
        shutil.copytree(parts / part, here, dirs_exist_ok=True)
    if mistake.change is not None:
        mistake.change(here)
    return here


def check(mistake: Mistake, code: int, out: str, err: str) -> None:
    said = BAR.sub("", err)
    assert "Traceback" not in out + err, err
    assert code == 1, f"exit code {code}: {err}"
    assert said.startswith("error: "), err
    assert len(said.splitlines()) == 1, err
    assert re.search(mistake.says, said), said
    assert len(said) <= LONGEST, said


@cases(OTHERS)
def test_a_mistake_is_reported_in_one_line_and_leaves_no_files(
    mistake: Mistake, parts: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    here = laid_out(mistake, parts, tmp_path / "here")
    before = edge.content(here)
    with edge.bound_by_permissions() if mistake.bound else contextlib.nullcontext():
        done = edge.run(capfd, mistake.command, shlex.split(mistake.typed), here)
    check(mistake, *done)
    assert edge.content(here) == before


def in_forks(jobs: list[dict[str, Any]], *flags: str) -> list[dict[str, Any]]:
    """The ends of commands that may import no heavy package (`tests/light.py`), whatever this process has imported."""
    lines = "".join(f"{json.dumps(job)}\n" for job in jobs)
    command = [sys.executable, str(Path(light.__file__)), *flags]
    done = subprocess.run(command, input=lines, capture_output=True, text=True, timeout=600, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def light_end(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Mistake], dict[str, Any]]:
    """The end of a light mistake, and whether its folder is unchanged. The quick ones are run together, and so are the
    slow ones, when the first is requested."""
    ends: dict[Mistake, dict[str, Any]] = {}

    def make(mistakes: list[Mistake]) -> None:
        root = tmp_path_factory.mktemp("light")
        parts = request.getfixturevalue("parts") if any(mistake.beside for mistake in mistakes) else root
        folders = [laid_out(mistake, parts, root / str(number)) for number, mistake in enumerate(mistakes)]
        before = [edge.content(folder) for folder in folders]
        told = [
            {"module": mistake.command, "arguments": shlex.split(mistake.typed), "folder": str(folder)}
            for mistake, folder in zip(mistakes, folders, strict=True)
        ]
        for mistake, folder, then, end in zip(mistakes, folders, before, in_forks(told), strict=True):
            ends[mistake] = end | {"is_as_before": edge.content(folder) == then}

    def end_of(mistake: Mistake) -> dict[str, Any]:
        if mistake not in ends:
            make(next(mistakes for mistakes in BATCHES if mistake in mistakes))
        return ends[mistake]

    return end_of


@cases(LIGHT)
def test_a_mistake_is_reported_before_a_heavy_package_is_imported(
    mistake: Mistake, light_end: Callable[[Mistake], dict[str, Any]]
) -> None:
    end = light_end(mistake)
    check(mistake, end["code"], end["out"], end["err"])
    assert end["is_as_before"]


@pytest.mark.slow
def test_help_imports_no_heavy_package_and_formats_no_groups(tmp_path: Path) -> None:
    modules = [command.module for command in COMMANDS.values()]
    ends = in_forks([{"module": m, "arguments": ["--help"], "folder": str(tmp_path)} for m in modules])
    assert {m: end["err"] for m, end in zip(modules, ends, strict=True) if end["code"] != 0} == {}
    assert all(end["out"].startswith(f"{m}: ") for m, end in zip(modules, ends, strict=True))


@pytest.mark.slow
def test_hydras_own_help_shows_its_groups(tmp_path: Path) -> None:
    job = {"module": "urepa.compare", "arguments": ["--hydra-help"], "folder": str(tmp_path)}
    assert in_forks([job])[0]["code"] == light.FORMATTED
    (end,) = in_forks([job], "groups")
    assert "hydra/launcher: basic, " in end["out"]


# one of each command, as a user's shell runs it
IN_PROCESSES = [
    Mistake("urepa.train", "'evaluation=[knnn]'", "did you mean 'knn'"),
    *tiny(("backbone.head_dim=1000", "backbone.head_dim=1000 does not divide")),
    Mistake("urepa.train", "data=folder", "say where your images are, data.images=FOLDER"),
    Mistake("urepa.preprocess", "data.root=file/x", "file/x", "", FILE),
    Mistake("urepa.evaluate", f"run={RUN} evaluation=knn", SUMMARY, "caches run", write(SUMMARY, "{")),
    Mistake("urepa.generate", f"run={RUN} out=file/x", "out=file/x cannot be a folder", "run", FILE),
    Mistake("urepa.export", f"run={RUN} out=", "out= is empty", "run"),
    Mistake("urepa.compare", "report=file", "report=file cannot be a folder", "run", FILE),
    Mistake("urepa.plan", "out=nowhere/x.json", "out=nowhere/x.json cannot be written"),
    Mistake("launchers.ablation_grid", "arms=lamda_0", "ablation has no option 'lamda_0'"),
]


@pytest.mark.slow
@pytest.mark.parametrize("mistake", IN_PROCESSES, ids=map(name, IN_PROCESSES))
def test_a_real_process_prints_the_same(mistake: Mistake, parts: Path, tmp_path: Path) -> None:
    here = laid_out(mistake, parts, tmp_path / "here")
    before = edge.content(here)
    command = [sys.executable, "-m", mistake.command, *shlex.split(mistake.typed)]
    done = subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=300)
    check(mistake, done.returncode, done.stdout, done.stderr)
    assert edge.content(here) == before


FULL = [  # what is asked on a full disk, beside what
    ("urepa.preprocess", "data.root=data/new data.limit=40 data.validation_images=20 data.test_images=20", ""),
    ("urepa.export", f"run={RUN}", "run"),
    ("urepa.evaluate", f"run={RUN} evaluation=knn evaluation.knn.k=1", "caches run"),
    ("urepa.generate", f"run={RUN} n=1 steps=1", "run"),
    ("urepa.compare", "report=out/report", "run"),
    ("urepa.describe", "out=out/text", ""),
]


@pytest.mark.slow
@pytest.mark.parametrize("free", [0, 12_288])
@pytest.mark.parametrize(("command", "typed", "beside"), FULL, ids=[row[0] for row in FULL])
def test_a_full_disk_is_reported_in_one_line(
    free: int,
    command: str,
    typed: str,
    beside: str,
    parts: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Without any free space, and with space for the first small files: existing files are unchanged."""
    mistake = Mistake(command, typed, "No space left on device", beside)
    with small_disk(tmp_path / "here", 64_000_000):
        here = tmp_path / "here"
        laid_out(mistake, parts, here / "w")
        before = edge.content(here / "w")
        (here / "room").write_bytes(bytes(free))
        fill(here)
        (here / "room").unlink()
        done = edge.run(capfd, command, shlex.split(typed), here / "w")
        check(mistake, *done)
        after = edge.content(here / "w")
        kept = [place for place in before if not place.endswith("summary.json")]  # it notes a failed evaluation
        assert [after.get(place) for place in kept] == [before[place] for place in kept]
        assert not [place for place in after if place.endswith(".tmp")]
