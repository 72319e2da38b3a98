"""The image tokens of one bucket of a track: where they lie, how they are made of the cut images, and how they are
opened.

Shapes: B images, T patches, D width of the encoder, HW pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from urepa.data.image_statistics import IMAGE_TOKENS
from urepa.data.stages.encode import Output, device_and_dtype
from urepa.data.text_and_image_conditions import TextAndImageConditions, image_records
from urepa.data.text_conditions import TextConditions
from urepa.models.teachers.rectangle_sizes import teacher_on_grid

if TYPE_CHECKING:
    from urepa.data.tracks.latent_track import LatentTrack
    from urepa.data.tracks.pixel_track import PixelTrack


class ImageTokens:
    """The image tokens of images of one shape."""

    def __init__(self, settings: PixelTrack | LatentTrack, bucket: Path, size: tuple[int, int]) -> None:
        """`bucket` is the folder of the bucket's caches."""
        self.settings, self.size, self.grid = settings, size, settings.image_grid(size)
        self.folder = bucket / settings.image_tokens_name(size)
        self.record_shape = [1 + self.grid[0] * self.grid[1], settings.image_encoder.width]

    @cached_property
    def _network(self) -> Any:
        return teacher_on_grid(self.settings.image_encoder.build(), self.grid)

    def expected(self) -> dict[str, Any]:
        """The expected entries of the store's manifest, except the weights. The encoder sees the whole cut image."""
        network = self.settings.image_encoder.build()
        encoder = self._network.manifest() | {"crop": "none", "vector": network.vector}
        if hasattr(network, "patch"):
            encoder["patch"] = network.patch
        grid, size = list(self.grid), list(self.size)
        return {"kind": IMAGE_TOKENS, "shape": self.record_shape, "grid": grid, "image_size": size, "encoder": encoder}

    def output(self) -> Output:
        """The store that is filled."""
        facts = self.expected() | {"track": self.settings.name, "dtype": "float16", "flip": "none"}
        facts["encoder"] |= {"weights_sha256": self.settings.image_encoder.build().weights_sha256()}
        return Output(self.folder, facts)

    def encode(self, images_B3HW: Tensor) -> np.ndarray:
        """Records [B,1+T,D] of images in [0,1]."""
        device, _ = device_and_dtype()
        records_B1TD: np.ndarray = image_records(self._network, images_B3HW.to(device)).cpu().numpy()
        return records_B1TD

    def encode_bytes(self, images_B3HW: Tensor) -> np.ndarray:
        """Records of images as uint8."""
        return self.encode(images_B3HW.float() / 255)


def text_and_image_conditions(
    settings: PixelTrack | LatentTrack, text: TextConditions, folders: Callable[[], Sequence[Path]]
) -> TextAndImageConditions:
    """The conditions of a track of captions and images, before it is opened, for images of its first bucket.

    Args:
        folders: gives the stores of image tokens of all buckets with images.
    """
    return TextAndImageConditions(
        text,
        dict(settings.dropout),
        settings.image_encoder,
        settings.image_size,
        next(iter(settings.sizes.values())),
        settings.has_own_patch_statistics,
        settings.shuffle_patches,
        folders,
    )
