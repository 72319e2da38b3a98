"""The layout of shards with latents, image tokens and encoded captions, and the shapes of a sample's arrays, without
torch.

DIR/bucket_WxH/shard-NNNNNN.tar, or DIR/{train,val}/bucket_WxH/shard-NNNNNN.tar; W and H are columns and rows in pixels.
The members of a sample: KEY.json (caption and other facts), KEY.dinov3.npy [D] (the image encoder's global vector),
KEY.dinov3_patches.npy [N,D] (its patch tokens, row by row), KEY.vae.npy [C,H/f,W/f] (the latent), KEY.t5h.npy [L,E] and
KEY.t5m.npy [L] (tokens of the caption and their mask). DIR/manifest.json, if there is one, says how they were made.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from urepa.core.errors import UserError
from urepa.core.escaping import printable
from urepa.core.files import read_json
from urepa.data.lists.bucket_shapes import Size
from urepa.data.lists.paths import tokens_name
from urepa.models.teachers.rectangle_sizes import Grid, grid_for

JSON, GLOBAL, PATCHES, LATENT, TEXT, MASK = "json", "dinov3.npy", "dinov3_patches.npy", "vae.npy", "t5h.npy", "t5m.npy"
MEMBERS = (JSON, GLOBAL, PATCHES, LATENT, TEXT, MASK)
FLOATS, INTEGERS = ("float16", "float32"), ("bool", "uint8", "int8", "int32", "int64")
MANIFEST = "manifest.json"
MANIFEST_KINDS = {"latents": dict, "image_encoder": dict, "encoder": dict, "class_names": list}  # what it may hold
WHOLE = "none"  # the crop of the image encoder's view: it sees the bucket's whole image
BUCKET = re.compile(r"bucket_(\d+)x(\d+)")
SPLITS = ("train", "val")


@dataclass(frozen=True)
class ShardSizes:
    """The shapes of the arrays of a sample, from a track's settings and its teacher's."""

    buckets: Mapping[str, Size]  # rows and columns in pixels, by the names of the track's buckets
    latents: Mapping[str, tuple[int, int, int]]
    grids: Mapping[str, Grid]
    patch: int  # pixels
    width: int  # D
    text_length: int  # L
    text_width: int  # E

    @classmethod
    def of(cls, track: Any, encoder: Any) -> ShardSizes:
        """Raises UserError if the shards cannot hold the track's conditions or latents.

        Args:
            track: a declared latent track with captions.
            encoder: the declaration of the encoder of images.
        """
        text = track.text_encoder
        if text is None:
            raise UserError(
                f"data={track.name} has no captions, and a sample of the shards has one; give data.captions"
            )
        if text.pooled_width or hasattr(text, "layers"):
            raise UserError(
                "the shards hold a caption's tokens and their mask alone: give text_encoder@data.text_encoder=t5, or "
                "another one without a vector and without further layers"
            )
        if track.moments:
            raise UserError("the shards hold one latent a sample, no moments; give data.moments=false")
        rows, image_size = encoder.grid[0], track.image_size
        if image_size % rows:
            raise UserError(
                f"teacher.grid has {rows} rows for data.image_size={image_size}, which is not a whole number of pixels "
                "a patch; correct one of them"
            )
        grids = {name: grid_for(encoder, size, image_size) for name, size in track.sizes.items()}
        latents = {name: track.shape_of(size) for name, size in track.sizes.items()}
        return cls(track.sizes, latents, grids, image_size // rows, encoder.width, text.length, text.width)

    def shape(self, member: str, bucket: str) -> tuple[int, ...]:
        """The shape of a member's array in a bucket."""
        rows, columns = self.grids[bucket]
        return {
            GLOBAL: (self.width,),
            PATCHES: (rows * columns, self.width),
            LATENT: self.latents[bucket],
            TEXT: (self.text_length, self.text_width),
            MASK: (self.text_length,),
        }[member]

    def bucket_of(self, folder: Path) -> str:
        """The name of the track's bucket for a folder bucket_WxH. Raises UserError if the track has none of that
        size."""
        found = BUCKET.fullmatch(folder.name)
        assert found is not None, "the caller looks for such folders"
        size = int(found[2]), int(found[1])
        name = next((name for name, own in self.buckets.items() if tuple(own) == size), None)
        if name is None:
            known = ", ".join(map(bucket_folder, self.buckets.values()))
            raise UserError(
                f"{printable(str(folder))} is a bucket that data.buckets does not have ({known}); add "
                f"[{size[0]},{size[1]}] to data.buckets, or take the folder away"
            )
        return name


def bucket_folder(size: Size) -> str:
    """The folder of a bucket of these rows and columns."""
    return f"bucket_{size[1]}x{size[0]}"


def image_tokens_folder(place: Path, encoder: Any, grid: Grid) -> Path:
    """The store of a bucket's image tokens: records [1+N,D], the vector and the patches. `place`: the bucket's
    folder."""
    known = encoder.stored_as()
    return place / f"image_{tokens_name(known['model'], known['image_size'], grid, known.get('positions'))}"


def read_manifest(folder: Path, sizes: ShardSizes) -> dict[str, Any]:
    """The shards' manifest; {} without one. Raises UserError if it says that the image tokens do not show the whole
    image of the bucket or are of another patch size."""
    file = folder / MANIFEST
    known: dict[str, Any] = read_json(file) if file.is_file() else {}
    for key, kind in MANIFEST_KINDS.items():
        if not isinstance(known.get(key, kind()), kind):
            raise UserError(
                f"{file}: its {key} is a JSON {type(known[key]).__name__}; give what it describes, or drop it"
            )
    said = {"crop": WHOLE, "patch": sizes.patch} | known.get("image_encoder", {}) | known
    crop, patch = said["crop"], said["patch"]
    if crop != WHOLE:
        raise UserError(
            f"{file} says that the image tokens are of a crop ({printable(str(crop))!r}), so they are not where the "
            "latents are; make them again from the whole image of each bucket"
        )
    if patch != sizes.patch:
        raise UserError(
            f"{file} says patches of {printable(str(patch))} pixels; those of data and teacher have {sizes.patch} "
            "(data.image_size over the rows of teacher.grid): make the tokens again"
        )
    return known
