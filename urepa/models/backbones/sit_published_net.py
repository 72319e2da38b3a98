"""Published SiT weights: REPA's checkpoints (Yu et al. 2024, arXiv 2410.06940), also in their first layout, and SiT's
own (Ma et al. 2024, arXiv 2401.08740), which define t in the opposite direction.

Shapes: B batch, D width, S sinusoid, N tokens, p patch, C latent channels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from urepa.core.errors import UserError
from urepa.models.backbones.backbone_sizes import EXPORTED
from urepa.models.time_embedding import sinusoid
from urepa.models.weight_files import read_safetensors, read_torch

HEADS = "projectors."  # REPA's projectors, which do not belong to the backbone
POSITIONS = "pos_embed"
CLASS_TOKEN = "cls_projectors2.weight"  # in checkpoints of REG
TIME, OUTPUT, CLASSES = "t_embedder.mlp.0.weight", "final_layer.linear", "y_embedder.embedding_table.weight"
# The published training code averages the fixed positions with the weights, and 0.9999·p + 0.0001·p drifts from p in
# fp32 by up to 2e-4; storage in bf16 costs 2e-3. Another grid's positions are off by about 1.
SAME_POSITIONS = 1e-2


def read_published(file: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, or of a torch file (its EMA if there is one). Only tensors and the settings
    beside them are unpickled; the other parts of a training checkpoint stay on disk."""
    if file.suffix == ".safetensors":
        return read_safetensors(file)
    stored = read_torch(file)
    if not isinstance(stored, dict):
        raise UserError(f"{file} has no named weights; give a file in the published layout")
    found = next((stored[key] for key in ("ema", "model") if key in stored), stored)
    return {name.removeprefix("module."): value for name, value in found.items()}  # the prefix that DDP adds


def load_published(backbone: Any, place: Path) -> None:
    """Copies a published checkpoint's values into a SiT, from a file or the folder of an export. REPA's projectors are
    left out; fixed positions must equal this network's. Half precision is accepted. Raises UserError if a weight is
    missing or has another shape, or if the file is a DiT's."""
    file = place / EXPORTED if place.is_dir() else place
    if not file.is_file():
        raise UserError(f"{place} has no {EXPORTED}: give a file in the published layout, or an export's folder")
    found = {name: value for name, value in read_published(file).items() if not name.startswith(HEADS)}
    if (of_class := found.get(CLASS_TOKEN)) is not None:
        if getattr(backbone, "class_values", 0) != of_class.shape[1]:
            values = of_class.shape[1]
            raise UserError(f"{file} denoises a class token of {values} values: give backbone.class_token={values}")
        if POSITIONS in found:
            found[POSITIONS] = found[POSITIONS][:, 1:]  # the class token's position is 0
    if backbone.positions != "learned":
        _check_fixed_positions(backbone, found.pop(POSITIONS, backbone.pos_embed), file)
    own = backbone.state_dict()
    found = reverse_time(merge_decoder_blocks(found), own, file)
    odd = sorted(own.keys() ^ found.keys()) + [k for k in own.keys() & found.keys() if own[k].shape != found[k].shape]
    if odd == [CLASSES] and CLASSES in found and len(found[CLASSES]) == len(own[CLASSES]) - 1:
        rows = len(found[CLASSES])
        raise UserError(
            f"{file} has {rows} rows of classes and data.num_classes={rows} needs one more, the null condition: give "
            f"data.num_classes={rows - 1}, or weights that were trained with class dropout"
        )
    if getattr(backbone, "class_values", 0) and not any("cls_projectors2" in name for name in found):
        raise UserError(f"{file} has no class token of a teacher: give backbone.class_token=0")
    if odd:
        raise UserError(
            f"{file} does not fit this backbone: {len(odd)} of its weights differ by name or shape ({odd[0]}); choose "
            "the backbone, backbone.patch and data.num_classes that it was trained with"
        )
    backbone.load_state_dict(found)


