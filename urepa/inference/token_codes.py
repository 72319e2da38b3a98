"""Encodes images into files of codes and decodes them, for `urepa.tokenize` and `urepa.detokenize`.

A file is in the safetensors format. It has `codes`, int32 [N,K], with a row for each image. Its metadata are the
images' names and the digest of the weights that encoded them.

Shapes: N images, B images of a batch, K codes of an image, CHW latent or image.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from urepa.config.declared import declaration_of
from urepa.core import progress, random_draws
from urepa.core.errors import UserError
from urepa.core.files import write_whole
from urepa.core.hashing import digest64
from urepa.core.png import to_pixels, to_png
from urepa.data.sources.decoding import UNREADABLE, read
from urepa.data.sources.image_folder import readable, suffix_of
from urepa.inference.open_run import OpenedRun, given_places, load
from urepa.method.flow_sampling import sample
from urepa.method.guidance import scales_of
from urepa.method.objectives.flow_math import FlowMath
from urepa.method.projected_guidance import Projection
from urepa.runs import checkpoint

NOISE = "detokenize"  # the purpose of the noise from which an image is decoded
NAMES, WEIGHTS = "names", "weights"  # keys of the metadata
ALWAYS = (0.0, 1.0)  # guidance at all times


def tokenize(asked: dict[str, Any]) -> str:
    """Encodes the images of a folder into a file. Returns a sentence for the user. Raises UserError if an image
    cannot be read, or there are none."""
    root, out = Path(asked["images"]), Path(asked["out"])
    suffixes = readable()
    files = sorted(p for p in root.rglob("*") if p.is_file() and suffix_of(p.name) in suffixes)
    if not files:
        raise UserError(f"images={root} has no images in it or in the folders below it")
    opened, codes = _open(asked), []
    backbone: Any = opened.model.backbone
    for batch in _batches(files, asked["batch_size"], "images"):
        images_BCHW = torch.stack([_image(file, opened.track) for file in batch]).to(opened.device)
        with torch.no_grad():
            codes.append(backbone.encode(opened.track.to_x0(images_BCHW)).cpu())
    names = [str(file.relative_to(root)) for file in files]
    metadata = {NAMES: json.dumps(names), WEIGHTS: _weights_of(Path(asked["run"]))}
    codes_NK = torch.cat(codes).to(torch.int32).contiguous()
    write_whole(out, save({"codes": codes_NK}, metadata))
    used = len(codes_NK.unique())
    return f"{len(names):,} images as {codes_NK.shape[1]} codes each, {used:,} different ones, in {out}"


def detokenize(asked: dict[str, Any]) -> str:
    """Decodes a file of codes into a folder of images. Returns a sentence for the user. Raises UserError if the file
    is not a file of codes, or was made with other weights."""
    declared: Any
    opened, out = _open(asked), Path(asked["out"])
    backbone: Any = opened.model.backbone
    declared = declaration_of(opened.config["backbone"])
    names, codes_NK = _read_codes(Path(asked["codes"]), _weights_of(Path(asked["run"])), declared)
    keep = declared.registers if asked["keep"] is None else asked["keep"]
    targets = _targets(names, out)
    for batch in _batches(list(range(len(names))), asked["batch_size"], "images"):
        condition = backbone.condition_of(
            codes_NK[batch].to(opened.device), torch.full((len(batch),), keep, device=opened.device)
        )
        x0 = decode(opened, condition, [names[i] for i in batch], asked)
        for i, image_3HW in zip(batch, opened.track.to_rgb(x0), strict=True):
            targets[i].parent.mkdir(parents=True, exist_ok=True)
            write_whole(targets[i], to_png(to_pixels(image_3HW)))
    return f"{len(names):,} images from the first {keep} of {declared.registers} codes in {out}/"


def decode(opened: OpenedRun, condition: Any, names: list[str], asked: dict[str, Any]) -> Tensor:
    """Samples x0 [B,C,H,W] under a condition with the Euler sampler, from noise that depends on the seed and the
    image's name."""
    assert isinstance(opened.objective, FlowMath), "checked when the run was opened"
    shape = opened.track.latent_shape
    rngs = [random_draws.generator(asked["seed"], NOISE, digest64(name) >> 1) for name in names]
    noise = torch.stack([random_draws.normal(shape, rng) for rng in rngs]).to(opened.device)
    is_projected = asked["rule"] == "apg" and asked["guidance"] != 1
    projection = Projection(asked["eta"], asked["threshold"], asked["momentum"]) if is_projected else None
    scales = scales_of(asked["guidance"], condition.names)
    return sample(
        opened.model.backbone,
        opened.objective,
        noise,
        condition,
        "euler",
        asked["steps"],
        scales,
        ALWAYS,
        rngs,
        projection=projection,
    )


