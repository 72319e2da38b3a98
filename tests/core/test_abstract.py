"""Classes that lack a member which their base leaves to them, are refused in one sentence: urepa's own bases, as in a
user's package."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from urepa.config.declared import build_errors, declaration_of
from urepa.core.abstract import Abstract, check_complete
from urepa.core.errors import UserError
from urepa.method.alignment_terms import AlignmentTerm
from urepa.method.losses.self_alignment_math import SelfAlignment
from urepa.method.objectives.objective_math import ObjectiveMath
from urepa.method.schedules.cutoff_math import Cutoff
from urepa.method.schedules.shape_math import Decay
from urepa.method.self_alignment import WithoutTeacher
from urepa.models.backbones.diffusers_transformer_net import DiffusersTransformer
from urepa.models.backbones.unet_net import StagedUNet
from urepa.models.published_transformer import PublishedTransformer
from urepa.runs.trackers.following_sender import Follower


class Base(Abstract):
    word: ClassVar[str]
    given: ClassVar[int] = 3
    setting: int

    @abstractmethod
    def method(self) -> int: ...

    @property
    @abstractmethod
    def value(self) -> int: ...


@dataclass
class Complete(Base):
    """A member may be of another form: a value for a property."""

    setting: int = 1
    word = "a"
    value = 2

    def method(self) -> int:
        return 5


class Other(Abstract):
    @abstractmethod
    def also(self) -> None: ...


class Incomplete(Base, Other):
    word = "a"


def test_a_complete_class_behaves_as_any() -> None:
    made = Complete(setting=4)
    assert (made.setting, made.word, made.given, made.value, made.method()) == (4, "a", 3, 2, 5)
    assert replace(made, setting=6) == deepcopy(Complete(6))
    check_complete(Complete)


def test_each_lacking_member_is_named_with_its_base() -> None:
    here = f"{__name__}."
    with pytest.raises(UserError) as caught:
        Incomplete()
    assert str(caught.value) == (
        f"{here}Incomplete does not define also, method, value, which {here}Base and {here}Other leave to their "
        "subclasses; define them"
    )
    with pytest.raises(UserError, match=r"Base does not define method, value, word, which .*\.Base leaves to .* them$"):
        check_complete(Base)
    with pytest.raises(UserError, match=r"does not define also, which .*Other leaves to its subclasses; define it$"):
        type("Mine", (Complete, Other), {})()


BASES: dict[type, tuple[str, ...]] = {
    AlignmentTerm: ("formula", "words"),
    Decay: ("words",),
    Cutoff: ("build", "description", "formulas", "is_permanent", "measures", "name"),
    WithoutTeacher: ("own_states",),
    SelfAlignment: ("terms",),
    StagedUNet: ("attended",),
    DiffusersTransformer: ("adapter_files", "arguments", "image_tokens", "regions"),
    PublishedTransformer: (
        *("adapter", "condition", "condition_parts", "family", "network", "pipeline", "text_fields", "title"),
        "usual_tap",
    ),
    ObjectiveMath: ("has_time", "sample_t", "time_at", "time_fraction"),
    Follower: ("_send_new_rows",),
}


@pytest.mark.parametrize("base", BASES, ids=lambda base: base.__name__)
def test_urepas_bases_say_what_a_subclass_lacks(base: type) -> None:
    """Of an otherwise empty subclass, when it is built."""
    with pytest.raises(UserError, match="^test_abstract.Mine does not define ") as caught:
        type("Mine", (base,), {"__module__": "test_abstract"})()
    said = str(caught.value).removeprefix("test_abstract.Mine does not define ").partition(", which ")[0]
    assert set(BASES[base]) <= set(said.split(", "))


@dataclass
class Forgetful(Decay):
    """A declaration without `words`, as in a user's package."""

    _target_: str = f"{__name__}.Forgetful"

    def factor(self, step: int, steps: int) -> float:
        return 0.5


class Attending(StagedUNet):
    """A network without `attended`."""


def test_a_part_is_refused_when_it_is_declared_or_built() -> None:
    """The sentence itself, without advice on settings."""
    with pytest.raises(UserError, match=r"^test_abstract.Forgetful does not define words, which .*Decay leaves to "):
        declaration_of({"_target_": f"{__name__}.Forgetful", "final": 0.0})
    said = r"^test_abstract.Attending does not define attended, which .*; define it$"
    with pytest.raises(UserError, match=said), build_errors({"_target_": f"{__name__}.Own", "depth": 1}):
        Attending(nn.Identity())


def test_networks_of_the_base_are_modules_as_before(compose: Callable[..., Any]) -> None:
    """Copied and stored as others."""
    known: dict[str, Any] = {"latent_shape": (4, 8, 8), "num_classes": 3}
    settings = {"backbone.block_out_channels": [32, 32], "backbone.attention": [False, True]}
    declared = declaration_of(compose("backbone=tiny_unet", *(f"{k}={v}" for k, v in settings.items()))["backbone"])
    network = declared.build(**known)
    copied = deepcopy(network)
    assert all(torch.equal(p, q) for p, q in zip(network.parameters(), copied.parameters(), strict=True))
    assert isinstance(copied, StagedUNet)
