"""What a track declares of captions, small or of latents: checks, places and words, without torch."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Any

from urepa.core.errors import UserError
from urepa.core.hashing import digest64
from urepa.core.part_names import CLASS
from urepa.core.text_protocols import text_widths
from urepa.data.lists.paths import is_finished
from urepa.data.sources.source_files import CAPTIONED
from urepa.data.track_defaults import tell_draws


class CaptionSource(Enum):
    files = "files"
    classes = "classes"


class CaptionSettings:
    """For declarations of tracks to inherit that have these keys."""

    captions: Any  # a `CaptionSource`; None: conditions are class ids
    text_encoder: Any  # `urepa.core.text_protocols.TextEncoder`; None where there are no captions
    caption_column: str | None
    online_text: bool
    class_names: str | None
    source: Any
    cfg_dropout: float
    flip: bool
    folder: Any  # of the lists and caches, a Path

    @property
    def condition_widths(self) -> dict[str, int]:
        return {CLASS: 0} if self.text_encoder is None else dict(text_widths(self.text_encoder))

    @property
    def by_class(self) -> bool:
        """Are the images to be in class folders? Those with captions of their own need none."""
        return str(self.captions) != "files"

    @property
    def captions_file(self) -> Path:
        """The list of the captions."""
        return Path(self.folder / f"captions{self.captions_ending}.jsonl")

    @property
    def text_folder(self) -> Path:
        """Where the records of the captions lie."""
        return Path(self.folder / f"text_{self.text_encoder.stored_as()}{self.captions_ending}")

    @property
    def text_folders(self) -> list[Path]:
        """The same where records are kept; empty where there are no captions, or the encoder is asked in training."""
        return [] if self.text_encoder is None or self.online_text else [self.text_folder]

    @property
    def text_places(self) -> list[Path]:
        """What training reads of captions: their records, or their list alone."""
        return [self.captions_file] if self.text_encoder is not None and self.online_text else self.text_folders

    @property
    def captions_ending(self) -> str:
        """What the names of the captions' list and store end in, so that those of one column are not taken for those
        of another."""
        if self.caption_column is not None:
            return f"_{digest64('caption_column', self.caption_column):016x}"[:9]
        return "" if str(self.captions) == "files" else f"_{self.captions}"

    def check_captions(self) -> None:
        """UserError where the keys do not go together."""
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
        """UserError where captions are still to be encoded, now or in training, and the encoder's files are not
        there."""
        if self.text_encoder is not None and (self.online_text or not is_finished(self.text_folder)):
            self.text_encoder.check_files()

    def describe_draws(self) -> str:
        """What is drawn of a sample, and of its caption how it is encoded."""
        if self.text_encoder is None:
            return tell_draws(self.cfg_dropout, self.flip)
        made = (
            "A caption is `a photo of a NAME`, of its class"
            if str(self.captions) == "classes"
            else "Each update draws one of an image's captions; validation takes the first"
        )
        when = " They are encoded in training, anew each time." if self.online_text else ""
        return f"{made}. {self.text_encoder.description()}{when} {tell_draws(self.cfg_dropout, self.flip, 'caption')}"
