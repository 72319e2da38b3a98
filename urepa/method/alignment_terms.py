"""What the declarations of `urepa.method.terms` have in common. Does not import torch."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

from urepa.core.abstract import Abstract
from urepa.core.comparability import TERMS, TOTAL
from urepa.core.declared_keys import LARGEST, setting
from urepa.core.descriptions import Formula, number

OF_TERM = (TERMS, TOTAL)  # what a setting alters that changes a term's value


def weight_setting() -> float:
    """The field `weight` of a term."""
    weight: float = setting("weight of the term beside the token loss", 1.0, ge=0, le=LARGEST, alters=(TOTAL,))
    return weight


class AlignmentTerm(Abstract):
    """A term that compares each projected token with its target alone, and not their lengths; terms that do more
    override what applies."""

    weight: float
    alters: ClassVar[tuple[str, ...]] = OF_TERM
    compares_samples: bool = False
    compares_tokens: bool = False
    compares_lengths: bool = False

    def check(self) -> None:
        """Nothing to check: any settings in their ranges are valid together."""

    @abstractmethod
    def formula(self) -> str:
        """The LaTeX of one sample's term."""

    @abstractmethod
    def words(self) -> str:
        """What the term is, as a sentence without its subject."""

    def description(self, name: str) -> list[str | Formula]:
        return [
            f"The term {name}, of weight {number(self.weight)}, is {self.words()}:",
            Formula(rf"\mathcal{{L}}_{{\mathrm{{{name}}}}} = \mathbb{{E}}\, {self.formula()}"),
        ]
