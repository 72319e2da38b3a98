"""Commands, each in a fork of a process that has imported Hydra and what urepa's commands import at once. A command
that imports a heavy package is ended there. It reads one line of JSON per command, and prints one line for its end:

    echo '{"module": "urepa.train", "arguments": ["foo=1"], "folder": "."}' | python tests/light.py
"""

from __future__ import annotations

import gc
import json
import os
import runpy
import sys
import tempfile
import traceback
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import NoReturn

import hydra
from hydra._internal.hydra import Hydra

import urepa.cluster.hydra_launchers
import urepa.inference.chosen_prompts
import urepa.training.checks.combinations
import urepa.training.checks.inputs
from urepa.cli import CONF, prepare
from urepa.config import own_package
from urepa.runs.run_folder import to_plain

HEAVY = ("torch", "diffusers", "mlflow", "transformers", "scipy", "sklearn")
AT_ONCE = (
    hydra,
    urepa.training.checks.combinations,
    urepa.training.checks.inputs,
    urepa.cluster.hydra_launchers,
    urepa.inference.chosen_prompts,
)  # by every fork again, if they were not here
IMPORTED, FORMATTED = 77, 78  # exit codes


class NoHeavy(MetaPathFinder):
    """Ends the process when a heavy package is imported."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name in HEAVY:
            end(f"imports {name}", IMPORTED)


def end(text: str, code: int) -> NoReturn:
    """Ends the process at once, whatever exceptions the command would catch."""
    os.write(2, text.encode())
    os._exit(code)


def run(module: str, arguments: list[str], folder: str) -> NoReturn:
    """Runs the command as in a process of its own."""
    os.chdir(folder)
    sys.argv = [module, *arguments]
    code = 0
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:  # noqa: BLE001  as the interpreter would end
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def forked(job: dict) -> dict:
    """A command's exit code and its output."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if child == 0:
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            run(**job)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        out.seek(0)
        err.seek(0)
        return {"code": code, "out": out.read().decode(), "err": err.read().decode()}


if __name__ == "__main__":
    assert not sys.modules.keys() & set(HEAVY)
    sys.meta_path.insert(0, NoHeavy())
    if "groups" not in sys.argv:  # Hydra's own help needs them
        Hydra.format_config_groups = lambda *_, **__: end("formats all groups", FORMATTED)
    prepare()  # by every fork again, likewise, and what compositions and checks keep for later ones
    own_package.load([])
    with hydra.initialize_config_dir(CONF, version_base="1.3"):
        urepa.training.checks.combinations.check(to_plain(hydra.compose("train")), [])
        for root in Path(CONF).glob("*.yaml"):
            hydra.compose(root.stem)
    gc.disable()  # Hydra makes much garbage, and a fork is short
    for line in sys.stdin:
        print(json.dumps(forked(json.loads(line))), flush=True)
