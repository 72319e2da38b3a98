"""The settings of glibc's allocator change no value: caches, weights and metrics are the same, bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
from workspace import HANGS, Workspace, assert_same_run

from urepa.core.glibc_malloc import SWITCH


def trained(folder: Path, how: str) -> Workspace:
    """A tiny run, from its caches on, in a separate process."""
    work = Workspace(folder, folder / "data")
    folder.mkdir()
    process = work.start("tracking=none", "trainer.max_steps=4", **{SWITCH: how})
    assert process.wait(HANGS) == 0, (folder / "stderr.txt").read_text()
    return work


def content(folder: Path) -> dict[str, bytes]:
    """The stores' files and the lists; a manifest also records when and how fast it was made, which is left out."""
    files = (p for p in sorted(folder.rglob("*")) if p.is_file() and p.suffix not in (".json", ".lock"))
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


@pytest.mark.slow
def test_the_allocators_settings_change_no_value(tmp_path: Path) -> None:
    kept, given_back = (trained(tmp_path / how, how) for how in ("keep", "system"))
    assert content(kept.cache)
    assert content(kept.cache) == content(given_back.cache)
    assert_same_run(kept.run, given_back.run)
