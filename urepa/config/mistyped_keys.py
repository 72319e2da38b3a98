"""One-line messages for keys, options and values that Hydra and OmegaConf refuse, with a similar valid one
("did you mean ...?")."""

from __future__ import annotations

import re
from collections.abc import Sequence

from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException
from yaml import MarkedYAMLError, YAMLError

from urepa.config.conf_options import compose_anew, is_group, options_of, options_with
from urepa.config.launcher_schemas import launcher_keys
from urepa.core.declared_keys import MOVED
from urepa.core.errors import did_you_mean
from urepa.core.nested_dicts import flatten
from urepa.core.one_line_errors import RAISED

ADDED_GROUPS = ("experiment", "ablation")  # not in the root's defaults, so Hydra wants a plus
FREE_KEYS = ("loss.taps", "tracking.tags")  # mappings whose keys are the user's
OF_TYPES = {  # OmegaConf's message for a value that the schema does not accept, and what to do
    "could not be converted to Integer": "give a whole number",
    "could not be converted to Float": "give a number",
    "is not a valid bool|could not be converted to Boolean": "give true or false",
    "is not Optional": "give a value; this one cannot be null",
    "is not a ListConfig, list or tuple|Cannot assign .* to List": "give a list, [A,B,...]",
    "Cannot convert '(list|dict)' to string": "give text",
    "Cannot assign .* to Dict": "this is a mapping; set its keys one by one, as KEY.NAME=VALUE",
}
SHOWN = 16  # largest number of options in a line


def below_null_message(error: AssertionError, arguments: list[str]) -> str | None:
    """The line for a key below a part that is null, where OmegaConf raises an assertion; None for other assertions."""
    if not re.fullmatch(r"Unexpected type( for root)?: None(Type)?", str(error)):
        return None
    keys = [argument.partition("=")[0].lstrip("+~") for argument in arguments]
    key = next((key for key in keys if "." in key and is_group(key.partition(".")[0])), None)
    if key is None:
        return None
    part = key.partition(".")[0]
    return f"{key}: {part} is null in this command; choose one with {part}=NAME before its settings"


def error_message(error: BaseException, root: str, arguments: list[str]) -> str:
    """One line that names the wrong key and a valid alternative."""
    if isinstance(error, YAMLError):
        return _malformed_file_message(error)
    cause = error.__cause__
    text = f"{error}\n{'' if cause is None else cause}"
    if isinstance(error, MissingConfigException) and error.options is not None and error.missing_cfg_file:
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        return unknown_option_message(group, option, error.options)
    twice = re.match(r"schema\S*@(\S+) appears more than once", text)
    if twice:
        return f"two of the chosen options set {twice[1]}: choose one of them"
    raised = RAISED.search(text)
    if raised:
        return raised[1]
    wrong_value = re.search(r"Error merging override (\S+)", text)
    if wrong_value and cause is not None:
        return f"{wrong_value[1]}: {_advice(cause)}"
    several = re.search(r"Ambiguous value for argument '([^=]+)=(.*?)'", text)
    if several:
        key, values = several.groups()
        return f"{key}={values} is several values: add -m to sweep over them (or write {key}=[{values}] for a list)"
    of_option = re.search(r"In '(\S+)/(\S+)': Could not override '([^']+)'", text)
    if of_option:  # an arm, for example, of a part that the experiment does not have
        group, option, part = of_option.groups()
        place = part.rpartition("@")[2]
        typed = f"+{group}" if group in ADDED_GROUPS else group
        return f"{typed}={option} chooses {place}, which this command does not have; choose another {group}"
    named = re.search(r"full_key: (\S+)", text) or re.search(r"Could not override '([^']+)'", text)
    if named is None:
        return " ".join(str(error).split())
    key = named[1].split("@")[0]
    if "not in" not in text and "No match in the defaults list" not in text:
        return f"{key}: {text.splitlines()[0]}"
    known = _known_keys(root, arguments)
    if key in known:
        return f"there is no key '{key}' beside the other parts of this command"
    if key in ADDED_GROUPS:
        return f"{key} is none of the root's defaults: write it with a plus, +{key}=NAME"
    return _unknown_key_message(_full_key(key, arguments), known)


def declaration_message(place: str, error: OmegaConfBaseException, known: Sequence[str]) -> str:
    """The error message for settings of a part that its declaration does not take.

    Args:
        place: the part's dotted key. known: the names of its declared keys.
    """
    name = str(error.full_key or "").removeprefix(f"{place}.")
    if isinstance(error, ConfigKeyError | ConfigAttributeError):
        if f"{place}.{name}" in MOVED:
            return _unknown_key_message(f"{place}.{name}", [])
        return (
            f"there is no key '{place}.{name}'{_did_you_mean_key(f'{place}.{name}', [f'{place}.{k}' for k in known])}"
        )
    return f"{place}.{name}: {_advice(error)}"


