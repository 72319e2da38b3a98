"""The code version of runs, read from a real repository."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from urepa.core import code_version
from urepa.core.code_version import Code, same_code

Git = Callable[..., str]


@pytest.fixture
def git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Git:
    """Runs git in a separate checkout, whose code version is read."""
    checkout = tmp_path / "checkout"
    checkout.mkdir()

    def git(*arguments: str, folder: Path = checkout) -> str:
        who = ("-c", "user.name=a", "-c", "user.email=a@b")
        done = subprocess.run(["git", *who, *arguments], cwd=folder, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    git("init")
    monkeypatch.setattr(code_version, "CHECKOUT", checkout)
    code_version._same_commits.cache_clear()
    return git


def write(tmp_path: Path, file: str, text: str) -> None:
    path = tmp_path / "checkout" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def commits(tmp_path: Path, git: Git) -> dict[str, str]:
    """A commit for each kind of change."""

    def commit(file: str) -> str:
        write(tmp_path, file, file)
        git("add", "-A")
        git("commit", "-m", file)
        return git("rev-parse", "HEAD")

    files = (
        "urepa/training/trainer.py",
        "README.md",
        "urepa/reports/comparison/tables.py",
        "urepa/method/losses/loss_math.py",
    )
    return {file: commit(file) for file in files}


def test_only_training_code_makes_another_version(commits: dict[str, str]) -> None:
    """For runs of earlier versions, which stored a commit and no digest."""
    first, readme, report, losses = (Code(commit, "clean") for commit in commits.values())
    assert same_code(first, readme)
    assert same_code(first, report)
    assert not same_code(first, losses)
    assert not same_code(first, Code(readme.commit, "changed 0123456789"))
    assert same_code(Code(first.commit, "changed 01"), Code(first.commit, "changed 01"))
    assert not same_code(first, Code("f" * 40, "clean")), "a commit that is not known here"
    assert not same_code(Code(), Code()), "nobody can say"


@pytest.mark.slow
def test_a_digest_decides_whatever_the_commits_are(tmp_path: Path, commits: dict[str, str]) -> None:
    digests = {}
    for file in (
        "urepa/training/trainer.py",
        "urepa/compare.py",
        "urepa/reports/comparison/tables.py",
        "urepa/config/commands.py",
        "urepa/new.py",
    ):
        write(tmp_path, file, "more")
        digests[file] = code_version.code_state()["code_digest"]
    trainer, compare, tables, commands, new = digests.values()
    assert trainer == compare == tables == commands != new, "what reads runs changes none"
    one, other = (
        Code(commits["README.md"], "clean", trainer),
        Code(commits["urepa/method/losses/loss_math.py"], "clean", trainer),
    )
    assert same_code(one, other)
    assert not same_code(one, one._replace(digest=new))
    assert not same_code(one._replace(digest="unknown"), Code("unknown", "unknown", trainer))


def test_the_content_of_untracked_files_is_part_of_the_state(tmp_path: Path, commits: dict[str, str]) -> None:
    assert code_version.code_state()["code_state"] == "clean"
    states = []
    for text in ("one", "two", "one"):
        write(tmp_path, "urepa/untracked.py", text)
        states.append(code_version.code_state()["code_state"])
    assert states[0] == states[2] != states[1]
    assert all(state.startswith("changed ") for state in states)


def test_git_variables_of_the_environment_are_ignored(
    tmp_path: Path, git: Git, commits: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    git("init", folder=other)
    git("commit", "--allow-empty", "-m", "theirs", folder=other)
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(other))
    assert code_version.code_state()["git_commit"] == commits["urepa/method/losses/loss_math.py"]


def test_a_package_inside_of_another_repository_has_no_commit(
    tmp_path: Path, commits: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "venv/urepa/training/trainer.py", "installed")
    monkeypatch.setattr(code_version, "CHECKOUT", tmp_path / "checkout" / "venv")
    state = code_version.code_state()
    assert (state["git_commit"], state["code_state"]) == ("unknown", "unknown")
    assert state["code_digest"] not in ("", "unknown")
