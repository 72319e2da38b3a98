"""Self-Transcendence's two stages: terms against their formulas, the frozen model's states, and where gradients go."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from urepa.core.conditions import Condition
from urepa.core.errors import UserError
from urepa.core.types import Batch, Tokens
from urepa.method.losses.latent_structure import LatentStructure
from urepa.method.losses.latent_structure_math import patches
from urepa.method.losses.self_transcendence import SelfTranscendence
from urepa.method.objectives.flow_math import FlowMath
from urepa.method.schedules.constant import Constant
from urepa.method.self_alignment import own_states
from urepa.method.training_step import AlignedModel, step_terms
from urepa.models.backbones.sit_net import SiTNetwork
from urepa.training.own_states import own_heads

OBJECTIVE = FlowMath("linear", "uniform")
TIMES = [0.4, 0.7]
LATENTS = LatentStructure(lambda_max=0.5, warmup_steps=0, student="block_1", target="prediction", times=TIMES, hidden=8)
GUIDED = SelfTranscendence(
    **{"lambda_max": 0.5, "warmup_steps": 0, "student": "block_1", "teacher": "block_2", "guide": "a run"},
    guidance=3.0,
    times=TIMES,
    hidden=8,
)
both = pytest.mark.parametrize("declared", [LATENTS, GUIDED], ids=["first", "second"])


def backbone(seed: int) -> SiTNetwork:
    torch.manual_seed(seed)
    network = SiTNetwork((3, 8, 8), 3, patch=2, depth=4, width=16, heads=2, qk_norm=False, positions="learned")
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def build(declared: Any) -> tuple[Any, AlignedModel]:
    loss, network = declared.build(schedule=Constant(), max_steps=100), backbone(0)
    own = own_states(loss)
    model = AlignedModel(network, own_heads(loss, network), "teacher", own.taps, own.averaged, (), own.frozen)
    model.earlier = {f"backbone.{name}": p.detach() for name, p in backbone(1).named_parameters()}
    return loss, model


@pytest.fixture
def batch() -> Batch:
    """Times of which the second and the third are between 0.4 and 0.7; the third sample's class is withheld."""
    random = torch.Generator().manual_seed(1)
    x0, noise = (torch.randn(4, 3, 8, 8, generator=random) for _ in range(2))
    whole = Condition.of_classes(torch.tensor([0, 1, 2, 0]))
    condition = whole.drop({"class": torch.tensor([False, False, True, False])})
    t_B = torch.tensor([0.1, 0.45, 0.65, 0.95])
    return Batch(list("abcd"), x0, noise, t_B, condition, {}, whole=whole)


def terms_of(declared: Any, batch: Batch) -> tuple[Any, Any, AlignedModel]:
    loss, model = build(declared)
    return *step_terms(model, OBJECTIVE, loss, batch, 0, lambda x: x), model


def behind_head(model: AlignedModel, hidden_BND: Tensor) -> Tensor:
    """The head, written out."""
    (head,) = (dict(one.named_parameters()) for one in model.heads.values())
    for name in ("linear1", "linear2", "linear3"):
        hidden_BND = hidden_BND @ head[f"{name}.weight"].T + head[f"{name}.bias"]
        if name != "linear3":
            hidden_BND = hidden_BND * torch.sigmoid(hidden_BND)
    if "last.1.weight" in head:
        centred = hidden_BND - hidden_BND.mean(-1, keepdim=True)
        hidden_BND = centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
        hidden_BND = hidden_BND @ head["last.1.weight"].T + head["last.1.bias"]
    return hidden_BND


@pytest.mark.parametrize("target", ["prediction", "x0"])
def test_the_first_stage_compares_with_patches_of_the_target(batch: Batch, target: str) -> None:
    terms, output, model = terms_of(replace(LATENTS, target=target), batch)
    predicted = behind_head(model, output.features["block_1"].x_BND)
    wanted = batch.noise - batch.x0 if target == "prediction" else batch.x0
    expected = torch.zeros(4)
    for sample in (1, 2):
        for row in range(4):
            for column in range(4):
                patch = wanted[sample, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].flatten()
                expected[sample] += (predicted[sample, 4 * row + column] - patch).pow(2).mean() / 16
    torch.testing.assert_close(terms.per_sample["latents"], expected)
    torch.testing.assert_close(terms.total, terms.per_sample["diffusion"].mean() + 0.5 * expected.mean())


