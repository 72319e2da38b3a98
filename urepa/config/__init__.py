"""The schema of every config: a mistyped key, type or choice fails while composing, before torch loads.

One dataclass per kind of part; `conf/<group>/<option>.yaml` starts from one of them.
"""

from __future__ import annotations

from hydra.core.config_store import ConfigStore

from urepa.config import commands, evaluation, parts, roots

# Every part that a config may name as a `_target_`, by kind, under the name that conf/*.yaml start from it with
KINDS: dict[str, dict[str, type]] = {
    "backbone": {"tiny_unet": parts.TinyUNet, "sd15": parts.SD15, "sit": parts.SiT},
    "lora": {"lora": parts.LoRA, "no_lora": parts.NoLoRA},
    "head": {
        "conv_head": parts.ConvHead,
        "mlp_head": parts.MLPHead,
        "time_mlp_head": parts.TimeMLPHead,
        "spatial_head": parts.SpatialHead,
        "hidden_spatial_head": parts.HiddenSpatialHead,
    },
    "teacher": {
        "vit": parts.ViT,
        "efficientnet": parts.EfficientNet,
        "efficientnet_lite2": parts.EfficientNetLite2,
        "several": parts.Several,
    },
    "objective": {"ddpm_epsilon": parts.DDPMEpsilon, "ddpm_velocity": parts.DDPMVelocity, "flow": parts.Flow},
    "loss": {"urepa_loss": parts.URepaLoss, "no_loss": parts.NoLoss},
    "data": {"pixel_track": parts.PixelTrack, "latent_track": parts.LatentTrack},
    "optimizer": {"adamw": parts.AdamW},
    "tracking": {"mlflow": parts.MLflow, "no_tracking": parts.NoTracking},
    "evaluation": {
        "sample_grid": evaluation.SampleGrid,
        "tap_probe": evaluation.TapProbe,
        "knn": evaluation.Knn,
        "linear_probe": evaluation.LinearProbe,
        "teacher_alignment": evaluation.TeacherAlignment,
        "generation": evaluation.Generation,
        "inception_score": evaluation.InceptionScore,
        "clip_score": evaluation.ClipScore,
        "spatial": evaluation.Spatial,
        "dense": evaluation.Dense,
    },
    "images": {"generated_images": evaluation.GeneratedImages},
    "encoder": {
        "pixels": evaluation.Pixels,
        "cifar_cnn": evaluation.CifarCNN,
        "inception": evaluation.Inception,
    },
}


def register() -> None:
    """Puts the schema where the YAML files' defaults lists find it."""
    store = ConfigStore.instance()
    for root, command in commands.COMMANDS.items():
        store.store(name=f"{root}_schema", node=command.schema)
    settings = {"trainer": parts.Trainer, "device": roots.Device, "study": roots.Study}
    for nodes in (*KINDS.values(), settings):
        for name, node in nodes.items():
            store.store(group="schema", name=name, node=node)
