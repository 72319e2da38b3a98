"""Stored configs in the present form: one function that every reader of a stored config calls, and one for the facts of
a finished run, which hold the settings of its evaluations.

A stored config holds the number of its form as `schema`; the first form had none. Each step below takes a config from
one form to the next: a key that did not exist yet gets the value that means what the code did then, so a run of an
earlier version goes on, is evaluated and is compared as what it is. A step leaves the present form as it is: what a
finished run was evaluated with has no number, and every step is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from urepa.core.errors import UserError
from urepa.core.nested_dicts import flatten

KEY = "schema"
SCHEMA_TAG = "urepa.schema"  # of an MLflow run: its parameters cannot be changed, a tag can


def _to_1(config: dict[str, Any]) -> None:
    """The averages of the weights had no warm-up, transformers' resampling of positions was the only one, and a small
    track left no image out."""
    if isinstance(config.get("trainer"), dict):
        config["trainer"].setdefault("ema_warmup", False)
    for part in _parts(config):
        if part["_target_"] == "urepa.teachers.vit.ViT":
            part.setdefault("positions", _earlier_positions(part))
        elif part["_target_"] == "urepa.data.pixels.PixelTrack":
            part.setdefault("max_skipped", 0.0)


def _to_2(config: dict[str, Any]) -> None:
    """EfficientNet's last map was the only one, and so were a SiT's fixed positions."""
    for part in _parts(config):
        if part["_target_"] == "urepa.teachers.efficientnet.EfficientNetLite0":
            part.setdefault("stride", 32)
        elif part["_target_"] == "urepa.backbones.sit.sit":
            part.setdefault("positions", "sincos")


PLACES = {  # modules of the parts of a config before the package had rooms, and since
    "urepa.alignment": "urepa.method.training_step",
    "urepa.backbones.sd15": "urepa.models.backbones.sd15",
    "urepa.backbones.sit": "urepa.models.backbones.sit",
    "urepa.backbones.unet": "urepa.models.backbones.unet",
    "urepa.data.latents": "urepa.data.tracks.latents",
    "urepa.data.pixels": "urepa.data.tracks.pixels",
    "urepa.evaluation.alignment": "urepa.evaluation.teacher_agreement",
    "urepa.evaluation.dense": "urepa.evaluation.segmentation",
    "urepa.evaluation.generated": "urepa.evaluation.generated_images",
    "urepa.evaluation.generation": "urepa.evaluation.image_distances",
    "urepa.evaluation.probe": "urepa.evaluation.probes",
    "urepa.evaluation.samples": "urepa.evaluation.sample_grid",
    "urepa.evaluation.spatial": "urepa.evaluation.spatial_structure",
    "urepa.heads": "urepa.models.heads",
    "urepa.lora": "urepa.models.lora",
    "urepa.objectives": "urepa.method.objectives",
    "urepa.optimizer": "urepa.training.optimizer",
    "urepa.teachers.efficientnet": "urepa.models.teachers.efficientnet",
    "urepa.teachers.several": "urepa.models.teachers.several_teachers",
    "urepa.teachers.vit": "urepa.models.teachers.vit",
    "urepa.tracking": "urepa.runs.mlflow_sender",
}


def _to_3(config: dict[str, Any]) -> None:
    """The parts moved to other modules."""
    for part in _parts(config):
        module, _, name = str(part["_target_"]).rpartition(".")
        if module in PLACES:
            part["_target_"] = f"{PLACES[module]}.{name}"


HEADS = {  # declarations of heads, for the networks that a config named
    "ConvHead": "conv.Conv",
    "SpatialHead": "spatial.Spatial",
    "HiddenSpatialHead": "hidden_spatial.HiddenSpatial",
    "MLPHead": "mlp.MLP",
    "TimeMLPHead": "time_mlp.TimeMLP",
}


OBJECTIVES = {"DDPMEpsilon": "ddpm_epsilon", "DDPMVelocity": "ddpm_velocity", "Flow": "flow"}  # files of declarations
EFFICIENTNETS = {"EfficientNetLite0": "efficientnet_lite0", "EfficientNetLite2": "efficientnet_lite2"}


def _to_4(config: dict[str, Any]) -> None:
    """Heads, teachers and objectives are declared: a config names their settings, which build them."""
    for part in _parts(config):
        module, _, name = str(part["_target_"]).rpartition(".")
        if module == "urepa.models.heads" and name in HEADS:
            part["_target_"] = f"urepa.method.heads.{HEADS[name]}"
            part.pop("_partial_", None)
        elif module == "urepa.method.objectives" and name in OBJECTIVES:
            part["_target_"] = f"{module}.{OBJECTIVES[name]}.{name}"
        elif module == "urepa.models.teachers.efficientnet" and name in EFFICIENTNETS:
            part["_target_"] = f"urepa.models.teachers.{EFFICIENTNETS[name]}.{name}"


DECLARED: dict[str, str] = {  # declarations, for the functions and classes that a config named
    # backbones and LoRA
    "urepa.models.backbones.sd15.sd15": "urepa.models.backbones.sd15.SD15",
    "urepa.models.backbones.sit.sit": "urepa.models.backbones.sit.SiT",
    "urepa.models.backbones.unet.tiny_unet": "urepa.models.backbones.tiny_unet.TinyUNet",
    "urepa.models.lora.add_lora": "urepa.models.lora.adapters.LoRA",
    "urepa.models.lora.no_lora": "urepa.models.lora.no_lora.NoLoRA",
    # losses
    "urepa.method.training_step.AlignmentLoss": "urepa.method.losses.urepa_loss.URepaLoss",
    "urepa.method.training_step.DiffusionOnly": "urepa.method.losses.no_loss.NoLoss",
    # tracks, optimisers, trackers
    "urepa.data.tracks.pixels.PixelTrack": "urepa.data.tracks.pixel_track.PixelTrack",
    "urepa.data.tracks.latents.LatentTrack": "urepa.data.tracks.latent_track.LatentTrack",
    "urepa.training.optimizer.AdamW": "urepa.training.optimizers.adamw.AdamW",
    "urepa.runs.mlflow_sender.MLflowShipper": "urepa.runs.trackers.mlflow.MLflow",
    "urepa.runs.mlflow_sender.NoShipper": "urepa.runs.trackers.no_tracking.NoTracking",
    # evaluations, images, encoders
    "urepa.evaluation.sample_grid.SampleGrid": "urepa.evaluation.measures.sample_grid.SampleGrid",
    "urepa.evaluation.probes.TapProbe": "urepa.evaluation.measures.tap_probe.TapProbe",
    "urepa.evaluation.probes.Knn": "urepa.evaluation.measures.knn.Knn",
    "urepa.evaluation.probes.LinearProbe": "urepa.evaluation.measures.linear_probe.LinearProbe",
    "urepa.evaluation.teacher_agreement.Alignment": "urepa.evaluation.measures.teacher_alignment.TeacherAlignment",
    "urepa.evaluation.image_distances.Generation": "urepa.evaluation.measures.generation.Generation",
    "urepa.evaluation.image_distances.InceptionScore": "urepa.evaluation.measures.inception_score.InceptionScore",
    "urepa.evaluation.clip_score.ClipScore": "urepa.evaluation.measures.clip_score.ClipScore",
    "urepa.evaluation.spatial_structure.Spatial": "urepa.evaluation.measures.spatial.Spatial",
    "urepa.evaluation.segmentation.Dense": "urepa.evaluation.measures.dense.Dense",
    "urepa.evaluation.generated_images.GeneratedImages": "urepa.evaluation.images.generated_images.GeneratedImages",
    "urepa.evaluation.encoders.Pixels": "urepa.evaluation.encoders.pixels.Pixels",
    "urepa.evaluation.cifar_cnn.CifarCNN": "urepa.evaluation.encoders.cifar_cnn.CifarCNN",
    "urepa.evaluation.encoders.Inception": "urepa.evaluation.encoders.inception.Inception",
}


def _to_5(config: dict[str, Any]) -> None:
    """The parts of all other kinds are declared too. λ stayed at its peak."""
    for part in _parts(config):
        target = str(part["_target_"])  # a stranger's may be anything
        if target in DECLARED:
            part["_target_"] = DECLARED[target]
            part.pop("_partial_", None)
    if "loss" in config:
        config.setdefault("schedule", {"_target_": "urepa.method.schedules.constant.Constant"})


SHAPES = ("urepa.method.schedules.constant.Constant", "urepa.method.schedules.cosine.Cosine")


def _to_6(config: dict[str, Any]) -> None:
    """Images of a small track were squares alone, and had classes and no captions. The step from which on λ is 0 was a
    key of the loss, and a decay of λ lasted to the run's end."""
    for part in _parts(config):
        if part["_target_"] == "urepa.data.tracks.pixel_track.PixelTrack":
            for key in ("buckets", "captions", "text_encoder"):
                part.setdefault(key, None)
    loss, schedule = config.get("loss"), config.get("schedule")
    stop = loss.pop("stop_step", None) if isinstance(loss, dict) else None
    if not isinstance(schedule, dict):
        return
    target = schedule.get("_target_")
    if target in SHAPES or str(stop) != "None":  # MLflow has null as text
        schedule.setdefault("stop_step", stop)
    if target == SHAPES[1]:
        schedule.setdefault("decay_steps", None)


