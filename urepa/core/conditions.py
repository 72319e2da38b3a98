"""What a sample is denoised under: named parts, each of which is given or withheld.

Backbones and the data's makers of conditions open a `Condition`; everything else passes it on.

Shapes: B batch, R rows of it, L tokens of a condition, D width, S stacked layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from urepa.core.errors import UserError
from urepa.core.part_names import CLASS

JOIN = "+"  # between names of parts that are given or withheld together: "text+image"
OF_NULL = ("null", "null_mask_L")  # fields of a part that have no sample for each row
ROUNDING = 1e-9  # of a sum of probabilities that was written in decimals


@dataclass(frozen=True)
class Part:
    """One part of a condition: ids [B] (int64), a vector [B,D], tokens [B,L,D], or the tokens of several layers
    [B,S,L,D]; tokens have a mask [B,L], True where a token counts.

    The value of a sample whose part is withheld is `null` [D], [L,D] or [S,L,D] with the mask `null_mask_L`; without
    them it is 0 and its mask True. Nothing of the sample is left in it. Tokens of an image have their `grid`, rows and
    columns, and are in its order, row by row.
    """

    value: Tensor
    given_B: Tensor
    mask_BL: Tensor | None = None
    null: Tensor | None = None
    null_mask_L: Tensor | None = None
    grid: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        shape = tuple(self.value.shape)
        assert len(shape) in (1, 2, 3, 4), f"a part is [B], [B,D], [B,L,D] or [B,S,L,D], not {shape}"
        assert (self.value.dtype == torch.int64) is (len(shape) == 1), f"a part {shape} of type {self.value.dtype}"
        assert (self.given_B.dtype, tuple(self.given_B.shape)) == (torch.bool, shape[:1])
        if len(shape) > 2:
            assert self.mask_BL is not None, "tokens have a mask"
            assert (self.mask_BL.dtype, tuple(self.mask_BL.shape)) == (torch.bool, (shape[0], shape[-2]))
        else:
            assert self.mask_BL is None, "only tokens have a mask"
        if self.null is not None:
            assert (self.null.dtype, self.null.shape) == (self.value.dtype, self.value.shape[1:]), "a sample's null"
            assert len(shape) > 1, "ids have no null: the backbone has a row for it"
        assert (self.null_mask_L is None) is (self.null is None or len(shape) < 3), "a null of tokens has a mask"
        if self.null_mask_L is not None:
            assert (self.null_mask_L.dtype, tuple(self.null_mask_L.shape)) == (torch.bool, shape[-2:-1])
        if self.grid is not None:
            assert len(shape) == 3, "only tokens have a grid"
            assert shape[1] == self.grid[0] * self.grid[1], f"{shape[1]} tokens do not fill the grid {self.grid}"

    @staticmethod
    def of(
        value: Tensor,
        mask_BL: Tensor | None = None,
        null: Tensor | None = None,
        null_mask_L: Tensor | None = None,
        grid: tuple[int, int] | None = None,
    ) -> Part:
        """A part that every sample has."""
        given_B = torch.ones(len(value), dtype=torch.bool, device=value.device)
        return Part(value, given_B, mask_BL, null, null_mask_L, grid)

    @staticmethod
    def of_image(tokens_BLD: Tensor, grid: tuple[int, int]) -> Part:
        """The tokens of images, of which every sample has one and all count."""
        return Part.of(
            tokens_BLD, torch.ones(tokens_BLD.shape[:2], dtype=torch.bool, device=tokens_BLD.device), grid=grid
        )

    @property
    def ids_B(self) -> Tensor:
        """The ids of a part that has ids; 0 where it is withheld."""
        assert self.value.ndim == 1, f"a part of shape {tuple(self.value.shape)} has no ids"
        return self.value

    @property
    def vector_BD(self) -> Tensor:
        """The vectors of a part that has vectors; where it is withheld its null, or 0."""
        assert self.value.ndim == 2, f"a part of shape {tuple(self.value.shape)} has no vectors"
        return self.value

    @property
    def tokens_BLD(self) -> Tensor:
        """The tokens of a part that has tokens; where it is withheld its null, or 0. Their mask is `mask_BL`."""
        assert self.value.ndim == 3, f"a part of shape {tuple(self.value.shape)} has no tokens"
        return self.value

    @property
    def layers_BSLD(self) -> Tensor:
        """The tokens of several layers; its null, or 0, where the part is withheld. Their mask is `mask_BL`."""
        assert self.value.ndim == 4, f"a part of shape {tuple(self.value.shape)} has no layers"
        return self.value

    def where_given(self, own: Tensor, null: Tensor | int) -> Tensor:
        """`own` [B,...] where the part is given, else the backbone's `null`, which broadcasts to it.

        A learned null is in the graph of every batch, whether a sample takes it or not: DistributedDataParallel waits
        for the gradients of all parameters.
        """
        return torch.where(self.given_B.view(-1, *(1,) * (own.ndim - 1)), own, null)

    def withhold(self, where_B: Tensor) -> Part:
        """The same, withheld where the mask is True too."""
        part = replace(self, given_B=self.given_B & ~where_B)
        value = part.where_given(self.value, 0 if self.null is None else self.null)
        if self.mask_BL is None:
            return replace(part, value=value)
        null_mask_L = torch.ones_like(self.mask_BL[0]) if self.null_mask_L is None else self.null_mask_L
        return replace(part, value=value, mask_BL=part.where_given(self.mask_BL, null_mask_L))

    def rows(self, rows_R: Tensor) -> Part:
        """The same of some samples, by index."""
        found: dict[str, Any] = {name: tensor[rows_R] for name, tensor in self._tensors() if name not in OF_NULL}
        return replace(self, **found)

    def map(self, change: Callable[[Tensor], Tensor]) -> Part:
        """The same change of every tensor, that of the null too."""
        changed: dict[str, Any] = {name: change(tensor) for name, tensor in self._tensors()}
        return replace(self, **changed)

    def _tensors(self) -> list[tuple[str, Tensor]]:
        """Those that it has, by their fields' names."""
        found = [(field.name, getattr(self, field.name)) for field in fields(self)]
        return [(name, value) for name, value in found if isinstance(value, Tensor)]