def test_patches_are_in_the_order_of_the_tokens() -> None:
    x = torch.arange(2 * 4 * 6, dtype=torch.float).view(1, 2, 4, 6)
    found = patches(x, (2, 3)).x_BND
    assert found.shape == (1, 6, 8)
    assert found[0, 4].tolist() == x[0, :, 2:4, 2:4].flatten().tolist()


def test_the_second_stage_compares_with_guided_states_of_the_frozen_model(batch: Batch) -> None:
    """Under the class also where the student's is withheld; the frozen model is another one with the same sizes."""
    terms, output, model = terms_of(GUIDED, batch)
    frozen, x_t = (
        backbone(1).eval(),
        (1 - batch.t_B.view(4, 1, 1, 1)) * batch.x0 + batch.t_B.view(4, 1, 1, 1) * batch.noise,
    )
    with torch.no_grad():
        assert batch.whole is not None
        c, u = (
            frozen(x_t, batch.t_B, condition, ("block_2",)).features["block_2"].x_BND
            for condition in (batch.whole, batch.whole.null())
        )
    guided = u + 3 * (c - u)
    torch.testing.assert_close(output.frozen["block_2"].x_BND, guided)
    distance = (behind_head(model, output.features["block_1"].x_BND) - guided).pow(2).mean((1, 2))
    torch.testing.assert_close(terms.per_sample["guided_distance"], distance * torch.tensor([0.0, 1.0, 1.0, 0.0]))
    assert not output.frozen["block_2"].x_BND.requires_grad


def test_with_a_guidance_of_1_the_frozen_model_runs_once_under_the_condition(batch: Batch) -> None:
    loss, model = build(replace(GUIDED, guidance=1.0))
    calls: list[int] = []
    model.backbone.register_forward_hook(lambda *_: calls.append(1))
    _, output = step_terms(model, OBJECTIVE, loss, batch, 0, lambda x: x)
    assert len(calls) == 2, "the frozen model and the student"
    assert batch.whole is not None
    x_t = OBJECTIVE.corrupt(batch.x0, batch.noise, batch.t_B)
    expected = backbone(1).eval()(x_t, batch.t_B, batch.whole, ("block_2",)).features["block_2"].x_BND
    torch.testing.assert_close(output.frozen["block_2"].x_BND, expected)


@both
def test_gradients_reach_the_head_and_what_precedes_the_tap_alone(declared: Any, batch: Batch) -> None:
    terms, _, model = terms_of(declared, batch)
    terms.alignment.backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None and bool(p.grad.any())}
    assert {"backbone.x_embedder.proj.weight", "heads.block_1/own.linear1.weight"} <= reached
    assert not any(name.startswith(("backbone.blocks.2", "backbone.blocks.3", "backbone.final")) for name in reached)
    assert not any(p.requires_grad for p in model.earlier.values())


@both
def test_after_the_end_of_the_alignment_there_is_the_diffusion_term_alone(declared: Any, batch: Batch) -> None:
    terms, output, _ = terms_of(declared, replace(batch, is_aligned=False))
    assert list(terms.per_sample) == ["diffusion"]
    assert (output.frozen, output.known) == ({}, {})
    terms.total.backward()


@both
def test_times_are_two_shares_in_order(declared: Any) -> None:
    for times in ([0.7, 0.4], [0.5], [0.4, 0.4]):
        with pytest.raises(UserError, match=r"give two numbers, the smaller one first"):
            replace(declared, times=times).check()


def test_the_second_stage_needs_a_run_of_the_first() -> None:
    with pytest.raises(UserError, match=r"loss\.guide=FOLDER, as of a run of loss=latent_structure"):
        replace(GUIDED, guide=None).check()


def test_a_backbone_without_patches_is_refused() -> None:
    network = backbone(0)
    del network.patch_values
    with pytest.raises(UserError, match="which SiTNetwork does not have"):
        own_heads(LATENTS.build(schedule=Constant(), max_steps=10), network)


def test_taps_of_other_grids_are_refused(batch: Batch) -> None:
    loss, model = build(GUIDED)
    _, output = step_terms(model, OBJECTIVE, loss, batch, 0, lambda x: x)
    other = {"block_2": Tokens(torch.zeros(4, 4, 16), (2, 2))}
    with pytest.raises(UserError, match="give two taps of one grid"):
        loss.terms(replace(output, frozen=other), lambda x: x)
