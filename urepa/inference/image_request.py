"""Generates the images of one request in a folder of their own. Each file is written whole or not at all, and once.

The request alone determines how the list of images is cut into batches, and a batch is always computed as a whole. So
the files do not depend on the number of processes or on interruptions. Another batch size rounds differently.
"""

from __future__ import annotations

import contextlib
import gc
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from PIL import Image as Picture

from urepa.config.declared import declaration_of
from urepa.core import progress
from urepa.core.collectives import on_main
from urepa.core.errors import UserError
from urepa.core.files import clear_leftovers, read_json, write_whole
from urepa.core.hashing import digest64, file_sha256
from urepa.core.png import labelled_grid, to_pixels, to_png
from urepa.core.track_protocols import Track
from urepa.inference.chosen_prompts import scales_by_part
from urepa.inference.load_weights import Origin, config_of, find_origin
from urepa.inference.open_run import OpenedRun
from urepa.method.ddpm_sampling import choose_sampler, sample_images, uneven_timesteps
from urepa.runs.run_folder import folder_name, remove_empty
from urepa.training.assembly import build_part
from urepa.training.checks.sizes import as_shape
from urepa.training.run_lifecycle import accelerate_for

SHOWN = 4  # differences that a message lists at most
GRID_COLUMNS, GRID_CLASSES = 12, 24  # shown at most
TUNED = "images"  # folder of the run's own images; the folder of the base model's is named as `against`
EVERYWHERE = [0.0, 1.0]  # the default interval of times with guidance


@dataclass(frozen=True)
class Image:
    """One image of the request."""

    class_id: int  # or the number of the prompt
    index: int
    letter: str = "c"  # p: of a prompt

    @property
    def name(self) -> str:
        return f"{self.letter}{self.class_id:04d}_{self.index:05d}.png"


def generate(asked: dict[str, Any]) -> None:
    """Generates the missing images of a request (`urepa.config.command_schemas.Images`), then the grid."""
    trainer = config_of(asked)["trainer"]
    with deterministic_accelerator(trainer | {"precision": asked["precision"]}) as accelerator:
        images = ImageSet(asked, on_main(lambda: find_origin(asked)))
        missing = on_main(images.prepare)  # on one rank: a later rank would see new files of others
        if any(missing.values()):
            try:
                images.make(missing, accelerator)
            except UserError:
                if accelerator.is_main_process:
                    images.remove_if_empty()
                raise
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            images.write_grid()
            images.report()


@contextlib.contextmanager
def deterministic_accelerator(trainer: dict[str, Any]) -> Iterator[Accelerator]:
    """Inside, an accelerator with deterministic kernels; settings are restored afterwards."""
    accelerator = accelerate_for(trainer | {"deterministic": True})
    try:
        yield accelerator
    finally:
        gc.collect()
        accelerator.end_training()
        AcceleratorState._reset_state(reset_partial_state=True)


