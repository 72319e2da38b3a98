"""The schema of every config: a mistyped key, type or choice fails while composing, before torch loads.

One dataclass per kind of part; `conf/<group>/<option>.yaml` starts from one of them.
"""

from __future__ import annotations

from hydra.core.config_store import ConfigStore

from urepa.config import commands, doors, evaluation, parts


def register() -> None:
    """Puts the schema where the YAML files' defaults lists find it."""
    store = ConfigStore.instance()
    for root, command in commands.COMMANDS.items():
        store.store(name=f"{root}_schema", node=command.schema)
    nodes = {
        "tiny_unet": parts.TinyUNet,
        "sd15": parts.SD15,
        "sit": parts.SiT,
        "lora": parts.LoRA,
        "vit": parts.ViT,
        "latent_track": parts.LatentTrack,
        "no_lora": parts.NoLoRA,
        "conv_head": parts.ConvHead,
        "mlp_head": parts.MLPHead,
        "time_mlp_head": parts.TimeMLPHead,
        "spatial_head": parts.SpatialHead,
        "efficientnet": parts.EfficientNet,
        "several": parts.Several,
        "ddpm": parts.DDPM,
        "flow": parts.Flow,
        "urepa_loss": parts.URepaLoss,
        "no_loss": parts.NoLoss,
        "pixel_track": parts.PixelTrack,
        "adamw": parts.AdamW,
        "trainer": parts.Trainer,
        "mlflow": parts.MLflow,
        "no_tracking": parts.NoTracking,
        "sample_grid": evaluation.SampleGrid,
        "tap_probe": evaluation.TapProbe,
        "knn": evaluation.Knn,
        "linear_probe": evaluation.LinearProbe,
        "teacher_alignment": evaluation.TeacherAlignment,
        "generated_images": evaluation.GeneratedImages,
        "pixels": evaluation.Pixels,
        "inception": evaluation.Inception,
        "generation": evaluation.Generation,
        "inception_score": evaluation.InceptionScore,
        "clip_score": evaluation.ClipScore,
        "spatial": evaluation.Spatial,
        "dense": evaluation.Dense,
        "device": doors.Device,
    }
    for name, node in nodes.items():
        store.store(group="schema", name=name, node=node)
