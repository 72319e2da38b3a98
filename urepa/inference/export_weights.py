"""Exports a run's EMA weights in layouts that other programs load: a LoRA or a whole U-Net as diffusers' pipelines
store it, a SiT as published, or a LoRA on a U-Net in kohya-ss's layout.

Layout: pytorch_lora_weights.safetensors, lora_kohya.safetensors or unet/ (and embedding.safetensors where it was
trained) beside scheduler/scheduler_config.json, or a SiT's model.safetensors; heads.safetensors, config.yaml,
classes.json (where the classes have names), image_statistics.json (where conditions have an image), README.md.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from urepa.config.declared import declaration_of
from urepa.core.backbone_protocols import Backbone
from urepa.core.errors import UserError
from urepa.core.files import raise_full_disk_as_oserror, sync_folder, write_whole
from urepa.data.image_statistics import EXPORTED as IMAGE_STATISTICS
from urepa.data.lists.classes import write_names
from urepa.data.text_and_image_conditions import TextAndImageConditions
from urepa.inference.model_card import model_card, title
from urepa.inference.open_run import OpenedRun, given_places, open_base
from urepa.method.ddpm_sampling import scheduler_for
from urepa.method.objectives.ddpm_math import DDPMMath
from urepa.models.backbones.backbone_sizes import KOHYA
from urepa.models.lora.kohya_net import write_kohya_lora
from urepa.models.weight_files import save_tensors
from urepa.runs import checkpoint
from urepa.runs.run_folder import require_config
from urepa.runs.summary import end_step, read_summary
from urepa.training.provenance import class_names

PRIVATE = ("tracking", "resume")  # parts of the config that are not published


def export(asked: dict[str, Any]) -> Path:
    """Writes the requested folder (`urepa.config.Export`), whole or not at all, and returns its path."""
    run = Path(asked["run"])
    found = checkpoint.require(run)
    is_kohya = asked["format"] == "kohya"
    name = f"step_{found.step:08d}" + ("_kohya" if is_kohya else "")
    target = run / "export" / name if asked["out"] is None else Path(asked["out"])
    if asked["push"] is not None and is_export(target, run, found.step, is_kohya):
        return target  # its upload failed, or was not asked for
    if target.exists():
        raise UserError(f"{target} exists already; move it away, or give a new folder, out=FOLDER")
    opened = open_base(run, torch.device("cpu"), given_places(asked))
    declared: Backbone = declaration_of(opened.config["backbone"])
    if declared.is_diffusers_unet and not isinstance(opened.objective, DDPMMath):
        raise UserError(
            f"{run} trained a U-Net on a flow, which diffusers' layout cannot represent; open it with `urepa.load`"
        )
    opened.load_ema(found)
    if found.step < (end := end_step(read_summary(run), opened.config["trainer"]["max_steps"])):
        print(f"warning: {run} has {found.step} of {end} steps; these are the weights of that step")
    temporary = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # of an export that was killed
    temporary.mkdir(parents=True)
    try:
        with raise_full_disk_as_oserror(target):
            write_parts(opened, temporary, is_kohya)
        os.replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    sync_folder(target.parent)
    return target


def is_export(folder: Path, run: Path, step: int, is_kohya: bool) -> bool:
    """Whether the folder is an export of this run's step in this layout."""
    card = folder / "README.md"
    first = card.read_text().partition("\n# ")[2].splitlines()[:1] if card.is_file() else []
    return first == [title(run, require_config(run)["seed"], step)] and (folder / KOHYA).is_file() == is_kohya


def write_parts(opened: OpenedRun, folder: Path, is_kohya: bool) -> None:
    """Writes weights, scheduler, heads, config and model card."""
    backbone: Any = opened.model.backbone
    if is_kohya:
        write_kohya_lora(backbone.unet, folder / KOHYA)
    else:
        backbone.export(folder)
    if isinstance(opened.objective, DDPMMath):
        scheduler_for(opened.objective, "ddim").save_pretrained(folder / "scheduler")
    if len(opened.model.heads):
        save_tensors(opened.model.heads.state_dict(), folder / "heads.safetensors")
    conditions = opened.track.conditions
    if isinstance(conditions, TextAndImageConditions):
        write_whole(folder / IMAGE_STATISTICS, conditions.applied.to_json())
    public = {key: value for key, value in opened.config.items() if key not in PRIVATE}
    config = OmegaConf.to_yaml(OmegaConf.create(public))
    write_whole(folder / "config.yaml", config)
    write_names(folder, class_names(opened.folder, opened.config["data"]["num_classes"]))
    files = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    write_whole(folder / "README.md", model_card(opened.folder, opened.step, public, config, files))
