"""Every mistake ends in one line that says what to do, with exit code 1, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import edge
import pytest
from mistakes import Mistake, files, typed
from mistakes.parts import HERE, TINY, make_parts

LONGEST = 400
EVERY = [*files.ALL] if os.environ.get('MK_FILES') else [*typed.ALL]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Path:
    root = tmp_path_factory.mktemp("parts")

    def train(work: Path) -> None:
        done = edge.called("urepa.train", [*TINY, HERE], work)
        assert done is None

    def export(run: Path, to: Path) -> None:
        edge.called("urepa.export", ["run=outputs/tiny/seed0", f"out={to}"], run)

    make_parts(root, train, export, images)
    shutil.copytree(images, root / "images" / "images")
    return root


@pytest.mark.parametrize("mistake", EVERY, ids=lambda m: f"{m.command.removeprefix('urepa.')} {m.typed}"[:80])
def test_a_mistake_is_said_in_one_line(
    mistake: Mistake, parts: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    for part in mistake.beside.split():
        shutil.copytree(parts / part, here, dirs_exist_ok=True)
        assert any((parts / part).iterdir())
    if mistake.change is not None:
        mistake.change(here)
    before = edge.content(here)
    with edge.bound_by_permissions() if mistake.bound else contextlib.nullcontext():
        done = edge.run(capfd, mistake.command, shlex.split(mistake.typed), here)
    lines = done.err.splitlines()
    print(f"<<<{mistake.command} {mistake.typed}\n{done.code} {done.err[:1500] if len(lines)==1 else done.err[-1500:]}>>>")
    left = edge.content(here)
    new = sorted(k for k in left.keys() | before.keys() if left.get(k) != before.get(k))
    problems = []
    if done.code != 1: problems.append(f"code {done.code}")
    if len(lines) != 1: problems.append(f"{len(lines)} lines")
    if not done.err.startswith("error: "): problems.append("no error:")
    if "Traceback" in done.err + done.out: problems.append("TRACEBACK")
    if not re.search(mistake.says, done.err): problems.append(f"says not {mistake.says}")
    if len(done.err) > LONGEST: problems.append(f"long {len(done.err)}")
    if new: problems.append(f"left {new[:5]}")
    with open(os.environ.get("MK_OUT", "/tmp/mk_out.txt"), "a") as f:
        last = (done.err.strip().splitlines() or [''])[-1] if "Traceback" in done.err else done.err.strip()
        f.write(f"{'FAIL '+'; '.join(problems) if problems else 'ok'} | {mistake.command} {mistake.typed} | {last[:420]}\n")
    assert not problems, (problems, done.err)
