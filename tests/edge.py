"""A command as a user calls it, run in this process: its exit code, its output, and the files it leaves in its
folder."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import logging
import os
import runpy
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

DAC_OVERRIDE, DAC_READ_SEARCH = 1, 2  # bits of the capabilities with which root passes over permissions
CAPABILITIES = 0x20080522  # version 3 of capget's header
HANGS = 100  # seconds; nothing asserts on time, and a busy machine takes its time
SILENT = (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning, FutureWarning)


class Done(NamedTuple):
    """The result of a command."""

    code: int
    out: str
    err: str


def run(capture: pytest.CaptureFixture[str], module: str, arguments: list[str], folder: Path) -> Done:
    """`python -m MODULE ARGUMENTS` in a folder. `capture`: pytest's capfd."""
    capture.readouterr()
    with _as_a_process(folder):
        sys.argv = [module, *arguments]
        try:
            with _watched():
                runpy.run_module(module, run_name="__main__", alter_sys=True)
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        except BaseException:  # noqa: BLE001  as the interpreter would end
            traceback.print_exc()
            code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return Done(code, *capture.readouterr())


@contextlib.contextmanager
def _watched() -> Iterator[None]:
    """Ends a command that was wrongly accepted and would run on."""

    def ring(*_: object) -> None:
        raise TimeoutError(f"the command still ran after {HANGS} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(HANGS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def _as_a_process(folder: Path) -> Iterator[None]:
    """The state that each process has: its folder, arguments, environment, warnings, log handlers and Hydra's state."""
    here, argv, environment = Path.cwd(), sys.argv, dict(os.environ)
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    for name in ("HYDRA_FULL_ERROR", "WORLD_SIZE", "RANK", "LOCAL_RANK"):
        os.environ.pop(name, None)
    os.chdir(folder)
    _forget_hydra()
    try:
        with warnings.catch_warnings():
            warnings.resetwarnings()
            for kind in SILENT:
                warnings.simplefilter("ignore", kind)
            warnings.filterwarnings("ignore", "'.*' found in sys.modules", RuntimeWarning)  # runpy's, of this process
            warnings.showwarning = _shown
            yield
    finally:
        os.chdir(here)
        sys.argv = argv
        os.environ.clear()
        os.environ.update(environment)
        root.handlers[:], root.level = handlers, level
        _forget_hydra()


def _forget_hydra() -> None:
    GlobalHydra.instance().clear()
    HydraConfig.instance().cfg = None


def _shown(message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: object) -> None:
    sys.stderr.write(warnings.formatwarning(message, category, filename, lineno))


def content(folder: Path) -> dict[str, str]:
    """Everything below a folder, by path: a file's digest, a link's target, "folder"."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            found[str(path.relative_to(folder))] = f"to {os.readlink(path)}"
        elif path.is_dir():
            found[f"{path.relative_to(folder)}/"] = "folder"
        else:
            found[str(path.relative_to(folder))] = hashlib.blake2b(path.read_bytes()).hexdigest()
    return found


class _Header(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class _Bits(ctypes.Structure):
    _fields_ = [("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32)]


@contextlib.contextmanager
def bound_by_permissions() -> Iterator[None]:
    """Root ignores the permissions of files: inside, they apply to this thread and to those that it starts."""
    if os.geteuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header, bits = _Header(CAPABILITIES, 0), (_Bits * 2)()
    if libc.capget(ctypes.byref(header), bits) != 0:
        pytest.skip("permissions of files do not bind root, and its capabilities cannot be read here")
    before = bits[0].effective
    bits[0].effective &= ~(1 << DAC_OVERRIDE | 1 << DAC_READ_SEARCH)
    if libc.capset(ctypes.byref(header), bits) != 0:
        pytest.skip("permissions of files do not bind root, and its capabilities cannot be dropped here")
    try:
        yield
    finally:
        bits[0].effective = before
        libc.capset(ctypes.byref(header), bits)


def must(module: str, arguments: list[str], folder: Path) -> None:
    """Runs a command that must succeed."""
    with _as_a_process(folder):
        sys.argv = [module, *arguments]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
