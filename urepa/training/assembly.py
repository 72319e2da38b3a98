"""Builds the parts of a training from a config: the model and its parts, and what evaluates it
(`urepa.training.trainer_assembly` builds the Trainer)."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch

from urepa.config.declared import build_errors, declaration_of
from urepa.config.parts import PACKAGES, networks, settings_that_are
from urepa.core.backbone_protocols import Backbone, LoRA
from urepa.core.declared_keys import TAP
from urepa.core.errors import UserError, in_bucket
from urepa.core.nested_dicts import flatten
from urepa.core.part_names import CLASS
from urepa.core.protocols import Schedule
from urepa.core.random_draws import torch_seed
from urepa.core.teacher_names import ALONE
from urepa.core.track_protocols import condition_widths
from urepa.data.bucketed_cache import Caches
from urepa.evaluation.buckets import bucket_folder, run_in_buckets
from urepa.evaluation.context import Context, Evaluated
from urepa.evaluation.looking import Look, write_sheets
from urepa.method.alignment_grids import TEACHER, Grid, policy_of
from urepa.method.attention_maps import attention_of
from urepa.method.self_alignment import OWN, own_states
from urepa.method.training_step import AlignedModel
from urepa.models import speed_switches
from urepa.models.teachers.several_teachers import by_name, name_at
from urepa.training.checks.sizes import as_shape
from urepa.training.own_states import own_heads
from urepa.training.trainer import Trainer
from urepa.training.trainer_settings import Settings


def load_modules(config: Any) -> None:
    """Imports the modules of all parts of a config, and the modules that declared parts import when they are built."""
    for key, value in flatten(config).items():
        if key.rpartition(".")[2] == "_target_":
            module = value.rpartition(".")[0]
            package = module.rpartition(".")[0]
            for name in (module, *(networks(package) if package in PACKAGES.values() else ())):
                import_module(name)


def build_part(config: dict[str, Any], **known: Any) -> Any:
    """Builds a part from its settings and from values that are known when a run begins. Raises UserError if these do
    not fit together."""
    declaration = declaration_of(config)
    with build_errors(config):
        return declaration.build(**known)


def build_loss(config: dict[str, Any]) -> Any:
    """The loss of a run (`urepa.core.protocols.LossMath`), with its schedule."""
    schedule: Schedule = declaration_of(config["schedule"])
    return build_part(config["loss"], schedule=schedule, max_steps=config["trainer"]["max_steps"])


def build_backbone(config: dict[str, Any], track: Any) -> Any:
    """A config's backbone (`urepa.core.backbone_protocols.BackboneNetwork`) with its base weights."""
    return build_part(config["backbone"], **_known_to_backbones(track))


def build_backbone_to_train(config: dict[str, Any], track: Any) -> Any:
    """The same as a training holds it: the base weights are read in the type of the frozen ones where adapters leave
    them frozen and the backbone can, so that they are never in memory in fp32."""
    declared: Any = declaration_of(config["backbone"])
    lora: LoRA = declaration_of(config["lora"])
    if config["trainer"]["frozen"] != "bf16" or not lora.has_adapters or not hasattr(declared, "build_frozen"):
        return build_backbone(config, track)
    with build_errors(config["backbone"]):
        return declared.build_frozen(torch.bfloat16, **_known_to_backbones(track))


def build_backbone_without_weights(config: dict[str, Any], track: Any) -> Any:
    """A config's backbone with random weights; no weights are read."""
    declared: Backbone = declaration_of(config["backbone"])
    with build_errors(config["backbone"]):
        return declared.build_without_weights(**_known_to_backbones(track))


def _known_to_backbones(track: Any) -> dict[str, Any]:
    """The arguments with which a backbone is built; includes the widths of the condition's parts unless the condition
    is only a class id."""
    known = {"latent_shape": track.latent_shape, "num_classes": track.num_classes}
    widths = condition_widths(track)
    return known if tuple(widths) == (CLASS,) else known | {"widths": dict(widths)}


