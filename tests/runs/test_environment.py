"""Accelerate's settings in the environment: none affects a run, and those that would change it are named."""

from __future__ import annotations

import re
from pathlib import Path

import accelerate
import pytest

from urepa.runs.environment import PLACE, PREFIXES, remove_accelerate_variables

# which process of how many this is, where the others are, on what, and how processes talk: the launcher's
LAUNCHERS = re.compile(r"(.*_)?RANK|(.*_)?SIZE|MASTER_\w+|NCCL_\w+|OMP_NUM_THREADS|FORK_LAUNCHED|PT_HPU_LAZY_MODE")
BUILT_BY_AN_ACCELERATOR = ("accelerator.py", "state.py", "parallelism_config.py", "utils/dataclasses.py")


def test_settings_are_removed_and_paths_are_kept(capsys: pytest.CaptureFixture[str]) -> None:
    place = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "here", "ACCELERATE_USE_CPU": "true", "HOME": "/root"}
    settings = {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "8", "FSDP_VERSION": "2", "MEGATRON_LM_PP_DEGREE": "3"}
    unasked = {"ACCELERATE_DYNAMO_BACKEND": "NO", "ACCELERATE_DYNAMO_MODE": "default", "ACCELERATE_DEBUG_MODE": "False"}
    environment = place | settings | unasked
    remove_accelerate_variables(environment)
    assert environment == place
    printed = capsys.readouterr().out
    assert len(printed.splitlines()) == 1
    for name, value in settings.items():
        assert f"{name}={value}" in printed
    assert all(name not in printed for name in unasked), "what asks for nothing is not worth a line"


def test_nothing_is_reported_without_such_settings(capsys: pytest.CaptureFixture[str]) -> None:
    remove_accelerate_variables({"ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_USE_FSDP": "false"})
    assert capsys.readouterr().out == ""


def test_other_ranks_print_nothing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", "29500")
    environment = {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "8"}
    remove_accelerate_variables(environment)
    assert not environment
    assert capsys.readouterr().out == ""


def test_every_variable_that_the_installed_accelerate_reads_is_known() -> None:
    """Variables that are read when an Accelerator is built. A later version may have new ones: decide then whether each
    is a setting or a path."""
    found: set[str] = set()
    for file in BUILT_BY_AN_ACCELERATOR:
        source = (Path(accelerate.__file__).parent / file).read_text()
        literal = r"(?:environ(?:\.get)?[\[(]|_from_env\()\s*\[?\s*"
        found |= set(re.findall(literal + r'"([A-Z][A-Z0-9_]+)"', source))
        found |= set(re.findall(r'prefix = "([A-Z_]+)"', source))
    assert {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "ACCELERATE_DEBUG_MODE", "FSDP_", "MEGATRON_LM_"} <= found
    of_other_devices = {"XLA_USE_BF16", "XLA_DOWNCAST_BF16", "PYTORCH_ENABLE_MPS_FALLBACK", "DEEPSPEED_USE_HPU"}
    known = {name for name in found if name.startswith(PREFIXES) or LAUNCHERS.fullmatch(name)}
    assert found - known == of_other_devices & found
    assert all(name.startswith(PREFIXES) for name in PLACE)
