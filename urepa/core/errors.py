"""The exceptions that are shown to users: one sentence that says what is wrong and what to do."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterable, Iterator

NOT_EVALUATED = 76  # exit code of `train` if training finished but an evaluation failed; not to be retried


class UserError(ValueError):
    """A user's mistake. Its text is one clear line; commands print it without a traceback and exit with 1."""


class NotEvaluated(UserError):
    """Training has finished and is recorded, but an evaluation at its end failed."""


class QueueGone(UserError):
    """A queue does not answer or does not take jobs. It says nothing about the jobs."""


class Stopped(SystemExit):
    """Training ended on purpose before its last step, with everything saved. Has the exit code."""


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """` (did you mean 'knn'?)` for the end of a sentence, ignoring case; "" if no option is similar."""
    lower = {option.lower(): option for option in options}
    near = difflib.get_close_matches(word.lower(), lower, n=1, cutoff=0.5)
    return f" (did you mean '{lower[near[0]]}'?)" if near else ""


@contextlib.contextmanager
def in_bucket(name: str) -> Iterator[None]:
    """Within the block, a UserError names the bucket; nothing is added if there are no buckets."""
    try:
        yield
    except UserError as error:
        if not name:
            raise
        raise UserError(f"in bucket {name}: {error}") from error
