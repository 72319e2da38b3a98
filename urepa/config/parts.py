"""The parts that a config may name as a `_target_`, by kind, each under the name that conf/*.yaml start from it with.

A kind that has a package has a declaration in each of its files, under the file's name; what is found there is all
there is to add. Folders inside it are not looked at. The other kinds are listed.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import cache
from importlib import import_module
from typing import Any

from urepa.config import evaluation_schemas, part_schemas
from urepa.core.protocols import Evaluation, Head, Objective, OneTeacher

PACKAGES = {
    "head": "urepa.method.heads",
    "teacher": "urepa.models.teachers",
    "objective": "urepa.method.objectives",
}
# what a declaration of a kind has beside its settings
PROTOCOLS: dict[str, type] = {"head": Head, "teacher": OneTeacher, "objective": Objective, "evaluation": Evaluation}
# at a file's end: it declares nothing, but has the networks or the mathematics of declarations, which import torch, or
# what both rest on
NETWORKS = ("_net", "_math", "_sizes")


@cache
def declarations(package: str) -> dict[str, type]:
    """The declarations of a package's files, by the files' names: in each, the dataclass whose `_target_` is its own
    dotted name. An AssertionError for a file that has none, or several."""
    found = {}
    for file in pkgutil.iter_modules(import_module(package).__path__):
        if not file.ispkg and not is_network(file.name):
            module = import_module(f"{package}.{file.name}")
            own = [
                cls for cls in vars(module).values() if isinstance(cls, type) and _names_itself(cls, module.__name__)
            ]
            assert len(own) == 1, f"{module.__name__} declares {len(own)} parts, not one"
            found[file.name] = own[0]
    return found


def networks(package: str) -> list[str]:
    """The dotted names of a package's files that are no declarations."""
    return [f"{package}.{f.name}" for f in pkgutil.iter_modules(import_module(package).__path__) if is_network(f.name)]


def target_of(schema: type) -> str:
    """What a config names to have the part."""
    return str(next(f.default for f in fields(schema) if f.name == "_target_"))


def is_network(file: str) -> bool:
    return file.endswith(NETWORKS)


def _names_itself(cls: type, module: str) -> bool:
    return cls.__module__ == module and is_dataclass(cls) and target_of(cls) == f"{module}.{cls.__qualname__}"


KINDS: dict[str, dict[str, type]] = {
    "backbone": {"tiny_unet": part_schemas.TinyUNet, "sd15": part_schemas.SD15, "sit": part_schemas.SiT},
    "lora": {"lora": part_schemas.LoRA, "no_lora": part_schemas.NoLoRA},
    **{kind: declarations(package) for kind, package in PACKAGES.items()},
    "loss": {"urepa_loss": part_schemas.URepaLoss, "no_loss": part_schemas.NoLoss},
    "data": {"pixel_track": part_schemas.PixelTrack, "latent_track": part_schemas.LatentTrack},
    "optimizer": {"adamw": part_schemas.AdamW},
    "tracking": {"mlflow": part_schemas.MLflow, "no_tracking": part_schemas.NoTracking},
    "evaluation": {
        "sample_grid": evaluation_schemas.SampleGrid,
        "tap_probe": evaluation_schemas.TapProbe,
        "knn": evaluation_schemas.Knn,
        "linear_probe": evaluation_schemas.LinearProbe,
        "teacher_alignment": evaluation_schemas.TeacherAlignment,
        "generation": evaluation_schemas.Generation,
        "inception_score": evaluation_schemas.InceptionScore,
        "clip_score": evaluation_schemas.ClipScore,
        "spatial": evaluation_schemas.Spatial,
        "dense": evaluation_schemas.Dense,
    },
    "images": {"generated_images": evaluation_schemas.GeneratedImages},
    "encoder": {
        "pixels": evaluation_schemas.Pixels,
        "cifar_cnn": evaluation_schemas.CifarCNN,
        "inception": evaluation_schemas.Inception,
    },
}
SCHEMAS = {target_of(schema): schema for schemas in KINDS.values() for schema in schemas.values()}


def parts_of(config: Any, place: str = "") -> Iterator[tuple[str, dict[str, Any], type]]:
    """Where each declared part of a config stands, its settings and its schema; the parts that it holds after it."""
    if not isinstance(config, dict):
        return
    target = config.get("_target_")
    if isinstance(target, str) and target in SCHEMAS:
        yield place, config, SCHEMAS[target]
    for name, value in config.items():
        yield from parts_of(value, f"{place}.{name}" if place else str(name))
