"""urepa: ablations of representation alignment (REPA, U-REPA) in diffusion training."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from urepa.inference.open_run import load

__all__ = ["load"]


def __getattr__(name: str) -> object:
    """Imports `urepa.load` on first use, so that `import urepa` is fast."""
    if name != "load":
        raise AttributeError(f"module 'urepa' has no attribute '{name}'")
    from urepa.inference.open_run import load

    return load
