"""The one exception a user may see: a sentence that says what is wrong and what to do."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterable, Iterator

NOT_EVALUATED = 76  # exit code of `train` where training is done and an evaluation failed: not to be done again


class UserError(ValueError):
    """A user's mistake. Its text is one clear line; doors print it without a traceback and exit with 1."""


class NotEvaluated(UserError):
    """Training is done and recorded; an evaluation at its end gave nothing."""


class Stopped(SystemExit):
    """Training ended before its last step, on purpose and with everything saved. Carries the exit code."""


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """` (did you mean 'knn'?)`, for the end of a sentence, whatever the case; "" where nothing is near."""
    lower = {option.lower(): option for option in options}
    near = difflib.get_close_matches(word.lower(), lower, n=1, cutoff=0.5)
    return f" (did you mean '{lower[near[0]]}'?)" if near else ""


@contextlib.contextmanager
def in_bucket(name: str) -> Iterator[None]:
    """Inside, a UserError says in which bucket; nothing is added where there are none."""
    try:
        yield
    except UserError as error:
        if not name:
            raise
        raise UserError(f"in bucket {name}: {error}") from error
