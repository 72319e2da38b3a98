"""A backbone outside urepa's packages, which urepa does not name, is checked, described, counted, built and
exported."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from class_ids import of_ids
from safetensors.torch import load_file
from torch import Tensor, nn

from urepa.config import own_package
from urepa.config.parts import KINDS, SCHEMAS
from urepa.core.conditions import CLASS, Condition
from urepa.core.declared_keys import SIZE, setting
from urepa.core.descriptions import BackboneFacts, CardFacts, Formula, shape
from urepa.core.errors import UserError
from urepa.core.types import Denoised, Tokens
from urepa.costs.estimate import Device, plan
from urepa.models.drawn_backbone import DrawnBackbone
from urepa.models.speed_switches import compile_blocks
from urepa.models.weight_files import save_tensors
from urepa.reports.description.markdown_and_latex import as_markdown
from urepa.reports.description.methodology import methodology
from urepa.reports.description.subject import subject_of
from urepa.runs.run_folder import Names, tags_of
from urepa.runs.stored_config import check_config
from urepa.training.assembly import build_loss, build_model, build_part, load_modules
from urepa.training.checks.combinations import check
from urepa.training.checks.inputs import check_run_inputs

Compose = Callable[..., dict[str, Any]]
TARGET = "test_own_backbone.Pixelwise"


class Step(nn.Conv2d):
    """One layer."""


class PixelwiseNetwork(nn.Module):
    """1x1 convolutions, each after a ReLU; the class is added after the first. Its tap is the state in the middle."""

    stages = ("before", "after")
    regions = ("Step",)

    def __init__(self, channels: int, width: int, num_classes: int) -> None:
        super().__init__()
        self.rows = nn.Embedding(num_classes + 1, width)
        self.before, self.after = Step(channels, width, 1), Step(width, channels, 1)

    def tap_width(self, tap: str) -> int:
        check_middle(tap)
        return self.before.out_channels

    def trains_before(self, tap: str) -> bool:
        return any(p.requires_grad for p in (*self.before.parameters(), *self.rows.parameters()))

    def freeze_after(self, taps: tuple[str, ...]) -> None:
        self.after.requires_grad_(False)

    def lora_modules(self, targets: str, blocks: str) -> str:
        raise AssertionError("the declaration refuses adapters")

    def add_adapter(self, config: Any) -> None:
        raise AssertionError("the declaration refuses adapters")

    def stage_of(self, name: str) -> str:
        return "after" if name.startswith("after") else "before"

    def export(self, folder: Path) -> None:
        save_tensors(self.state_dict(), folder / "pixelwise.safetensors")

    def forward(
        self,
        x_t: Tensor,
        t_B: Tensor,
        condition: Condition,
        taps: tuple[str, ...] = (),
        rows_R: Tensor | None = None,
    ) -> Denoised:
        classes = condition[CLASS]
        rows_BD = self.rows(classes.where_given(classes.ids_B, self.rows.num_embeddings - 1))
        middle = F.relu(self.before(x_t) + rows_BD[:, :, None, None])
        features = {tap: Tokens.from_map(middle) for tap in taps}
        return Denoised(self.after(middle if rows_R is None else middle[rows_R]), features)


def check_middle(tap: str) -> None:
    if tap != "middle":
        raise UserError(f"this backbone has no tap '{tap}'; it has middle")


@dataclass
class Pixelwise(DrawnBackbone):
    """Layers that process each pixel alone."""

    _target_: str = TARGET
    width: int = setting("width of the layer in the middle", ge=1, le=SIZE)
    family: ClassVar[str] = "pixelwise"
    noun: ClassVar[str] = "perceptron"

    def check(self, latent_shape: tuple[int, int, int]) -> None:
        if self.width < latent_shape[0]:
            raise UserError(f"backbone.width={self.width}: give {latent_shape[0]} or more")

    def check_tap(self, tap: str) -> None:
        check_middle(tap)

    def check_grids(self, latent_shape: tuple[int, int, int], grids: Mapping[str, Sequence[int]]) -> None:
        for key, grid in grids.items():
            if tuple(grid) != latent_shape[1:]:
                raise UserError(f"{key}={list(grid)}: give {list(latent_shape[1:])}, or head=conv")

    def build(self, *, latent_shape: tuple[int, int, int], num_classes: int) -> PixelwiseNetwork:
        return PixelwiseNetwork(latent_shape[0], self.width, num_classes)

    def description(self, facts: BackboneFacts) -> list[str | Formula]:
        begun = facts.initial_weights(self.base)
        return [f"The backbone sees single pixels, {self.width} wide{begun}, of x0 of {shape(facts.latent_shape)}."]


@pytest.fixture
def own(compose: Compose, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The quickstart with this backbone, declared as a file of --config-dir declares it."""
    monkeypatch.setitem(KINDS, "backbone", dict(KINDS["backbone"]))
    monkeypatch.delitem(SCHEMAS, TARGET, raising=False)
    own_package._declare("backbone", TARGET, Path("configs/backbone/pixelwise.yaml"))
    assert SCHEMAS.pop(TARGET) is KINDS["backbone"][TARGET] is Pixelwise
    monkeypatch.setitem(SCHEMAS, TARGET, Pixelwise)
    config = compose("evaluation=none")
    config["backbone"] = {"_target_": TARGET, "width": 16}
    config["loss"]["taps"] = {"middle": 1.0}
    return config


