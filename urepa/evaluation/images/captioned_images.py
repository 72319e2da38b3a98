"""The declaration of images that a run generates under captions of test images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from urepa.core.descriptions import EvaluatedRun
from urepa.evaluation.images.generated_images import GeneratedImages


@dataclass
class CaptionedImages(GeneratedImages):
    """Images under the first captions of test images, which are not read in training. The numbers of images per class
    are as equal as possible."""

    _target_: str = "urepa.evaluation.images.captioned_images.CaptionedImages"
    captions_of: ClassVar[str] = "test"

    def description(self, run: EvaluatedRun) -> str:
        return f"{super().description(run)} under captions of test images"
