"""Generates the images that evaluations use. They are made once, batch by batch, and reused after a kill.

They are the images of `python -m urepa.generate` with the run's seed and the same sampler, steps and guidance. The
run's folder has x0 before decoding: RUN/generated/evaluation_STEP-WEIGHTS,.../batch_*.safetensors. A batch is written
atomically and always computed as a whole, so that any number of kills gives the same images.

Shapes: B images of a batch, CHW latent, S image size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from urepa.core import progress, random_draws
from urepa.core.errors import UserError
from urepa.core.files import clear_leftovers, write_whole
from urepa.evaluation.context import Context
from urepa.evaluation.image_conditions import condition_of_images
from urepa.evaluation.images.generated_images import GeneratedImages
from urepa.method.ddpm_sampling import check_steps, choose_sampler, sample_images, uneven_timesteps
from urepa.method.objectives.flow_math import FlowMath
from urepa.models.weight_files import trainable
from urepa.runs.run_folder import folder_name

ALWAYS = (0.0, 1.0)  # the default times at which guidance is applied


def rgb_batches(asked: GeneratedImages, context: Context, withheld: bool = False) -> Iterator[tuple[list[int], Tensor]]:
    """Class ids and RGB [B,3,S,S] in multiples of 1/255, batch by batch. Missing images are generated first.

    Args:
        withheld: the same noises under the null condition.
    """
    files = _make_batches(asked, context, withheld)
    for file, batch in zip(files, batches_of(asked, context.track.num_classes), strict=True):
        x0 = load_file(file)["x0"]
        yield [class_id for class_id, _ in batch], decode_rgb(context, x0)


def batches_of(asked: GeneratedImages, num_classes: int) -> list[list[tuple[int, int]]]:
    """(class, index within the class) of every image, by batch. Classes have numbers of images as equal as possible, in
    a fixed random order, so that every initial part is balanced in expectation."""
    classes = [i * num_classes // asked.count for i in range(asked.count)]
    images = [(c, i - -(-c * asked.count // num_classes)) for i, c in enumerate(classes)]  # index within the class
    mixed = [images[i] for i in random_draws.generator(0, "generation").permutation(asked.count)]
    return [mixed[start : start + asked.batch_size] for start in range(0, asked.count, asked.batch_size)]


def _folder(asked: GeneratedImages, context: Context, withheld: bool) -> Path:
    """A folder that is named by all settings on which the images depend."""
    name = [
        f"evaluation_step_{context.step:08d}-{_digest(context)}",
        f"{choose_sampler(context.objective, asked.sampler_name())}{asked.steps}",
        *(f"{key}={value}" for key, value in uneven_timesteps(context.objective, asked.steps).items()),
    ]
    name += [f"n={asked.count}", f"guidance={asked.guidance:g}", f"batch={asked.batch_size}"]
    if tuple(asked.interval) != ALWAYS:
        name.append("interval={:g}-{:g}".format(*asked.interval))
    name += ["withheld"] if withheld else []
    name += [f"captions={asked.captions_of}"] if asked.captions_of != GeneratedImages.captions_of else []
    return context.folder / "generated" / folder_name(name)


def _check(asked: GeneratedImages, context: Context) -> None:
    """Raises UserError for settings that this run does not support."""
    check_steps(context.objective, asked.steps, "images.steps")
    if len(asked.interval) != 2 or not 0 <= asked.interval[0] <= asked.interval[1] <= 1:
        raise UserError(f"images.interval={asked.interval}: give two times, from 0 to 1, the lower one first")
    if tuple(asked.interval) != ALWAYS and not isinstance(context.objective, FlowMath):
        raise UserError("images.interval has no effect on this run, which is not a flow; drop it")


def _make_batches(asked: GeneratedImages, context: Context, withheld: bool) -> list[Path]:
    """Generates the batches that are missing. Returns the files of all batches."""
    _check(asked, context)
    _ = context.track.autoencoder  # raises here if it is missing, not after sampling
    folder = _folder(asked, context, withheld)
    folder.mkdir(parents=True, exist_ok=True)
    clear_leftovers(folder)
    batches = batches_of(asked, context.track.num_classes)
    files = [folder / f"batch_{i:06d}.safetensors" for i in range(len(batches))]
    with progress.bar(total=asked.count, desc=f"{asked.count:,} images", unit="image") as bar:
        for file, batch in zip(files, batches, strict=True):
            if file.exists():
                progress.skip_done(bar, len(batch))
                continue
            write_whole(file, save({"x0": _sample(asked, context, batch, withheld)}))
            bar.update(len(batch))
    return files


def _sample(asked: GeneratedImages, context: Context, batch: list[tuple[int, int]], withheld: bool) -> Tensor:
    condition = condition_of_images(context.cache, batch, asked.captions_of).to(context.device)
    how: dict[str, Any] = {"sampler": asked.sampler_name(), "steps": asked.steps, "guidance": asked.guidance}
    if withheld:  # nothing is left that guidance could point to
        condition, how["guidance"] = condition.null(), 1.0
    x0 = sample_images(
        context.model.backbone,
        context.objective,
        batch,
        context.track.latent_shape,
        condition,
        seed=context.seed,
        interval=(asked.interval[0], asked.interval[1]),
        **how,
    )
    return x0.cpu().contiguous()


def decode_rgb(context: Context, x0: Tensor) -> Tensor:
    """Decodes latents to RGB [B,3,S,S] on the run's device, rounded to multiples of 1/255 as in image files."""
    with torch.no_grad(), torch.autocast(context.device.type, enabled=False):
        return (context.track.to_rgb(x0.to(context.device)) * 255).round() / 255


def _digest(context: Context) -> str:
    """A digest of the trained weights that generated the images."""
    digest = hashlib.sha256()
    for name, parameter in sorted(trainable(context.model).items()):
        digest.update(name.encode())
        digest.update(parameter.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:8]
