"""Printing never makes a command fail: tested in processes whose stdout or stderr cannot be written."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pytest

from urepa.core import progress, safe_output

# more than fits a buffer, then characters that ASCII does not have, and an exit code that is none of Python's own
PRINTS = """
import sys, tqdm
from urepa.core import safe_output, progress
safe_output.make_output_safe()
safe_output.make_output_safe()
for i in progress.bar(range(3), desc="λ", unit="x"):
    print("line", i, "λ = 1 · 4×4 \\udc80", "." * 9000, flush=True)
print("error: λ", file=sys.stderr)
sys.exit(7)
"""


def printing(**options: Any) -> subprocess.CompletedProcess[bytes]:
    given: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.run([sys.executable, "-c", PRINTS], **given)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_characters_that_the_terminal_cannot_encode_are_escaped(encoding: str) -> None:
    done = printing(env=os.environ | {"PYTHONIOENCODING": encoding})
    assert done.returncode == 7
    expected = "line 2 λ = 1 · 4×4 \udc80 ".encode(encoding, "backslashreplace")
    assert done.stdout.splitlines()[2].startswith(expected)
    assert done.stderr.splitlines()[-1] == "error: λ".encode(encoding, "backslashreplace")


def test_a_pipe_whose_reader_has_exited() -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        done = printing(stdout=write)
        assert (done.returncode, b"Traceback" in done.stderr, b"warning" in done.stderr) == (7, False, False)
        assert printing(stderr=write).returncode == 7
    finally:
        os.close(write)


def test_a_full_disk_is_reported_once() -> None:
    with open("/dev/full", "wb") as full:
        done = printing(stdout=full)
        assert printing(stdout=full, stderr=full).returncode == 7
    assert done.returncode == 7
    assert b"Traceback" not in done.stderr
    assert done.stderr.count(b"warning: what is printed cannot be written (No space left on device)") == 1


@pytest.mark.parametrize("closed", [(1,), (2,), (0, 1, 2)])
def test_closed_streams(closed: tuple[int, ...], tmp_path: Path) -> None:
    """The next file that a process opens would get their file number, and printed text would go into it."""
    script = "from urepa.core import safe_output\nsafe_output.make_output_safe()\n"
    script += "file = open('f', 'w')\nassert file.fileno() > 2\n"
    script += "import os\nos.write(1, b'a')\nos.write(2, b'b')\nfile.close()\n" + PRINTS
    shell = ["sh", "-c", 'exec "$0" -c "$1" ' + " ".join(f"{n}>&-" for n in closed), sys.executable, script]
    done = subprocess.run(shell, cwd=tmp_path, capture_output=True)
    assert done.returncode == 7
    assert b"Traceback" not in done.stderr
    assert (tmp_path / "f").read_bytes() == b""


@pytest.mark.slow
def test_a_terminal_that_does_not_block() -> None:
    """As another program may have left the terminal. Nothing is lost."""
    leader, terminal = pty.openpty()
    os.set_blocking(terminal, False)
    process = subprocess.Popen([sys.executable, "-c", PRINTS], stdout=terminal, stderr=subprocess.DEVNULL)
    os.close(terminal)
    time.sleep(1)  # it has filled the terminal's buffer by then; were it later, less would be tried
    said = b""
    while True:
        try:
            said += os.read(leader, 1000)
        except OSError:  # EIO: nobody has the terminal open
            break
    os.close(leader)
    assert process.wait() == 7
    assert said.count(b".") == 3 * 9000


@pytest.mark.slow
@pytest.mark.parametrize("command", ["urepa.train", "launchers.status", "urepa.cluster.slurm_job"])
def test_commands_launchers_and_jobs_print_safely(command: str, tmp_path: Path) -> None:
    """A command, a launcher, and a job of the local launcher."""
    (tmp_path / "says.py").write_text("print('λ')")
    job = '{"name": "λ", "commands": [["says", "λ"]], "run": null}'
    (tmp_path / "jobs.jsonl").write_text('{"id": "local-1", "state": "done", "log": "log", "job": ' + job + "}\n")
    given, said = {
        "urepa.train": (["--cfg", "job", "data.name='λ'"], r"name: \u03bb"),
        "launchers.status": (["."], r" \u03bb"),
        "urepa.cluster.slurm_job": ([job], r"$ python -m says \u03bb"),
    }[command]
    ascii = os.environ | {"PYTHONIOENCODING": "ascii", "PATH": str(tmp_path)}  # without SLURM
    called = [sys.executable, "-m", command, *given]
    done = subprocess.run(called, cwd=tmp_path, env=ascii, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert said in done.stdout
    with open("/dev/full", "wb") as full:
        assert subprocess.run(called, cwd=tmp_path, env=ascii, stdout=full, stderr=full).returncode == 0


def test_a_progress_bar_counts_no_negative_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    with progress.bar(range(3), desc="x", unit="x", disable=False) as bar:
        monkeypatch.setattr(time, "time", lambda: -1e9)
        monkeypatch.setattr("tqdm.std.time", lambda: -1e9)
        bar.update(1)
        assert 0 <= bar.format_dict["elapsed"] < 1e6


def test_a_warning_of_this_package_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    """Without file name, line number and source line; warnings of libraries keep Python's format."""
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        safe_output.warn_in_one_line()
        warnings.showwarning = lambda *told: print(warnings.formatwarning(*told[:4]), end="", file=sys.stderr)
        warnings.warn_explicit("2 rows\x1b are\nmissing", UserWarning, str(safe_output.PACKAGE / "metrics.py"), 3)
        warnings.warn_explicit("theirs", UserWarning, "/lib/torch/x.py", 3)
    ours, theirs = capfd.readouterr().err.split("\n", 1)
    assert ours == "warning: 2 rows? are?missing"
    assert theirs.startswith("/lib/torch/x.py:3: UserWarning: theirs")