@pytest.mark.slow
def test_it_is_checked(own: dict[str, Any], compose: Compose, tmp_path: Path) -> None:
    check(own, [])
    assert check_config(own | {"arm": None})["backbone"] == own["backbone"]
    check_run_inputs(own, tmp_path)
    mistakes: list[tuple[str, dict[str, Any], str]] = [
        ("backbone", {"width": 0}, "^backbone.width=0: give 1 or more"),
        ("backbone", {"width": 2}, "^backbone.width=2: give 4 or more$"),
        ("loss", {"taps": {"mid": 1.0}}, "^this backbone has no tap 'mid'; it has middle$"),
        (
            "lora",
            compose("lora=mid_attention")["lora"],
            "^lora has no layers to adapt in this backbone: give lora=none",
        ),
        ("head", compose("head=repa_mlp")["head"], r"^teacher.grid=\[4, 4\]: give \[16, 16\], or head=conv$"),
    ]
    latent = build_part(own["data"]).latent_shape
    for kind, changes, words in mistakes:
        words = words.replace("give 4 or", f"give {latent[0]} or").replace("16, 16", f"{latent[1]}, {latent[2]}")
        with pytest.raises(UserError, match=words):
            check(own | {kind: (own[kind] if kind in ("backbone", "loss") else {}) | changes}, [])


def test_an_arm_is_for_its_family(own: dict[str, Any]) -> None:
    arm = {"families": ["sit"], "changes": []}
    with pytest.raises(UserError, match=r"^\+ablation=x is for the backbone sit, not for pixelwise$"):
        check(own | {"arm": arm}, ["+ablation=x"])
    assert tags_of(Names("quickstart", "baseline", ()), own)["backbone"] == "pixelwise"


@pytest.mark.slow
def test_it_is_counted_and_described(own: dict[str, Any]) -> None:
    planned = plan(own, Device("cpu", "cpu", None, None))
    channels, side, _ = build_part(own["data"]).latent_shape
    before = 11 * 16 + channels * 16 + 16
    assert planned.counted.parameters["before"] == {"all": before, "trainable": before}
    assert planned.counted.taps == {"middle": (side, side, 16)}
    text = as_markdown("Methodology", methodology(subject_of(own, planned), "A test."))
    shaped = f"{channels}×{side}×{side}"
    assert f"The backbone sees single pixels, 16 wide, with random initial weights, of x0 of {shaped}." in text
    assert "The backbone itself is trained; there are no adapters." in text


@pytest.mark.slow
def test_it_is_built_and_exported(own: dict[str, Any], tmp_path: Path) -> None:
    load_modules(own)
    track = build_part(own["data"])
    model, group = build_model(own, track, build_part(own["teacher"]), build_loss(own))
    backbone: Any = model.backbone
    assert group == "backbone"
    x_t, condition = torch.randn(2, *track.latent_shape), of_ids(torch.tensor([0, 10]), 10)
    denoised = model(x_t, torch.tensor([1, 2]), condition)
    assert denoised.prediction_RCHW.shape == x_t.shape
    compile_blocks(backbone)
    assert backbone.before._compiled_call_impl is not None
    assert backbone._compiled_call_impl is None
    backbone.export(tmp_path)
    assert torch.equal(load_file(tmp_path / "pixelwise.safetensors")["after.weight"], backbone.after.weight)
    declared = Pixelwise(width=16)
    assert "`urepa.load`" in declared.model_card(CardFacts(("pixelwise.safetensors",), "", (4, 8, 8), 1000))
    with pytest.raises(UserError, match="^checkpoint=.*: this backbone reads no published weights"):
        declared.find_weights(tmp_path)
