"""Progress bars: continuous on a terminal, occasional lines in a log file. Each bar names its subject."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

from tqdm import tqdm

from urepa.core.ranks import is_first

LOG_SECONDS = 30.0
_subject: ContextVar[str] = ContextVar("subject", default="")


def bar(*arguments: Any, desc: str, unit: str, **options: Any) -> tqdm:
    """A tqdm bar that prints only on rank 0, and rarely to log files.

    Args:
        desc: the subject, after the prefix of `prefix_bars`. unit: what is counted.
    """
    seconds = 0.1 if sys.stderr.isatty() else LOG_SECONDS
    common = {"mininterval": seconds, "dynamic_ncols": True, "disable": not is_first()}
    said = {"desc": f"{_subject.get()}{desc}", "unit": unit}
    made = tqdm(*arguments, **(common | said | options))
    made._time = time.monotonic  # tqdm uses the wall clock, which may be set back
    made.start_t = made.last_print_t = time.monotonic()
    return made


@contextlib.contextmanager
def prefix_bars(subject: str) -> Iterator[None]:
    """Within the block, the text of every bar begins with `subject`."""
    token = _subject.set(f"{subject}: ")
    try:
        yield
    finally:
        _subject.reset(token)


def hide_loading() -> None:
    """Hides transformers' bars "Loading weights", which do not name their subject. The hub's download bars are kept."""
    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils import logging

    shown = not are_progress_bars_disabled()
    logging.disable_progress_bar()  # also disables the hub's bars
    if shown:
        enable_progress_bars()


def skip_done(bar: tqdm, items: int) -> None:
    """Counts items that an earlier process finished as done, but not in the rate and the remaining time."""
    bar.initial += items
    bar.update(items)


def losses(row: dict[str, Any]) -> str:
    """The losses of a logged row, for the end of a bar."""
    names = {"total": "total", "diffusion": "diff", "token": "token", "manifold": "manifold"}
    return " ".join(f"{s}={row[f'train/{k}']:.3f}" for k, s in names.items() if f"train/{k}" in row)
