"""Sheets of pictures of a run at one step, and strips that show sheets of several steps side by side.

A sheet is a PNG with a row of pictures per image and a title above each column. Its layout is stored in the file as
text, so that the pictures can be cut out of it again; only numbers and the names below are read from there.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

# columns, in their order, with the lines of their titles
IMAGE, SAMPLE = "image", "sample"
TEACHER, HEAD, TAP = "teacher", "head", "tap"
NEAR_TEACHER, NEAR_HEAD, NEAR_TAP = "near_teacher", "near_head", "near_tap"
TITLES = {
    IMAGE: ("image", "held out"),
    TEACHER: ("teacher", "components"),
    HEAD: ("head", "teacher's comp."),
    TAP: ("tap", "own components"),
    NEAR_TEACHER: ("teacher", "similarity"),
    NEAR_HEAD: ("head", "similarity"),
    NEAR_TAP: ("tap", "similarity"),
    SAMPLE: ("sample", "from noise"),
}
# rows of a strip: the first of the columns that the sheets have, the column shown beside the steps, and their label
IN_STRIPS = (
    ((HEAD, TAP), TEACHER, "components"),
    ((NEAR_HEAD, NEAR_TAP), NEAR_TEACHER, "similarity"),
    ((SAMPLE,), IMAGE, "samples"),
)
FOLDER = "look"  # of a run's folder
LAYOUT = "urepa.look"  # the key of the layout in a PNG
TILE, GAP, MARGIN = 96, 4, 8  # pixels: the longer side of a picture, and between pictures
LINE = 15  # pixels of a line of text
LARGEST = 20_000  # pixels of a layout's numbers
FONT_SIZE = 11

Cells = dict[str, list[Image.Image]]  # the pictures of each column, one per image


def sheet_name(step: int) -> str:
    """The file's name in `FOLDER`."""
    return f"step_{step:08d}.png"


def sheet_png(cells: Cells, caption: str) -> bytes:
    """A sheet of these columns, in the order of `TITLES`, with a caption above it. All pictures have one size."""
    columns = [name for name in TITLES if name in cells]
    width, height = cells[columns[0]][0].size
    rows = len(cells[columns[0]])
    assert all(image.size == (width, height) for own in cells.values() for image in own), "pictures of one size"
    step_x, step_y, top = max(width, TILE) + GAP, height + GAP, MARGIN + 3 * LINE + GAP
    size = (max(2 * MARGIN + len(columns) * step_x, 2 * MARGIN + 6 * TILE), top + rows * step_y + MARGIN)
    page = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(FONT_SIZE)
    draw.text((MARGIN, MARGIN), caption, fill="black", font=font)
    for i, name in enumerate(columns):
        for line, text in enumerate(TITLES[name]):
            fill = "dimgray" if line else "black"
            draw.text((MARGIN + i * step_x, MARGIN + (1 + line) * LINE), text, fill=fill, font=font)
        for row, image in enumerate(cells[name]):
            page.paste(image, (MARGIN + i * step_x, top + row * step_y))
    layout = {"columns": columns, "rows": rows, "left": MARGIN, "top": top, "tile": [width, height]}
    return _png(page, layout | {"step": [step_x, step_y]})


def cells_of(sheet: Image.Image) -> Cells:
    """The pictures of a sheet; empty for an image that is not a sheet, or whose layout does not fit it."""
    try:
        layout = json.loads(getattr(sheet, "text", {}).get(LAYOUT, "{}"))
        columns = [name for name in layout["columns"] if name in TITLES]
        numbers = [layout["rows"], layout["left"], layout["top"], *layout["tile"], *layout["step"]]
        is_whole = len(columns) == len(layout["columns"]) and all(type(n) is int and 0 < n <= LARGEST for n in numbers)
        rows, left, top, width, height, step_x, step_y = numbers
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
    # pictures that do not overlap, so that they take no more memory than the sheet
    if not is_whole or not columns or step_x < width or step_y < height:
        return {}
    right, bottom = left + (len(columns) - 1) * step_x + width, top + (rows - 1) * step_y + height
    if right > sheet.width or bottom > sheet.height:
        return {}
    pixels = sheet.convert("RGB")
    return {
        name: [pixels.crop((x, y, x + width, y + height)) for y in (top + row * step_y for row in range(rows))]
        for name, x in ((name, left + i * step_x) for i, name in enumerate(columns))
    }


