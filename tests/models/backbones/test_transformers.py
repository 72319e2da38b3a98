"""Transformers of diffusers as backbones: what a tap is, what of a condition matters, losses that fall.

Shapes: B batch, N image tokens, D width, L text positions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers_tiny import CASES, backbone_of, declared_of, texts, write_tiny

from urepa.core.conditions import Condition, Part
from urepa.core.errors import UserError
from urepa.core.part_names import LAYERS, POOLED, TEXT
from urepa.core.types import Batch, Tokens, no_rows
from urepa.method.heads.conv_net import ConvHead
from urepa.method.losses.urepa_loss import URepaLoss
from urepa.method.schedules.constant import Constant
from urepa.method.training_step import AlignedModel, step_terms
from urepa.models.lora.lora_net import add_lora

every = pytest.mark.parametrize("case", CASES)
CLOSE = 1e-5


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("transformers")
    return {case: write_tiny(root / case, case) for case in CASES}


@pytest.fixture(scope="module")
def backbones(folders: dict[str, Path]) -> dict[str, Any]:
    return {case: backbone_of(folders[case], case) for case in CASES}


def noise(case: str, count: int = 2, seed: int = 7) -> Tensor:
    return torch.randn(count, *CASES[case].latent, generator=torch.Generator().manual_seed(seed))


def times(case: str, count: int = 2) -> Tensor:
    objective = CASES[case].objective
    return objective.times_of([objective.time_at(f) for f in (0.3, 0.8, 0.5)[:count]])  # type: ignore[arg-type]


def last_tap(backbone: Any) -> str:
    return f"block_{len(backbone.blocks) - 1}"


# --- taps ------------------------------------------------------------------------------------------------------


@every
def test_the_output_layers_take_the_last_tap_to_the_prediction(backbones: Any, case: str) -> None:
    """The family's own, exactly: they see these tokens, and what they give is the prediction patch by patch."""
    backbone, seen, tiny = backbones[case], {}, CASES[case]
    first, last = (backbone.transformer.get_submodule(name) for name in tiny.output)
    hooks = [
        first.register_forward_pre_hook(lambda m, args: seen.update(tokens=args[0])),
        last.register_forward_hook(lambda m, args, out: seen.update(out=out)),
    ]
    try:
        with torch.no_grad():
            denoised = backbone(noise(case), times(case), texts(case, 5, 3), (last_tap(backbone),))
    finally:
        for hook in hooks:
            hook.remove()
    tapped = denoised.features[last_tap(backbone)]
    count, starts = tapped.x_BND.shape[1], (5, 3) if tiny.after_text else (0, 0)
    tokens, out = (torch.stack([x[s : s + count] for x, s in zip(seen[n], starts, strict=True)]) for n in seen)
    assert torch.equal(tokens, tapped.x_BND)
    channels, height, width = CASES[case].latent
    side = declared_of(case).patch
    assert tapped.grid == (height // side, width // side)
    prediction = denoised.prediction_RCHW
    for token in range(count):
        row, column = side * (token // tapped.grid[1]), side * (token % tapped.grid[1])
        values = tiny.sign * out[:, token]
        if CASES[case].unpack:
            patch = values.view(2, channels, side, side)
        else:
            patch = values.view(2, side, side, -1).permute(0, 3, 1, 2)[:, :channels]
        assert torch.equal(prediction[:, :, row : row + side, column : column + side], patch)


@every
def test_a_tap_has_the_image_tokens_in_their_order(backbones: Any, case: str) -> None:
    """Each patch that is changed changes its own token most, at every tap."""
    backbone, side = backbones[case], declared_of(case).patch
    taps = tuple(f"block_{k}" for k in range(len(backbone.blocks)))
    (_, height, width), x = CASES[case].latent, noise(case, 1)
    grid = height // side, width // side
    changed = x.repeat(grid[0] * grid[1], 1, 1, 1)
    for token in range(len(changed)):
        row, column = side * (token // grid[1]), side * (token % grid[1])
        changed[token, :, row : row + side, column : column + side] += 0.1
    condition = texts(case, 4).rows(torch.zeros(len(changed), dtype=torch.long))
    with torch.no_grad():
        before = backbone(x, times(case, 1), texts(case, 4), taps).features
        after = backbone(changed, times(case, 1).expand(len(changed)), condition, taps).features
    for tap in taps:
        moved = (after[tap].x_BND - before[tap].x_BND).norm(dim=2)
        assert moved.argmax(1).tolist() == list(range(len(changed))), tap


@every
def test_a_pass_stops_after_the_deepest_tap(backbones: Any, case: str) -> None:
    backbone, ran = backbones[case], []
    hooks = [b.register_forward_hook(lambda *_, k=k: ran.append(k)) for k, b in enumerate(backbone.blocks)]
    try:
        with torch.no_grad():
            whole = backbone(noise(case), times(case), texts(case, 5, 3), ("block_1", "block_0"))
            assert ran == list(range(len(backbone.blocks)))
            ran.clear()
            some = backbone(noise(case), times(case), texts(case, 5, 3), ("block_1", "block_0"), torch.tensor([1]))
            ran.clear()
            none = backbone(
                noise(case), times(case), texts(case, 5, 3), ("block_1", "block_0"), no_rows(torch.device("cpu"))
            )
    finally:
        for hook in hooks:
            hook.remove()
    assert ran == [0, 1]
    assert none.prediction_RCHW.shape == (0, *CASES[case].latent)
    assert torch.equal(some.prediction_RCHW, whole.prediction_RCHW[[1]])
    for tap in ("block_0", "block_1"):
        assert torch.equal(none.features[tap].x_BND, whole.features[tap].x_BND)


@every
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_at_a_tap_reach_what_precedes_it_alone(
    folders: dict[str, Path], case: str, checkpointing: bool
) -> None:
    """All of it, also where blocks are computed again; and what a tap depends on stays free."""
    backbone = backbone_of(folders[case], case, gradient_checkpointing=checkpointing).train()
    inputs = (noise(case), times(case), texts(case, 5, 3))
    whole = backbone(*inputs, ("block_1",))
    tokens = whole.features["block_1"].x_BND
    (at_tap,) = torch.autograd.grad(whole.prediction_RCHW.square().sum(), tokens, retain_graph=True)
    assert float(at_tap.norm()) > 0  # the tap lies on the path to the prediction
    whole.features["block_1"].x_BND.square().sum().backward()
    reached = {name for name, p in backbone.named_parameters() if p.grad is not None}
    backbone.freeze_after(("block_1",))
    assert reached == {name for name, p in backbone.named_parameters() if p.requires_grad}
    assert backbone.trains_before("block_0")
    expected = {name: p.grad.clone() for name, p in backbone.named_parameters() if p.grad is not None}
    backbone.zero_grad()
    backbone(*inputs, ("block_1",), no_rows(torch.device("cpu"))).features["block_1"].x_BND.square().sum().backward()
    for name, parameter in backbone.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, expected[name])


def test_the_first_blocks_of_lumina2_do_not_see_the_text(folders: dict[str, Path]) -> None:
    backbone = backbone_of(folders["lumina2"], "lumina2").train()
    inputs = (noise("lumina2"), times("lumina2"), texts("lumina2", 5, 3))
    backbone(*inputs, ("block_0",)).features["block_0"].x_BND.square().sum().backward()
    reached = {name for name, p in backbone.named_parameters() if p.grad is not None}
    backbone.freeze_after(("block_0",))
    assert reached == {name for name, p in backbone.named_parameters() if p.requires_grad}
    assert not any("context_refiner" in name for name in reached)


@every
def test_every_tap_lies_on_the_path_to_the_prediction(backbones: Any, case: str) -> None:
    """Also where it is a part of a longer sequence."""
    backbone = backbones[case]
    taps = tuple(f"block_{k}" for k in range(len(backbone.blocks)))
    denoised = backbone(noise(case), times(case), texts(case, 5, 3), taps)
    tapped = [denoised.features[tap].x_BND for tap in taps]
    gradients = torch.autograd.grad(denoised.prediction_RCHW.square().sum(), tapped)
    assert all(float(gradient.norm()) > 0 for gradient in gradients)


@every
def test_blocks_that_are_computed_again_predict_the_same(folders: dict[str, Path], backbones: Any, case: str) -> None:
    """Masks too reach blocks that are computed again in the backward pass."""
    inputs = (noise(case), times(case), texts(case, 5, 3))
    again = backbone_of(folders[case], case, gradient_checkpointing=True).train()
    with torch.no_grad():
        expected = backbones[case](*inputs).prediction_RCHW
    assert torch.equal(again(*inputs).prediction_RCHW, expected)


@every
def test_a_tap_that_is_not_there_names_the_range(backbones: Any, case: str) -> None:
    last = len(backbones[case].blocks) - 1
    for ask in (backbones[case].index_of, declared_of(case).check_tap):
        with pytest.raises(UserError, match=rf"^this backbone has no tap 'block_9'; it has block_0 to block_{last}"):
            ask("block_9")


# --- conditions --------------------------------------------------------------------------------------------------


def changed(before: Condition, part: str, change: Callable[[Tensor], Tensor]) -> Condition:
    own = before[part]
    return Condition(dict(before.parts) | {part: replace(own, value=change(own.value.clone()))})


def nulls_of(part: Part) -> list[Tensor]:
    """What stands for a withheld part, with its mask if it has one."""
    return [x for x in (part.null, part.null_mask_L) if x is not None]


@every
def test_what_is_given_moves_the_prediction_and_what_is_masked_does_not(backbones: Any, case: str) -> None:
    backbone, condition = backbones[case], texts(case, 5, 3)

    def predicted(other: Condition) -> Tensor:
        with torch.no_grad():
            prediction: Tensor = backbone(noise(case), times(case), other).prediction_RCHW
        return prediction

    def moved(other: Condition) -> list[float]:
        return [float(d) for d in (predicted(other) - predicted(condition)).abs().amax((1, 2, 3))]

    def at(position: int) -> Callable[[Tensor], Tensor]:
        def change(tokens_BLD: Tensor) -> Tensor:
            tokens_BLD[1, position] += 1.0
            return tokens_BLD

        return change

    first, second = moved(changed(condition, TEXT, at(2)))
    assert first == 0
    assert second > 10 * CLOSE
    padding = moved(changed(condition, TEXT, at(4)))[1]
    assert (padding > 10 * CLOSE) is not CASES[case].has_mask  # a pipeline without masks attends to its padding
    for part in {POOLED, LAYERS} & set(condition.names):
        assert min(moved(changed(condition, part, lambda value: value + 1.0))) > 10 * CLOSE
    null = {name: Part.of(*(x.expand(2, *x.shape) for x in nulls_of(part))) for name, part in condition.parts.items()}
    assert torch.equal(predicted(condition.null()), predicted(Condition(null)))


@pytest.mark.parametrize("case", [case for case, tiny in CASES.items() if tiny.has_mask and not tiny.sees_padding])
def test_two_lengths_in_one_batch_are_as_each_alone(backbones: Any, case: str) -> None:
    backbone, condition = backbones[case], texts(case, 5, 3)
    text = condition[TEXT]
    with torch.no_grad():
        both = backbone(noise(case), times(case), condition, ("block_1",))
        for row, length in enumerate((5, 3)):
            alone = Condition({TEXT: Part.of(text.tokens_BLD[[row], :length], text.mask_BL[[row], :length])})
            one = backbone(noise(case)[[row]], times(case)[[row]], alone, ("block_1",))
            torch.testing.assert_close(both.prediction_RCHW[[row]], one.prediction_RCHW, rtol=0, atol=CLOSE)
            torch.testing.assert_close(
                both.features["block_1"].x_BND[[row]], one.features["block_1"].x_BND, rtol=0, atol=CLOSE
            )


# --- training ---------------------------------------------------------------------------------------------------


def losses(backbone: Any, case: str, seed: int, lam: float, rate: float = 3e-3) -> list[dict[str, float]]:
    """The terms of 20 steps on one batch with one noise and time; the head does not train."""
    torch.manual_seed(seed)
    head = ConvHead(2, "after", in_width=backbone.tap_width("block_1"), out_width=6).requires_grad_(False)
    model = AlignedModel(backbone, {"block_1": head})
    settings = URepaLoss(
        lambda_max=lam,
        warmup_steps=0,
        manifold_weight=0.0,
        level="sample",
        taps={"block_1": 1.0},
        spike_threshold=0.1,
        diffusion_fraction=1.0,
    )
    loss = settings.build(schedule=Constant(), max_steps=20)
    target = Tokens(F.normalize(torch.randn(3, 4, 6), dim=-1), (2, 2))
    x0, eps = torch.randn(2, 3, *CASES[case].latent)
    batch = Batch(list("abc"), x0, eps, times(case, 3), texts(case, 5, 3, 1), {"": target})
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate)
    rows = []
    for step in range(20):
        terms, _ = step_terms(model, CASES[case].objective, loss, batch, step, lambda x_BD: x_BD)
        optimizer.zero_grad()
        terms.total.backward()
        optimizer.step()
        rows.append({name: float(value) for name, value in terms.means().items()})
    return rows


@pytest.mark.fast(1)
@every
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_twenty_steps_lower_what_is_trained_on(tmp_path: Path, case: str, seed: int) -> None:
    """Each term by itself, the whole transformer."""
    for lam, term in ((0.0, "diffusion"), (100.0, "token")):
        rows = losses(backbone_of(write_tiny(tmp_path, case, seed), case).train(), case, seed, lam)
        assert rows[-1][term] < 0.9 * rows[0][term]


@pytest.mark.fast(1)
@every
def test_adapters_learn_both(folders: dict[str, Path], case: str) -> None:
    for lam, term in ((0.0, "diffusion"), (100.0, "token")):
        backbone = backbone_of(folders[case], case).train()
        torch.manual_seed(0)
        add_lora(backbone, 8, None, 0.0, "attention", "all")
        rows = losses(backbone, case, 0, lam, 1e-2)
        assert rows[-1][term] < rows[0][term] - 0.005, term


def test_experts_in_training_give_what_they_give_in_evaluation(folders: dict[str, Path]) -> None:
    """Also on squares, whose tokens have no padding."""
    backbone = backbone_of(folders["hidream"], "hidream")
    for width in (18, 8):
        x = noise("hidream")[..., :width]
        with torch.no_grad():
            one, other = (
                backbone.train(mode)(x, times("hidream"), texts("hidream", 5, 3)).prediction_RCHW
                for mode in (True, False)
            )
        torch.testing.assert_close(one, other, rtol=0, atol=CLOSE)
