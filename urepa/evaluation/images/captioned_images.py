"""The declaration of images that the run generates under captions of test images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from urepa.core.descriptions import EvaluatedRun
from urepa.evaluation.images.generated_images import GeneratedImages


@dataclass
class CaptionedImages(GeneratedImages):
    """Images of all classes, in numbers as equal as possible, under the first captions of test images, which training
    does not read."""

    _target_: str = "urepa.evaluation.images.captioned_images.CaptionedImages"
    captions_of: ClassVar[str] = "test"

    def description(self, run: EvaluatedRun) -> str:
        return f"{super().description(run)} under captions of test images"
