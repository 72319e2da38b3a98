"""glibc keeps memory that a command has freed, unless it is configured otherwise."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from urepa.core.errors import UserError
from urepa.core.glibc_malloc import OWN, SWITCH, is_glibc, keep_freed_memory

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


def faults(**variables: str) -> int:
    """The minor page faults of that command."""
    without = {k: v for k, v in os.environ.items() if k not in (*OWN, "GLIBC_TUNABLES", SWITCH)}
    done = subprocess.run(
        [sys.executable, "-c", FAULTS], env=without | variables, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.slow
@of_glibc
def test_a_commands_memory_is_faulted_in_once() -> None:
    assert faults() < 2 * PAGES


@pytest.mark.slow
@of_glibc
def test_memory_can_be_returned_to_the_system() -> None:
    assert faults(**{SWITCH: "system"}) > 0.9 * BLOCKS * PAGES


def test_the_users_own_settings_apply() -> None:
    assert not keep_freed_memory({"MALLOC_TOP_PAD_": "1"})
    assert not keep_freed_memory({"GLIBC_TUNABLES": "glibc.malloc.check=3"})
    assert not keep_freed_memory({SWITCH: "system"})


def test_a_misspelt_switch_is_refused() -> None:
    with pytest.raises(UserError, match="UREPA_MALLOC=kept: give keep or system"):
        keep_freed_memory({SWITCH: "kept"})
