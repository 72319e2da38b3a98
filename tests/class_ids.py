"""Conditions of class ids for tests: the id after the last class means that the class is withheld."""

from __future__ import annotations

from torch import Tensor

from urepa.core.conditions import CLASS, Condition


def of_ids(ids_B: Tensor, null_id: int) -> Condition:
    """The condition of these classes; a class is withheld if its id is `null_id`."""
    return Condition.of_classes(ids_B).drop({CLASS: ids_B == null_id})


def ids_of(condition: Condition, null_id: int) -> Tensor:
    """The ids [B] of a condition; `null_id` where the class is withheld."""
    classes = condition[CLASS]
    return classes.where_given(classes.ids_B, null_id)