@dataclass(frozen=True)
class Condition:
    """What each sample of a batch is denoised under: parts by name. What a withheld part means is the backbone's: a row
    of a table, a learned token, or the null that the part is handed along with, as the record of the empty prompt."""

    parts: Mapping[str, Part]

    def __post_init__(self) -> None:
        assert self.parts, "a condition has at least one part"
        assert not any(JOIN in name for name in self.parts), f"'{JOIN}' joins names of parts"
        assert len({len(part.given_B) for part in self.parts.values()}) == 1, "its parts are of one batch"

    def __len__(self) -> int:
        """B."""
        return len(self._first.given_B)

    def __getitem__(self, name: str) -> Part:
        """For backbones."""
        assert name in self.parts, f"the condition has no part '{name}'; it has {', '.join(self.parts)}"
        return self.parts[name]

    @property
    def _first(self) -> Part:
        return next(iter(self.parts.values()))

    @property
    def names(self) -> tuple[str, ...]:
        """Its parts' names."""
        return tuple(self.parts)

    @property
    def device(self) -> torch.device:
        """Where it lies."""
        return self._first.given_B.device

    @staticmethod
    def of_classes(ids_B: Tensor) -> Condition:
        """Class ids [B], all given."""
        return Condition({CLASS: Part.of(ids_B)})

    def null(self) -> Condition:
        """The same batch with every part withheld."""
        return self.drop({JOIN.join(self.parts): torch.ones(len(self), dtype=torch.bool, device=self.device)})

    def drop(self, withheld: Mapping[str, Tensor]) -> Condition:
        """The same with the parts of each name (see `covered_parts`) withheld where its mask [B] is True."""
        parts = dict(self.parts)
        for name, where_B in withheld.items():
            for covered in covered_parts(name, self.names):
                parts[covered] = parts[covered].withhold(where_B)
        return Condition(parts)

    @staticmethod
    def cat(conditions: Sequence[Condition]) -> Condition:
        """One batch after the other. They have the same parts with the same nulls, and tokens of the same number."""
        first = conditions[0]
        assert all(other.names == first.names for other in conditions), "conditions that are joined have the same parts"
        return Condition({name: _cat([one[name] for one in conditions]) for name in first.names})

    def rows(self, rows_R: Tensor) -> Condition:
        """Some of its samples, by index."""
        return Condition({name: part.rows(rows_R) for name, part in self.parts.items()})

    def to(self, device: torch.device) -> Condition:
        """The same there, without waiting for it."""
        return self._map(lambda x: x.to(device, non_blocking=True))

    def pin(self) -> Condition:
        """The same in pinned memory."""
        return self._map(lambda x: x.pin_memory())

    def _map(self, change: Callable[[Tensor], Tensor]) -> Condition:
        return Condition({name: part.map(change) for name, part in self.parts.items()})


