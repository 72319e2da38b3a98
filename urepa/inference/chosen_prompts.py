"""Chooses the prompts of a request for images of a model that was trained on captions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from urepa.config.declared import declaration_of
from urepa.core.errors import UserError
from urepa.core.part_names import CLS, IMAGE, TEXT
from urepa.core.track_protocols import condition_widths
from urepa.data.sources.caption_files import read_lines

GUIDED = ("text", "image")  # parts with a scale of their own
HOW = "prompt=TEXT, or prompts=FILE with one prompt per line"


def choose_prompts(asked: dict[str, Any], config: dict[str, Any], whose: str) -> list[str] | None:
    """The requested texts in order; None for a model whose conditions are classes. Raises UserError if such a model is
    given prompts, or a model whose conditions are captions is not.

    Args:
        asked: the request (`urepa.config.command_schemas.Images`).
        whose: the model's name in messages, such as "this run".
    """
    given = [key for key in ("prompt", "prompts") if asked[key] is not None]
    parts = condition_widths(declaration_of(config["data"]))
    if IMAGE in parts:
        raise UserError(
            f"{whose} decodes images from codes, not from classes or prompts: encode images with `python -m "
            "urepa.tokenize` and decode them with `python -m urepa.detokenize`"
        )
    if TEXT not in parts:
        if given:
            raise UserError(f"{given[0]} has no effect on {whose}, whose conditions are classes; give classes instead")
        return None
    if asked["classes"] is not None:
        raise UserError(f"classes has no effect on {whose}, whose conditions are captions; give {HOW}")
    if CLS in parts and not given:
        return [""]  # without a text
    if len(given) != 1:
        raise UserError(f"the conditions of {whose} are captions; give one of {HOW}")
    if asked["prompt"] is not None:
        return [asked["prompt"].strip()]
    file = Path(asked["prompts"])
    if not file.is_file():
        raise UserError(f"prompts={file} is not a file; give a text file with one prompt per line")
    if not (prompts := read_lines(file)):
        raise UserError(f"prompts={file} has no text; write one prompt per line")
    return prompts


def check_negative(asked: dict[str, Any], whose: str) -> str | None:
    """The negative prompt of a request whose `prompts` are chosen. Raises UserError if it would have no effect."""
    if asked["negative"] is None:
        return None
    if asked["prompts"] is None:
        raise UserError(f"negative has no effect on {whose}, whose conditions are classes; drop it")
    if asked["guidance"] == 1 and not scales_by_part(asked):
        raise UserError("negative has no effect with guidance=1, which is no guidance; give guidance=4 or drop it")
    negative = str(asked["negative"]).strip()
    if not negative:
        raise UserError("negative is empty; drop it: without it images are guided away from the null condition")
    return negative


def scales_by_part(asked: dict[str, Any]) -> dict[str, float]:
    """The scale of each part that a request guides by itself; empty if one scale guides all parts."""
    return {part: asked[f"guidance_{part}"] for part in GUIDED if asked[f"guidance_{part}"] is not None}


def check_image(asked: dict[str, Any], config: dict[str, Any], whose: str) -> None:
    """Raises UserError if the request's image or its scales by part would have no effect, or the image cannot be
    read."""
    given = [key for key in ("image", *(f"guidance_{part}" for part in GUIDED)) if asked[key] is not None]
    if given and CLS not in condition_widths(declaration_of(config["data"])):
        raise UserError(f"{given[0]} has no effect on {whose}, whose conditions have no image; drop it")
    if asked["image"] is not None and not Path(asked["image"]).is_file():
        raise UserError(f"image={asked['image']} is not a file; give an image")
    if scales_by_part(asked) and asked["guidance"] != 1:
        raise UserError(f"guidance and {given[-1]} are two scales of one part; give guidance_text and guidance_image")
