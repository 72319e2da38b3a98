"""Conditions of a caption and of an image: `text`, with what a text encoder has beside, `image.cls`, an image encoder's
vector, and `image.patches`, its tokens with their grid.

Shapes: B samples, T patches, D width of the image encoder, HW pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from urepa.core.conditions import Condition, Part, without_never_given
from urepa.core.errors import UserError
from urepa.core.part_names import CLS, PATCHES
from urepa.core.random_draws import digest64, generator
from urepa.data.image_statistics import ImageStatistics
from urepa.data.lists.paths import is_finished
from urepa.data.lists.samples import Sample
from urepa.data.online_encoders import own_device
from urepa.data.stores.record_reading import Store
from urepa.data.text_conditions import TextConditions
from urepa.models.teachers.rectangle_sizes import Grid, grid_for, teacher_on_grid

SHUFFLE = "patches"  # the purpose of the draw of an order of the patches


@dataclass(frozen=True)
class TextAndImageConditions:
    """Conditions of images of one shape (`ConditionMaker` of urepa/core/track_protocols.py). `image_records` is set by
    an opened track; without it the image tokens of files can be computed. Vectors and patches are standardised by
    statistics over the training set."""

    text: TextConditions
    dropout: Mapping[str, float]
    encoder: Any  # the declaration of the image encoder (`urepa.core.protocols.OneTeacher`)
    side: int  # of the square images for which it is declared, in pixels
    size: tuple[int, int]  # rows and columns of these images, in pixels
    own_statistics: bool  # whether patches are standardised by their own statistics; False: by those of the vectors
    shuffles: bool  # whether each sample's patches are in a random order
    folders: Callable[[], Sequence[Path]]  # the stores of all buckets, whose statistics are joined
    image_records: Store | None = None
    known_statistics: ImageStatistics | None = None  # None: they are read from the stores
    networks: list[Any] = field(default_factory=list)  # holds the encoder's network once it is built

    @property
    def grid(self) -> Grid:
        """Rows and columns of an image's patches."""
        return grid_for(self.encoder, self.size, self.side)

    @property
    def records(self) -> Any:
        """The captions' records, of an opened track."""
        return self.text.records

    @property
    def captions(self) -> Any:
        """The captions by sample id, of an opened track."""
        return self.text.captions

    def of_size(self, size: tuple[int, int]) -> TextAndImageConditions:
        """The same for images of another shape, without records."""
        return replace(self, size=size, image_records=None)

    def opened(self, records: Store, size: tuple[int, int]) -> TextAndImageConditions:
        """The conditions of one bucket of an opened track."""
        return replace(self, image_records=records, size=size)

    def made_by(self, manifest: Mapping[str, Any]) -> TextAndImageConditions:
        """A copy that encodes prompts only with the text encoder's weights that this manifest names."""
        return replace(self, text=self.text.made_by(manifest))

    def of_samples(
        self,
        samples: Sequence[Sample],
        draw: Callable[[str, int], np.random.Generator] | None = None,
        x0: Tensor | None = None,
    ) -> Condition:
        """The condition of the samples with all parts given: captions as in `TextConditions`, and their image tokens.
        The order of shuffled patches is drawn with `draw(SHUFFLE, i)`, or by the sample's id if `draw` is None."""
        assert self.image_records is not None, "the track is open"
        records = self.image_records.tensor([sample.key for sample in samples]).float()
        orders = None
        if self.shuffles:
            rngs = [
                generator(digest64(SHUFFLE, sample.sample_id), SHUFFLE) if draw is None else draw(SHUFFLE, i)
                for i, sample in enumerate(samples)
            ]
            orders = np.stack([rng.permutation(records.shape[1] - 1) for rng in rngs])
        return _join(self.text.of_samples(samples, draw), self._given(records, orders))

    def of_classes(self, class_ids: Sequence[int]) -> Condition:
        raise UserError("this run's conditions are captions and images, not classes: give prompts")

    def of_prompts(self, prompts: Sequence[str], images_B3HW: Tensor | None = None) -> Condition:
        """The condition of these texts, where an empty one is withheld, and of RGB images in [0,1] of `size`, or with
        all images withheld."""
        if images_B3HW is None:
            image = self._withheld(len(prompts))
        else:
            assert tuple(images_B3HW.shape[2:]) == self.size
            image = self._given(self.encode(images_B3HW))
        return without_never_given(_join(self.text.of_prompts(prompts), image), self.dropout)

    def null(self, count: int) -> Condition:
        """The condition of `count` samples with all parts withheld."""
        return _join(self.text.null(count), self._withheld(count))

    def example(self, count: int) -> Condition:
        """As `null`, with zeros as the text's null values; needs no encoder."""
        return _join(self.text.example(count), self._withheld(count))

    def encode(self, images_B3HW: Tensor) -> Tensor:
        """Records [B,1+T,D] of images in [0,1]. Raises UserError if the encoder is not that of the statistics."""
        if not self.networks:
            network = self.encoder.build()
            self.statistics.check_weights(network.weights_sha256())
            self.networks.append(network)
        return image_records(teacher_on_grid(self.networks[0], self.grid), images_B3HW.to(own_device())).cpu()

    def with_statistics(self, applied: ImageStatistics) -> TextAndImageConditions:
        """A copy that standardises by these statistics, those of another one's `applied`, and reads no stores."""
        return replace(self, known_statistics=applied, own_statistics=True)

    @property
    def applied(self) -> ImageStatistics:
        """The statistics by which vectors and patches are standardised."""
        found = self.statistics
        return found if self.own_statistics else replace(found, patches=found.vectors)

    @cached_property
    def statistics(self) -> ImageStatistics:
        """The statistics over the training images of all buckets. Raises UserError if their stores are not there."""
        if self.known_statistics is not None:
            return self.known_statistics
        folders = self.folders()
        missing = [folder for folder in folders if not is_finished(folder)]
        if missing:
            raise UserError(
                f"there are no image tokens at {missing[0]}, by whose statistics an image's are standardised; give "
                "data.root=FOLDER of the training's caches"
            )
        stores = [Store(folder) for folder in folders]
        found = ImageStatistics.of(stores)
        for store in stores:
            store.close()
        return found

    def _given(self, records_B1TD: Tensor, orders_BT: np.ndarray | None = None) -> dict[str, Part]:
        """The parts of records; patches in other orders if these are given."""
        applied = self.applied
        vectors_BD = standardise(records_B1TD[:, 0], *applied.vectors)
        patches_BTD = standardise(records_B1TD[:, 1:], *applied.patches)
        if orders_BT is not None:
            patches_BTD = patches_BTD.take_along_dim(torch.from_numpy(orders_BT)[..., None], dim=1)
        return {CLS: Part.of(vectors_BD), PATCHES: Part.of_image(patches_BTD, self.grid)}

    def _withheld(self, count: int) -> dict[str, Part]:
        """The parts of `count` samples without an image."""
        (rows, columns), width, all_B = self.grid, self.encoder.width, torch.ones(count, dtype=torch.bool)
        vectors, patches = torch.zeros(count, width), torch.zeros(count, rows * columns, width)
        parts = {CLS: Part.of(vectors), PATCHES: Part.of_image(patches, self.grid)}
        return {name: part.withhold(all_B) for name, part in parts.items()}


def with_text(conditions: Any, text: TextConditions) -> Any:
    """A track's conditions whose captions are read from records: `text`, with images if the conditions have them."""
    return replace(conditions, text=text) if isinstance(conditions, TextAndImageConditions) else text


def _join(text: Condition, image: Mapping[str, Part]) -> Condition:
    return Condition(dict(text.parts) | dict(image))


def standardise(x: Tensor, mean_D: Tensor, deviation_D: Tensor) -> Tensor:
    """x less the mean, divided by the standard deviation."""
    return (x - mean_D) / deviation_D


def image_records(network: Any, images_B3HW: Tensor) -> Tensor:
    """Records [B,1+T,D] of images in [0,1]: what an image encoder gives, its vector first."""
    vectors_BD, patches = network.states(images_B3HW)
    return torch.cat([vectors_BD[:, None], patches.x_BND], dim=1).float()