def _check_fixed_positions(backbone: Any, stored_1ND: Tensor, file: Path) -> None:
    """Raises UserError if the stored positions are for another grid or were learned."""
    ours_1ND = backbone.pos_embed
    if stored_1ND.shape[-1] != ours_1ND.shape[-1]:
        return  # the later check of shapes gives the clearer error
    if stored_1ND.shape != ours_1ND.shape:
        raise UserError(f"{file} was trained on another grid than {backbone.grid[0]}x{backbone.grid[1]}")
    if not torch.allclose(stored_1ND.float(), ours_1ND, rtol=0, atol=SAME_POSITIONS):
        raise UserError(
            f"{file} was trained on another grid than {backbone.grid[0]}x{backbone.grid[1]}, or learned its positions; "
            "for these give backbone.positions=learned"
        )


def to_published(backbone: Any) -> dict[str, Tensor]:
    """A SiT's weights in the published layout. The layout has no LoRA, so adapters are merged into the weights, in
    place."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for module in backbone.modules():
        if isinstance(module, BaseTunerLayer):
            module.merge()
    own = {name: value for name, value in backbone.state_dict().items() if ".lora_" not in name}
    positions_1ND = backbone.pos_embed.detach()
    if getattr(backbone, "class_values", 0):
        positions_1ND = F.pad(positions_1ND, (0, 0, 1, 0))
    return {name.replace(".base_layer.", "."): value for name, value in own.items()} | {POSITIONS: positions_1ND}


def merge_decoder_blocks(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """Renames `decoder_blocks` in REPA's first checkpoints, where the blocks after the tap are numbered from 0
    again."""
    before = len({name.split(".")[1] for name in found if name.startswith("blocks.")})
    named = {}
    for name, value in found.items():
        part, *rest = name.split(".")
        if part == "decoder_blocks":
            name = ".".join(["blocks", str(int(rest[0]) + before), *rest[1:]])
        named[name] = value
    return named


def reverse_time(found: dict[str, Tensor], own: dict[str, Tensor], file: Path) -> dict[str, Tensor]:
    """Converts SiT's own checkpoints: v(x, t) = −v'(x, 1 − t), and variances are dropped.

    In them t = 1 is data and the velocity points from noise to data. They are recognised by having twice the output
    channels; the second half are variances. SiT ignores this half, initialises it to zero and trains without weight
    decay, so that it stays 0 in weights and EMA; this follows from SiT's published training code and was not checked on
    a released file. A DiT has the same names and shapes, but predicts ε at t in 0..999 and trains its variances; for it
    a UserError is raised.

    The sinusoids of 1 − t are a rotation of those of t, which the first layer's weights can absorb:
    a·cos((1−t)f) + b·sin((1−t)f) = (a·cos f + b·sin f)·cos tf + (a·sin f − b·cos f)·sin tf.
    """
    names = [f"{OUTPUT}.weight", f"{OUTPUT}.bias"]
    if any(name not in found or len(found[name]) != 2 * len(own[name]) for name in names) or TIME not in found:
        return found
    patch = own["x_embedder.proj.weight"].shape[2:].numel()
    halves = {name: found[name].unflatten(0, (patch, 2, -1)) for name in names}
    if any(half[:, 1].any() for half in halves.values()):
        raise UserError(
            f"{file} has learned variances (half of {OUTPUT} is not 0, which it is in a SiT): these are a DiT's "
            "weights, which predict the noise ε and not a SiT's velocity; no backbone here can use them"
        )
    outputs = {name: -half[:, 0].flatten(0, 1) for name, half in halves.items()}
    a_DF, b_DF = found[TIME].double().chunk(2, dim=1)
    cos_F, sin_F = sinusoid(torch.ones(1))[0].double().chunk(2)
    turned_DS = torch.cat([a_DF * cos_F + b_DF * sin_F, a_DF * sin_F - b_DF * cos_F], dim=1)
    return found | outputs | {TIME: turned_DS.to(own[TIME].dtype)}
