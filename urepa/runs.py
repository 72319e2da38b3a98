"""A run's name, its folder, its lock, and whether a config is the folder's own."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

from omegaconf import DictConfig, OmegaConf

from urepa.errors import UserError
from urepa.files import write_whole
from urepa.nested import flatten

# Keys that do not change what a run computes: they serve neither its folder's name nor its identity.
NOT_IDENTITY = (
    "tracking",
    "resume",
    "data.root",
    "data.images",
    "data.stage_to",
    "backbone.prompts",  # lies in data.root
    "data.build_on_first_use",
    "trainer.log_every",
    "trainer.checkpoint_every",
    "trainer.keep_last",
    "trainer.threads",
    "trainer.max_skipped",
    "hydra",
)
LONGEST_NAME = 120
LOCK_POLL = 5.0  # seconds
# What of summary.json, beside the metrics, is needed to compare runs; MLflow gets it as the tag `urepa.summary`.
FACTS = (
    "step",
    "extended_from",
    "parameters",
    "seconds",
    "peak_memory_bytes",
    "processes",
    "threads",
    "device",
    "validation_set",
    "evaluation",
    "versions",
    "git_commit",
    "code_state",
)


def is_identity(key: str) -> bool:
    """Does a differing value of this dotted key make another run?"""
    return not any(key == k or key.startswith(f"{k}.") for k in NOT_IDENTITY)


def parse_overrides(overrides: list[str]) -> dict[str, str]:
    """`+a=1` and `a=1` as {"a": "1"}; the last one of a key wins, as in Hydra."""
    pairs = (o.lstrip("+~").partition("=") for o in overrides)
    return {key.split("@")[0]: _unquoted(value) for key, _, value in pairs}


def _unquoted(value: str) -> str:
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"" else value


def run_name(overrides: list[str], seed: int) -> str:
    """<experiment>[+<ablation>][,<overrides>]/seed<N>: the same command in any order finds the same folder."""
    given = parse_overrides(overrides)
    if given.get("resume") not in (None, "null"):
        return os.path.relpath(given["resume"], "outputs")
    name = given.pop("experiment", "quickstart")
    if "ablation" in given:
        name += f"+{given.pop('ablation')}"
    given.pop("seed", None)
    parts = [f"{k}={v}" for k, v in sorted(given.items()) if is_identity(k.replace("/", "."))]
    return f"{folder_name([name, *parts])}/seed{seed}"


def folder_name(parts: list[str]) -> str:
    """Parts as one name, escaped; a long one ends in a hash."""
    name = quote(",".join(parts), safe="=,+._-")
    if len(name) > LONGEST_NAME:
        digest = hashlib.sha256(name.encode()).hexdigest()[:10]
        name = f"{name[: LONGEST_NAME - 11]}-{digest}"
    return name


def plain(config: DictConfig) -> dict[str, Any]:
    """Resolved, with enums as their names: what is stored and what everything is built from."""
    container = OmegaConf.to_container(config, resolve=True, enum_to_str=True)
    assert isinstance(container, dict)
    return {str(k): v for k, v in container.items()}


def differences(stored: dict[str, Any], current: dict[str, Any]) -> list[str]:
    """Identity keys whose values differ, as `key: stored there, current here`."""
    there, here = flatten(stored), flatten(current)
    keys = [k for k in sorted(there.keys() | here.keys()) if is_identity(k)]
    absent = "nothing"
    return [
        f"{k}: {there.get(k, absent)} there, {here.get(k, absent)} here"
        for k in keys
        if there.get(k, absent) != here.get(k, absent)
    ]


def facts_of(summary: dict[str, Any]) -> dict[str, Any]:
    """The facts in a summary; an older or unfinished run lacks some."""
    return {key: summary[key] for key in FACTS if key in summary}


def require_config(path: Path) -> dict[str, Any]:
    """The config of the run in a folder; a UserError if it is not a run's."""
    config = RunFolder(path).stored_config()
    if config is None:
        raise UserError(f"run={path} is not a run's folder: it has no config.yaml")
    return config


def stored_names(path: Path) -> tuple[str, str]:
    """Experiment and ablation of a run that is named by its folder, from its summary or from that name."""
    file = path / "summary.json"
    if file.exists():
        summary = json.loads(file.read_text())
        return summary["experiment"], summary["ablation"]
    experiment, _, ablation = path.resolve().parent.name.split(",")[0].partition("+")
    return experiment, ablation if ablation else "baseline"


class RunFolder:
    """A run's folder, owned by one process at a time. The lock dies with its owner."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_file = path / "config.yaml"
        self._lock: int | None = None

    def claim(self, patience: float = 0.0) -> None:
        """Takes the lock; a UserError if another process still has it after `patience` seconds."""
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        end = time.monotonic() + patience
        while not self._try_lock():
            owner = os.pread(self._lock, 64, 0).decode().strip()
            if time.monotonic() >= end:
                self.release()
                waited = f" still, after {patience:g} s" if patience else ""
                raise UserError(
                    f"{self.path} is being trained by another process{waited} ({owner}); wait for it, or stop it first"
                )
            if patience:
                print(f"{self.path} is still held by {owner}; waiting up to {end - time.monotonic():.0f} s", flush=True)
            time.sleep(min(LOCK_POLL, max(0.0, end - time.monotonic())))
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"pid {os.getpid()} on {os.uname().nodename}\n".encode(), 0)

    def _try_lock(self) -> bool:
        assert self._lock is not None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def release(self) -> None:
        """Gives the lock back."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def stored_config(self) -> dict[str, Any] | None:
        """The config this folder was made with."""
        if not self.config_file.is_file():
            return None
        stored = OmegaConf.load(self.config_file)
        assert isinstance(stored, DictConfig)
        return plain(stored)

    def adopt(self, config: dict[str, Any]) -> None:
        """Stores the config in a new folder; refuses one that was made with another, showing the difference."""
        stored = self.stored_config()
        if stored is not None and (differing := differences(stored, config)):
            raise UserError(
                f"{self.path} holds a run with another config ({'; '.join(differing)}); change the command, or "
                "move that folder away. To extend a finished run: resume=FOLDER trainer.max_steps=N"
            )
        self.store_config(config)

    def store_config(self, config: dict[str, Any]) -> None:
        """Writes config.yaml."""
        write_whole(self.config_file, OmegaConf.to_yaml(OmegaConf.create(config)))
