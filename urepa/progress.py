"""Progress bars: lively on a terminal, a line now and then in a log file."""

from __future__ import annotations

import sys
import time
from typing import Any

from tqdm import tqdm

from urepa.ranks import is_first

LOG_SECONDS = 30.0


def bar(*arguments: Any, **options: Any) -> tqdm:
    """tqdm, that does not fill a log with every step, on rank 0."""
    seconds = 0.1 if sys.stderr.isatty() else LOG_SECONDS
    common = {"mininterval": seconds, "dynamic_ncols": True, "disable": not is_first()}
    made = tqdm(*arguments, **(common | options))
    made._time = time.monotonic  # tqdm's own is the wall clock, which may be set back
    made.start_t = made.last_print_t = time.monotonic()
    return made


def skip(bar: tqdm, items: int) -> None:
    """Items that an earlier process did: they count as done, not for the rate and the time left."""
    bar.initial += items
    bar.update(items)
