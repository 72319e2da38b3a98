"""What glibc does with freed memory changes no value: caches, weights and metrics are the same, bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
from workspace import HANGS, Workspace, assert_same_run

from urepa.core.glibc_malloc import SWITCH


def trained(folder: Path, how: str) -> Workspace:
    """A tiny run from nothing, in a process of its own."""
    work = Workspace(folder, folder / "data")
    folder.mkdir()
    process = work.start("tracking=none", "trainer.max_steps=4", **{SWITCH: how})
    assert process.wait(HANGS) == 0, (folder / "stderr.txt").read_text()
    return work


def content(folder: Path) -> dict[str, bytes]:
    """The stores' files and the lists; a manifest also says when and how fast it was made."""
    files = (p for p in sorted(folder.rglob("*")) if p.is_file() and p.suffix not in (".json", ".lock"))
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


@pytest.mark.slow
def test_same_without_kept_memory(tmp_path: Path) -> None:
    kept, given_back = (trained(tmp_path / how, how) for how in ("keep", "system"))
    assert content(kept.cache)
    assert content(kept.cache) == content(given_back.cache)
    assert_same_run(kept.run, given_back.run)
