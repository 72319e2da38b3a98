"""Progress bars: lively on a terminal, a line now and then in a log file. Each says what it is of."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

from tqdm import tqdm

LOG_SECONDS = 30.0
_subject: ContextVar[str] = ContextVar("subject", default="")


def bar(*arguments: Any, desc: str, unit: str, **options: Any) -> tqdm:
    """tqdm, that does not fill a log with every step, on rank 0.

    Args:
        desc: what it is of; behind the name that `about` gives. unit: what is counted.
    """
    seconds = 0.1 if sys.stderr.isatty() else LOG_SECONDS
    common = {"mininterval": seconds, "dynamic_ncols": True, "disable": os.environ.get("RANK", "0") != "0"}
    said = {"desc": f"{_subject.get()}{desc}", "unit": unit}
    return tqdm(*arguments, **(common | said | options))


@contextlib.contextmanager
def about(subject: str) -> Iterator[None]:
    """Every bar inside begins with `subject`."""
    token = _subject.set(f"{subject}: ")
    try:
        yield
    finally:
        _subject.reset(token)


def hide_loading() -> None:
    """No bar of transformers' own, which says "Loading weights" and not of what; the hub's, of downloads, stay."""
    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils import logging

    shown = not are_progress_bars_disabled()
    logging.disable_progress_bar()  # and the hub's
    if shown:
        enable_progress_bars()


def skip(bar: tqdm, items: int) -> None:
    """Items that an earlier process did: they count as done, not for the rate and the time left."""
    bar.initial += items
    bar.update(items)
