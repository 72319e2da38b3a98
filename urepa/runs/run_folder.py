"""A run's name, its folder, its lock, and whether a config is the folder's own."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import time
from collections.abc import Collection, Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

from omegaconf import DictConfig, OmegaConf

from urepa.config.declared import declaration_of
from urepa.config.parts import family_of
from urepa.core.declared_keys import MOVED
from urepa.core.errors import UserError
from urepa.core.files import clear_leftovers, write_whole
from urepa.core.nested_dicts import flatten, replace_value
from urepa.runs.stored_config import read_config, read_plain
from urepa.runs.summary import read_summary
from urepa.runs.upgrades import add_schema_number, upgrade_facts

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
    "trainer.evaluate_every",
    "trainer.evaluation_share",
    "trainer.keep_last",
    "trainer.threads",
    "trainer.max_skipped",
    "hydra",
)
WEIGHTS = re.compile(r"evaluation\..*\.weights")  # a place: what lies there, a summary says by its digest
IMAGES = (
    "data.images"  # named by its last component; whether the samples are the same, `urepa.training.provenance` says
)
LONGEST_NAME = 120
LONGEST_TITLE = 250  # characters that MLflow takes
SHARED = ("backbone", "data", "trainer", "evaluation")  # groups whose overrides a sweep's runs mostly have in common
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
    "evaluated_by",
    "versions",
    "git_commit",
    "code_state",
    "code",
)


@lru_cache(maxsize=4096)  # a comparison of hundreds of runs asks it of the same few hundred keys again and again
def is_identity(key: str) -> bool:
    """Does a differing value of this dotted key make another run?"""
    return not any(key == k or key.startswith(f"{k}.") for k in NOT_IDENTITY)


def parse_overrides(overrides: list[str]) -> dict[str, str]:
    """`+a=1` and `a=1` as {"a": "1"}, `group@place=1` as {"place": "1"}; the last one of a key wins, as in Hydra."""
    pairs = (o.lstrip("+~").partition("=") for o in overrides)
    return {key.split("@")[-1].removeprefix("_global_."): _unquote(value) for key, _, value in pairs}


def _unquote(value: str) -> str:
    """Removes the quotes of Hydra's grammar, where a backslash precedes a quote and each backslash before that."""
    if len(value) < 2 or value[0] != value[-1] or value[0] not in "'\"":
        return value
    inner = re.sub(rf"(\\+){value[0]}", lambda m: "\\" * (len(m[1]) // 2) + value[0], value[1:-1])
    return re.sub(r"(\\+)$", lambda m: "\\" * (len(m[1]) // 2), inner)


def run_name(overrides: list[str], seed: int) -> str:
    """<experiment>[+<ablation>][,<overrides>]/seed<N>: the same command in any order finds the same folder."""
    given = parse_overrides(overrides)
    if given.get("resume") not in (None, "null"):
        return os.path.relpath(given["resume"], "outputs")
    name = given.pop("experiment", "quickstart")
    if "ablation" in given:
        name += f"+{given.pop('ablation')}"
    return f"{folder_name([name, *own_overrides(overrides)])}/seed{seed}"


def find_name(overrides: list[str], seed: int, below: Path = Path("outputs")) -> str:
    """`run_name`, or the name that an earlier version gave this run when it began it: with the keys of then, or without
    `data.images`."""
    name = run_name(overrides, seed)
    if (below / name / "config.yaml").is_file():
        return name
    former = {now: before for before, now in MOVED.items()}
    pairs = (override.partition("=") for override in overrides)
    before = [f"{former.get(key, key)}{equals}{value}" for key, equals, value in pairs]
    if before != overrides and (below / (found := _find_name(before, seed, below)) / "config.yaml").is_file():
        return found
    return _find_name(overrides, seed, below)


def _find_name(overrides: list[str], seed: int, below: Path) -> str:
    """`run_name`, or the name without `data.images`."""
    name = run_name(overrides, seed)
    former = run_name([o for o in overrides if IMAGES not in parse_overrides([o])], seed)
    if former == name or (below / name / "config.yaml").is_file():
        return name
    stored_config = RunFolder(below / former).stored_config()
    given = images_name(parse_overrides(overrides)[IMAGES])
    began = stored_config is not None and images_name(stored_config["data"]["images"]) == given
    return former if began else name


def images_name(images: str) -> str:
    """The last component of `data.images`: what a folder's name has of it, wherever the images lie."""
    return Path(images).name or Path(images).resolve().name


def own_overrides(overrides: list[str]) -> list[str]:
    """What a command changes of its experiment and ablation, apart from the seed: KEY=VALUE in order."""
    given = parse_overrides(overrides)
    if IMAGES in given:
        given[IMAGES] = images_name(given[IMAGES])
    named = ("experiment", "ablation", "seed")
    return [
        f"{k}={v}"
        for k, v in sorted(given.items())
        if k not in named and (k == IMAGES or is_identity(k.replace("/", ".")))
    ]


def folder_name(parts: list[str]) -> str:
    """Parts as one name, escaped; a long one ends in a hash."""
    name = quote(",".join(parts), safe="=,+._-")
    if len(name) > LONGEST_NAME:
        digest = hashlib.sha256(name.encode()).hexdigest()[:10]
        name = f"{name[: LONGEST_NAME - 11]}-{digest}"
    return name


def to_plain(config: DictConfig) -> dict[str, Any]:
    """The resolved config as plain data, enums as their names: the form that is stored and from which everything is
    built."""
    container = OmegaConf.to_container(config, resolve=True, enum_to_str=True)
    assert isinstance(container, dict)
    return {str(k): v for k, v in container.items()}


def stored_yaml(config: dict[str, Any]) -> str:
    """A composed config as config.yaml has it."""
    return OmegaConf.to_yaml(OmegaConf.create(add_schema_number(config)))


def differences(known: dict[str, Any], current: dict[str, Any]) -> list[str]:
    """Identity keys whose values differ, as `key: known there, current here`. Where an encoder's weights lie makes no
    difference."""
    there, here = flatten(known), flatten(current)
    keys = [k for k in sorted(there.keys() | here.keys()) if is_identity(k) and WEIGHTS.fullmatch(k) is None]
    absent = "nothing"
    return [
        f"{k}: {there.get(k, absent)} there, {here.get(k, absent)} here"
        for k in keys
        if there.get(k, absent) != here.get(k, absent)
    ]


def facts_of(summary: dict[str, Any]) -> dict[str, Any]:
    """The facts in a summary, in the present form; an older or unfinished run lacks some."""
    facts = upgrade_facts({key: summary[key] for key in FACTS if key in summary})
    return facts | ({"content": content_of(summary["data"])} if "data" in summary else {})


def content_of(fingerprint: dict[str, Any]) -> dict[str, str]:
    """Digests of what a config does not tell of its data, as far as they are known: of the lists of samples trained on
    and held out, of the teachers' weights, and of the samples' records. None depends on where the data lie."""
    csv = (fingerprint.get("latents") or {}).get("csv_sha256", {})
    weights = {k: v for k, v in flatten(fingerprint.get("tokens") or {}).items() if k.endswith("weights_sha256")}
    known = {
        "train": [v for k, v in sorted(csv.items()) if k == "train.csv"],
        "held_out": [v for k, v in sorted(csv.items()) if k != "train.csv"],
        "teacher": [f"{k}={v}" for k, v in sorted(weights.items()) if v != "unknown"],
    }
    lists = {name: hashlib.sha256("\n".join(parts).encode()).hexdigest()[:10] for name, parts in known.items() if parts}
    return lists | fingerprint.get("content", {})


def no_run(key: str, path: Path) -> str:
    """The sentence about a path that is no run's folder."""
    why = "is not a run's folder: it has no config.yaml" if path.exists() else "does not exist"
    return f"{key}={path} {why}; give the folder of a run, as outputs/NAME/seed0"


def require_config(path: Path) -> dict[str, Any]:
    """The config of the run in a folder; a UserError if it is not a run's."""
    config = RunFolder(path).stored_config()
    if config is None:
        raise UserError(no_run("run", path))
    return config


class Names(NamedTuple):
    """What a run is called by: its experiment, its ablation, and what its command changed of them."""

    experiment: str
    ablation: str
    overrides: tuple[str, ...] = ()

    @property
    def arm(self) -> str:
        """`baseline`, `lora_16`, `loss.lambda_max=0.25`, or `lora_16, loss.lambda_max=0.25`."""
        named = () if self.ablation == "baseline" and self.overrides else (self.ablation,)
        return ", ".join([*named, *self.overrides])

    def title(self, seed: int) -> str:
        """A run's name in MLflow, what differs first: `loss.lambda_max=0.5, seed 0 · quickstart`. Of several overrides
        those of the method, which sweeps are over, come before those that a whole sweep shares."""
        arm = self._replace(overrides=tuple(sorted(self.overrides, key=_place))).arm
        rest = f", seed {seed} · {self.experiment}"
        room = LONGEST_TITLE - len(rest)
        return f"{arm if len(arm) <= room else f'{arm[: room - 3]}...'}{rest}"


def _place(override: str) -> int:
    """Of an override in a title, by its group."""
    group = re.split(r"[.=]", override)[0]
    return SHARED.index(group) if group in SHARED else -1


def stored_names(path: Path) -> Names:
    """The names of a run that is named by its folder, from its summary or from that name."""
    name, *overrides = re.split(r",(?=[\w./@]+=)", unquote(path.resolve().parent.name))
    experiment, _, ablation = name.partition("+")
    there = Names(experiment, ablation if ablation else "baseline", _as_now(overrides))
    summary = read_summary(path)
    if summary is None:
        return there
    of_this = tuple(summary.get("overrides", there.overrides))
    return Names(summary["experiment"], summary["ablation"], _as_now(of_this))


def _as_now(overrides: Iterable[str]) -> tuple[str, ...]:
    """The overrides of a run of an earlier version, with their present keys, so that it is the arm that it is now."""
    pairs = (override.partition("=") for override in overrides)
    return tuple(sorted(f"{MOVED.get(key, key)}{equals}{value}" for key, equals, value in pairs))


def extend_names(names: Names, max_steps: int) -> Names:
    """The names of a run that is continued to another last step."""
    rest = (o for o in names.overrides if not o.startswith("trainer.max_steps="))
    return names._replace(overrides=tuple(sorted([*rest, f"trainer.max_steps={max_steps}"])))


def tags_of(names: Names, config: dict[str, Any]) -> dict[str, str]:
    """What runs are found by: their names and the choices that one filters by most."""
    loss, aligned = config["loss"], "lambda_max" in config["loss"]
    teacher = teacher_name(config["teacher"])
    return {
        "experiment": names.experiment,
        "ablation": names.ablation,
        "arm": names.arm,
        "seed": str(config["seed"]),
        "backbone": family_of(config["backbone"]),
        "lora_rank": declaration_of(config["lora"]).tag,
        "teacher": teacher if aligned else "none",
        "head_depth": str(config["head"].get("depth", "none")) if aligned else "none",
        "lambda": f"{loss['lambda_max']:g}" if aligned else "none",
        "objective": _last_word(config["objective"]),
        "data": config["data"]["name"],
        "steps": str(config["trainer"]["max_steps"]),
    }


def teacher_name(part: dict[str, Any]) -> str:
    """What a teacher is called; several: all of them."""
    if "teachers" in part:
        return " + ".join(teacher_name(one) for one in part["teachers"].values())
    return Path(part.get("model", _last_word(part))).name


def _last_word(part: dict[str, Any]) -> str:
    return str(part["_target_"].rpartition(".")[2])


def remove_empty(folder: Path) -> None:
    """Removes a folder with nothing in it, and those above it, below the working folder, that it leaves empty."""
    here, folder = Path.cwd(), folder.absolute()
    with contextlib.suppress(OSError):  # not empty, or gone already
        for each in (folder, *folder.parents):
            if each != folder and here not in each.parents:
                return
            each.rmdir()


class RunFolder:
    """A run's folder, owned by one process at a time. The lock dies with its owner."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_file = path / "config.yaml"
        self._lock: int | None = None
        self._was_empty = False

    def claim(self, patience: float = 0.0) -> None:
        """Takes the lock and clears away what a killed owner was writing; a UserError if another process still has it
        after `patience` seconds."""
        self.path.mkdir(parents=True, exist_ok=True)
        self._was_empty = not any(self.path.iterdir())
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
        for folder in (self.path, *(p for p in self.path.iterdir() if p.is_dir())):
            clear_leftovers(folder)

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

    def remove_if_new(self) -> None:
        """Removes the folder if it was empty before and has only been claimed and given its config since. Only its
        owner may call this."""
        own = {".lock", self.config_file.name, "warm_start.json", "provenance.json"}
        if self._lock is None or not self._was_empty or not {p.name for p in self.path.iterdir()} <= own:
            return
        for name in own:
            (self.path / name).unlink(missing_ok=True)
        remove_empty(self.path)

    def stored_config(self) -> dict[str, Any] | None:
        """The config this folder was made with, as this version composes one."""
        if not self.config_file.exists():
            return None
        return read_config(self.config_file)

    def merge_config(self, config: dict[str, Any], given: Collection[str] = ()) -> dict[str, Any]:
        """The config to go on with: the composed one or, in a key that was added since the folder was made and is not
        `given` on the command line, the value that means what the code did then. UserError where the folder was made
        with another config, with the difference."""
        before = self.stored_config()
        if before is None:
            return config
        for key in self._added_keys() & flatten(config).keys() - set(given):
            config = replace_value(config, key, flatten(before)[key])
        if differing := differences(before, config):
            raise UserError(
                f"{self.path} holds a run with another config ({'; '.join(differing)}); change the command, or "
                "move that folder away. To extend a finished run: resume=FOLDER trainer.max_steps=N"
            )
        return config

    def _added_keys(self) -> set[str]:
        """Dotted keys that the folder's config did not have when it was stored."""
        return flatten(read_config(self.config_file)).keys() - flatten(read_plain(self.config_file)).keys()

    def store_config(self, config: dict[str, Any]) -> None:
        """Writes config.yaml."""
        write_whole(self.config_file, stored_yaml(config))
