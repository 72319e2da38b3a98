"""The one exception a user may see: a sentence that says what is wrong and what to do."""


class UserError(ValueError):
    """A user's mistake. Its text is one clear line; doors print it without a traceback and exit with 1."""


class Stopped(SystemExit):
    """Training ended before its last step, on purpose and with everything saved. Carries the exit code."""
