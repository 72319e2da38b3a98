"""Pictures of a run at its checkpoints, for `urepa.look`: the sheets that training makes with trainer.look_every, also
of other images, tokens and times, and a strip over all sheets of the run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from urepa.config.declared import declaration_of
from urepa.core import look_sheets
from urepa.core.files import write_whole
from urepa.core.teacher_names import ALONE
from urepa.core.track_protocols import Track
from urepa.evaluation.buckets import bucket_folder
from urepa.evaluation.context import Context
from urepa.evaluation.looking import Look, write_sheet
from urepa.inference.open_run import OpenedRun, given_places, open_base
from urepa.method.ddpm_sampling import check_steps
from urepa.runs import checkpoint
from urepa.runs.run_folder import folder_name
from urepa.training.assembly import build_loss, build_part, build_untrained

STRIP = "strip.png"
IN_A_STRIP = 12  # steps


def look(asked: dict[str, Any], folders: Sequence[Path]) -> Iterator[str]:
    """Writes the sheets of these checkpoints. Yields a sentence for each file. Raises UserError if there is nothing to
    show, or a checkpoint is damaged."""
    how = Look(**{field.name: asked[field.name] for field in fields(Look)} | {"patch": tuple(asked["patch"])})
    run = Path(asked["run"])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    opened = open_base(run, device, given_places(asked))
    if how.tap is not None:
        backbone: Any = opened.model.backbone
        backbone.tap_width(how.tap)  # raises UserError for a tap that the backbone does not have
    check_steps(opened.objective, how.sampler_steps, "sampler_steps")
    declared: Track = declaration_of(opened.config["data"])
    track = build_part(opened.config["data"] | {**declared.without_making, **declared.without_copies})
    teacher = build_part(opened.config["teacher"]) if build_loss(opened.config).taps else None
    with closing(track.open(teacher)) as cache:
        for folder in folders:
            opened.load_ema(checkpoint.open_valid(folder))
            for bucket in cache.buckets:
                context = context_of(opened, track, bucket)
                file, missing = write_sheet(how, context, _file(asked, how, context))
                yield f"{file}" + "".join(f"\n  not shown: {why}" for why in missing)
    for place in (run, *sorted(run.glob("buckets/*"))):
        strip = write_strip(place / look_sheets.FOLDER)
        if strip is not None:
            yield f"{strip}"


def context_of(opened: OpenedRun, track: Any, bucket: Any) -> Context:
    """The context of a bucket under the weights that are loaded."""
    config = opened.config
    return Context(
        model=opened.model,
        objective=opened.objective,
        loss=build_loss(config),
        track=track.of_bucket(bucket.bucket) if bucket.bucket else track,
        cache=bucket,
        folder=bucket_folder(opened.folder, bucket),
        device=opened.device,
        seed=config["seed"],
        step=opened.step,
        untrained=lambda: build_untrained(config, track, opened.device),
        teacher=next(iter(bucket.teacher_names), ALONE),
    )


def write_strip(folder: Path) -> Path | None:
    """A strip of the sheets in a folder, of at most `IN_A_STRIP` steps. None if there are fewer than two."""
    files = {int(file.stem.removeprefix("step_")): file for file in folder.glob("step_" + "[0-9]" * 8 + ".png")}
    if len(files) < 2:
        return None
    sheets = {}
    for step in look_sheets.spread(list(files), IN_A_STRIP):
        with Image.open(files[step]) as sheet:
            sheets[step] = look_sheets.cells_of(sheet)
    png = look_sheets.strip_png(sheets)
    if png is None:
        return None
    write_whole(folder / STRIP, png)
    return folder / STRIP


def _file(asked: dict[str, Any], how: Look, context: Context) -> Path:
    """The file of a sheet. The name of one with other than the usual settings lists them, so that it is no part of
    strips."""
    if asked["out"] is not None:
        return Path(asked["out"])
    other = [f"{f.name}={getattr(how, f.name)}" for f in fields(Look) if getattr(how, f.name) != f.default]
    name = look_sheets.sheet_name(context.step).removesuffix(".png")
    return context.folder / look_sheets.FOLDER / f"{folder_name([name, *other])}.png"
