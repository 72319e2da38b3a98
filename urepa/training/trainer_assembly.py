"""Builds a Trainer at step 0 from a config. The order matters: base weights, LoRA, heads, warm start, freezing,
optimiser, EMA, `accelerator.prepare`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator

from urepa.config.declared import declaration_of
from urepa.core.class_token_protocols import class_values
from urepa.core.protocols import Loss
from urepa.core.run_protocols import Optimizer
from urepa.data.bucketed_cache import Caches
from urepa.data.reader import Layout, TrainingReader, ValidationReader
from urepa.evaluation.constant_tokens import constant_tokens
from urepa.evaluation.in_training import During
from urepa.evaluation.validation_loss import Validation
from urepa.method.alignment_grids import Grid
from urepa.method.attention_maps import teacher_blocks
from urepa.method.self_alignment import own_states
from urepa.method.training_step import AlignedModel
from urepa.models.token_draws import draw_purposes
from urepa.models.weight_files import trainable
from urepa.runs import checkpoint
from urepa.runs.metrics import MetricsLog
from urepa.runs.run_folder import stored_yaml
from urepa.training import warm_start
from urepa.training.assembly import (
    build_backbone_to_train,
    build_loss,
    build_model,
    build_part,
    compared_grids,
    evaluate_ema,
    look_at_ema,
    speed_up,
)
from urepa.training.attention_sizes import check_attention_sizes
from urepa.training.checks.inputs import check_opened_images
from urepa.training.checks.sizes import as_shape
from urepa.training.earlier_weights import earlier_weights
from urepa.training.ema import EMA
from urepa.training.gpu_sensors import GpuSensors
from urepa.training.non_finite_guard import Guard
from urepa.training.observed import Observed
from urepa.training.optimizer import groups_of
from urepa.training.own_states import check_own_states
from urepa.training.sharding import Shards
from urepa.training.spike_records import ClassesOfSamples, SpikeRecords
from urepa.training.trainer import Trainer
from urepa.training.trainer_settings import Settings


class Parts(NamedTuple):
    """A run's parts before there is a model."""

    objective: Any
    loss: Any
    teacher: Any | None
    track: Any
    cache: Caches


def build(config: dict[str, Any], folder: Path, accelerator: Accelerator, shipper: Any) -> tuple[Trainer, Any]:
    """A Trainer at step 0, and its track."""
    settings = Settings(**config["trainer"])
    parts = _parts(config, settings, folder, accelerator)
    objective, loss, _, track, cache = parts
    model, backbone_group, grids = _model(config, settings, folder, accelerator, parts)
    layout = Layout(settings.batch_size, settings.accumulation, accelerator.process_index, accelerator.num_processes)
    reader, validation_reader = _readers(config, settings, layout, parts, model)
    if own_states(loss).frozen:
        with accelerator.main_process_first():
            model.earlier = earlier_weights(model, config["loss"]["guide"], folder, accelerator.device)
    shards = _on_device(model, settings, accelerator)
    declared_optimizer: Optimizer = declaration_of(config["optimizer"])
    optimizer = declared_optimizer.build(_groups(model, backbone_group))
    ema = EMA(model, settings.ema_decay, settings.ema_warmup)
    model.averages = ema.shadow
    # without DDP, which `evaluation_mode` leaves out, it is only given autocast
    prepared = accelerator.prepare(model) if shards is None else accelerator.prepare_model(model, evaluation_mode=True)
    constants = constant_tokens(cache, loss, grids)
    observed = Observed(model.backbone, cache.conditions.dropout, cache.conditions.null(1).names)
    validation = Validation(
        validation_reader, objective, loss, constants, layout, accelerator.device, observed.is_active
    )
    evaluations, pictures = _during(config, settings, track, lambda: trainer)
    where = _where(cache, reader, observed)
    trainer = Trainer(
        settings=settings,
        accelerator=accelerator,
        model=model,
        prepared=prepared,
        objective=objective,
        loss=loss,
        declared_optimizer=declared_optimizer,
        optimizer=optimizer,
        ema=ema,
        reader=reader,
        validation=validation,
        during=evaluations,
        looking=pictures,
        stop_rule=declaration_of(config["stop_when"]),
        guard=Guard(folder, settings.max_skipped, accelerator.device, settings.skip_spikes, where),
        spikes=SpikeRecords(folder, accelerator.device, ClassesOfSamples(cache)),
        observed=observed,
        metrics=MetricsLog(folder / "metrics.jsonl"),
        sensors=GpuSensors(accelerator.device),
        shipper=shipper,
        folder=folder,
        config_yaml=stored_yaml(config),
        seed=config["seed"],
        shards=shards,
    )
    return trainer, track