def _open(asked: dict[str, Any]) -> OpenedRun:
    opened = load(asked["run"], places=given_places(asked))
    if not isinstance(opened.objective, FlowMath):
        raise UserError(
            f"run={asked['run']} was not trained as a flow, and codes are decoded by a flow; give another run"
        )
    _ = opened.autoencoder  # if it is missing or not that of the training, this raises before sampling
    return opened


def _weights_of(run: Path) -> str:
    """The digest of the weights that are loaded from a run."""
    return str(checkpoint.require(run).state["files"]["ema.safetensors"])


def _batches(items: list[Any], size: int, unit: str) -> Iterator[list[Any]]:
    with progress.bar(total=len(items), desc=f"{len(items):,} images", unit="image") as bar:
        for start in range(0, len(items), size):
            batch = items[start : start + size]
            yield batch
            bar.update(len(batch))


def _image(file: Path, track: Any) -> Tensor:
    try:
        return track.cut(read(file))
    except UNREADABLE as error:
        raise UserError(f"{file} cannot be read ({error}); remove it") from error


def _read_codes(file: Path, weights: str, declared: Any) -> tuple[list[str], Tensor]:
    """The images' names and their codes [N,K], int64. Raises UserError if the file is not valid for this run."""
    try:
        with safe_open(file, "pt") as stored:
            metadata, codes_NK = stored.metadata() or {}, stored.get_tensor("codes").long()
        names = json.loads(metadata[NAMES])
    except (SafetensorError, KeyError, ValueError) as error:
        raise UserError(f"codes={file} is not a file of python -m urepa.tokenize; make it with that") from error
    if metadata.get(WEIGHTS) != weights:
        raise UserError(
            f"codes={file} was made with other weights than this run's newest, and its codes do not fit these; make it "
            "again with python -m urepa.tokenize"
        )
    is_fitting = codes_NK.shape == (len(names), declared.registers) and len(names) > 0
    if not is_fitting or codes_NK.min() < 0 or codes_NK.max() >= declared.codes:
        raise UserError(
            f"codes={file} has codes of shape {list(codes_NK.shape)} for {len(names)} images; this run has "
            f"{declared.registers} per image, from 0 to {declared.codes - 1}"
        )
    return names, codes_NK


def _targets(names: list[str], out: Path) -> list[Path]:
    """The file of each image, below `out`. Raises UserError for a name that leads out of `out`: the file of codes
    may come from another person."""
    for name in names:
        if (
            not isinstance(name, str)
            or "\0" in name
            or Path(name).is_absolute()
            or not {"", ".."}.isdisjoint(name.split("/"))
        ):
            raise UserError(
                f"the file of codes names an image {name!r}, which is not a path below a folder; do not use it"
            )
    targets = [(out / name).with_suffix(".png") for name in names]
    if len(set(targets)) < len(targets):
        twice = next(target for target in targets if targets.count(target) > 1)
        raise UserError(f"two images of the file would be written to {twice}; rename the images and encode them again")
    return targets
