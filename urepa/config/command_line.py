"""A command line before Hydra composes: the quotes that its grammar asks for, and what it would accept in silence."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Glob, Override, Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from urepa.config.conf_options import compose_anew, is_group, options_of
from urepa.config.mistyped_keys import unknown_key_message, unknown_option_message, unmatched_pattern_message
from urepa.core.declared_keys import MOVED
from urepa.core.errors import UserError

PATHS = {  # keys whose values are paths, names on the hub or URIs: taken as they are typed
    *("resume", "warm_start.checkpoint", "run", "checkpoint", "runs", "out", "store", "report", "folder"),
    *("measured", "scripts", "loss.guide"),
    *("data.root", "data.images", "data.vae", "data.text", "data.class_names", "data.prompts", "data.stage_to"),
    *("backbone.weights", "backbone.prompts", "bench.folder", "tracking.uri"),
}
TEXTS = ("prompt", "negative")  # of any words and commas; a list is refused
PATH_ENDS = re.compile(r"(teacher|evaluation)\..*\b(model|weights|folder|class_names|run)|teacher\.model")
NAMES = ("baseline", "select.tag", "select.ids")  # taken so where they have an equals sign or lie on this disk
ELSEWHERE = ("--config-path", "-cp", "hydra.searchpath")  # other folders are composed from than `conf_options.folders`


def quote_argument(argument: str, sweeps: bool = False) -> str:
    """An argument whose value is a path, a name or a text, with the quotes that Hydra's grammar asks for around what it
    would not read as it is typed: `resume='outputs/a,b=1/seed0'`. With `sweeps` a comma separates values, as in
    Hydra."""
    key, _, value = argument.partition("=")
    name = key.lstrip("+")
    has_quotes = value[:1] in ("'", '"') and parse_override(argument) is not None
    if not value or has_quotes or "${" in value or value == "null":
        return argument
    if name in NAMES:
        return (
            f"{key}={_quote_value(value)}" if value[0] != "[" and ("=" in value or Path(value).exists()) else argument
        )
    is_text = name in TEXTS and not value.startswith(("[", "{"))
    if name not in PATHS and not is_text and not PATH_ENDS.fullmatch(name):
        return argument
    parsed = parse_override(argument)
    read = None if parsed is None else parsed.value()
    is_sweep = isinstance(read, ChoiceSweep) and sweeps and (is_text or not Path(value).exists())
    return argument if read == value or is_sweep else f"{key}={_quote_value(value)}"


def _quote_value(value: str, quote: Quote = Quote.single) -> str:
    return QuotedString(value, quote).with_quotes()


def parse_override(argument: str) -> Override | None:
    """The parsed override; None if Hydra cannot parse it."""
    try:
        return OverridesParser.create().parse_override(argument)
    except HydraException:
        return None


def is_sweep(arguments: list[str]) -> bool:
    """True if the arguments ask Hydra for several runs."""
    return not {"-m", "--multirun"}.isdisjoint(arguments)


def check_arguments(arguments: list[str], root: str) -> None:
    """UserError for what Hydra would pass over, or meet with an exception of no use."""
    check_flags(arguments)
    overrides = [_check_override(argument) for argument in overrides_of(arguments)]
    has_other_files = any(argument.startswith(ELSEWHERE) for argument in arguments)
    for override in overrides:
        _check_choice(override, has_other_files)
    if not has_other_files:
        check_globs(arguments)
        _check_declared(overrides, root)


def overrides_of(arguments: list[str]) -> list[str]:
    """The arguments that are no flags. UserError for a flag that there is not."""

    def refuse(message: str) -> None:
        raise UserError(f"{message}; settings are KEY=VALUE without dashes, and --help lists the flags")

    parser = get_args_parser()
    parser.error = refuse  # type: ignore[assignment,method-assign]
    return list(parser.parse_args(arguments).overrides)


def check_flags(arguments: list[str]) -> None:
    """Hydra raises a bare ValueError where it is asked both to sweep and to show."""
    shows = next((a for a in arguments if a.partition("=")[0] in ("--cfg", "-c", "--info", "-i")), None)
    if shows is not None and is_sweep(arguments):
        raise UserError(f"{shows} shows one composed config and -m sweeps over several: leave one of them out")


def _check_override(argument: str) -> Override:
    """The parsed override. UserError if Hydra cannot parse it, with quotes that make it valid."""
    key, equals, value = argument.partition("=")
    if not equals and not argument.startswith("~"):
        raise UserError(f"'{argument}' is no KEY=VALUE; write KEY=VALUE, without spaces around the equals sign")
    if not key.lstrip("+~"):
        raise UserError(f"'{argument}' has no key; write KEY=VALUE")
    name = key.lstrip("+")
    if value in ("", "''", '""') and (name in PATHS or PATH_ENDS.fullmatch(name)):
        raise UserError(f"{name}= is empty: give a path, or leave it out")
    if name.partition(".")[0] == "arm":
        raise UserError("arm is what ablation files say of themselves: give +ablation=NAME on the command line")
    if name in MOVED:
        raise UserError(f"{name} is called {MOVED[name]} now: write {MOVED[name]}={value or '...'}")
    override = parse_override(argument)
    if override is not None:
        return override
    quote = Quote.single if '"' in value else Quote.double
    in_quotes = f"{key}={_quote_value(value, quote)}"
    if parse_override(in_quotes) is None:
        raise UserError(f"'{argument}' cannot be read; write KEY=VALUE, with a key of letters, digits, _ and dots")
    raise UserError(
        f"the value of {argument} has characters with a meaning of their own (brackets, quotes, #, =, ...); to have it "
        f"taken as it is, type {shlex.quote(in_quotes)}"
    )


def _check_choice(override: Override, has_other_files: bool) -> None:
    """A group is chosen by names: Hydra raises a bare ValueError for anything else, and takes an empty list for a
    choice that leaves the group out."""
    group, value = override.key_or_group, override.value()
    if override.is_delete() or isinstance(value, Glob) or not is_group(group):
        return
    is_hydras = group.startswith("hydra/")  # it has options of its own
    for choice in value.list if isinstance(value, ChoiceSweep) else [value]:
        listed = choice if isinstance(choice, list) else [choice]
        names = [name.text if isinstance(name, QuotedString) else name for name in listed]
        if not names:
            instead = "none" if "none" in options_of(group) else "NAME"
            raise UserError(f"{group}=[] chooses nothing: give names, or {group}={instead}")
        if len(names) > 1 and "none" in names:
            raise UserError(f"{group}=[{','.join(map(str, names))}]: none stands for nothing beside others; drop it")
        if not ((is_hydras or has_other_files) and all(isinstance(name, str) for name in names)):
            check_options(group, names)


def check_options(group: str, names: Sequence[Any]) -> None:
    """UserError for the first that a group has not."""
    options = options_of(group)
    for name in names:
        if name not in options:
            raise UserError(unknown_option_message(group, "null" if name is None else str(name), options))


def check_globs(arguments: list[str]) -> None:
    """Where a glob, or one of its patterns, matches no option, Hydra says nothing; without any it exits with 0."""
    for argument in arguments:
        found = re.fullmatch(r"\+*(\w+)=glob\(.*\)", argument)
        if found is not None:
            options = options_of(found[1])
            whole: Any = OverridesParser.create().parse_override(argument).value()
            for pattern in (*whole.include, *whole.exclude):
                if not Glob([pattern]).filter(options):
                    raise UserError(f"{argument}: {unmatched_pattern_message(found[1], pattern, options)}")
            if not whole.filter(options):
                raise UserError(f"{argument} leaves nothing: every option that it names is excluded")


def _check_declared(overrides: list[Override], root: str) -> None:
    """A plus opens the schema, and a tilde takes away what the schema declares: both only where keys are the user's."""
    changed = [o for o in overrides if (o.is_add() or o.is_force_add() or o.is_delete()) and _is_key(o)]
    if not changed:
        return
    others = [
        o.input_line for o in overrides if o not in changed and o.input_line is not None and not o.is_sweep_override()
    ]
    try:
        config = compose_anew(root, others)
    except (HydraException, OmegaConfBaseException):
        return  # said when Hydra composes
    for override in changed:
        key = override.key_or_group
        parent = OmegaConf.select(config, key.rpartition(".")[0]) if "." in key else config
        if not isinstance(parent, DictConfig) or _is_free(parent):
            continue
        if key.rpartition(".")[2] not in parent.keys():  # noqa: SIM118  `in` says no of what is missing
            raise UserError(unknown_key_message(key, config))
        if override.is_delete():
            raise UserError(f"~{key} would leave out what this command needs; give {key} another value")


def _is_key(override: Override) -> bool:
    """And not a group, nor a setting of Hydra's own."""
    key = override.key_or_group
    return not key.startswith("hydra.") and "/" not in key and (not is_group(key) or override.is_delete())


def _is_free(node: DictConfig) -> bool:
    """Is it a mapping with keys of the user's?"""
    return OmegaConf.get_type(node) is dict
