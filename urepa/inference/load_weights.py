"""Finds and opens the model of a request for images: a run's newest checkpoint, or published weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from urepa.config.declared import declaration_of
from urepa.core.backbone_protocols import WeightsKind
from urepa.core.errors import UserError
from urepa.core.hashing import file_sha256
from urepa.core.nested_dicts import flatten, replace_value
from urepa.core.part_names import CLS
from urepa.core.track_protocols import Track, condition_widths
from urepa.data.image_statistics import EXPORTED as IMAGE_STATISTICS
from urepa.data.image_statistics import ImageStatistics
from urepa.inference.open_run import OpenedRun, given_places, open_base, relocate
from urepa.inference.published_weights import Published, find
from urepa.method.training_step import AlignedModel
from urepa.runs import checkpoint
from urepa.runs.run_folder import require_config
from urepa.runs.summary import end_step, read_summary
from urepa.training.assembly import build_backbone, build_part

# settings composed for published weights that a request does not record: paths, and what it records under other keys
NOT_OF_IMAGES = ("_target_", "weights", "prompts", "gradient_checkpointing", "draw")


class Origin(Protocol):
    """A model that generates images, found but not opened."""

    @property
    def config(self) -> dict[str, Any]:
        """The model's config."""

    @property
    def label(self) -> str:
        """The model's label in the grid."""

    @property
    def warning(self) -> str | None:
        """A warning that the user should see, or None."""

    @property
    def folder(self) -> tuple[Path, list[str]]:
        """The default parent of requests' folders, and the first parts of their names."""

    @property
    def weights(self) -> dict[str, Any]:
        """The properties of the weights on which images depend, as a request records them."""

    def open_base(self, device: torch.device) -> OpenedRun:
        """Opens the base model, without the weights that were trained on it."""

    def open_tuned(self, device: torch.device, base: OpenedRun | None) -> OpenedRun:
        """Opens the model itself. If its base model is given, it is changed in place and must not be used again."""


@dataclass(frozen=True)
class RunWeights:
    """The EMA weights of a run's newest valid checkpoint."""

    run: Path
    config: dict[str, Any]
    places: dict[str, str]
    found: checkpoint.Checkpoint

    @property
    def label(self) -> str:
        return f"step {self.found.step}"

    @property
    def warning(self) -> str | None:
        end = end_step(read_summary(self.run), self.config["trainer"]["max_steps"])
        done = f"{self.run} has {self.found.step} of {end} steps; these are images of that step"
        return done if self.found.step < end else None

    @property
    def folder(self) -> tuple[Path, list[str]]:
        return self.run / "generated", [f"step_{self.found.step:08d}"]

    @property
    def weights(self) -> dict[str, Any]:
        return {"step": self.found.step, "weights": self.found.state["files"]["ema.safetensors"]}

    def open_base(self, device: torch.device) -> OpenedRun:
        return open_base(self.run, device, self.places)

    def open_tuned(self, device: torch.device, base: OpenedRun | None) -> OpenedRun:
        opened = self.open_base(device) if base is None else base
        opened.load_ema(self.found)
        return opened


@dataclass(frozen=True)
class PublishedModel:
    """Published weights, and the config of the model to which they belong."""

    published: Published
    config: dict[str, Any]

    warning = None

    @property
    def label(self) -> str:
        return self.published.name

    @property
    def folder(self) -> tuple[Path, list[str]]:
        return Path("generated") / f"{self.published.name}-{self.published.digest[:8]}", []

    @property
    def weights(self) -> dict[str, Any]:
        parts = {part: self.config[part] for part in ("backbone", "objective")}
        track: Track = declaration_of(self.config["data"])
        shapes = {key: value for key, value in self.config["data"].items() if key in track.of_images}
        settings = flatten(parts | {"data": shapes}).items()
        kept = {k: v for k, v in settings if k.rpartition(".")[2] not in NOT_OF_IMAGES}
        target = {"objective": self.config["objective"]["_target_"].rpartition(".")[2]}
        file = self._statistics_file
        statistics = {} if file is None else {"image_statistics": file_sha256(file)}
        return {"weights": self.published.digest} | statistics | target | kept

    @property
    def _statistics_file(self) -> Path | None:
        """An export's statistics of image tokens; None without them."""
        file = self.published.folder / IMAGE_STATISTICS
        return file if CLS in condition_widths(declaration_of(self.config["data"])) and file.is_file() else None

    def open_base(self, device: torch.device) -> OpenedRun:
        return self._open_backbone(self.config, device)

    def open_tuned(self, device: torch.device, base: OpenedRun | None) -> OpenedRun:
        kind, path = self.published.kind, self.published.path
        if kind == WeightsKind.backbone:
            return self._open_backbone(replace_value(self.config, "backbone.weights", str(path)), device)
        opened = self.open_base(device) if base is None else base
        backbone: Any = opened.model.backbone
        if kind == WeightsKind.lora:
            backbone.load_adapters(self.published.files[0])
            opened.model.to(device).eval().requires_grad_(False)
        else:
            values = backbone.read_values(self.published.files)
            checkpoint.load_named(dict(backbone.named_parameters()), values, str(path))
        return opened

    def _open_backbone(self, config: dict[str, Any], device: torch.device) -> OpenedRun:
        """Opens the composed backbone, without LoRA or heads."""
        objective, track = build_part(config["objective"]), build_part(config["data"])
        model = AlignedModel(build_backbone(config, track), {})
        declared: Track = declaration_of(config["data"])
        known: dict[str, Any] = {"buckets": declared.bucket_names}
        if (file := self._statistics_file) is not None:
            known["image_statistics"] = ImageStatistics.read(file, condition_widths(declared)[CLS])
        return OpenedRun(self.published.path, 0, config, model, objective, track, device, **known)


def config_of(asked: dict[str, Any]) -> dict[str, Any]:
    """The config of a request's model, with the original paths of its files."""
    config = require_config(Path(asked["run"])) if asked["checkpoint"] is None else asked["config"]
    return dict(config)


def find_origin(asked: dict[str, Any]) -> Origin:
    """Finds the model of a request (`urepa.config.command_schemas.Images`). Raises UserError if it cannot be opened."""
    if asked["checkpoint"] is None:
        run, places = Path(asked["run"]), given_places(asked)
        found = checkpoint.require(run)
        return RunWeights(run, relocate(config_of(asked), places), places, found)
    config = asked["config"]
    published = find(asked["checkpoint"], config)
    has_base = declaration_of(config["backbone"]).base is not None
    if asked["against"] is not None and not has_base:
        raise UserError("against=base: the checkpoint has all weights of the backbone, so there is no base model")
    if published.kind == WeightsKind.lora and not has_base:
        raise UserError("a LoRA needs the base weights on which it was trained: give backbone.weights=...")
    if published.kind == WeightsKind.backbone and "backbone.weights" in asked["given"] and asked["against"] is None:
        raise UserError("backbone.weights has no effect beside all weights of a backbone; drop it, or add against=base")
    return PublishedModel(published, config)
