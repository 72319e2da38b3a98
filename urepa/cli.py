"""`urepa COMMAND ...` is `python -m urepa.COMMAND ...`; the commands of launchers/ are among them."""

from __future__ import annotations

import runpy
import sys

from urepa.config.commands import COMMANDS
from urepa.config.help import HELP
from urepa.core import output
from urepa.core.errors import did_you_mean
from urepa.core.markup import printable


def main() -> None:
    """The console entry. A command that there is not ends with one line and exit code 1."""
    output.never_fails()
    modules = {command.module.rpartition(".")[2]: command.module for command in COMMANDS.values()}
    given = sys.argv[1] if len(sys.argv) > 1 else ""
    if not given or given in HELP:
        print(usage())
    elif given not in modules:
        near = did_you_mean(given, list(modules))
        sys.exit(f"error: there is no command '{printable(given)}'; it is one of {', '.join(modules)}{near}")
    else:
        del sys.argv[0]
        runpy.run_module(modules[given], run_name="__main__", alter_sys=True)


def usage() -> str:
    """Each command with what it does."""
    titles: dict[str, str] = {}
    for command in COMMANDS.values():
        titles.setdefault(command.module.rpartition(".")[2], command.title)
    width = max(map(len, titles))
    rows = "\n".join(f"  {name:<{width}}  {title}" for name, title in titles.items())
    return "urepa COMMAND [ARGUMENTS...]; urepa COMMAND --help\n\n" + rows
