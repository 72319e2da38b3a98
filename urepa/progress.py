"""Progress bars: lively on a terminal, a line now and then in a log file."""

from __future__ import annotations

import os
import sys
from typing import Any

from tqdm import tqdm

LOG_SECONDS = 30.0


def bar(*arguments: Any, **options: Any) -> tqdm:
    """tqdm, that does not fill a log with every step, on rank 0."""
    seconds = 0.1 if sys.stderr.isatty() else LOG_SECONDS
    common = {"mininterval": seconds, "dynamic_ncols": True, "disable": os.environ.get("RANK", "0") != "0"}
    return tqdm(*arguments, **(common | options))


def skip(bar: tqdm, items: int) -> None:
    """Items that an earlier process did: they count as done, not for the rate and the time left."""
    bar.initial += items
    bar.update(items)
