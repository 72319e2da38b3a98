"""The schema of every config: a mistyped key, type or choice fails while composing, before torch loads.

One dataclass per kind of part; `conf/<group>/<option>.yaml` starts from one of them.
"""

from __future__ import annotations

from hydra.core.config_store import ConfigStore

from urepa.config import command_schemas, commands, evaluation_schemas, part_schemas

# Every part that a config may name as a `_target_`, by kind, under the name that conf/*.yaml start from it with
KINDS: dict[str, dict[str, type]] = {
    "backbone": {"tiny_unet": part_schemas.TinyUNet, "sd15": part_schemas.SD15, "sit": part_schemas.SiT},
    "lora": {"lora": part_schemas.LoRA, "no_lora": part_schemas.NoLoRA},
    "head": {
        "conv_head": part_schemas.ConvHead,
        "mlp_head": part_schemas.MLPHead,
        "time_mlp_head": part_schemas.TimeMLPHead,
        "spatial_head": part_schemas.SpatialHead,
        "hidden_spatial_head": part_schemas.HiddenSpatialHead,
    },
    "teacher": {
        "vit": part_schemas.ViT,
        "efficientnet": part_schemas.EfficientNet,
        "efficientnet_lite2": part_schemas.EfficientNetLite2,
        "several": part_schemas.Several,
    },
    "objective": {
        "ddpm_epsilon": part_schemas.DDPMEpsilon,
        "ddpm_velocity": part_schemas.DDPMVelocity,
        "flow": part_schemas.Flow,
    },
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


def register() -> None:
    """Puts the schema where the YAML files' defaults lists find it."""
    store = ConfigStore.instance()
    for root, command in commands.COMMANDS.items():
        store.store(name=f"{root}_schema", node=command.schema)
    settings = {"trainer": part_schemas.Trainer, "device": command_schemas.Device, "study": command_schemas.Study}
    for nodes in (*KINDS.values(), settings):
        for name, node in nodes.items():
            store.store(group="schema", name=name, node=node)