BuildBackbone = Callable[[dict[str, Any], Any], Any]  # called with a config and its track


def build_model(
    config: dict[str, Any],
    track: Any,
    teacher: Any | None,
    loss: Any,
    backbone_from: BuildBackbone = build_backbone,
) -> tuple[AlignedModel, str]:
    """Backbone, LoRA and heads, each initialised from (seed, part). Returns the model and the backbone's optimiser
    group."""
    seed = config["seed"]
    with torch_seed(seed, "backbone"):
        backbone = backbone_from(config, track)
    lora: LoRA = declaration_of(config["lora"])
    with torch_seed(seed, "lora"), build_errors(config["lora"]):
        lora.build(backbone)
    for _, tap in settings_that_are(TAP, config["evaluation"]):  # checked now, not after training
        backbone.tap_width(tap)
    heads = {}
    for tap in loss.taps:
        width = backbone.tap_width(tap)
        if not backbone.trains_before(tap):
            count = sum(p.numel() for p in backbone.parameters() if p.requires_grad)
            warnings.warn(
                f"nothing trainable precedes the tap '{tap}': its alignment term reaches 0 of the backbone's {count:,} "
                "trainable parameters and trains its head alone; choose lora.blocks=all or another tap to reach the "
                "backbone",
                stacklevel=2,
            )
        for teacher_name, one in by_name(teacher).items():
            name = name_at(tap, teacher_name)
            with torch_seed(seed, f"head/{name}"):
                heads[name] = build_part(config["head"], in_width=width, out_width=one.width)
                check_takes_grid(config["head"]["_target_"], heads[name])
                if getattr(loss, "compares_lengths", False):
                    keep_lengths(config["head"]["_target_"], heads[name])
    if loss.diffusion_fraction == 0:
        backbone.freeze_after(tuple(loss.taps))
    own = own_states(loss)
    with torch_seed(seed, f"head/{OWN}"):
        heads |= own_heads(loss, backbone)
    asked = own.taps, own.averaged, tuple(attention_of(loss)), own.frozen
    return AlignedModel(backbone, heads, policy_of(loss), *asked), lora.group


def check_takes_grid(target: str, head: Any) -> None:
    """Raises UserError if a network's `forward` has no parameter for the teacher's grid."""
    try:
        inspect.signature(head.forward).bind(None, None, None)
    except TypeError:
        raise UserError(
            f"head._target_={target}: its network is called as forward(tapped, t_B, grid), with the rows and columns "
            "of the teacher's tokens in this batch; give its forward these arguments (urepa.core.protocols.HeadNetwork)"
        ) from None


def keep_lengths(target: str, head: Any) -> None:
    """Makes a head's network return tokens of any length. Raises UserError if it always normalises them."""
    if not hasattr(head, "unit_length"):
        raise UserError(
            f"head._target_={target} returns tokens of unit length, and a term of the loss compares lengths: derive "
            "its network from urepa.models.layers.Projector, or choose another head"
        )
    head.unit_length = False


def compared_grids(config: dict[str, Any], model: AlignedModel, cache: Caches, objective: Any) -> list[dict[str, Grid]]:
    """Of each bucket, the grids of the heads' tokens, by head. A U-Net's taps have grids that only it tells.

    UserError where heads that do not resize meet, in any bucket, a tap of another grid, and for a `loss.grid` that is
    the teacher's grid everywhere.
    """
    teachers = {name: name.partition("/")[2] for name in model.heads} if declaration_of(config["loss"]).taps else {}
    at_teachers = [{name: bucket.grids[teacher] for name, teacher in teachers.items()} for bucket in cache.buckets]
    if not teachers or (model.grid_policy == TEACHER and declaration_of(config["head"]).resizes):
        return at_teachers
    time_1 = objective.times_of(objective.time_at(0.5)).reshape(1)
    found = []
    for bucket in cache.buckets:
        shape = as_shape(bucket.latents.shape[-3:])
        with in_bucket(bucket.bucket):
            found += model.check_shapes([(shape, bucket.grids)], time_1, cache.conditions.null(1))
    if model.grid_policy != TEACHER and found == at_teachers:
        raise UserError(
            f"loss.grid={model.grid_policy} has no effect here, as it is the teacher's grid at every tap; drop it"
        )
    return found


