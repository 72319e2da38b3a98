"""The conditions of tracks in which each sample has a class."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from urepa.core.conditions import CLASS, Condition, without_never_given
from urepa.data.lists.samples import Sample


@dataclass(frozen=True)
class ClassConditions:
    """Conditions with the class id as their only part (`ConditionMaker` of urepa/core/track_protocols.py)."""

    dropout: Mapping[str, float]

    @staticmethod
    def withheld_with(probability: float) -> ClassConditions:
        """The conditions of a track that withholds the class from a training sample with this probability."""
        return ClassConditions({CLASS: probability})

    def of_samples(
        self,
        samples: Sequence[Sample],
        draw: Callable[[str, int], np.random.Generator] | None = None,
        x0: Tensor | None = None,
    ) -> Condition:
        """The condition with the samples' classes, all given."""
        return Condition.of_classes(torch.tensor([s.class_id for s in samples]))

    def of_classes(self, class_ids: Sequence[int]) -> Condition:
        """The condition with these classes; they are withheld if training always withholds the class."""
        return without_never_given(Condition.of_classes(torch.tensor(class_ids)), self.dropout)

    def null(self, count: int) -> Condition:
        """The condition of `count` samples without a class."""
        return Condition.of_classes(torch.zeros(count, dtype=torch.long)).null()
