"""Turns out-of-memory errors into one line, without torch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from urepa.core.errors import UserError

CPU_WORDS = ("DefaultCPUAllocator", "not enough memory")  # torch raises a RuntimeError on CPUs
GPU_CLASS = "OutOfMemoryError"  # torch.OutOfMemoryError


@contextlib.contextmanager
def memory_errors() -> Iterator[None]:
    """Within the block, an out-of-memory error of torch or Python becomes a UserError that names the settings that need
    less memory."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        first = (str(error).strip().splitlines() or ["no memory is left"])[0]
        reason = first.rpartition("err == 0. ")[2]
        raise UserError(
            f"out of memory ({reason}): give a smaller trainer.batch_size or a larger trainer.accumulation, a smaller "
            "teacher, loss.grid or backbone, or backbone.gradient_checkpointing=true; `python -m urepa.plan` with the "
            "same overrides predicts the memory by part"
        ) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory could not be allocated, on a GPU or on the CPU."""
    by_class = isinstance(error, MemoryError) or type(error).__name__ == GPU_CLASS
    return by_class or any(words in str(error) for words in CPU_WORDS)