def build_untrained(
    config: dict[str, Any], track: Any, device: torch.device, backbone_from: BuildBackbone = build_backbone
) -> AlignedModel:
    """The run's model before any training: drawn from its seed, or with its base weights and LoRA without effect. A
    warm start counts as training."""
    config = config | {"evaluation": {}}  # taps of evaluations are not needed here
    loss = build_loss(config)
    # heads need the teacher's width and grid; its weights are not read
    teacher = build_part(config["teacher"]) if loss.taps else None
    model, _ = build_model(config, track, teacher, loss, backbone_from)
    return model.to(device).eval().requires_grad_(False)


def build_random(config: dict[str, Any], track: Any, device: torch.device, like: AlignedModel) -> AlignedModel:
    """Like `build_untrained`, but with a backbone of random weights from the run's seed; weights that are not drawn (a
    U-Net's prompts) are copied from `like`. For a backbone with pretrained weights."""
    model = build_untrained(config, track, device, build_backbone_without_weights)
    buffers = dict(like.named_buffers())
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])
    return model


def evaluate_ema(config: dict[str, Any], trainer: Trainer, track: Any, step: int) -> Evaluated:
    """Runs the config's `evaluation` on the EMA weights after `step` updates, in each bucket separately. Changes
    neither weights nor random draws. With several teachers the first one is used; only evaluation.alignment uses
    all."""
    contexts = contexts_of(config, trainer, track, step)
    with trainer.averaged() as model, trainer.accelerator.autocast():
        model.eval()
        return run_in_buckets(contexts, config["evaluation"], declaration_of)


def look_at_ema(config: dict[str, Any], trainer: Trainer, track: Any, step: int) -> Evaluated:
    """Writes the pictures of the EMA weights after `step` updates, in each bucket separately. Reports no metrics, and
    as a failure what could not be shown, also if it is an error: training goes on."""
    contexts = contexts_of(config, trainer, track, step)
    with trainer.averaged() as model, trainer.accelerator.autocast():
        model.eval()
        return Evaluated({}, write_sheets(Look(), contexts))


def contexts_of(config: dict[str, Any], trainer: Trainer, track: Any, step: int) -> list[Context]:
    """The context of each bucket, with the model as it is."""
    device = trainer.accelerator.device
    backbone: Backbone = declaration_of(config["backbone"])
    model = trainer.model if trainer.shards is None else trainer.shards.model
    return [
        Context(
            model=model,
            objective=trainer.objective,
            loss=trainer.loss,
            track=track.of_bucket(bucket.bucket) if bucket.bucket else track,
            cache=bucket,
            folder=bucket_folder(trainer.folder, bucket),
            device=device,
            seed=config["seed"],
            step=step,
            untrained=lambda: build_untrained(config, track, device),
            random=(lambda: build_random(config, track, device, model)) if backbone.base is not None else None,
            teacher=next(iter(bucket.teacher_names), ALONE),
        )
        for bucket in trainer.reader.cache.buckets
    ]


def speed_up(model: AlignedModel, settings: Settings, device: torch.device) -> None:
    """Applies the speed settings of conf/trainer, after freezing and before the optimiser is built."""
    if settings.frozen == "bf16":
        speed_switches.hold_frozen_in_bf16(model.backbone)
    if settings.channels_last:
        speed_switches.channels_last(model.backbone)
    if settings.compile:
        speed_switches.compile_blocks(model.backbone)
    model.attention = speed_switches.attention(settings.attention, device)
