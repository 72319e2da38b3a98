"""What a config says of itself: the names of run folders, the classes of a folder of images, and what evaluations read
where nothing else is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from omegaconf import DictConfig, OmegaConf

from urepa.config.declared import declaration_of
from urepa.config.help import help_text
from urepa.core.errors import UserError
from urepa.core.protocols import Loss, Objective
from urepa.core.track_protocols import Track
from urepa.runs.run_folder import find_name, no_run, require_config, to_plain


def register() -> None:
    """For conf/*.yaml: `${run_name:}`, `${aligned_tap:}`, `${own_teacher:}`, `${data_root:}`, `${time_at:0.5}`,
    `${class_folders:}`, `${help:}` and `${scratch:}`."""
    for resolver in (run_name_of, aligned_tap, own_teacher, data_root, time_at, class_folders, help_of, scratch):
        OmegaConf.register_new_resolver(resolver.__name__.removesuffix("_of"), resolver, replace=True)


def run_name_of(*, _root_: DictConfig) -> str:
    """A run's folder below outputs/."""
    overrides = list(OmegaConf.select(_root_, "hydra.overrides.task") or [])
    resume = OmegaConf.select(_root_, "resume")
    if resume is not None and not (Path(resume) / "config.yaml").is_file():
        raise UserError(no_run("resume", Path(resume)))
    return find_name(overrides, int(OmegaConf.select(_root_, "seed")))


def aligned_tap(*, _root_: DictConfig) -> str:
    """The tap that the run aligns; the first of several. UserError where there is none."""
    taps = _taps(_run_config(_root_))
    if not taps:
        raise UserError(
            "loss=none aligns no tap: say which one is read, evaluation.NAME.tap=TAP, as the run beside it does"
        )
    return str(next(iter(taps)))


def own_teacher(*, _root_: DictConfig) -> Any:
    """The teacher that the run aligns to; the first of several. UserError where there is none."""
    run = _run_config(_root_)
    if not _taps(run):
        raise UserError(
            "loss=none has no teacher: say which encoder is the ceiling, +teacher@evaluation.dense.teacher=NAME as the "
            "run beside it has it, or leave it out, evaluation.dense.teacher=null"
        )
    teacher: Any = OmegaConf.to_container(run.teacher, resolve=True, enum_to_str=True)
    return next(iter(teacher["teachers"].values())) if "teachers" in teacher else teacher


def _taps(run: DictConfig) -> Mapping[str, float]:
    loss: Loss = declaration_of(to_plain(run.loss))
    return loss.taps


def data_root(*, _root_: DictConfig) -> str:
    """Where the run's track lies, or lay in training: `urepa.evaluate` puts another place into every path below it."""
    return str(OmegaConf.select(_run_config(_root_), "data.root"))


def time_at(fraction: float, *, _root_: DictConfig) -> float:
    """The objective's time at a share of the way from data to noise: `time_at:0.5` is DDPM's 500 of 1,000."""
    objective: Objective = declaration_of(to_plain(_run_config(_root_).objective))
    return objective.time_at(fraction)


def class_folders(*, _parent_: DictConfig) -> int:
    """How many classes the images of a track have. UserError where nothing tells."""
    if OmegaConf.is_missing(_parent_, "images"):
        raise UserError(
            "say where your images are, data.images=FOLDER with a folder per class in it, or how many classes there "
            "are, data.num_classes=N"
        )
    encoder = OmegaConf.select(_parent_, "text_encoder")
    for key in () if encoder is None else encoder:
        if OmegaConf.is_missing(encoder, key):
            raise UserError(
                f"data.text_encoder.{key} must be given, as there is no default: add data.text_encoder.{key}=..."
            )
    known = {str(key): _parent_[key] for key in _parent_ if key != "num_classes"}
    known = {key: value.name if isinstance(value, Enum) else value for key, value in known.items()}
    track: Track = declaration_of(known | {"num_classes": 0})
    return track.count_classes()


def help_of(*, _root_: DictConfig) -> str:
    """Hydra's template of --help with the command's help text; dollar signs are escaped."""
    return help_text(str(OmegaConf.select(_root_, "hydra.job.config_name")), _root_).replace("$", "$$")


def scratch() -> str:
    """A folder that goes with this process: Hydra writes a sweep's composed config somewhere."""
    return _scratch().name


@lru_cache(maxsize=1)
def _scratch() -> TemporaryDirectory[str]:
    return TemporaryDirectory(prefix="urepa_sweep_")


def _run_config(root: DictConfig) -> DictConfig:
    """The composed config or, for a command with `run=`, the config of that run."""
    if "objective" in root:
        return root
    if root.run is None:
        raise UserError("say which run: python -m urepa.evaluate run=outputs/NAME/seed0")
    file = Path(root.run) / "config.yaml"
    return _stored_config(root.run, file.stat().st_mtime_ns if file.is_file() else None)


@lru_cache(maxsize=1)
def _stored_config(run: str, age: int | None) -> DictConfig:
    """The stored config of a run, read once for all resolvers."""
    return OmegaConf.create(require_config(Path(run)))