def strip_png(sheets: Mapping[int, Cells], images: int = 2) -> bytes | None:
    """The first `images` images of sheets side by side: a column per step, after one of the teacher's tokens or the
    image itself. None if no column of `IN_STRIPS` is there."""
    lines = _strip_lines(sheets)
    if not lines:
        return None
    width, height = next(image.size for _, _, shown in lines for own in shown.values() for image in own)
    font = ImageFont.load_default(FONT_SIZE)
    label, top = 2 * MARGIN + round(max(font.getlength(title) for title, _, _ in lines)), MARGIN + LINE
    rows = sum(min(images, len(next(iter(shown.values())))) for _, _, shown in lines)
    beside = label + width + 3 * GAP
    steps = sorted(sheets)
    size = (beside + len(steps) * (width + GAP) + MARGIN, top + rows * (height + GAP) + MARGIN)
    page = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(page)
    draw.text((label, MARGIN - 2), "reference", fill="dimgray", font=font)
    for i, step in enumerate(steps):
        draw.text((beside + i * (width + GAP), MARGIN - 2), f"step {step:,}", fill="black", font=font)
    y = top
    for title, reference, shown in lines:
        for row in range(min(images, len(next(iter(shown.values()))))):
            if row == 0:
                draw.text((MARGIN, y + height // 2), title, fill="black", font=font, anchor="lm")
            if row < len(reference):
                page.paste(_fit(reference[row], (width, height)), (label, y))
            for i, step in enumerate(steps):
                if row < len(shown.get(step, [])):
                    page.paste(_fit(shown[step][row], (width, height)), (beside + i * (width + GAP), y))
            y += height + GAP
    return _png(page, None)


def _strip_lines(
    sheets: Mapping[int, Cells],
) -> list[tuple[str, Sequence[Image.Image], dict[int, list[Image.Image]]]]:
    """The lines of a strip that have pictures: a label, the reference pictures, and the pictures by step."""
    lines: list[tuple[str, Sequence[Image.Image], dict[int, list[Image.Image]]]] = []
    for columns, beside, title in IN_STRIPS:
        column = next((name for name in columns if any(name in cells for cells in sheets.values())), None)
        if column is not None:
            reference = next((cells[beside] for cells in sheets.values() if beside in cells), [])
            lines.append((title, reference, {step: cells[column] for step, cells in sheets.items() if column in cells}))
    return lines


def spread(steps: Sequence[int], most: int) -> list[int]:
    """At most `most` of the steps in order, evenly spread, with the first and the last."""
    ordered = sorted(steps)
    if len(ordered) <= most:
        return ordered
    return [ordered[round(i * (len(ordered) - 1) / (most - 1))] for i in range(most)]


def tile_size(width: int, height: int) -> tuple[int, int]:
    """The size of a sheet's pictures for images of this size: the longer side has `TILE` pixels."""
    scale = TILE / max(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def as_tile(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The picture in this size; enlarged ones keep the edges of their pixels."""
    enlarged = image.width <= size[0]
    return image.resize(size, Image.Resampling.NEAREST if enlarged else Image.Resampling.LANCZOS)


def _fit(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return image if image.size == size else image.resize(size, Image.Resampling.LANCZOS)


def _png(page: Image.Image, layout: dict[str, Any] | None) -> bytes:
    written, text = io.BytesIO(), PngImagePlugin.PngInfo()
    if layout is not None:
        text.add_text(LAYOUT, json.dumps(layout))
    page.save(written, format="PNG", pnginfo=text)
    return written.getvalue()
