"""Which code a run used: the checkout's commit, and a digest of what was changed since."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=CHECKOUT, capture_output=True, text=True, timeout=20)
    return done.stdout if done.returncode == 0 else ""


def code_state() -> dict[str, str]:
    """`git_commit` and `code_state`: "clean", "changed <digest>", or "unknown" outside a checkout."""
    try:
        commit = _git("rev-parse", "HEAD").strip()
        changes = _git("status", "--porcelain") and _git("status", "--porcelain") + _git("diff", "HEAD")
    except (OSError, subprocess.TimeoutExpired):
        commit, changes = "", ""
    if not commit:
        return {"git_commit": "unknown", "code_state": "unknown"}
    digest = hashlib.sha256(changes.encode()).hexdigest()[:10]
    return {"git_commit": commit, "code_state": f"changed {digest}" if changes else "clean"}


def same_code(one: tuple[str, str], other: tuple[str, str]) -> bool:
    """Do two clean commits, both known to this checkout, have the same training code? Reports may differ."""
    (a, state_a), (b, state_b) = one, other
    if state_a != "clean" or state_b != "clean":
        return False
    try:
        done = subprocess.run(
            ["git", "diff", "--quiet", a, b, "--", "urepa", ":!urepa/compare.py", ":!urepa/comparison"],
            cwd=CHECKOUT,
            capture_output=True,
            timeout=20,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
