"""An exception in one evaluation does not affect the others."""

from __future__ import annotations

from typing import Any

import pytest

from urepa.core.errors import NotEvaluated, Stopped, UserError
from urepa.evaluation.context import Context, run_each


def good(context: Context) -> dict[str, float]:
    return {"final/good": 1.0}


def raising(error: BaseException) -> Any:
    def evaluation(context: Context) -> dict[str, float]:
        raise error

    return evaluation


def made(evaluation: Any) -> Any:
    return evaluation


def test_an_unexpected_exception_fails_one_evaluation_only(
    context: Context, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = {
        "full": raising(OSError(28, "No space left on device")),
        "asked_wrongly": raising(UserError("no such tap")),
        "memory": raising(RuntimeError("CUDA out of memory.\nTried to allocate")),
        "good": good,
    }
    found = run_each(context, asked, made)
    assert found.metrics == {"final/good": 1.0}
    assert found.failures == {
        "full": "[Errno 28] No space left on device",
        "asked_wrongly": "no such tap",
        "memory": "RuntimeError: CUDA out of memory.",
    }
    told = capsys.readouterr().err
    assert told.count("Traceback (most recent call last)") == 1, "a user's mistake and a full disk need none"
    assert "Tried to allocate" in told
    with pytest.raises(NotEvaluated, match=r"evaluation\.memory: RuntimeError: CUDA out of memory\."):
        found.require_all(NotEvaluated)


@pytest.mark.fast(1)
@pytest.mark.parametrize("stop", [KeyboardInterrupt(), SystemExit(3), Stopped(143)])
def test_a_stop_signal_is_not_a_failure(context: Context, stop: BaseException) -> None:
    with pytest.raises(type(stop)):
        run_each(context, {"stopped": raising(stop), "good": good}, made)