def _to_7(config: dict[str, Any]) -> None:
    """Images of a latent track were squares alone, and had classes and no captions. Captions lay beside the images of a
    folder, and no column was named."""
    for part in _parts(config):
        if part["_target_"] == "urepa.data.tracks.latent_track.LatentTrack":
            for key in ("buckets", "captions", "text_encoder", "caption_column"):
                part.setdefault(key, None)
        elif part["_target_"] == "urepa.data.tracks.pixel_track.PixelTrack":
            part.setdefault("caption_column", None)


def _earlier_positions(vit: dict[str, Any]) -> str | None:
    """The rule by which an earlier version resampled DINOv2's positions: transformers'; at 37 patches a side there was
    nothing to resample, which is `meta` now."""
    if vit.get("family") != "dinov2":
        return None
    native = str(vit.get("image_size")) == "518" and str(vit.get("patch")) == "14"  # MLflow has numbers as text
    return "meta" if native else "transformers"


STEPS: tuple[Callable[[dict[str, Any]], None], ...] = (_to_1, _to_2, _to_3, _to_4, _to_5, _to_6, _to_7)
SCHEMA = len(STEPS)


def add_schema_number(config: dict[str, Any]) -> dict[str, Any]:
    """A composed config as it is stored, with the number of its schema."""
    return {KEY: SCHEMA} | config


