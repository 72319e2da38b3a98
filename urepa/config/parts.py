"""The parts that a config may name as a `_target_`, by kind, each with the name by which conf/*.yaml refer to its
schema.

A kind with a package has one declaration in each of its files, with the file's name; a new file is found without being
listed. Subfolders are not searched. The parts of other kinds are listed here.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import cache
from importlib import import_module
from typing import Any

from urepa.core.backbone_protocols import Backbone, LoRA
from urepa.core.declared_keys import keys_of
from urepa.core.evaluation_protocols import Encoder, Evaluation, Images
from urepa.core.protocols import Head, Loss, Objective, OneTeacher, Schedule
from urepa.core.run_protocols import Optimizer, StopRule, Tracker
from urepa.core.term_protocols import Term
from urepa.core.text_protocols import TextEncoder
from urepa.core.track_protocols import Track

PACKAGES = {
    "backbone": "urepa.models.backbones",
    "lora": "urepa.models.lora",
    "head": "urepa.method.heads",
    "teacher": "urepa.models.teachers",
    "objective": "urepa.method.objectives",
    "loss": "urepa.method.losses",
    "term": "urepa.method.terms",
    "schedule": "urepa.method.schedules",
    "data": "urepa.data.tracks",
    "optimizer": "urepa.training.optimizers",
    "stop_when": "urepa.training.stop_rules",
    "tracking": "urepa.runs.trackers",
    "evaluation": "urepa.evaluation.measures",
    "images": "urepa.evaluation.images",
    "encoder": "urepa.evaluation.encoders",
    "text_encoder": "urepa.models.text_encoders",
}
# members that a declaration of a kind has besides its settings
PROTOCOLS: dict[str, type] = {
    "backbone": Backbone,
    "lora": LoRA,
    "head": Head,
    "teacher": OneTeacher,
    "objective": Objective,
    "loss": Loss,
    "term": Term,
    "schedule": Schedule,
    "data": Track,
    "optimizer": Optimizer,
    "stop_when": StopRule,
    "tracking": Tracker,
    "evaluation": Evaluation,
    "images": Images,
    "encoder": Encoder,
    "text_encoder": TextEncoder,
}
# endings of files without a declaration: they have what declarations build, which imports torch, or shared code
NETWORKS = ("_net", "_math", "_sizes", "_caches", "_sender")


@cache
def declarations(package: str) -> dict[str, type]:
    """The declarations in a package's files, by file name: the dataclass whose `_target_` is its own dotted name.
    Asserts that each file has exactly one."""
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
    """The dotted names of a package's files that have no declaration."""
    return [f"{package}.{f.name}" for f in pkgutil.iter_modules(import_module(package).__path__) if is_network(f.name)]


def target_of(schema: type) -> str:
    """The `_target_` by which a config names the part."""
    return str(next(f.default for f in fields(schema) if f.name == "_target_"))


def family_of(backbone: dict[str, Any]) -> str:
    """The family of a declared backbone, from its settings: "sd15", "sit", "tiny_unet", or a user's own."""
    declared: Any = SCHEMAS[backbone["_target_"]]
    return str(declared.family)


def is_network(file: str) -> bool:
    return file.endswith(NETWORKS)


def _names_itself(cls: type, module: str) -> bool:
    return cls.__module__ == module and is_dataclass(cls) and target_of(cls) == f"{module}.{cls.__qualname__}"


KINDS: dict[str, dict[str, type]] = {
    **{kind: declarations(package) for kind, package in PACKAGES.items()},
}
SCHEMAS = {target_of(schema): schema for schemas in KINDS.values() for schema in schemas.values()}


def parts_of(config: Any, place: str = "") -> Iterator[tuple[str, dict[str, Any], type]]:
    """The place, settings and schema of each declared part of a config, followed by its nested parts."""
    if not isinstance(config, dict):
        return
    target = config.get("_target_")
    if isinstance(target, str) and target in SCHEMAS:
        yield place, config, SCHEMAS[target]
    for name, value in config.items():
        yield from parts_of(value, f"{place}.{name}" if place else str(name))


def settings_that_are(is_a: str, config: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """The settings of a config's parts that are declared with this `is_a` (TAP, TIME and so on of
    `urepa.core.declared_keys`), by dotted key; null values are left out."""
    for part_place, part, schema in parts_of(config, place):
        for key in keys_of(schema):
            if key.is_a == is_a and part.get(key.name) is not None:
                yield f"{part_place}.{key.name}", part[key.name]
