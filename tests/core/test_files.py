"""Checks of paths before any work, and folders that are created and removed by others."""

from __future__ import annotations

import io
import sys
import threading
import time
from pathlib import Path

import pytest

from urepa.core.errors import UserError
from urepa.core.files import (
    check_file_target,
    check_folder_target,
    lock_folder,
    missing_folders,
    raise_full_disk_as_oserror,
    remove_new,
)


def test_targets_that_can_be_written_leave_nothing(tmp_path: Path) -> None:
    check_file_target("out", tmp_path / "new.json")
    check_folder_target("out", tmp_path / "new" / "newer")
    check_folder_target("out", tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "says"), [("there", "is a folder"), ("no/x.json", "is not there"), ("file/x.json", "is no folder")]
)
def test_files_that_cannot_be_written(tmp_path: Path, name: str, says: str) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=f"out=.*{name}.*{says}"):
        check_file_target("out", tmp_path / name)


@pytest.mark.parametrize("name", ["file", "file/x", "link/x"])
def test_folders_that_cannot_be_made(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(UserError, match=f"out=.*{name} cannot be a folder"):
        check_folder_target("out", tmp_path / name)


def test_only_new_folders_are_removed(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    new = missing_folders(tmp_path / "old" / "a" / "b")
    assert new == [tmp_path / "old" / "a" / "b", tmp_path / "old" / "a"]
    new[0].mkdir(parents=True)
    (new[0] / "file").write_text("")
    remove_new(new)
    assert [*tmp_path.iterdir()] == [tmp_path / "old"]
    remove_new(missing_folders(tmp_path / "old"))
    assert (tmp_path / "old").is_dir()


def test_a_process_that_waits_for_a_removed_folder_gets_a_new_one(tmp_path: Path) -> None:
    folder, there = tmp_path / "caches", []
    waits = threading.Event()

    def second() -> None:
        waits.set()
        with lock_folder(folder, "waiting"):
            (folder / "made").write_text("")
            there.append((folder / ".lock").exists())

    new = missing_folders(folder)
    with lock_folder(folder, "nobody has it"):
        other = threading.Thread(target=second)
        other.start()
        waits.wait()
        other.join(0.2)  # it has opened the lock by now, or opens the new one
        remove_new(new)
    other.join()
    assert there == [True]
    assert (folder / "made").exists()


def test_only_a_process_that_waits_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", printed := io.StringIO())  # capsys loses what is printed while it is read

    def second() -> None:
        with lock_folder(tmp_path, "waiting for the first"):
            pass

    with lock_folder(tmp_path, "nobody has it"):
        other = threading.Thread(target=second)
        other.start()
        end = time.monotonic() + 60
        while not printed.getvalue() and time.monotonic() < end:
            time.sleep(0.01)
    other.join()
    assert printed.getvalue() == "waiting for the first\n"


def test_full_disk_errors_of_libraries_become_oserrors(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=f"No space left on device: '{tmp_path}'"), raise_full_disk_as_oserror(tmp_path):
        raise RuntimeError("mdb_txn_commit: No space left on device")
    with pytest.raises(RuntimeError, match="another"), raise_full_disk_as_oserror(tmp_path):
        raise RuntimeError("another")
