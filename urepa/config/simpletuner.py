"""`+simpletuner=FILE.json` on the command line of a run: the file's alignment keys as overrides in its place.

It is replaced before Hydra reads the command line, so that the run's folder and its stored config have plain overrides,
and nothing refers to the file afterwards. What the command line gives itself is not taken from the file.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from urepa.config.command_line import check_arguments, overrides_of, parse_override, quote_argument
from urepa.config.command_schemas import Images, Train
from urepa.config.commands import COMMANDS
from urepa.config.conf_options import compose_anew, is_group
from urepa.config.declared import declaration_of
from urepa.config.parts import SCHEMAS
from urepa.config.simpletuner_keys import PREFIXES, TEACHER_SEES, Alignment, Keys, read_alignment
from urepa.core.errors import UserError
from urepa.core.ranks import is_first

OPTION = "+simpletuner="
BY_SHAPE = ("backbone", "data")  # the parts that say how many tokens a tap has
CHOOSES_BACKBONE = ("backbone", "experiment")


def expand_simpletuner(arguments: list[str], root: str) -> list[str]:
    """The arguments with a file's overrides in place of `+simpletuner=FILE`, after a summary on stderr; as they are
    where it is not among them.

    UserError where the file cannot be taken: no such file, two of them, no alignment in it or two, a key without an
    equal, the regulariser of another kind of backbone.
    """
    files = [argument.removeprefix(OPTION).strip("'\"") for argument in arguments if argument.startswith(OPTION)]
    schema = COMMANDS[root].schema
    if not files or not issubclass(schema, Train) or issubclass(schema, Images):
        return arguments
    if len(files) > 1 or not files[0]:
        raise UserError("+simpletuner= takes one file: +simpletuner=config.json")
    others = [argument for argument in arguments if not argument.startswith(OPTION)]
    quoted = [quote_argument(argument, sweeps=True) for argument in others]
    check_arguments(quoted, root)
    given, plain, chosen_there = _read(quoted)
    keys = Keys(Path(files[0]))
    alignment = read_alignment(keys)
    # without keys, which may be of what the file chooses
    _check_backbone(compose_anew(root, chosen_there), alignment.regulariser, files[0])
    chosen = [f"{key}={option}" for key, option in alignment.choices.items() if not _is_given(key, given)]
    composed = compose_anew(root, [*plain, *chosen])
    if "taps" not in composed.loss:
        raise UserError(f"+simpletuner={files[0]} has no effect beside a loss without alignment; drop one of the two")
    _check_tap(composed, keys, alignment)
    alignment.keys["loss.grid"] = _compared_grid(composed, keys, alignment, given)
    if TEACHER_SEES.partition(".")[2] not in composed.data:  # x0 is the image itself
        alignment.keys.pop(TEACHER_SEES)
        alignment.idle += keys.pass_over(f"{alignment.regulariser}_use_tae")
    taken = chosen + [
        override
        for key, value in alignment.keys.items()
        if not _is_given(key, given)
        for override in _overrides(key, value, composed)
    ]
    if is_first():
        print(_summary(keys, alignment, taken, given), file=sys.stderr)
    return [*others, *taken]


def _read(arguments: list[str]) -> tuple[set[str], list[str], list[str]]:
    """What the arguments set, groups and keys; those that compose a run, neither flags, sweeps nor the ablation, which
    an override would contradict; and of these the choices. UserError where they sweep over backbones."""
    given: set[str] = set()
    plain, choices = [], []
    for argument in overrides_of(arguments):
        override = parse_override(argument)
        assert override is not None, "the arguments were checked"
        key = override.key_or_group if override.package is None else override.package
        given.add(key)
        if override.is_sweep_override():
            if key in CHOOSES_BACKBONE:
                raise UserError(f"+simpletuner= is of one backbone: choose {key} without a sweep")
        elif key != "ablation":
            plain.append(argument)
            choices += [argument] if is_group(override.key_or_group) else []
    return given, plain, choices


def _check_backbone(composed: DictConfig, regulariser: str, file: str) -> None:
    """UserError for U-REPA on a transformer, and the other way round: there it would be without effect in silence."""
    declared: Any = SCHEMAS[composed.backbone["_target_"]]
    if declared.is_diffusers_unet != (regulariser == "urepa"):
        other = "crepa" if regulariser == "urepa" else "urepa"
        raise UserError(
            f"{file} enables {regulariser}, and this backbone is a {declared.noun}, which {other}_* is for: choose "
            f"another backbone, or enable {other} there"
        )


def _check_tap(composed: DictConfig, keys: Keys, alignment: Alignment) -> None:
    """UserError for a block that the transformer does not have."""
    if alignment.regulariser != "crepa":
        return
    try:
        declaration_of(OmegaConf.to_container(composed.backbone, resolve=True)).check_tap(alignment.tap)
    except UserError as error:
        index = alignment.tap.removeprefix("block_")
        raise UserError(f"{keys.file}: crepa_block_index={index} is too high: {error}") from None


def _compared_grid(composed: DictConfig, keys: Keys, alignment: Alignment, given: Collection[str]) -> str:
    """`loss.grid`: the smaller one of the tap's and the teacher's grid, by the teacher's name where that is the smaller
    one or both are equal. U-Nets tell the grids of their taps when they are built. UserError where a file without
    interpolation meets different grids."""
    if alignment.regulariser != "crepa":
        return "smaller"
    backbone, data = (declaration_of(OmegaConf.to_container(composed[part], resolve=True)) for part in BY_SHAPE)
    tap = [pixels // backbone.patch for pixels in data.latent_shapes[0][1:]] if hasattr(backbone, "patch") else None
    key = "teacher.grid"
    teacher = OmegaConf.select(composed, key) if _is_given(key, given) else alignment.keys[key]
    if tap is None or teacher is None:  # of an own backbone, or of several teachers
        equal, is_larger, counts = False, False, ""
    else:
        equal, is_larger = tap == list(teacher), math.prod(tap) >= math.prod(teacher)
        counts = f" ({math.prod(tap):,} and {math.prod(teacher):,} here)"
    if not alignment.interpolates and not equal:
        raise keys.refuse(
            "crepa_spatial_align",
            f"compares the mean of all tokens where tap and teacher have different numbers of them{counts}, for which "
            "there is no equal",
        )
    return "teacher" if is_larger else "smaller"


def _is_given(key: str, given: Collection[str]) -> bool:
    """Does the command line say it: a group by its choice, a key by itself, by its group or by a key below it?"""
    name = key.partition("@")[2] or key
    if "." not in name:
        return name in given
    return any(f"{name}.".startswith(f"{one}.") or one.startswith(f"{name}.") for one in given)


def _overrides(key: str, value: Any, composed: DictConfig) -> list[str]:
    """What gives a key this value; nothing where it has it already."""
    if key == "loss.taps":
        there = list(composed.loss.taps)
        return [
            *(f"~{key}.{tap}" for tap in there if tap != value),
            *([] if value in there else [f"+{key}.{value}=1.0"]),
        ]
    now = OmegaConf.select(composed, key)
    return [] if (list(now) if OmegaConf.is_list(now) else now) == value else [f"{key}={_text(value)}"]


def _text(value: Any) -> str:
    """As Hydra's grammar has it."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, int | float):
        return f"{value:.12g}"
    return str(value).replace(" ", "")


def _summary(keys: Keys, alignment: Alignment, taken: list[str], given: Collection[str]) -> str:
    """What was taken and what was not, a line each."""
    theirs = dict.fromkeys(name for name, _ in alignment.asked if keys.has(name) and name not in alignment.idle)
    read = ", ".join(f"{name}={_text(keys.values[name])}" for name in theirs)
    lines = [
        f"{keys.file}: {read}; the rest as SimpleTuner's defaults",
        f"as overrides: {' '.join(taken)}",
    ]
    kept = dict.fromkeys(one for _, ours in alignment.asked for one in ours if _is_given(one, given))
    if kept:
        lines.append(f"not taken, as the command line gives it: {', '.join(kept)}")
    if alignment.idle:
        lines.append(f"without effect here: {', '.join(alignment.idle)}")
    disabled = [k for k in keys.values if k.startswith(PREFIXES) and k not in keys.read and k not in theirs]
    if disabled:
        lines.append(f"keys of a regulariser that is not enabled: {len(disabled)}")
    count = sum(not name.startswith(PREFIXES) for name in keys.values)
    lines.append(f"keys that are not of alignment, not taken: {count}")
    return "\n".join(lines)
