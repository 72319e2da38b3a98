"""From a config to a Trainer, in the order that matters: base weights, LoRA, heads, warm start, freezing,
optimiser, EMA, `accelerator.prepare`."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf

from urepa import checkpoint, speed
from urepa.alignment import AlignedModel
from urepa.data.reader import Layout, TrainingReader, ValidationReader
from urepa.draws import torch_seed
from urepa.errors import UserError
from urepa.evaluation.validate import Validation
from urepa.guards import Guard
from urepa.metrics import MetricsLog
from urepa.optimizer import EMA, groups_of, trainable
from urepa.sensors import GpuSensors
from urepa.trainer import Settings, Trainer


def make(config: dict[str, Any]) -> Any:
    """The part a config describes, built with plain dicts and lists."""
    try:
        return instantiate(config, _convert_="all")
    except InstantiationException as error:
        if isinstance(error.__cause__, UserError):  # Hydra wraps what a constructor raises
            raise error.__cause__ from None
        raise


def build_model(config: dict[str, Any], track: Any, teacher: Any | None, loss: Any) -> tuple[AlignedModel, str]:
    """Backbone, LoRA and heads, each initialised from (seed, part). Returns the backbone's optimiser group."""
    seed = config["seed"]
    with torch_seed(seed, "backbone"):
        make_backbone = make(config["backbone"])
        backbone = make_backbone(latent_shape=track.latent_shape, num_classes=track.num_classes)
    with torch_seed(seed, "lora"):
        group = make(config["lora"])(backbone)
    for settings in config["evaluation"].values():  # now, not after the whole training
        if "tap" in settings:
            backbone.tap_width(settings["tap"])
    heads = {}
    for tap in loss.taps:
        width = backbone.tap_width(tap)
        if not backbone.trains_before(tap):
            warnings.warn(
                f"nothing trainable precedes the tap '{tap}': its alignment term trains its head alone; "
                "choose lora.blocks=all or another tap to reach the backbone",
                stacklevel=2,
            )
        with torch_seed(seed, f"head/{tap}"):
            assert teacher is not None
            make_head = make(config["head"])
            heads[tap] = make_head(in_width=width, out_width=teacher.width, grid=teacher.grid)
    if loss.diffusion_fraction == 0:
        backbone.freeze_after(tuple(loss.taps))
    return AlignedModel(backbone, heads), group


def speed_up(model: AlignedModel, settings: Settings, device: torch.device) -> None:
    """The speed switches of conf/trainer, after freezing and before the optimiser."""
    if settings.frozen == "bf16":
        speed.hold_frozen_in_bf16(model.backbone)
    if settings.channels_last:
        speed.channels_last(model.backbone)
    if settings.compile:
        speed.compile_blocks(model.backbone)
    model.attention = speed.attention(settings.attention, device)


def build(config: dict[str, Any], folder: Path, accelerator: Accelerator, shipper: Any) -> tuple[Trainer, Any]:
    """A Trainer at step 0, and its track."""
    settings = Settings(**config["trainer"])
    world, rank = accelerator.num_processes, accelerator.process_index
    layout = Layout(settings.batch_size, settings.accumulation, rank, world)
    loss = make(config["loss"])
    loss.check_layout(min(settings.batch_size, settings.validation_group), settings.accumulation)
    objective = make(config["objective"])
    teacher = make(config["teacher"]) if loss.taps else None
    track = make(config["data"])
    with accelerator.main_process_first():  # it builds the caches where they are missing
        cache = track.open(teacher)
    model, backbone_group = build_model(config, track, teacher, loss)
    if config["warm_start"] is not None and checkpoint.newest(folder / "checkpoints") is None:
        source = checkpoint.require(Path(config["warm_start"]))
        checkpoint.load_named(trainable(model), source.tensors("ema"), str(source.folder))
    adamw = make(config["optimizer"])
    reader = TrainingReader(cache, objective, layout, config["seed"], track.cfg_dropout, loss.diffusion_fraction)
    validation_reader = ValidationReader(cache, objective, settings.validation_group)
    model.to(accelerator.device)
    speed_up(model, settings, accelerator.device)
    groups = groups_of(model, backbone_group)
    in_groups = [p for parameters in groups.values() for p in parameters]
    assert {id(p) for p in in_groups} == {id(p) for p in trainable(model).values()}
    assert len({id(p) for p in in_groups}) == len(in_groups)
    optimizer = adamw.build(groups)
    ema = EMA(model, settings.ema_decay)
    prepared = accelerator.prepare(model)
    mean_token = cache.mean_token()
    validation = Validation(validation_reader, objective, loss, mean_token, layout, accelerator.device)
    trainer = Trainer(
        settings=settings,
        accelerator=accelerator,
        model=model,
        prepared=prepared,
        objective=objective,
        loss=loss,
        adamw=adamw,
        optimizer=optimizer,
        ema=ema,
        reader=reader,
        validation=validation,
        guard=Guard(folder, settings.max_skipped, accelerator.device),
        metrics=MetricsLog(folder / "metrics.jsonl"),
        sensors=GpuSensors(accelerator.device),
        shipper=shipper,
        folder=folder,
        config_yaml=OmegaConf.to_yaml(OmegaConf.create(config)),
        seed=config["seed"],
    )
    return trainer, track
