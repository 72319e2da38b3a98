"""Writes captions for CIFAR-10 in class folders. Captions of training images use one list of templates and captions of
test images another, so `+experiment=captions_cifar10` is evaluated on prompts that are not in its training data.

    python -m launchers.write_captions DIR

DIR has {train,test}/CLASS/*.png, of all classes or of some. The command writes DIR/train/metadata.jsonl and
DIR/test/metadata.jsonl (`file_name`, `text`, which `data.captions=files` reads), and DIR/held_out_prompts.txt with all
held-out prompts, for `urepa.generate prompts=`. An image's captions depend only on its split, class and file name.
Existing files are not overwritten.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from omegaconf import OmegaConf

from urepa.config.command_schemas import WriteCaptions
from urepa.config.help import HELP, help_text
from urepa.core import safe_output
from urepa.core.errors import UserError
from urepa.core.files import write_whole
from urepa.core.one_line_errors import one_line_mistakes
from urepa.data.sources.caption_files import METADATA
from urepa.data.sources.image_folder import images_in, readable

USAGE = "python -m launchers.write_captions DIR, a folder with {train,test}/CLASS/*.png of CIFAR-10"
NAMES: dict[str, tuple[str, ...]] = {  # a class's folder, and the names of its objects in captions
    "airplane": ("an airplane", "a plane", "an aircraft", "a jet"),
    "automobile": ("an automobile", "a car", "a motor car"),
    "bird": ("a bird", "a wild bird", "a little bird"),
    "cat": ("a cat", "a kitten", "a house cat"),
    "deer": ("a deer", "a wild deer", "a stag"),
    "dog": ("a dog", "a puppy", "a pet dog"),
    "frog": ("a frog", "a toad", "a little frog"),
    "horse": ("a horse", "a pony", "a wild horse"),
    "ship": ("a ship", "a boat", "a vessel at sea"),
    "truck": ("a truck", "a lorry", "a big truck"),
}
TEMPLATES: dict[str, tuple[str, ...]] = {  # by split; the two have no text in common
    "train": (
        "{}",
        "a photo of {}",
        "a picture of {}",
        "an image of {}",
        "a good photo of {}",
        "a close-up of {}",
        "a cropped photo of {}",
        "a small blurry picture of {}",
        "a low-resolution photograph of {}",
        "a tiny colour photograph of {}",
        "a thumbnail that shows {}",
        "{} in the middle of the picture",
        "this is {}",
        "there is {} in this image",
        "someone took a picture of {}",
        "the photograph has {} in it",
    ),
    "test": (
        "a snapshot of {}",
        "a pixelated view of {}",
        "here you can see {}",
        "I would like to see {}",
        "what a lovely shot of {}!",
        "{}, photographed from nearby",
        "{} and nothing else",
        "an old camera captured {}",
        "on my desk stands a framed portrait of {}",
        "we looked for a long time until we found {}",
    ),
}
CAPTIONS = {"train": 4, "test": 1}  # the number of captions per image
PROMPTS = "held_out_prompts.txt"


def prompts_of(split: str, name: str) -> list[str]:
    """All captions that images of a class can have in a split, ordered by template."""
    return [template.format(what) for template in TEMPLATES[split] for what in NAMES[name]]


def draw_captions(split: str, name: str, file: str) -> list[str]:
    """Different captions for one image. The draw depends on its split, class and file name."""
    from urepa.core import random_draws  # it imports torch, which --help does not need

    prompts = prompts_of(split, name)
    rng = random_draws.generator(random_draws.digest64("captions", split, name, file), "captions")
    return [prompts[int(i)] for i in rng.permutation(len(prompts))[: CAPTIONS[split]]]


def rows_of(split: str, images: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """The lines of a split's metadata, ordered by class and file name."""
    for name, files in images.items():
        for file in files:
            yield json.dumps({"file_name": f"{name}/{file}", "text": draw_captions(split, name, file)})


def images_by_class(folder: Path) -> dict[str, list[str]]:
    """The images of a split by class, sorted. Raises UserError if a folder is not that of a class of CIFAR-10."""
    found = {
        path.name: files
        for path in (sorted(folder.iterdir()) if folder.is_dir() else [])
        if path.is_dir() and (files := images_in(path, readable()))
    }
    if not found or not found.keys() <= NAMES.keys():
        raise UserError(
            f"{folder} has {', '.join(found) or 'no images'} as class folders; captions can be written for "
            f"{', '.join(NAMES)}: {USAGE}"
        )
    return found


def write_captions(root: Path) -> dict[Path, int]:
    """Writes the captions of all images below `root`, and the held-out prompts. Returns the number of lines by file.
    Raises UserError, and writes nothing, if images are missing or captions exist."""
    images = {split: images_by_class(root / split) for split in TEMPLATES}
    lines = {root / split / METADATA[0]: list(rows_of(split, images[split])) for split in images}
    lines[root / PROMPTS] = [prompt for name in NAMES if name in images["test"] for prompt in prompts_of("test", name)]
    others = [root / split / name for split in images for name in METADATA]
    if there := [str(file) for file in dict.fromkeys([*lines, *others]) if file.exists()]:
        raise UserError(f"{' and '.join(there)} exist already and would be replaced or contradicted; delete them first")
    for file, texts in lines.items():
        write_whole(file, "".join(f"{text}\n" for text in texts).encode())
    return {file: len(texts) for file, texts in lines.items()}


def main(arguments: Sequence[str]) -> None:
    """Writes the files and prints their names and numbers of lines."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        raise UserError(f"give one folder: {USAGE}")
    for file, count in write_captions(Path(arguments[0])).items():
        print(f"written: {file}, {count:,} lines")


if __name__ == "__main__":
    safe_output.make_output_safe()
    if HELP & set(sys.argv):
        print(help_text("write_captions", OmegaConf.structured(WriteCaptions)))
        sys.exit(0)
    with one_line_mistakes():
        main(sys.argv[1:])
