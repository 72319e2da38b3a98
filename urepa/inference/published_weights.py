"""Published weights on the local disk: their kind, their files, and whether the scheduler or the config beside them
agrees with the composed config. Does not import torch."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from urepa.config.conf_options import settings_of
from urepa.config.declared import declaration_of
from urepa.config.override_text import as_typed
from urepa.config.parts import KINDS, target_of
from urepa.config.ranges import check_numbers
from urepa.core.backbone_protocols import Backbone, WeightsKind
from urepa.core.declared_keys import keys_of
from urepa.core.errors import UserError
from urepa.core.files import read_json
from urepa.core.hub_names import ensure_local, hub_file
from urepa.runs.run_folder import parse_overrides
from urepa.runs.stored_config import read_plain
from urepa.runs.upgrades import upgrade

# The parts of a config that describe the model of the weights; the rest of a training has no effect on their images.
OF_WEIGHTS = ("experiment", "backbone", "objective", "data", "trainer.threads")
OF_DATA = (
    "data.root",  # of the prompts
    "data.prompts",
    "data.vae",
    "data.latent_shape",
    "data.image_size",
    "data.buckets",
    "data.channels",
    "data.unshuffle",
    "data.scale",
    "data.num_classes",
    "data.class_names",
    "data.captions",
    "data.text_encoder",
    "data.image_encoder",
    "data.patch_statistics",
)
# diffusers' defaults, for settings that scheduler_config.json leaves out
SCHEDULER: dict[str, Any] = {
    "prediction_type": "epsilon",
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "num_train_timesteps": 1000,
}


@dataclass(frozen=True)
class Published:
    """Published weights: their kind, path and content."""

    kind: WeightsKind
    path: Path  # as the user gave it
    files: tuple[Path, ...]  # the files that are read
    digest: str  # SHA-256

    @property
    def name(self) -> str:
        """The name in messages and folder names: the given path's, not that of the hub cache's file behind it."""
        return Path(os.path.abspath(self.path)).name

    @property
    def folder(self) -> Path:
        """The folder with the files beside the weights."""
        return folder_of(self.path)


def folder_of(path: Path) -> Path:
    """The folder with the files beside the weights at a path: its own, or the one above a U-Net's."""
    return path.parent if path.is_file() or path.name == "unet" else path


def has_effect(override: str) -> bool:
    """Whether this key describes the model of the weights."""
    key = override.replace("/", ".")
    if key.startswith("data."):
        return key in OF_DATA or key.startswith(("data.text_encoder.", "data.image_encoder."))
    return any(key == k or key.startswith(f"{k}.") for k in OF_WEIGHTS)


def training_command(experiment: str, overrides: tuple[str, ...]) -> list[str]:
    """The part of a run's command that composes the model of its weights again. `overrides`: without quotes."""
    first = [] if experiment == "quickstart" else [f"+experiment={experiment}"]
    return first + [as_typed(o) for o in overrides if has_effect(next(iter(parse_overrides([o]))))]


def check_name(name: str) -> None:
    """Raises UserError if the name is neither a local path nor a file on the hub."""
    if hub_file(name) is None and not Path(name).exists():
        raise UserError(f"checkpoint={name} is not there; give a path, or a file on the hub as OWNER/NAME/FILE")


def find(name: str, config: dict[str, Any]) -> Published:
    """The weights of `checkpoint=name`. Raises UserError if they do not fit the config's backbone or objective."""
    path = ensure_local(name, "checkpoint")
    backbone: Backbone = declaration_of(config["backbone"])
    found = backbone.find_weights(path)
    beside = folder_of(path)
    scheduler, exported = beside / "scheduler" / "scheduler_config.json", beside / "config.yaml"
    if scheduler.is_file():
        check_scheduler(scheduler, config["objective"])
    if exported.is_file():
        check_export_config(exported, config["objective"])
    return Published(found.kind, path, found.files, digest_of(found.files))