class ImageSet:
    """The images of one request: lists them, finds those that exist, and generates the others."""

    def __init__(self, asked: dict[str, Any], origin: Origin) -> None:
        objective = build_part(origin.config["objective"])
        self.asked, self.origin = asked | {"sampler": choose_sampler(objective, asked["sampler"])}, origin
        self.undivided = uneven_timesteps(objective, asked["steps"])
        self.request = self._request()
        self.folder = self._default_folder() if asked["out"] is None else Path(asked["out"])
        self.letter = "c" if asked["prompts"] is None else "p"
        images = [Image(c, i, self.letter) for c in asked["classes"] for i in range(asked["n"])]
        size = asked["batch_size"]
        self.batches = [images[start : start + size] for start in range(0, len(images), size)]
        self.new = 0
        self.variants = ([] if asked["against"] is None else [asked["against"]]) + [TUNED]

    def _request(self) -> dict[str, Any]:
        """Everything that the images depend on, except for rounding."""
        keys = (
            "classes" if self.asked["prompts"] is None else "prompts",
            "n",
            "sampler",
            "steps",
            "guidance",
            "seed",
            "precision",
        )
        config = self.origin.config
        track: Track = declaration_of(config["data"])
        parts = {"base": config["backbone"].get("weights"), "vae": track.vae}
        names = {part: None if name is None else Path(name).name for part, name in parts.items()}
        request = self.origin.weights | names | {key: self.asked[key] for key in keys}
        interval = self.asked["guidance_interval"]
        request |= {key: self.asked[key] for key in ("bucket", "negative", "size") if self.asked[key] is not None}
        request |= {f"guidance_{part}": scale for part, scale in scales_by_part(self.asked).items()}
        if self.asked["image"] is not None:
            request["image"] = file_sha256(Path(self.asked["image"]))
        return request | self.undivided | ({} if interval == EVERYWHERE else {"guidance_interval": interval})

    def _default_folder(self) -> Path:
        """The default folder: below the run's or the checkpoint's, and named after the request."""
        asked = self.asked
        parent, name = self.origin.folder
        name = [*name, f"{asked['sampler']}{asked['steps']}"]
        name += [*(f"{key}={value}" for key, value in self.undivided.items()), f"n={asked['n']}"]
        name += [f"guidance={asked['guidance']:g}", f"seed={asked['seed']}"]
        low, high = asked["guidance_interval"]
        name += [] if [low, high] == EVERYWHERE else [f"within={low:g}-{high:g}"]
        name += [f"{key}={asked[key]}" for key in ("bucket", "size") if asked[key] is not None]
        name += [f"guidance_{part}={scale:g}" for part, scale in scales_by_part(asked).items()]
        name += [f"image={self.request['image'][:16]}"] if asked["image"] is not None else []
        name += [asked["precision"]] if asked["precision"] != "fp32" else []
        if asked["prompts"] is not None:
            name.append(f"prompts={digest64(*asked['prompts']):016x}")
            name += [] if asked["negative"] is None else [f"negative={digest64(asked['negative']):016x}"]
        elif len(asked["classes"]) < self.origin.config["data"]["num_classes"]:
            name.append("classes=" + "+".join(map(str, asked["classes"])))
        return parent / folder_name(name)

    # --- existing images --------------------------------------------------------------------------------

    def prepare(self) -> dict[str, list[int]]:
        """Creates the folder and records the request in it. Returns, for each variant, the batches with missing images.
        Raises UserError if the folder contains another request's images."""
        self.folder.mkdir(parents=True, exist_ok=True)
        record = self.folder / "request.json"
        there = read_json(record) if record.exists() else self.request
        here = dict.fromkeys(there) | self.request
        differing = [f"{k}: {there.get(k)} there, {v} here" for k, v in here.items() if there.get(k) != v]
        if differing:
            some = "; ".join(differing[:SHOWN]) + ("; ..." if len(differing) > SHOWN else "")
            raise UserError(f"{self.folder} holds other images ({some}); give another folder, out=FOLDER")
        write_whole(record, json.dumps(self.request, indent=1))
        if self.origin.warning is not None:
            print(f"warning: {self.origin.warning}")
        for variant in self.variants:
            (self.folder / variant).mkdir(exist_ok=True)
            clear_leftovers(self.folder / variant)
        pairs = [(v, i, len(self._missing(v, batch))) for v in self.variants for i, batch in enumerate(self.batches)]
        self.new = sum(count for *_, count in pairs)
        return {v: [i for variant, i, count in pairs if count and variant == v] for v in self.variants}

    def remove_if_empty(self) -> None:
        """Removes the folder of a failed request, unless it contains images."""
        if any(self.folder.rglob("*.png")):
            return
        (self.folder / "request.json").unlink(missing_ok=True)
        for variant in self.variants:
            remove_empty(self.folder / variant)
        remove_empty(self.folder)

    def _missing(self, variant: str, batch: list[Image]) -> list[Image]:
        return [image for image in batch if not (self.folder / variant / image.name).exists()]

    # --- generation -------------------------------------------------------------------------------------

    def make(self, missing: dict[str, list[int]], accelerator: Accelerator) -> None:
        """Generates this process's part of the missing batches."""
        rank, world = accelerator.process_index, accelerator.num_processes
        own = {variant: batches[rank::world] for variant, batches in missing.items()}
        total = sum(len(self._missing(v, self.batches[i])) for v, batches in own.items() for i in batches)
        opened: OpenedRun | None = None
        with contextlib.ExitStack() as stack:
            bar: Any = None
            for variant, batches in own.items():  # the base model's come first
                if not missing[variant]:
                    continue
                device = accelerator.device
                opened = self.origin.open_tuned(device, opened) if variant == TUNED else self.origin.open_base(device)
                _ = opened.autoencoder  # an error of missing weights is raised before sampling
                if bar is None:
                    bar = stack.enter_context(progress.bar(total=total, desc="images", unit="image"))
                for i in batches:
                    with accelerator.autocast():
                        x0 = self._sample(opened, self.batches[i])
                    bar.update(self._write(variant, self.batches[i], opened.track_of(self.asked["bucket"]).to_rgb(x0)))

    def _sample(self, opened: OpenedRun, batch: list[Image]) -> torch.Tensor:
        how = {key: self.asked[key] for key in ("sampler", "steps", "guidance", "seed")}
        if by_part := scales_by_part(self.asked):
            how["guidance"] = by_part
        how["interval"] = tuple(self.asked["guidance_interval"])
        images = [(image.class_id, image.index) for image in batch]
        backbone, shape = opened.model.backbone, opened.track_of(self.asked["bucket"]).latent_shape
        shape = shape if self.asked["x0_shape"] is None else as_shape(self.asked["x0_shape"])
        numbers, prompts = [image.class_id for image in batch], self.asked["prompts"]
        if prompts is None:
            condition = opened.condition(numbers)
        else:
            where = {"bucket": self.asked["bucket"], "size": self.asked["size"]}
            condition = opened.prompt_condition([prompts[i] for i in numbers], self.asked["image"], **where)
            if self.asked["negative"] is not None:
                how["negative"] = opened.prompt_condition([self.asked["negative"]] * len(batch), **where)
        return sample_images(backbone, opened.objective, images, shape, condition, **how)

    def _write(self, variant: str, batch: list[Image], images_B3HW: torch.Tensor) -> int:
        """Writes the images that do not exist yet and returns their number."""
        missing = self._missing(variant, batch)
        for image, rgb_3HW in zip(batch, images_B3HW, strict=True):
            if image in missing:
                write_whole(self.folder / variant / image.name, to_png(to_pixels(rgb_3HW)))
        return len(missing)

    # --- grid and report --------------------------------------------------------------------------------

    def write_grid(self) -> None:
        """Writes the grid: a row per class or prompt. With a base model, its row is above the run's; both images of a
        column start from the same noise."""
        columns = range(min(self.asked["n"], GRID_COLUMNS))
        titles = {TUNED: self.origin.label}
        rows = []
        for class_id in self.asked["classes"][:GRID_CLASSES]:
            for variant in self.variants:
                label = self._label(class_id)
                label += f" · {titles.get(variant, variant)}" if len(self.variants) > 1 else ""
                files = [self.folder / variant / Image(class_id, i, self.letter).name for i in columns]
                rows.append((label, [Picture.open(file).convert("RGB") for file in files]))
        write_whole(self.folder / "grid.png", labelled_grid(rows))

    def _label(self, class_id: int) -> str:
        """The class's id and, if there is one, its name; or a prompt's number and the prompt."""
        names = self.asked["class_names"]
        return f"{class_id} {names[class_id]}" if class_id < len(names) else f"class {class_id}"

    def report(self) -> None:
        """Prints how many images there are, and where."""
        total = sum(map(len, self.batches)) * len(self.variants)
        print(f"{total} images ({self.new} new) in {self.folder}/, shown in {self.folder}/grid.png")