def upgrade(config: dict[str, Any]) -> dict[str, Any]:
    """A stored config as this version composes one. UserError for one that a later version stored."""
    number = _check(config)
    upgraded = _copy({key: value for key, value in config.items() if key != KEY})
    for step in STEPS[number:]:
        step(upgraded)
    return dict(upgraded)


def _check(config: dict[str, Any]) -> int:
    """The number of a stored config's form."""
    number = config.get(KEY, 0)
    if not isinstance(number, int) or not 0 <= number <= SCHEMA:
        raise UserError(f"this config has {KEY}: {number}, which this version of urepa cannot read; use a later one")
    return number


def upgrade_flat(parameters: dict[str, str], number: int) -> dict[str, str]:
    """The same for the parameters of an MLflow run: dotted keys, all values as text. `number` is of the last version
    that wrote there. What stood there before it stays as it was, for a parameter cannot be changed, so every step is
    taken."""
    nested: dict[str, Any] = {KEY: number}
    for key, value in parameters.items():
        *groups, name = key.split(".")
        place = nested
        for group in groups:
            place = place.setdefault(group, {})
            if not isinstance(place, dict):
                return parameters  # another program's: a key that is a value and a group at once
        place[name] = value
    _check(nested)
    return {key: str(value) for key, value in flatten(upgrade(nested | {KEY: 0})).items()}


def upgrade_facts(facts: dict[str, Any]) -> dict[str, Any]:
    """A summary's facts (`urepa.runs.facts_of`) with the settings of its evaluations as this version has them. They
    have no number of their own: each evaluation is of the version that did it, which need not be the one that trained
    the run. So every step is taken, and leaves as it is what a later version wrote."""
    if "evaluation" not in facts:
        return facts
    return facts | upgrade({"evaluation": facts["evaluation"]})


def _copy(config: Any) -> Any:
    if isinstance(config, dict):
        return {key: _copy(value) for key, value in config.items()}
    return [_copy(value) for value in config] if isinstance(config, list) else config


def _parts(config: Any) -> Iterator[dict[str, Any]]:
    """Every mapping with a `_target_`, at any depth."""
    if isinstance(config, dict):
        if "_target_" in config:
            yield config
        for value in list(config.values()):
            yield from _parts(value)