def digest_of(files: Sequence[Path]) -> str:
    """SHA-256 of a file, or of several files' names and digests."""
    digests = {}
    for path in files:
        with open(path, "rb") as file:
            digests[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    if len(digests) == 1:
        return next(iter(digests.values()))
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()


def check_scheduler(file: Path, objective: dict[str, Any]) -> None:
    """Raises UserError if the weights were trained with another target or other betas than the composed ones."""
    stored = SCHEDULER | read_json(file)
    there, here = {key: stored[key] for key in SCHEDULER}, scheduler_of(objective)
    differing = [f"{key} {there[key]}, here {here[key]}" for key in there if there[key] != here[key]]
    if not differing:
        return

    def changes(option: dict[str, Any]) -> dict[str, Any] | None:
        ours, names = scheduler_of(option), objectives()[option["_target_"]].scheduler
        other = [key for key in there if ours[key] != there[key]]
        return {names[key]: there[key] for key in other} if names.keys() >= set(other) else None

    raise UserError(f"{file} says {'; '.join(differing)}: {objective_advice(changes)}")


def objectives() -> dict[str, Any]:
    """The declared objectives, the user's own among them, by their `_target_`."""
    return {target_of(declared): declared for declared in KINDS["objective"].values()}


def scheduler_of(objective: dict[str, Any]) -> dict[str, Any]:
    """The settings of the objective's diffusers scheduler, by diffusers' names; None where there is none."""
    declared = objectives()[objective["_target_"]]
    values = {key: objective.get(name, getattr(declared, name, None)) for key, name in declared.scheduler.items()}
    return dict.fromkeys(SCHEDULER) | values | {"prediction_type": declared.prediction_type}


def objective_advice(changes: Callable[[dict[str, Any]], dict[str, Any] | None]) -> str:
    """The overrides that compose the weights' objective, for an error message: of all options, the one with the fewest
    changed settings. `changes` returns the settings to change in an option; None: it cannot be that objective."""
    offered: list[list[str]] = []
    for option, settings in settings_of("objective").items():
        changed = changes(settings) if settings.get("_target_") in objectives() else None
        if changed is not None and is_possible(settings | changed):
            offered.append([f"objective={option}", *(f"objective.{key}={value}" for key, value in changed.items())])
    offered.sort(key=len)
    return f"give {' '.join(offered[0])}" if offered else "no available objective has these settings"


def is_possible(objective: dict[str, Any]) -> bool:
    """Whether the objective has these settings, and their values are valid."""
    try:
        OmegaConf.merge(OmegaConf.structured(objectives()[objective["_target_"]]), objective)
        check_numbers({"objective": objective})
    except (UserError, OmegaConfBaseException):
        return False
    return True


def check_export_config(file: Path, objective: dict[str, Any]) -> None:
    """The same check with an export's config, because a flow has no scheduler. A config.yaml that is not an export's is
    ignored, and so is the draw of training times, which does not affect images."""
    try:
        stored = read_plain(file)
    except UserError as error:
        raise UserError(f"{error}; it is beside the weights: copy it again or move it away") from None
    there = stored.get("objective") if isinstance(stored, dict) else None
    target = str(there.get("_target_")) if isinstance(there, dict) else ""
    if (
        not target.startswith("urepa.") and target not in objectives()
    ):  # a declared one may be of the user's own package
        return
    there = upgrade(stored)["objective"]
    declared = objectives().get(there["_target_"])  # an untrusted name: nothing is imported from it
    names = [] if declared is None else [k.name for k in keys_of(declared) if k.name not in declared.training_only]
    keys = names if there["_target_"] == objective["_target_"] else ["_target_"]
    differing = [
        f"objective.{k}={there.get(k)}, here {objective.get(k)}" for k in keys if there.get(k) != objective.get(k)
    ]
    if not differing:
        return

    def changes(option: dict[str, Any]) -> dict[str, Any] | None:
        is_same = option["_target_"] == there["_target_"]
        return {k: there.get(k) for k in names if there.get(k) != option.get(k)} if is_same else None

    raise UserError(f"{file} says {'; '.join(differing)}: {objective_advice(changes)}")
