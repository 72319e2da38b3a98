"""The one exception a user may see: a sentence that says what is wrong and what to do."""

NOT_EVALUATED = 76  # exit code of `train` where training is done and an evaluation failed: not to be done again


class UserError(ValueError):
    """A user's mistake. Its text is one clear line; doors print it without a traceback and exit with 1."""


class NotEvaluated(UserError):
    """Training is done and recorded; an evaluation at its end gave nothing."""


class Stopped(SystemExit):
    """Training ended before its last step, on purpose and with everything saved. Carries the exit code."""
