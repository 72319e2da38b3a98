"""Crops with captions of 31 photographs that come with packages: the data of results/nanodit (docs/results.md).

    apt-get download mate-backgrounds plasma-workspace-wallpapers       # Debian 12
    for f in *.deb; do dpkg-deb -x $f DEBIAN; done
    python results/nanodit/photographs.py DEBIAN SKIMAGE OUT            # SKIMAGE: scikit-image's folder skimage/data

OUT/train/photographs has 16 crops of each of 24 photographs, OUT/test/photographs 12 of each of the 7 others: squares,
and 5:3 upright and across, from a third to the whole of a photograph's shorter side, as PNG with a caption each.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib
import numpy as np
import sklearn.datasets
from PIL import Image

CROPS = {"train": 16, "test": 12}
EVERY = 4  # of the photographs by name, one in as many is held out
LONGER = 160  # the longer side of a crop, in pixels
SHAPES = {"square": (1.0, 1.0), "wide": (0.6, 1.0), "tall": (1.0, 0.6)}  # rows and columns, relative to the longer side
MATE = {
    "Aqua": "a drop of water", "Blinds": "a green leaf", "Dune": "dune grass by the sea",
    "FreshFlower": "an orange flower", "Garden": "a marigold", "GreenMeadow": "a meadow of grass",
    "LadyBird": "a ladybird on a stem", "RainDrops": "rain drops on a leaf",
    "Storm": "a storm above a road", "TwoWings": "two winged seeds", "Wood": "planks of pale wood",
    "YellowFlower": "a yellow flower",
}  # fmt: skip
PLASMA = {
    "BytheWater": "wooden boards by a lake", "ColdRipple": "a jetty in the fog", "ColorfulCups": "plastic cups",
    "DarkestHour": "a lake at night", "EveningGlow": "boats at sunset", "FallenLeaf": "fallen autumn leaves",
    "Grey": "a white façade", "Kite": "a kite in the sky", "OneStandsOut": "green moss", "Path": "a path in a forest",
    "summer_1am": "a lake in summer at dusk",
}  # fmt: skip
SKIMAGE = {
    "astronaut.png": "an astronaut", "chelsea.png": "a cat", "coffee.png": "a cup of coffee", "rocket.jpg": "a rocket",
    "motorcycle_left.png": "a motorcycle",
}  # fmt: skip


def photographs(debian: Path, skimage: Path) -> dict[str, tuple[Path, str]]:
    """File and subject of each photograph, by name, in the order of names."""
    mate, plasma = debian / "usr/share/backgrounds/mate/nature", debian / "usr/share/wallpapers"
    found = {name: (mate / f"{name}.jpg", subject) for name, subject in MATE.items()}
    for name, subject in PLASMA.items():
        found[name] = (max((plasma / name / "contents/images").iterdir()), subject)
    found |= {Path(file).stem: (skimage / file, subject) for file, subject in SKIMAGE.items()}
    samples = Path(sklearn.datasets.__file__).parent / "images"
    found |= {"china": (samples / "china.jpg", "a temple"), "flower": (samples / "flower.jpg", "a dahlia")}
    hopper = Path(matplotlib.get_data_path()) / "sample_data/grace_hopper.jpg"
    found["grace_hopper"] = (hopper, "a woman in uniform")
    return dict(sorted(found.items()))


def crop(photo: Image.Image, rng: np.random.Generator) -> tuple[Image.Image, str]:
    """A random crop, and which part of the photograph it shows."""
    shape = str(rng.choice(list(SHAPES)))
    longer = float(rng.uniform(1 / 3, 1)) * min(photo.size)
    rows, columns = (longer * side for side in SHAPES[shape])
    left, top = rng.uniform(0, photo.width - columns), rng.uniform(0, photo.height - rows)
    down = "upper" if top + rows / 2 < photo.height / 2 else "lower"
    across = "left" if left + columns / 2 < photo.width / 2 else "right"
    box = (left, top, left + columns, top + rows)
    size = tuple(round(LONGER * side) for side in reversed(SHAPES[shape]))
    resized = photo.resize((size[0], size[1]), Image.Resampling.LANCZOS, box=box)
    return resized, f"{shape}, {down} {across}"


def main() -> None:
    debian, skimage, out = map(Path, sys.argv[1:])
    for number, (name, (file, subject)) in enumerate(photographs(debian, skimage).items()):
        split = "test" if number % EVERY == EVERY - 1 else "train"
        folder = out / split / "photographs"
        folder.mkdir(parents=True, exist_ok=True)
        photo, rng = Image.open(file).convert("RGB"), np.random.default_rng(number)
        for i in range(CROPS[split]):
            image, where = crop(photo, rng)
            image.save(folder / f"{name}_{i:02d}.png")
            (folder / f"{name}_{i:02d}.txt").write_text(f"{subject}, {where}\n")


if __name__ == "__main__":
    main()
