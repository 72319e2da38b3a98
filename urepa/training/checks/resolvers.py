"""Resolvers for values that follow from the rest of a config: names of run folders, the classes of an image folder, and
the defaults of evaluations."""

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
from urepa.method.self_alignment import own_states
from urepa.runs.run_folder import RunFolder, find_name, no_run, require_config, to_plain


def register() -> None:
    """Registers the resolvers of conf/*.yaml: `${run_name:}`, `${aligned_tap:}`, `${own_teacher:}`, `${data_root:}`,
    `${time_at:0.5}`, `${class_folders:}`, `${help:}` and `${scratch:}`."""
    for resolver in (run_name_of, aligned_tap, own_teacher, data_root, time_at, class_folders, help_of, scratch):
        OmegaConf.register_new_resolver(resolver.__name__.removesuffix("_of"), resolver, replace=True)


def run_name_of(*, _root_: DictConfig) -> str:
    """The name of a run's folder below outputs/."""
    overrides = list(OmegaConf.select(_root_, "hydra.overrides.task") or [])
    resume = OmegaConf.select(_root_, "resume")
    if resume is not None and not (Path(resume) / "config.yaml").is_file():
        raise UserError(no_run("resume", Path(resume)))
    return find_name(overrides, int(OmegaConf.select(_root_, "seed")))


def aligned_tap(*, _root_: DictConfig) -> str:
    """The tap that the run aligns; the first of several. Raises UserError if there is none."""
    taps = _taps(_run_config(_root_)) or own_states(_loss(_run_config(_root_))).taps
    if not taps:
        raise UserError(
            "loss=none aligns no tap: give the tap to evaluate, evaluation.NAME.tap=TAP, as in the aligned run"
        )
    return str(next(iter(taps)))


def own_teacher(*, _root_: DictConfig) -> Any:
    """The teacher to which the run aligns; the first of several. Raises UserError if there is none."""
    run = _run_config(_root_)
    if not _taps(run):
        raise UserError(
            "this loss has no teacher: give an encoder as upper reference, +teacher@evaluation.dense.teacher=NAME as "
            "in the aligned run, or none, evaluation.dense.teacher=null"
        )
    teacher: Any = OmegaConf.to_container(run.teacher, resolve=True, enum_to_str=True)
    return next(iter(teacher["teachers"].values())) if "teachers" in teacher else teacher


def _taps(run: DictConfig) -> Mapping[str, float]:
    return _loss(run).taps


def _loss(run: DictConfig) -> Loss:
    loss: Loss = declaration_of(to_plain(run.loss))
    return loss


def data_root(*, _root_: DictConfig, _parent_: DictConfig) -> str:
    """The folder of the run's track; in an evaluation on the data of another run, that of the other run's track.
    `urepa.evaluate` replaces the own one if the track has moved since the training."""
    if (other := _other_run(_root_, _parent_)) is not None:
        stored = RunFolder(Path(other)).stored_config()
        return other if stored is None else str(stored["data"]["root"])  # the evaluation's check says what is missing
    config = _root_ if "teacher" in _root_ else _run_config(_root_)  # commands that make caches have no objective
    return str(OmegaConf.select(config, "data.root"))


def _other_run(root: DictConfig, node: DictConfig) -> str | None:
    """The run on whose data the evaluation around a node is made; None if there is no such evaluation or run."""
    above, nested, _ = str(node._get_full_key(None)).partition(".evaluations.")  # OmegaConf has no public name for it
    run = OmegaConf.select(root, f"{above}.run") if nested else None
    return None if run is None else str(run)


def time_at(fraction: float, *, _root_: DictConfig) -> float:
    """The objective's time at a share of the way from data to noise: `time_at:0.5` is 500 of DDPM's 1,000."""
    objective: Objective = declaration_of(to_plain(_run_config(_root_).objective))
    return objective.time_at(fraction)


def class_folders(*, _parent_: DictConfig) -> int:
    """The number of classes of the images of a track. Raises UserError if nothing tells."""
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
    """Hydra's template of --help with the command's help text, with escaped dollar signs."""
    return help_text(str(OmegaConf.select(_root_, "hydra.job.config_name")), _root_).replace("$", "$$")


def scratch() -> str:
    """A folder that is deleted with this process, into which Hydra writes a sweep's composed config."""
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
