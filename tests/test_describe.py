"""The command `python -m urepa.describe` in real processes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from latex import assert_closed

ENVIRONMENT = {k: v for k, v in os.environ.items() if k not in ("HYDRA_FULL_ERROR", "WORLD_SIZE", "RANK")}


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-X", "importtime", "-m", "urepa.describe", *arguments]
    return subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_it_prints_markdown_and_writes_both(tmp_path: Path) -> None:
    arguments = ("+ablation=head_single_layer", 'data.name="a_b%$<script>"', "loss.lambda_max=0.25", "out=text")
    done = run(tmp_path, *arguments)
    assert done.returncode == 0, done.stderr
    assert [str(p.relative_to(tmp_path)) for p in sorted(tmp_path.rglob("*"))] == [
        "text",
        "text/methodology.md",
        "text/methodology.tex",
    ]
    markdown = (tmp_path / "text" / "methodology.md").read_text()
    assert done.stdout == markdown + "\n"
    origin = (
        r"Experiment quickstart, ablation head\_single\_layer, data.name=a\_b%\$&lt;script&gt;, loss.lambda\_max=0.25;"
    )
    assert origin in markdown
    assert "one 1×1 convolution" in markdown
    assert_closed((tmp_path / "text" / "methodology.tex").read_text())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trainer.stepps=3"], "did you mean 'trainer.max_steps'?"),
        (["-m", "seed=0,1"], "describe writes about one run: leave -m out"),
        (["trainer.batch_size=0"], "give 1 or more"),
    ],
)
def test_a_mistake_is_one_line_without_loading_torch(tmp_path: Path, arguments: list[str], words: str) -> None:
    done = run(tmp_path, *arguments)
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    assert words in lines[0]
    assert not re.search(r"^import time:.*\| +torch$", done.stderr, re.MULTILINE)
    assert list(tmp_path.iterdir()) == []
