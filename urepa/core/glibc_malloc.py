"""Makes glibc keep freed memory for reuse instead of returning it to the system.

By default glibc maps blocks of more than a few megabytes anew for each layer and unmaps them after it. The kernel then
clears their pages each time, which on a CPU can take most of a teacher's time. Computed values are not affected.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping

from urepa.core.errors import UserError

SWITCH = "UREPA_MALLOC"
KEEP, SYSTEM = "keep", "system"
OWN = {f"MALLOC_{what}_" for what in ("MMAP_THRESHOLD", "MMAP_MAX", "TRIM_THRESHOLD", "TOP_PAD")}  # glibc's variables
# constants of glibc's malloc.h
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3
MIB = 2**20


def keep_freed_memory(environment: Mapping[str, str] = os.environ) -> bool:
    """Makes glibc keep up to 2 GiB of freed memory. Does nothing and returns False with another C library, with
    UREPA_MALLOC=system, and if glibc's own variables are set. Raises UserError for another value of UREPA_MALLOC."""
    asked = environment.get(SWITCH, KEEP)
    if asked not in (KEEP, SYSTEM):
        raise UserError(f"{SWITCH}={asked}: give {KEEP} or {SYSTEM}, or leave it out")
    theirs = OWN & environment.keys() or "glibc.malloc" in environment.get("GLIBC_TUNABLES", "")
    if asked == SYSTEM or theirs or not is_glibc():
        return False
    mallopt = ctypes.CDLL(None).mallopt
    if not mallopt(MMAP_THRESHOLD, 1024 * MIB):
        mallopt(MMAP_THRESHOLD, 32 * MIB)  # the largest value that older versions accept
    mallopt(TRIM_THRESHOLD, 2048 * MIB - 1)
    mallopt(TOP_PAD, 64 * MIB)
    return True


def is_glibc() -> bool:
    """Whether the C library is glibc: only glibc reports its version under this name."""
    name = "CS_GNU_LIBC_VERSION"
    return name in os.confstr_names and (os.confstr(name) or "").startswith("glibc")