def _malformed_file_message(error: YAMLError) -> str:
    """The file that is not YAML, the position and the reason, which PyYAML gives in several lines."""
    mark = error.problem_mark if isinstance(error, MarkedYAMLError) else None
    if mark is None:
        return " ".join(str(error).split())
    return f"{mark.name}, line {mark.line + 1}, column {mark.column + 1}: {error.problem}"


def _advice(error: BaseException) -> str:
    """What to give instead of a value that OmegaConf does not accept."""
    reason = str(error).splitlines()[0]
    choices = re.search(r"Invalid value '(.*)', expected one of \[(.*)\]", reason)
    if choices:
        return f"give one of {choices[2]}{did_you_mean(choices[1], choices[2].split(', '))}"
    return next((said for pattern, said in OF_TYPES.items() if re.search(pattern, reason)), reason)


def unknown_option_message(group: str, name: str, options: Sequence[str]) -> str:
    """The error message for an option that a group does not have."""
    shown = ", ".join(options[:SHOWN]) + (f" and {len(options) - SHOWN} more" if len(options) > SHOWN else "")
    word = "none" if name in ("null", "None", "false") and "none" in options else name
    return f"{group} has no option '{name}'; choose one of: {shown}{_did_you_mean_key(word, options)}"


def unmatched_pattern_message(group: str, pattern: str, options: list[str]) -> str:
    """The error message for a pattern that matches no option of a group."""
    few = SHOWN // 2
    shown = ", ".join(options[:few]) + (", ..." if len(options) > few else "")
    return f"{pattern} matches no option of {group}; there are: {shown}{did_you_mean(pattern.strip('*'), options)}"


def unknown_key_message(key: str, config: DictConfig) -> str:
    """The error message for a key that the config does not have."""
    return _unknown_key_message(key, _keys_of(config))


def _unknown_key_message(key: str, known: list[str]) -> str:
    if key in MOVED:
        return f"{key} is called {MOVED[key]} now: write {MOVED[key]}=..."
    if of_launchers := launcher_keys(key):
        return f"there is no key '{key}'{_did_you_mean_key(key, of_launchers)}"
    group, _, rest = key.partition(".")
    name = rest.partition(".")[0]
    if group == "evaluation" and name in options_of(group) and f"evaluation.{name}" not in known:
        return (
            f"there is no key '{key}' here, as evaluation={name} is not chosen; give that too, or [NAME,...] of several"
        )
    is_here = any(one == f"{group}.{name}" or one.startswith(f"{group}.{name}.") for one in known)
    having = [] if is_here else options_with(key)
    if having:
        return f"there is no key '{key}' here; it is one of {group}={', '.join(having)}"
    free = next((f"; to add one, write +{key}=VALUE" for k in FREE_KEYS if key.startswith(f"{k}.")), "")
    return f"there is no key '{key}'{_did_you_mean_key(key, known)}{free}"


def _full_key(key: str, arguments: list[str]) -> str:
    """The whole key as typed; OmegaConf reports only its first unknown part."""
    typed = [argument.partition("=")[0].lstrip("+~") for argument in arguments]
    return next((name for name in typed if name == key or name.startswith(f"{key}.")), key)


def _did_you_mean_key(word: str, options: Sequence[str]) -> str:
    others = [option for option in options if not word.startswith(f"{option}.")]  # without the group of a key
    return did_you_mean(word, others)


def _known_keys(root: str, arguments: list[str]) -> list[str]:
    """Keys of the composed config and its groups, with the group choices that were given."""
    choices = [a for a in arguments if re.fullmatch(r"\+?\w+=\w+", a) and _is_group(a)]
    for overrides in (choices, []):
        try:
            return _keys_of(compose_anew(root, overrides))
        except (HydraException, OmegaConfBaseException):
            continue
    return []


def _is_group(argument: str) -> bool:
    """Whether the argument chooses an option of a group. Unknown keys would make the composition, which takes half a
    second, fail."""
    return is_group(argument.lstrip("+").partition("=")[0])


def _keys_of(config: DictConfig) -> list[str]:
    """Dotted keys of a config, including those of groups but not Hydra's own."""
    keys = list(flatten(OmegaConf.to_container(config, enum_to_str=True)))
    parents = {key.rpartition(".")[0] for key in keys} - {""}
    return [k for k in [*keys, *sorted(parents)] if "_target_" not in k]
