"""Which code trains a run: a digest of the files that can change its numbers, and the checkout's commit."""

from __future__ import annotations

import hashlib
import os
import subprocess
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

CHECKOUT = Path(__file__).resolve().parents[2]
UNKNOWN = "unknown"
# Raised by a change that moves the numbers of a run whose config stays the same. A change that has a key of its own
# does not need it: the key's value says which numbers are meant.
NUMERICS = 2
# Below urepa/: what reads runs, plans them or shows them. No number of a run depends on it.
READERS = (
    *("bench.py", "bench_reading.py", "compare.py", "describe.py", "export.py", "generate.py", "plan.py"),
    *("train_classifier.py", "costs", "reports", "runs/last_table.py", "core/escaping.py"),
    *("inference/export_weights.py", "inference/image_request.py", "inference/model_card.py"),
    *("inference/load_weights.py", "inference/published_weights.py", "inference/chosen_size.py"),
    "models/lora/kohya_net.py",
    *("core/text_tables.py", "core/descriptions.py"),
    *("config/help.py", "config/commands.py"),  # what --help prints
    *("config/simpletuner.py", "config/simpletuner_keys.py"),  # a run's config has what they gave
)
SOURCES = ("urepa", "launchers", "hydra_plugins", "conf")  # what "changed" speaks of


class Code(NamedTuple):
    """The code of a stretch of a run's steps. `state` is "clean", "changed <digest>" or "unknown"; `digest` is that
    of the training code, "unknown" in runs of earlier versions."""

    commit: str = UNKNOWN
    state: str = UNKNOWN
    digest: str = UNKNOWN

    @property
    def version(self) -> str:
        """The digest; of a run of an earlier version the commit."""
        return str(self) if self.digest == UNKNOWN else self.digest

    def __str__(self) -> str:
        commit = self.commit[:9] if self.state == "clean" else f"{self.commit[:9]} ({self.state})"
        return commit if self.digest == UNKNOWN else f"{commit}, training code {self.digest}"


def code_of(facts: dict[str, Any]) -> Code:
    """The code that a summary, a stretch or a run's tags name."""
    return Code(*(str(facts.get(key, UNKNOWN)) for key in ("git_commit", "code_state", "code_digest")))


def code_state() -> dict[str, Any]:
    """`git_commit` and `code_state` ("clean", "changed <digest>", or "unknown" outside a checkout), `code_digest` of
    the training code, and `numerics`. To be asked before a run's first step: the files may change during it."""
    known = {"code_digest": training_digest(CHECKOUT / "urepa"), "numerics": NUMERICS}
    try:
        commit, changes = _commit(), _changes()
    except (OSError, subprocess.SubprocessError):
        commit, changes = "", ""
    if not commit:
        return {"git_commit": UNKNOWN, "code_state": UNKNOWN} | known
    digest = hashlib.sha256(changes.encode()).hexdigest()[:10]
    return {"git_commit": commit, "code_state": f"changed {digest}" if changes else "clean"} | known


def training_digest(package: Path) -> str:
    """A digest of the Python files of the package that can change a run's numbers, with their places in it."""
    digest = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        place = file.relative_to(package)
        if not any(Path(reader) in (place, *place.parents) for reader in READERS):
            content = hashlib.sha256(file.read_bytes()).hexdigest()
            digest.update(f"{place.as_posix()}\0{content}\n".encode())
    return digest.hexdigest()[:12]


def without_git_variables() -> dict[str, str]:
    """The environment without GIT_DIR and its like, which may name another repository."""
    return {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}


def _git(*arguments: str) -> str:
    """What git says of the checkout."""
    environment = without_git_variables()
    done = subprocess.run(
        ["git", *arguments], cwd=CHECKOUT, env=environment, capture_output=True, text=True, timeout=20, check=True
    )
    return done.stdout


def _commit() -> str:
    """The checkout's commit; none where the package lies inside of another project's repository."""
    if Path(_git("rev-parse", "--show-toplevel").strip()).resolve() != CHECKOUT:
        return ""
    return _git("rev-parse", "HEAD").strip()


def _changes() -> str:
    """Everything that is not as committed, with its contents; empty where nothing is."""
    status = _git("status", "--porcelain", "--untracked-files=all", "--", *_sources())
    if not status:
        return ""
    untracked = _git("ls-files", "--others", "--exclude-standard", "-z", "--", *_sources()).split("\0")
    contents = [f"{name}\0{_content(CHECKOUT / name)}" for name in untracked if name]
    return "\n".join([status, _git("diff", "HEAD", "--", *_sources()), *contents])


def _content(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else "no file"


def _sources() -> list[str]:
    return [name for name in SOURCES if (CHECKOUT / name).exists()]


def same_code(one: Code, other: Code) -> bool:
    """Do these have the same training code? By its digest; where a run of an earlier version has none, by its commit:
    the same one and the same changes, or two clean ones between which git sees no difference. Unknown is not the same
    as unknown."""
    if UNKNOWN not in (one.digest, other.digest):
        return one.digest == other.digest
    if UNKNOWN in (one.commit, other.commit):
        return False
    if one[:2] == other[:2]:
        return True
    return one.state == other.state == "clean" and _same_commits(one.commit, other.commit)


@lru_cache(maxsize=1024)
def _same_commits(one: str, other: str) -> bool:
    """Does git, in this checkout, see no difference in the training code of two commits?"""
    try:
        readers = [f":!urepa/{name}" for name in READERS]
        _git("diff", "--quiet", one, other, "--", "urepa", *readers)
    except (OSError, subprocess.SubprocessError):
        return False
    return True
