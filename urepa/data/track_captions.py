"""The settings of a track's conditions in its declaration, which are class ids, captions or the images themselves:
checks, folders and descriptions, without torch."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Any

from urepa.core.errors import UserError
from urepa.core.hashing import digest64
from urepa.core.part_names import CLASS, IMAGE, KEEP
from urepa.core.text_protocols import text_widths
from urepa.data.lists.paths import is_finished
from urepa.data.sources.source_files import CAPTIONED
from urepa.data.track_defaults import draws_text
from urepa.data.track_image_tokens import ImageTokenSettings


class CaptionSource(Enum):
    files = "files"
    classes = "classes"


class ConditionOf(Enum):
    label = "label"
    image = "image"


class CaptionSettings(ImageTokenSettings):
    """Base class for declarations of tracks that have these keys."""

    condition: Any  # a `ConditionOf`
    captions: Any  # a `CaptionSource`; None: conditions are class ids
    text_encoder: Any  # `urepa.core.text_protocols.TextEncoder`; None where there are no captions
    caption_column: str | None
    online_text: bool
    class_names: str | None
    source: Any
    cfg_dropout: float
    flip: bool
    folder: Any  # a Path: the folder of the lists and caches
    latent_shape: Any  # (C, H, W)

    @property
    def is_of_images(self) -> bool:
        """Whether a sample is denoised under its own x0."""
        return str(self.condition) == ConditionOf.image.value

    @property
    def condition_widths(self) -> dict[str, int]:
        if self.is_of_images:
            return {IMAGE: self.latent_shape[0], KEEP: 1}
        return {CLASS: 0} if self.text_encoder is None else dict(text_widths(self.text_encoder)) | self.image_widths

    @property
    def by_class(self) -> bool:
        """Whether the images must lie in class folders; images with captions of their own need not."""
        return str(self.captions) != "files"

    @property
    def captions_file(self) -> Path:
        """The file with the list of captions."""
        return Path(self.folder / f"captions{self.captions_ending}.jsonl")

    @property
    def text_folder(self) -> Path:
        """The folder of the captions' records."""
        return Path(self.folder / f"text_{self.text_encoder.stored_as()}{self.captions_ending}")

    @property
    def text_folders(self) -> list[Path]:
        """`text_folder`; empty if there are no captions or if they are encoded during training."""
        return [] if self.text_encoder is None or self.online_text else [self.text_folder]

    @property
    def text_places(self) -> list[Path]:
        """What training reads of captions: their records, or only their list if they are encoded during training."""
        return [self.captions_file] if self.text_encoder is not None and self.online_text else self.text_folders

    @property
    def captions_ending(self) -> str:
        """The suffix of the names of the captions' list and store, which tells apart captions of different columns."""
        if self.caption_column is not None:
            return f"_{digest64('caption_column', self.caption_column):016x}"[:9]
        return "" if str(self.captions) == "files" else f"_{self.captions}"

    def check_captions(self) -> None:
        """Raises UserError if the keys are inconsistent."""
        self.check_image_tokens()
        if self.is_of_images and self.captions is not None:
            raise UserError("data.condition=image excludes captions as conditions; drop it, or give data.captions=null")
        if self.captions is None and self.text_encoder is not None:
            raise UserError("data.text_encoder has no effect without data.captions=files (or classes); give that too")
        if self.captions is None and self.online_text:
            raise UserError("data.online_text has no effect without data.captions=files (or classes); give that too")
        if self.caption_column is not None and (str(self.captions) != "files" or self.source == "folder"):
            raise UserError(
                "data.caption_column has no effect without data.captions=files and data.source=parquet, webdataset or "
                "hub; drop it"
            )
        if self.captions is None:
            return
        if self.text_encoder is None:
            raise UserError(
                f"data.captions={self.captions} needs a text encoder; give data=captions, or "
                "+text_encoder@data.text_encoder=minilm"
            )
        if str(self.source) not in CAPTIONED:
            raise UserError(
                f"data.captions needs data.source={' or '.join(CAPTIONED)}; drop it with data.source={self.source}"
            )
        if str(self.captions) == "classes" and self.source != "folder" and self.class_names is None:
            raise UserError(
                f"data.captions=classes needs the names of a folder's classes; data.source={self.source} has none: "
                "give data.captions=files"
            )
        self.text_encoder.check()

    def check_text_files(self) -> None:
        """Raises UserError if captions still have to be encoded, now or during training, and the encoder's files are
        missing."""
        if self.text_encoder is not None and (self.online_text or not is_finished(self.text_folder)):
            self.text_encoder.check_files()

    def describe_draws(self) -> str:
        """How captions are chosen and encoded and what is drawn at random for a sample, as text."""
        if self.text_encoder is None and self.is_of_images:
            drawn = "A sample is denoised under its own image; how much of it is kept is drawn at each update."
            return f"{drawn} {draws_text(self.cfg_dropout, self.flip, 'image')}"
        if self.text_encoder is None:
            return draws_text(self.cfg_dropout, self.flip)
        made = (
            "A caption is `a photo of a NAME`, of its class"
            if str(self.captions) == "classes"
            else "Each update draws one of an image's captions; validation takes the first"
        )
        when = " They are encoded during training, anew each time." if self.online_text else ""
        described = f"{made}. {self.text_encoder.description()}{when}"
        if self.image_encoder is not None:
            return f"{described}{self.describe_image_tokens()}"
        return f"{described} {draws_text(self.cfg_dropout, self.flip, 'caption')}"
