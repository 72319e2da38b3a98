"""Upgrades stored configs to the current form. Every reader of a stored config calls `upgrade`; readers of a finished
run's facts, which contain the settings of its evaluations, call `upgrade_facts`.

A stored config has the number of its form in the key `schema`; the first form had none. Each step below converts a
config from one form to the next. A key that did not exist before gets the value that means the earlier behaviour, so
that a run of an earlier version is resumed, evaluated and compared correctly. The settings of evaluations in facts have
no number, so all steps are applied to them; a step must therefore leave a config in the current form unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from urepa.core.declared_keys import MOVED
from urepa.core.errors import UserError
from urepa.core.nested_dicts import flatten

KEY = "schema"
SCHEMA_TAG = "urepa.schema"  # a tag of an MLflow run, because its parameters cannot be changed


def _to_1(config: dict[str, Any]) -> None:
    """Before: weight averages had no warm-up, positions were always resampled as in transformers, and a small track
    used all images."""
    if isinstance(config.get("trainer"), dict):
        config["trainer"].setdefault("ema_warmup", False)
    for part in _parts(config):
        if part["_target_"] == "urepa.teachers.vit.ViT":
            part.setdefault("positions", _earlier_positions(part))
        elif part["_target_"] == "urepa.data.pixels.PixelTrack":
            part.setdefault("max_skipped", 0.0)


def _to_2(config: dict[str, Any]) -> None:
    """Before: EfficientNet's features were always its last map, and a SiT's positions were always fixed."""
    for part in _parts(config):
        if part["_target_"] == "urepa.teachers.efficientnet.EfficientNetLite0":
            part.setdefault("stride", 32)
        elif part["_target_"] == "urepa.backbones.sit.sit":
            part.setdefault("positions", "sincos")


PLACES = {  # earlier and current modules of a config's parts
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
    """Before: the parts were in other modules."""
    for part in _parts(config):
        module, _, name = str(part["_target_"]).rpartition(".")
        if module in PLACES:
            part["_target_"] = f"{PLACES[module]}.{name}"


HEADS = {  # declarations of heads that replace the networks named in configs
    "ConvHead": "conv.Conv",
    "SpatialHead": "spatial.Spatial",
    "HiddenSpatialHead": "hidden_spatial.HiddenSpatial",
    "MLPHead": "mlp.MLP",
    "TimeMLPHead": "time_mlp.TimeMLP",
}


OBJECTIVES = {"DDPMEpsilon": "ddpm_epsilon", "DDPMVelocity": "ddpm_velocity", "Flow": "flow"}  # declarations
EFFICIENTNETS = {"EfficientNetLite0": "efficientnet_lite0", "EfficientNetLite2": "efficientnet_lite2"}


def _to_4(config: dict[str, Any]) -> None:
    """Before: configs named the networks of heads, teachers and objectives. Now they name the declarations that build
    them."""
    for part in _parts(config):
        module, _, name = str(part["_target_"]).rpartition(".")
        if module == "urepa.models.heads" and name in HEADS:
            part["_target_"] = f"urepa.method.heads.{HEADS[name]}"
            part.pop("_partial_", None)
        elif module == "urepa.method.objectives" and name in OBJECTIVES:
            part["_target_"] = f"{module}.{OBJECTIVES[name]}.{name}"
        elif module == "urepa.models.teachers.efficientnet" and name in EFFICIENTNETS:
            part["_target_"] = f"urepa.models.teachers.{EFFICIENTNETS[name]}.{name}"


DECLARED: dict[str, str] = {  # declarations that replace the functions and classes named in configs
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
    """Before: parts of the other kinds had no declarations, and λ stayed at its peak."""
    for part in _parts(config):
        target = str(part["_target_"])  # an untrusted config may contain any value
        if target in DECLARED:
            part["_target_"] = DECLARED[target]
            part.pop("_partial_", None)
    if "loss" in config:
        config.setdefault("schedule", {"_target_": "urepa.method.schedules.constant.Constant"})


SHAPES = ("urepa.method.schedules.constant.Constant", "urepa.method.schedules.cosine.Cosine")


def _to_6(config: dict[str, Any]) -> None:
    """Before: a small track had only square images with classes and without captions, the step from which λ is 0 was a
    key of the loss, and a decay of λ lasted until the end of the run."""
    for part in _parts(config):
        if part["_target_"] == "urepa.data.tracks.pixel_track.PixelTrack":
            for key in ("buckets", "captions", "text_encoder"):
                part.setdefault(key, None)
    loss, schedule = config.get("loss"), config.get("schedule")
    stop = loss.pop("stop_step", None) if isinstance(loss, dict) else None
    if not isinstance(schedule, dict):
        return
    target = schedule.get("_target_")
    if target in SHAPES or str(stop) != "None":  # MLflow stores null as text
        schedule.setdefault("stop_step", stop)
    if target == SHAPES[1]:
        schedule.setdefault("decay_steps", None)


def _to_7(config: dict[str, Any]) -> None:
    """Taps were compared on the teacher's grid, and the manifold loss had no diagonal. Images of a latent track were
    squares alone, had classes and no captions, and its teacher saw them. Captions lay beside the images of a folder,
    and no column was named. Adapters were plain LoRA. A CLIP's positions behind a caption's end never counted, and what
    stood for no caption was zeros."""
    added: dict[str, dict[str, Any]] = {
        "urepa.method.losses.urepa_loss.URepaLoss": {"grid": "teacher", "manifold_diagonal": False},
        "urepa.data.tracks.latent_track.LatentTrack": {
            **dict.fromkeys(("buckets", "captions", "text_encoder", "caption_column", "tae")),
            "teacher_sees": "images",
        },
        "urepa.data.tracks.pixel_track.PixelTrack": {"caption_column": None},
        "urepa.models.lora.adapters.LoRA": {"use_rslora": False, "use_dora": False},
        "urepa.models.text_encoders.clip_text.CLIPText": {"padding": "masked", "null_text": "zeros"},
    }
    for part in _parts(config):
        for key, value in added.get(str(part["_target_"]), {}).items():
            part.setdefault(key, value)


def _to_8(config: dict[str, Any]) -> None:
    """Captions were always read from their records, and Gemma's had no text before them. Conditions were classes or
    captions, never the image itself."""
    for part in _parts(config):
        if part["_target_"] in TRACKS:
            part.setdefault("online_text", False)
            part.setdefault("condition", "label")
        elif part["_target_"] == "urepa.models.text_encoders.gemma.Gemma":
            part.setdefault("before", None)


def _to_9(config: dict[str, Any]) -> None:
    """A FlexTok's MLPs always had four times the width, and all its registers had positions. Reconstructions were not
    compared in features. Conditions had no image tokens. A warm start was a folder, all of whose weights were taken.
    A teacher's tokens were always of unit length and without its class token, iREPA's head always had a 3x3 kernel,
    timesteps of a DDPM had equal weights, and updates with a spike happened."""
    for part in _parts(config):
        if part["_target_"] == "urepa.models.backbones.flextok.FlexTok":
            part.setdefault("mlp_ratio", 4.0)
            part.setdefault("norm_eps", 1e-6)
            part.setdefault("mask_positions", True)
        elif part["_target_"] == "urepa.evaluation.measures.reconstruction.Reconstruction":
            part.setdefault("encoders", {})
        elif part["_target_"] in TRACKS:
            part.setdefault("image_encoder", None)
            part.setdefault("dropout", {})
            part.setdefault("patch_statistics", "cls")
            part.setdefault("shuffle_patches", False)
    teachers, objectives = "urepa.models.teachers", "urepa.method.objectives"
    added: dict[str, dict[str, Any]] = {
        f"{teachers}.efficientnet_lite0.EfficientNetLite0": {"unit_length": True},
        f"{teachers}.efficientnet_lite2.EfficientNetLite2": {"unit_length": True},
        f"{teachers}.vit.ViT": {"unit_length": True, "cls_weight": 0.0},
        "urepa.method.heads.spatial.Spatial": {"kernel": 3},
        f"{objectives}.ddpm_epsilon.DDPMEpsilon": {"min_snr": None},
        f"{objectives}.ddpm_velocity.DDPMVelocity": {"min_snr": None},
    }
    for part in _parts(config):
        for key, value in added.get(str(part["_target_"]), {}).items():
            part.setdefault(key, value)
    if isinstance(trainer := config.get("trainer"), dict):
        trainer.setdefault("skip_spikes", False)
    if "warm_start" in config and not isinstance(config["warm_start"], dict):
        lists: dict[str, Any] = {key: [] for key in ("allow_missing", "allow_shape", "allow_unused")}
        config["warm_start"] = {"checkpoint": config["warm_start"]} | lists


def _to_10(config: dict[str, Any]) -> None:
    """A teacher's tokens were always those of its last layer, and never whitened. A SiT's tokens skipped no blocks. All
    processes held all weights. No pictures were made during training, and every run trained all of its steps."""
    teachers = "urepa.models.teachers"
    added: dict[str, dict[str, Any]] = {
        f"{teachers}.efficientnet_lite0.EfficientNetLite0": {"whiten": False},
        f"{teachers}.efficientnet_lite2.EfficientNetLite2": {"whiten": False},
        f"{teachers}.vit.ViT": {"block": None, "whiten": False},
        "urepa.models.backbones.sit.SiT": {"route": [], "route_share": 0.0},
    }
    for part in _parts(config):
        for key, value in added.get(str(part["_target_"]), {}).items():
            part.setdefault(key, value)
    if isinstance(trainer := config.get("trainer"), dict):
        for key, value in {"sharding": None, "look_every": None, "look_share": 0.02}.items():
            trainer.setdefault(key, value)
        config.setdefault("stop_when", {"_target_": "urepa.training.stop_rules.never.Never"})


def _to_11(config: dict[str, Any]) -> None:
    """A SiT denoised no class token."""
    added: dict[str, dict[str, Any]] = {"urepa.models.backbones.sit.SiT": {"class_token": 0}}
    for part in _parts(config):
        for key, value in added.get(str(part["_target_"]), {}).items():
            part.setdefault(key, value)


TRACKS = ("urepa.data.tracks.latent_track.LatentTrack", "urepa.data.tracks.pixel_track.PixelTrack")


def _earlier_positions(vit: dict[str, Any]) -> str | None:
    """How an earlier version resampled DINOv2's positions: as transformers does. With 37 patches per side there was
    nothing to resample, which is now `meta`."""
    if vit.get("family") != "dinov2":
        return None
    native = str(vit.get("image_size")) == "518" and str(vit.get("patch")) == "14"  # MLflow stores numbers as text
    return "meta" if native else "transformers"


STEPS: tuple[Callable[[dict[str, Any]], None], ...] = (
    *(_to_1, _to_2, _to_3, _to_4, _to_5, _to_6, _to_7, _to_8, _to_9, _to_10, _to_11),
)
SCHEMA = len(STEPS)


def add_schema_number(config: dict[str, Any]) -> dict[str, Any]:
    """A composed config in the form that is stored, with the number of its schema."""
    return {KEY: SCHEMA} | config


def upgrade(config: dict[str, Any]) -> dict[str, Any]:
    """A stored config in this version's form. Raises UserError for a config that a later version stored."""
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
    """`upgrade` for the parameters of an MLflow run: dotted keys, with all values as text. `number` is that of the last
    version that wrote them. Parameters written before remain unchanged in MLflow, so all steps are applied."""
    nested: dict[str, Any] = {KEY: number}
    for key, value in parameters.items():
        if MOVED.get(key, "").startswith(f"{key}.") and MOVED[key] in parameters:
            continue  # a run of an earlier version that was resumed has both, since MLflow only adds parameters
        *groups, name = key.split(".")
        place = nested
        for group in groups:
            place = place.setdefault(group, {})
            if not isinstance(place, dict):
                return parameters  # another program's parameters: a key is both a value and a group
        place[name] = value
    _check(nested)
    return {key: str(value) for key, value in flatten(upgrade(nested | {KEY: 0})).items()}


def upgrade_facts(facts: dict[str, Any]) -> dict[str, Any]:
    """A summary's facts (`urepa.runs.facts_of`) with the settings of its evaluations in this version's form. These have
    no number: each evaluation has the version that did it, which may differ from that of the training. So all steps are
    applied; they leave settings of the current form unchanged."""
    if "evaluation" not in facts:
        return facts
    return facts | upgrade({"evaluation": facts["evaluation"]})


def _copy(config: Any) -> Any:
    if isinstance(config, dict):
        return {key: _copy(value) for key, value in config.items()}
    return [_copy(value) for value in config] if isinstance(config, list) else config


def _parts(config: Any) -> Iterator[dict[str, Any]]:
    """All mappings with a `_target_`, at any depth."""
    if isinstance(config, dict):
        if "_target_" in config:
            yield config
        for value in list(config.values()):
            yield from _parts(value)
