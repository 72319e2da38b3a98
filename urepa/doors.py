"""What every door does: compose, turn a user's mistake into one line, exit."""

from __future__ import annotations

import contextlib
import difflib
import errno
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException
from omegaconf import OmegaConf
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException

from urepa import resolvers
from urepa.config import register
from urepa.errors import NOT_EVALUATED, NotEvaluated, UserError
from urepa.markup import printable
from urepa.nested import flatten
from urepa.ranks import is_first

CONF = str(Path(__file__).resolve().parents[1] / "conf")
ADDED_GROUPS = ("experiment", "ablation")  # not in the root's defaults, so Hydra wants a plus
FREE_KEYS = ("loss.taps", "tracking.tags")  # mappings whose keys are the user's
# their values have "=" and "," in them: runs' folders, a store's URI, a tag, settings of a baseline
VERBATIM_KEYS = (
    "resume",
    "warm_start",
    "run",
    "checkpoint",
    "backbone.weights",
    "runs",
    "out",
    "store",
    "report",
    "baseline",
    "select.tag",
    "select.ids",
)
RAISED = re.compile(r"UserError raised while resolving interpolation: (.*)")  # by a resolver of ours
# What trying again will not mend, and what will; anything else of the system may pass (a server, a network's disk)
LASTING = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.EROFS: "give a folder that can be written",
    errno.EACCES: "give a place that you may read and write, or change its permissions",
    errno.EPERM: "give a place that you may read and write, or change its permissions",
    errno.ENOENT: "give a path that is there",
    errno.ENOTDIR: "give a path whose folders are folders",
    errno.EISDIR: "give a file, not a folder",
    errno.EEXIST: "give another path",
    errno.ENAMETOOLONG: "give a shorter path",
    errno.ELOOP: "give a path that is no loop of links",
    errno.EINVAL: "give another path",
}
FIRST_SPEAKS = 20.0  # seconds; torchrun kills what ignores its SIGTERM for 30
TRACEBACKS = os.environ.get("HYDRA_FULL_ERROR") == "1"  # asked for by the user; we set it ourselves below


def prepare() -> None:
    """The schema, the launchers and the resolvers; once per process, before Hydra composes."""
    from urepa import sweeps

    register()
    sweeps.register()
    resolvers.register()


def open_door(main: Callable[[], None], root: str) -> None:
    """Runs a Hydra main. Mistakes end in one line and exit code 1; HYDRA_FULL_ERROR=1 asks for tracebacks."""
    sys.argv[1:] = [quoted(argument) for argument in sys.argv[1:]]
    if TRACEBACKS:
        main()
        return
    os.environ["HYDRA_FULL_ERROR"] = "1"  # makes Hydra raise instead of printing
    try:
        check_flags(sys.argv[1:])
        check_globs(sys.argv[1:])
        main()
    except UserError as error:
        _say(str(error))
        sys.exit(1)
    except (HydraException, OmegaConfBaseException) as error:
        _say(explain(error, root, sys.argv[1:]))
        sys.exit(1)


def quoted(argument: str) -> str:
    """`resume=outputs/a,b=1/seed0` with the quotes that Hydra's grammar asks for around such a value."""
    key, _, value = argument.partition("=")
    is_verbatim = key.lstrip("+") in VERBATIM_KEYS and ("=" in value or Path(value).exists())
    return f"{key}='{value}'" if is_verbatim and value[:1] not in ("", "'", '"', "[") else argument


def sweeps_over(arguments: list[str]) -> bool:
    """Is Hydra asked for several runs?"""
    return not {"-m", "--multirun"}.isdisjoint(arguments)


def check_flags(arguments: list[str]) -> None:
    """Hydra raises a bare ValueError where it is asked both to sweep and to show."""
    shows = next((a for a in arguments if a.partition("=")[0] in ("--cfg", "-c", "--info", "-i")), None)
    if shows is not None and sweeps_over(arguments):
        raise UserError(f"{shows} shows one composed config and -m sweeps over several: leave one of them out")


