"""A run's name, its folder and lock."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import time
from collections.abc import Collection, Iterable
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
from urepa.runs.identity import differences, is_identity
from urepa.runs.stored_config import read_config, read_plain
from urepa.runs.summary import read_summary
from urepa.runs.upgrades import add_schema_number, upgrade_facts

IMAGES = "data.images"  # only its last component is named; `urepa.training.provenance` compares the samples
LONGEST_NAME = 120
LONGEST_TITLE = 250  # limit of MLflow, in characters
SHARED = ("backbone", "data", "trainer", "evaluation")  # groups whose overrides a sweep usually shares
LOCK_POLL = 5.0  # seconds
# The facts of summary.json that are needed, besides the metrics, to compare runs. MLflow gets them as the tag
# `urepa.summary`.
FACTS = (
    "step",
    "extended_from",
    "ended_early",
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


def parse_overrides(overrides: list[str]) -> dict[str, str]:
    """`+a=1` and `a=1` as {"a": "1"}, `group@place=1` as {"place": "1"}. If a key is repeated, the last one counts."""
    pairs = (o.lstrip("+~").partition("=") for o in overrides)
    return {key.split("@")[-1].removeprefix("_global_."): _unquote(value) for key, _, value in pairs}


def _unquote(value: str) -> str:
    """Removes the quotes of Hydra's grammar, in which a backslash escapes a quote and each backslash before it."""
    if len(value) < 2 or value[0] != value[-1] or value[0] not in "'\"":
        return value
    inner = re.sub(rf"(\\+){value[0]}", lambda m: "\\" * (len(m[1]) // 2) + value[0], value[1:-1])
    return re.sub(r"(\\+)$", lambda m: "\\" * (len(m[1]) // 2), inner)


def run_name(overrides: list[str], seed: int) -> str:
    """<experiment>[+<ablation>][,<overrides>]/seed<N>. The order of the overrides in the command does not matter."""
    given = parse_overrides(overrides)
    if given.get("resume") not in (None, "null"):
        return os.path.relpath(given["resume"], "outputs")
    name = given.pop("experiment", "quickstart")
    if "ablation" in given:
        name += f"+{given.pop('ablation')}"
    return f"{folder_name([name, *own_overrides(overrides)])}/seed{seed}"


def find_name(overrides: list[str], seed: int, below: Path = Path("outputs")) -> str:
    """`run_name`, or the name of an existing folder that an earlier version gave this run: with the keys of that
    version, or without `data.images`."""
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
    """`run_name`, or the name without `data.images` if such a folder exists."""
    name = run_name(overrides, seed)
    former = run_name([o for o in overrides if IMAGES not in parse_overrides([o])], seed)
    if former == name or (below / name / "config.yaml").is_file():
        return name
    stored_config = RunFolder(below / former).stored_config()
    given = images_name(parse_overrides(overrides)[IMAGES])
    began = stored_config is not None and images_name(stored_config["data"]["images"]) == given
    return former if began else name


def images_name(images: str) -> str:
    """The last component of `data.images`, which is what a folder name contains, wherever the images are."""
    return Path(images).name or Path(images).resolve().name


def own_overrides(overrides: list[str]) -> list[str]:
    """The overrides of a command beyond experiment, ablation and seed: KEY=VALUE, sorted."""
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
    """The parts as one escaped name. A long name is cut and ends in a hash."""
    name = quote(",".join(parts), safe="=,+._-")
    if len(name) > LONGEST_NAME:
        digest = hashlib.sha256(name.encode()).hexdigest()[:10]
        name = f"{name[: LONGEST_NAME - 11]}-{digest}"
    return name


def to_plain(config: DictConfig) -> dict[str, Any]:
    """The resolved config as plain data, with enums as their names. This is the form that is stored and from which
    everything is built."""
    container = OmegaConf.to_container(config, resolve=True, enum_to_str=True)
    assert isinstance(container, dict)
    return {str(k): v for k, v in container.items()}


def stored_yaml(config: dict[str, Any]) -> str:
    """A composed config as the text of config.yaml."""
    return OmegaConf.to_yaml(OmegaConf.create(add_schema_number(config)))


def facts_of(summary: dict[str, Any]) -> dict[str, Any]:
    """The facts in a summary, in the current format. Older or unfinished runs lack some."""
    facts = upgrade_facts({key: summary[key] for key in FACTS if key in summary})
    source = summary.get("warm_start") or {}  # earlier versions recorded no digest
    started = {"warm_start": source["sha256"][:10]} if "sha256" in source else {}
    return facts | ({"content": content_of(summary["data"]) | started} if "data" in summary else {})


def content_of(fingerprint: dict[str, Any]) -> dict[str, str]:
    """Digests of the data that a config does not determine, as far as they are known: of the lists of training and
    held-out samples, of the teachers' weights, and of the samples' records. None depends on where the data are."""
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
    """The sentence on a path that is not a run's folder."""
    why = "is not a run's folder: it has no config.yaml" if path.exists() else "does not exist"
    return f"{key}={path} {why}; give the folder of a run, as outputs/NAME/seed0"


def require_config(path: Path) -> dict[str, Any]:
    """The config of the run in a folder. Raises UserError if it is not a run's folder."""
    config = RunFolder(path).stored_config()
    if config is None:
        raise UserError(no_run("run", path))
    return config


class Names(NamedTuple):
    """The names of a run: its experiment, its ablation, and the overrides in its command."""

    experiment: str
    ablation: str
    overrides: tuple[str, ...] = ()

    @property
    def arm(self) -> str:
        """`baseline`, `lora_16`, `loss.lambda_max=0.25`, or `lora_16, loss.lambda_max=0.25`."""
        named = () if self.ablation == "baseline" and self.overrides else (self.ablation,)
        return ", ".join([*named, *self.overrides])

    def title(self, seed: int) -> str:
        """A run's name in MLflow, with the differences first: `loss.lambda_max=0.5, seed 0 · quickstart`. If there are
        several overrides, those of the method, which sweeps vary, come before those that a whole sweep shares."""
        arm = self._replace(overrides=tuple(sorted(self.overrides, key=_place))).arm
        rest = f", seed {seed} · {self.experiment}"
        room = LONGEST_TITLE - len(rest)
        return f"{arm if len(arm) <= room else f'{arm[: room - 3]}...'}{rest}"


def _place(override: str) -> int:
    """The position of an override in a title, by its group."""
    group = re.split(r"[.=]", override)[0]
    return SHARED.index(group) if group in SHARED else -1


def stored_names(path: Path) -> Names:
    """The names of a run that is given by its folder, from its summary or from the folder's name."""
    name, *overrides = re.split(r",(?=[\w./@]+=)", unquote(path.resolve().parent.name))
    experiment, _, ablation = name.partition("+")
    there = Names(experiment, ablation if ablation else "baseline", _as_now(overrides))
    summary = read_summary(path)
    if summary is None:
        return there
    of_this = tuple(summary.get("overrides", there.overrides))
    return Names(summary["experiment"], summary["ablation"], _as_now(of_this))


def _as_now(overrides: Iterable[str]) -> tuple[str, ...]:
    """The overrides of a run of an earlier version with their current keys, so that it belongs to the current arm."""
    pairs = (override.partition("=") for override in overrides)
    return tuple(sorted(f"{MOVED.get(key, key)}{equals}{value}" for key, equals, value in pairs))


def extend_names(names: Names, max_steps: int) -> Names:
    """The names of a run that is extended to another last step."""
    rest = (o for o in names.overrides if not o.startswith("trainer.max_steps="))
    return names._replace(overrides=tuple(sorted([*rest, f"trainer.max_steps={max_steps}"])))


def tags_of(names: Names, config: dict[str, Any]) -> dict[str, str]:
    """The tags by which runs are found: their names and the most common filters."""
    loss, has_teacher = config["loss"], "taps" in config["loss"]
    teacher = teacher_name(config["teacher"])
    return {
        "experiment": names.experiment,
        "ablation": names.ablation,
        "arm": names.arm,
        "seed": str(config["seed"]),
        "backbone": family_of(config["backbone"]),
        "lora_rank": declaration_of(config["lora"]).tag,
        "teacher": teacher if has_teacher else "none",
        "head_depth": str(config["head"].get("depth", "none")) if has_teacher else "none",
        "lambda": f"{loss['lambda_max']:g}" if "lambda_max" in loss else "none",
        "objective": _last_word(config["objective"]),
        "data": config["data"]["name"],
        "steps": str(config["trainer"]["max_steps"]),
    }


def teacher_name(part: dict[str, Any]) -> str:
    """The name of a teacher, or the names of several, joined."""
    if "teachers" in part:
        return " + ".join(teacher_name(one) for one in part["teachers"].values())
    return Path(part.get("model", _last_word(part))).name


def _last_word(part: dict[str, Any]) -> str:
    return str(part["_target_"].rpartition(".")[2])


def remove_empty(folder: Path) -> None:
    """Removes an empty folder, and its parents below the working folder that become empty."""
    here, folder = Path.cwd(), folder.absolute()
    with contextlib.suppress(OSError):  # not empty, or already removed
        for each in (folder, *folder.parents):
            if each != folder and here not in each.parents:
                return
            each.rmdir()


class RunFolder:
    """A run's folder, which one process at a time may own. The lock is released when its owner ends."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_file = path / "config.yaml"
        self._lock: int | None = None
        self._was_empty = False

    def claim(self, patience: float = 0.0) -> None:
        """Takes the lock and removes unfinished files of a killed owner. Raises UserError if another process still has
        the lock after `patience` seconds."""
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
        """Releases the lock."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def remove_if_new(self) -> None:
        """Removes the folder if it was new and contains nothing but the lock and the config. For its owner only."""
        own = {".lock", self.config_file.name, "warm_start.json", "guide.json", "provenance.json"}
        if self._lock is None or not self._was_empty or not {p.name for p in self.path.iterdir()} <= own:
            return
        for name in own:
            (self.path / name).unlink(missing_ok=True)
        remove_empty(self.path)

    def stored_config(self) -> dict[str, Any] | None:
        """The config with which the folder was created, in this version's form; None if there is none."""
        if not self.config_file.exists():
            return None
        return read_config(self.config_file)

    def merge_config(self, config: dict[str, Any], given: Collection[str] = ()) -> dict[str, Any]:
        """The config with which to continue: the composed one, except for keys that were added after the folder was
        created and are not `given` on the command line; these have the value of the earlier behaviour. Raises UserError
        with the difference if the folder was created with another config."""
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
        """Dotted keys that did not exist when the folder's config was stored."""
        return flatten(read_config(self.config_file)).keys() - flatten(read_plain(self.config_file)).keys()

    def store_config(self, config: dict[str, Any]) -> None:
        """Writes config.yaml."""
        write_whole(self.config_file, stored_yaml(config))
