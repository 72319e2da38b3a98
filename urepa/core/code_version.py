"""The version of the code that trains a run: a digest of the files that can change its numbers, and the commit."""

from __future__ import annotations

import hashlib
import os
import subprocess
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

CHECKOUT = Path(__file__).resolve().parents[2]
UNKNOWN = "unknown"
# Increased by a change that alters the numbers of a run with an unchanged config. A change with a config key of its own
# does not need it: the key's value determines the behaviour.
NUMERICS = 3
# Paths below urepa/ that read, plan or display runs. No number of a run depends on them.
READERS = (
    *(
        "bench.py",
        "bench_reading.py",
        "compare.py",
        "describe.py",
        "export.py",
        "generate.py",
        "one_batch.py",
        "plan.py",
    ),
    *("tokenize.py", "detokenize.py", "inference/token_codes.py"),
    *("train_classifier.py", "train_encoder.py", "training/encoder_training.py"),
    *("costs", "reports", "runs/last_table.py", "core/escaping.py"),
    *("inference/export_weights.py", "inference/image_request.py", "inference/model_card.py"),
    *("inference/load_weights.py", "inference/published_weights.py", "inference/chosen_size.py"),
    "models/lora/kohya_net.py",
    *("core/text_tables.py", "core/descriptions.py"),
    *("config/help.py", "config/commands.py"),  # the text of --help
    *("config/simpletuner.py", "config/simpletuner_keys.py"),  # a run's config has what they gave
)
SOURCES = ("urepa", "launchers", "hydra_plugins", "conf")  # the paths that "changed" refers to


class Code(NamedTuple):
    """The code of a stretch of a run's steps. `state` is "clean", "changed <digest>" or "unknown". `digest` is that of
    the training code, "unknown" for runs of earlier versions."""

    commit: str = UNKNOWN
    state: str = UNKNOWN
    digest: str = UNKNOWN

    @property
    def version(self) -> str:
        """The digest; for a run of an earlier version the commit."""
        return str(self) if self.digest == UNKNOWN else self.digest

    def __str__(self) -> str:
        commit = self.commit[:9] if self.state == "clean" else f"{self.commit[:9]} ({self.state})"
        return commit if self.digest == UNKNOWN else f"{commit}, training code {self.digest}"


def code_of(facts: dict[str, Any]) -> Code:
    """The code in the facts of a summary, a stretch or a run's tags."""
    return Code(*(str(facts.get(key, UNKNOWN)) for key in ("git_commit", "code_state", "code_digest")))


def recorded_code(summary: dict[str, Any]) -> dict[str, Any]:
    """The code with which a finished run was trained."""
    keys = ("git_commit", "code_state", "code_digest", "numerics")
    return {key: summary[key] for key in keys if key in summary}


def code_state() -> dict[str, Any]:
    """`git_commit`; `code_state` ("clean", "changed <digest>", or "unknown" outside of a checkout); `code_digest` of
    the training code; and `numerics`. To be called before a run's first step, because the files may change during the
    run."""
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
    """A digest of the package's Python files that can change a run's numbers, including their relative paths."""
    digest, readers = hashlib.sha256(), {Path(reader) for reader in READERS}
    for file in sorted(package.rglob("*.py")):
        place = file.relative_to(package)
        if readers.isdisjoint((place, *place.parents)):
            content = hashlib.sha256(file.read_bytes()).hexdigest()
            digest.update(f"{place.as_posix()}\0{content}\n".encode())
    return digest.hexdigest()[:12]


def without_git_variables() -> dict[str, str]:
    """The environment without GIT_DIR and similar variables, which may name another repository."""
    return {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}


def _git(*arguments: str) -> str:
    """The output of a git command in the checkout."""
    environment = without_git_variables()
    done = subprocess.run(
        ["git", *arguments], cwd=CHECKOUT, env=environment, capture_output=True, text=True, timeout=20, check=True
    )
    return done.stdout


def _commit() -> str:
    """The checkout's commit; "" if the package is inside of another project's repository."""
    if Path(_git("rev-parse", "--show-toplevel").strip()).resolve() != CHECKOUT:
        return ""
    return _git("rev-parse", "HEAD").strip()


def _changes() -> str:
    """All uncommitted changes with their contents; "" if there are none."""
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
    """Whether both are the same training code. The digests decide; if a run of an earlier version has none, the commits
    decide: equal commits with equal changes, or two clean commits between which git shows no difference in the training
    code. Unknown code is never the same as other unknown code."""
    if UNKNOWN not in (one.digest, other.digest):
        return one.digest == other.digest
    if UNKNOWN in (one.commit, other.commit):
        return False
    if one[:2] == other[:2]:
        return True
    return one.state == other.state == "clean" and _same_commits(one.commit, other.commit)


@lru_cache(maxsize=1024)
def _same_commits(one: str, other: str) -> bool:
    """Whether git shows no difference in the training code between two commits of this checkout."""
    try:
        readers = [f":!urepa/{name}" for name in READERS]
        _git("diff", "--quiet", one, other, "--", "urepa", *readers)
    except (OSError, subprocess.SubprocessError):
        return False
    return True