def _cat(parts: list[Part]) -> Part:
    masks = [part.mask_BL for part in parts if part.mask_BL is not None]
    values, given = [part.value for part in parts], [part.given_B for part in parts]
    assert len({part.null is None for part in parts}) == 1, "conditions that are joined have the same nulls"
    assert len({part.grid for part in parts}) == 1, "conditions that are joined have the same grids"
    return replace(
        parts[0], value=torch.cat(values), given_B=torch.cat(given), mask_BL=torch.cat(masks) if masks else None
    )


# --- names -----------------------------------------------------------------------------------------------------


def _find_parts(name: str, parts: Sequence[str]) -> tuple[list[str], list[str]]:
    """The parts that a name covers, in their order, and those of its joined names that cover none."""
    names = name.split(JOIN)
    found = {one: [part for part in parts if part == one or part.startswith(f"{one}.")] for one in names}
    unknown = [one for one, own in found.items() if not own]
    return [part for part in parts if any(part in own for own in found.values())], unknown


def covered_parts(name: str, parts: Sequence[str]) -> list[str]:
    """The parts that are given or withheld together under a name: `image` covers `image` and all that begins with
    `image.` (`image.cls`, `image.patches`); `text+image` covers what `text` and what `image` cover."""
    covered, unknown = _find_parts(name, parts)
    assert not unknown, f"'{unknown[0]}' names no part of a condition that has {', '.join(parts)}"
    return covered


def check_names(names: Sequence[str], parts: Sequence[str], key: str) -> None:
    """UserError where one of the names that a user gave under `key` covers no part of a condition with these parts."""
    for name in names:
        _, unknown = _find_parts(name, parts)
        if unknown:
            raise UserError(f"{key}: this run's condition has no part '{unknown[0]}'; it has {', '.join(parts)}")


# --- dropout in training ---------------------------------------------------------------------------------------

# Dropout is a mapping from what is withheld together to its probability: {"class": 0.1}, or
# {"text+image": 0.1, "image": 0.3, "text": 0.05}, where 0.55 remain with everything given.


def check_dropout(dropout: Mapping[str, float], parts: Sequence[str], key: str) -> None:
    """UserError where a dropout that a user gave under `key` names no part, or is no distribution."""
    check_names(list(dropout), parts, key)
    below = [name for name, p in dropout.items() if not p >= 0]
    if below:
        raise UserError(f"{key}: the probability of '{below[0]}' is {dropout[below[0]]}; give 0 or more")
    total = math.fsum(dropout.values())
    if total > 1 + ROUNDING:
        raise UserError(f"{key}: the probabilities add up to {total:g}; give 1 or less in all")


def draw_withheld(dropout: Mapping[str, float], u_B: Tensor) -> dict[str, Tensor]:
    """Where [B] each name of a dropout is withheld, for one uniform draw a sample in [0,1), float64: at most one name,
    the first one where u is below its probability, the next ones cumulatively."""
    assert u_B.dtype == torch.float64
    withheld, low = {}, 0.0
    for name, probability in dropout.items():
        withheld[name] = (u_B >= low) & (u_B < low + probability)
        low += probability
    return withheld


def without_never_given(condition: Condition, dropout: Mapping[str, float]) -> Condition:
    """What a model is asked under outside of training: without the parts that training withheld from every sample, so
    that no other value was ever learnt."""
    share = {
        part: math.fsum(p for name, p in dropout.items() if part in covered_parts(name, condition.names))
        for part in condition.names
    }
    never = [part for part, withheld in share.items() if withheld >= 1 - ROUNDING]
    all_B = torch.ones(len(condition), dtype=torch.bool, device=condition.device)
    return condition.drop({JOIN.join(never): all_B}) if never else condition
