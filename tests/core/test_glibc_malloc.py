"""glibc keeps memory that a command has freed, unless it is configured otherwise."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from urepa.core.errors import UserError
from urepa.core.glibc_malloc import HUGE_PAGES, OWN, SWITCH, is_glibc, keep_freed_memory

of_glibc = pytest.mark.skipif(not is_glibc(), reason="this machine's C library is not glibc, which is what is asked")
BLOCKS, PAGES = 50, 16_384  # of 64 MiB
# a command that takes and gives back such blocks, one at a time, after its beginning
FAULTS = f"""
import resource, sys
from urepa.cli import run_command

def main():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range({BLOCKS}):
        b"x" * ({PAGES} * 4096)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

sys.argv = ["urepa.train"]
run_command(main, "train")
"""
# a command with a tensor of 256 MiB
PAGES_OF_A_TENSOR = """
import sys
from urepa.cli import run_command

def main():
    import torch
    tensor = torch.ones(2**26)
    lines = open("/proc/self/smaps_rollup").read().splitlines()
    print(next(line.split()[1] for line in lines if line.startswith("AnonHugePages")))

sys.argv = ["urepa.train"]
run_command(main, "train")
"""
HUGE_PAGES_OF_LINUX = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def printed(program: str, **variables: str) -> int:
    """The number that a program prints."""
    without = {k: v for k, v in os.environ.items() if k not in (*OWN, "GLIBC_TUNABLES", SWITCH, HUGE_PAGES)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=without | variables, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


def faults(**variables: str) -> int:
    """The minor page faults of the command with blocks."""
    return printed(FAULTS, **variables)


@pytest.mark.slow
@of_glibc
def test_a_commands_memory_is_faulted_in_once() -> None:
    assert faults() < 2 * PAGES


@pytest.mark.slow
@of_glibc
def test_memory_can_be_returned_to_the_system() -> None:
    assert faults(**{SWITCH: "system"}) > 0.9 * BLOCKS * PAGES


@pytest.mark.slow
@of_glibc
def test_large_tensors_lie_on_huge_pages() -> None:
    of_this_machine = HUGE_PAGES_OF_LINUX.read_text() if HUGE_PAGES_OF_LINUX.exists() else "[never]"
    if "[madvise]" not in of_this_machine:
        pytest.skip(f"this machine gives huge pages to everything or to nothing: {of_this_machine.strip()}")
    assert printed(PAGES_OF_A_TENSOR) > 100 * 1024
    assert printed(PAGES_OF_A_TENSOR, **{SWITCH: "system"}) == 0
    assert printed(PAGES_OF_A_TENSOR, **{HUGE_PAGES: "0"}) == 0


@of_glibc
def test_the_users_own_choice_of_pages_applies() -> None:
    theirs, nothing = {HUGE_PAGES: "0"}, {}
    assert keep_freed_memory(theirs)
    assert keep_freed_memory(nothing)
    assert (theirs[HUGE_PAGES], nothing[HUGE_PAGES]) == ("0", "1")


def test_the_users_own_settings_apply() -> None:
    assert not keep_freed_memory({"MALLOC_TOP_PAD_": "1"})
    assert not keep_freed_memory({"GLIBC_TUNABLES": "glibc.malloc.check=3"})
    assert not keep_freed_memory({SWITCH: "system"})


def test_a_misspelt_switch_is_refused() -> None:
    with pytest.raises(UserError, match="UREPA_MALLOC=kept: give keep or system"):
        keep_freed_memory({SWITCH: "kept"})
