"""Which code two runs were made with, asked of a real repository."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from urepa import code_state


@pytest.fixture
def commits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A checkout with a commit for each kind of change."""

    def git(*arguments: str) -> str:
        who = ("-c", "user.name=a", "-c", "user.email=a@b")
        done = subprocess.run(["git", *who, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    def commit(file: str) -> str:
        path = tmp_path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(file)
        git("add", "-A")
        git("commit", "-m", file)
        return git("rev-parse", "HEAD")

    git("init")
    monkeypatch.setattr(code_state, "CHECKOUT", tmp_path)
    files = ("urepa/trainer.py", "README.md", "urepa/comparison/tables.py", "urepa/losses.py")
    return {file: commit(file) for file in files}


def test_only_training_code_makes_another_version(commits: dict[str, str]) -> None:
    first, readme, report, losses = ((commit, "clean") for commit in commits.values())
    assert code_state.same_code(first, readme)
    assert code_state.same_code(first, report)
    assert not code_state.same_code(first, losses)
    assert not code_state.same_code(first, (readme[0], "changed 0123456789"))
    assert not code_state.same_code(first, ("f" * 40, "clean")), "a commit that is not known here"
    assert not code_state.same_code(("unknown", "unknown"), ("unknown", "unknown")), "nobody can say"