def check_globs(arguments: list[str]) -> None:
    """Where a glob matches no option, Hydra sweeps over nothing, says nothing and exits with 0."""
    for argument in arguments:
        found = re.fullmatch(r"\+*(\w+)=glob\(.*\)", argument)
        if found is not None:
            options = sorted(p.stem for p in (Path(CONF) / found[1]).glob("*.yaml"))
            pattern: Any = OverridesParser.create().parse_override(argument).value()
            if not pattern.filter(options):
                raise UserError(f"{argument} matches no option of {found[1]}; there are: {', '.join(options)}")


@contextlib.contextmanager
def one_line_mistakes() -> Iterator[None]:
    """Inside a door's task: a UserError is said in one line and the process exits with 1, here already,
    because Hydra's launchers would report it in their own words or swallow it."""
    try:
        yield
    except UserError as error:
        if TRACEBACKS:
            raise
        _say(str(error))
        sys.exit(NOT_EVALUATED if isinstance(error, NotEvaluated) else 1)
    except InterpolationResolutionError as error:
        if TRACEBACKS:
            raise
        reason = str(error).splitlines()[0]
        said = RAISED.match(reason)
        _say(
            said[1]
            if said
            else f"{error.full_key}: {reason}; compose parts that belong together, or give {error.full_key}"
        )
        sys.exit(1)
    except OSError as error:
        if TRACEBACKS or error.errno not in LASTING:
            raise
        _say(of_the_system(error))
        sys.exit(1)
    except KeyboardInterrupt:
        if TRACEBACKS:
            raise
        if is_first():  # the others have no mistake of their own to say
            _say("interrupted; the same command goes on from the last checkpoint")
        sys.exit(128 + signal.SIGINT)


def of_the_system(error: OSError) -> str:
    """What the system refused, of which path, and what to do."""
    paths = " to ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
    place = f"{paths}: " if paths else ""
    assert error.errno is not None
    return f"{place}{error.strerror}; {LASTING[error.errno]}, and run the same command again"


def _say(text: str) -> None:
    """To stderr, once for all ranks: torchrun stops them all as soon as one has ended, so the others leave that to the
    first, which speaks. Where it has not ended by then, the mistake is another rank's alone, and that one says it."""
    if not is_first():
        if "TORCHELASTIC_RUN_ID" not in os.environ:
            return
        time.sleep(FIRST_SPEAKS)
    sys.stdout.flush()
    print(f"error: {printable(text)}", file=sys.stderr, flush=True)


def explain(error: BaseException, root: str, arguments: list[str]) -> str:
    """One line that names the key and what would be right."""
    cause = error.__cause__
    text = f"{error}\n{'' if cause is None else cause}"
    if isinstance(error, MissingConfigException) and error.options is not None and error.missing_cfg_file:
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        options = ", ".join(error.options)
        return f"{group} has no option '{option}'; choose one of: {options}{_nearest(option, error.options)}"
    twice = re.match(r"schema@(\S+) appears more than once", text)
    if twice:
        return f"two of the chosen options set {twice[1]}: choose one of them"
    raised = RAISED.search(text)
    if raised:
        return raised[1]
    wrong_value = re.search(r"Error merging override (\S+)", text)
    if wrong_value and cause is not None:
        return f"{wrong_value[1]}: {str(cause).splitlines()[0]}"
    several = re.search(r"Ambiguous value for argument '([^=]+)=(.*?)'", text)
    if several:
        key, values = several.groups()
        return f"{key}={values} is several values: add -m to sweep over them (or write {key}=[{values}] for a list)"
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
    free = next((f"; to add one, write +{key}=VALUE" for k in FREE_KEYS if key.startswith(f"{k}.")), "")
    return f"there is no key '{key}'{_nearest(key, known)}{free}"


def _nearest(word: str, options: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, options, n=1, cutoff=0.5)
    return f" (did you mean '{near[0]}'?)" if near else ""


def _known_keys(root: str, arguments: list[str]) -> list[str]:
    """Keys of the composed config and its groups, with the group choices that were given."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(CONF, version_base="1.3"):
        choices = [a for a in arguments if re.fullmatch(r"\+?\w+=\w+", a)]
        for overrides in (choices, []):
            try:
                config: Any = OmegaConf.to_container(compose(root, overrides), enum_to_str=True)
            except (HydraException, OmegaConfBaseException):
                continue
            keys = list(flatten(config))
            parents = {key.rpartition(".")[0] for key in keys} - {""}
            return [k for k in [*keys, *sorted(parents)] if "_target_" not in k and "_partial_" not in k]
    return []
