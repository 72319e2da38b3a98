"""Conditions of tracks whose samples are denoised under their own image, and the choice between these and classes.

Shapes: B samples, CHW latent, L = H·W latent pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from urepa.core.conditions import Condition, Part
from urepa.core.errors import UserError
from urepa.core.part_names import IMAGE, KEEP
from urepa.core.random_draws import unit_interval
from urepa.core.track_protocols import ConditionMaker
from urepa.data.class_conditions import ClassConditions
from urepa.data.lists.samples import Sample

DRAW = "keep"  # the purpose of the draw that determines how much of an image is kept


@dataclass(frozen=True)
class OwnImageConditions:
    """Conditions with two parts: `image`, the sample's own x0 as tokens, and `image.keep`, a number in [0,1) that
    determines how much of it is kept (`ConditionMaker` of urepa/core/track_protocols.py)."""

    dropout: Mapping[str, float]
    latent_shape: tuple[int, int, int]

    @staticmethod
    def withheld_with(probability: float, latent_shape: Sequence[int]) -> OwnImageConditions:
        """The conditions of a track that withholds the image from a training sample with this probability."""
        channels, height, width = latent_shape
        return OwnImageConditions({IMAGE: probability}, (channels, height, width))

    def of_samples(
        self,
        samples: Sequence[Sample],
        draw: Callable[[str, int], np.random.Generator] | None = None,
        x0: Tensor | None = None,
    ) -> Condition:
        """The condition that contains the samples' x0, which must be given. How much of each is kept is drawn with the
        generator `draw(DRAW, i)`, or depends only on the sample's id if `draw` is None."""
        assert x0 is not None, "the conditions are computed from x0"
        if draw is None:
            kept = [unit_interval(DRAW, sample.sample_id) for sample in samples]
        else:
            kept = [float(draw(DRAW, i).random()) for i in range(len(samples))]
        return _condition(x0, torch.tensor(kept, device=x0.device)[:, None])

    def of_classes(self, class_ids: Sequence[int]) -> Condition:
        raise UserError(
            "this run's conditions are images, not classes: `python -m urepa.tokenize` encodes images, and `python -m "
            "urepa.detokenize` decodes their codes"
        )

    def null(self, count: int) -> Condition:
        """The condition of `count` samples without an image."""
        return _condition(torch.zeros(count, *self.latent_shape), torch.zeros(count, 1)).null()


def _condition(x0: Tensor, kept_B1: Tensor) -> Condition:
    tokens_BLC = x0.flatten(2).transpose(1, 2)
    mask_BL = torch.ones(tokens_BLC.shape[:2], dtype=torch.bool, device=x0.device)
    return Condition({IMAGE: Part.of(tokens_BLC, mask_BL), KEEP: Part.of(kept_B1)})


def conditions_without_text(settings: Any) -> ConditionMaker:
    """The conditions of a track without captions: the images themselves or their classes, depending on its settings
    (`urepa.data.track_captions.CaptionSettings`)."""
    if settings.is_of_images:
        return OwnImageConditions.withheld_with(settings.cfg_dropout, settings.latent_shape)
    return ClassConditions.withheld_with(settings.cfg_dropout)