def _parts(config: dict[str, Any], settings: Settings, folder: Path, accelerator: Accelerator) -> Parts:
    """The parts, and the caches, which are made where they are missing and the track makes them."""
    loss = build_loss(config)
    declared: Loss = declaration_of(config["loss"])
    declared.check_layout(min(settings.batch_size, settings.validation_group), settings.accumulation)
    objective = build_part(config["objective"])
    teacher = build_part(config["teacher"]) if loss.taps else None
    track = build_part(config["data"])
    if track.build_on_first_use:  # raises for parts that do not fit before the caches are made
        build_model(config, track, teacher, loss, build_backbone_to_train)
    with accelerator.main_process_first():  # builds missing caches
        cache = track.open(teacher)
    if checkpoint.newest(folder / "checkpoints") is None:  # a resumed run goes on, with a message at its end
        check_opened_images(config["evaluation"], cache)
    return Parts(objective, loss, teacher, track, cache)


def _model(
    config: dict[str, Any], settings: Settings, folder: Path, accelerator: Accelerator, parts: Parts
) -> tuple[AlignedModel, str, list[dict[str, Grid]]]:
    """The model with its warm start, checked with the caches' shapes; the backbone's optimiser group; the grids on
    which taps and teachers are compared, of each bucket."""
    model, group = build_model(config, parts.track, parts.teacher, parts.loss, build_backbone_to_train)
    with torch.autocast("cpu", torch.bfloat16, enabled=settings.frozen == "bf16"):
        grids = compared_grids(config, model, parts.cache, parts.objective)
        check_own_states(model, parts.loss, parts.cache, parts.objective)
        check_attention_sizes(model, parts.loss, parts.cache, parts.objective)
    if config["warm_start"]["checkpoint"] is not None and checkpoint.newest(folder / "checkpoints") is None:
        accelerator.print(warm_start.load(trainable(model), config["warm_start"], folder))
    return model, group, grids


def _readers(
    config: dict[str, Any], settings: Settings, layout: Layout, parts: Parts, model: AlignedModel
) -> tuple[TrainingReader, ValidationReader]:
    """The readers of training and of validation batches."""
    objective, loss, cache = parts.objective, parts.loss, parts.cache
    own, blocks, values = own_states(loss), teacher_blocks(loss), class_values(model.backbone)
    draws = (*own.draws, *draw_purposes(model))
    fraction, frozen = loss.diffusion_fraction, bool(own.frozen)
    training = TrainingReader(
        cache, objective, layout, config["seed"], fraction, loss.schedule, draws, blocks, frozen, values
    )
    return training, ValidationReader(cache, objective, settings.validation_group, draws, blocks, values)


def _on_device(model: AlignedModel, settings: Settings, accelerator: Accelerator) -> Shards | None:
    """Moves the model to the device, whole or divided among processes, with the speed settings."""
    is_divided = settings.sharding is not None and accelerator.num_processes > 1
    if not is_divided:
        model.to(accelerator.device)
    speed_up(model, settings, accelerator.device)
    return Shards(model, accelerator.device) if is_divided else None  # moves one block after the other


def _groups(model: AlignedModel, backbone_group: str) -> dict[str, list[torch.nn.Parameter]]:
    """The optimiser's groups, in which each trainable parameter is once."""
    groups = groups_of(model, backbone_group)
    in_groups = [p for parameters in groups.values() for p in parameters]
    assert {id(p) for p in in_groups} == {id(p) for p in trainable(model).values()}
    assert len({id(p) for p in in_groups}) == len(in_groups)
    return groups


def _during(
    config: dict[str, Any], settings: Settings, track: Any, trainer: Callable[[], Trainer]
) -> tuple[During, During]:
    """Evaluations and pictures during training. `trainer` is called when they are due."""
    evaluations = During(
        lambda n: evaluate_ema(config, trainer(), track, n), settings.evaluate_every, settings.evaluation_share
    )
    pictures = During(
        lambda n: look_at_ema(config, trainer(), track, n),
        settings.look_every,
        settings.look_share,
        at_end=True,
        prefix="",
    )
    return evaluations, pictures


def _where(
    cache: Caches, reader: TrainingReader, observed: Observed
) -> Callable[[int, Sequence[bool]], dict[str, str]]:
    """What names bucket and block of a value that is not finite, from an update's index and which places have one."""

    def where(step: int, places: Sequence[bool]) -> dict[str, str]:
        bucket = cache.buckets[reader.order.read(step)[0]]
        rows, columns = as_shape(bucket.latents.shape[-3:])[1:]
        assert observed.blocks is not None, "there are places"
        return {"bucket": bucket.bucket or f"{rows}x{columns}", "block": observed.blocks.name(places)}

    return where
