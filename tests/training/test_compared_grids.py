"""`loss.grid` in whole runs: the floors of validation, the evaluation of alignment, and what is refused before step 0.

The tiny quickstart's middle block has 4x4 tokens, its first decoder stage 8x8 and its teacher 2x2.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from urepa.core.errors import UserError
from urepa.core.types import Tokens
from urepa.evaluation.constant_tokens import constant_tokens
from urepa.evaluation.context import Context
from urepa.evaluation.features import chunks, held_out_samples, subset
from urepa.evaluation.measures.teacher_alignment import TeacherAlignment
from urepa.training.checks.combinations import check

Build = Callable[..., Any]
TWO_TAPS = ("loss.taps.mid=3.0", "+loss.taps.dec_first=1.0")
GRIDS = {"mid": (4, 4), "dec_first": (8, 8)}


def resized(tokens_BND: Tensor, grid: tuple[int, int]) -> Tensor:
    """Unit tokens of the 2x2 teacher on another grid, by hand."""
    map_BDhw = tokens_BND.float().mT.reshape(len(tokens_BND), -1, 2, 2)
    large = F.interpolate(map_BDhw, size=grid, mode="bilinear", align_corners=False)
    return F.normalize(large.flatten(2).mT, dim=-1)


def floor_by_hand(trainer: Any, grid: tuple[int, int]) -> float:
    """1 − the mean cosine of the validation targets with the mean target of the training images."""
    cache = trainer.reader.cache
    train, val = ([*cache.splits[split]] for split in ("train", "val"))
    mean = resized(cache.teacher_BND(train), grid).mean((0, 1))
    targets = resized(cache.teacher_BND(val), grid)
    return float(1 - F.cosine_similarity(targets, mean.expand_as(targets), dim=-1).mean())


@pytest.mark.slow
def test_the_floor_of_the_token_loss_follows_the_policy_at_each_tap(build_trainer: Build) -> None:
    trainer = build_trainer("loss.grid=student", *TWO_TAPS)
    found = trainer.validation(trainer.model, step=2)
    floors = {tap: floor_by_hand(trainer, grid) for tap, grid in GRIDS.items()}
    expected = 0.75 * floors["mid"] + 0.25 * floors["dec_first"]
    assert found["floor/constant_token"] == pytest.approx(expected, rel=1e-5)
    assert abs(floors["mid"] - floors["dec_first"]) > 1e-4, "the two taps have floors of their own"
    cache = trainer.reader.cache
    for constant, grid in zip(trainer.validation.constants[""], GRIDS.values(), strict=True):
        mean = resized(cache.teacher_BND([*cache.splits["train"]]), grid).mean((0, 1))
        torch.testing.assert_close(constant.token_D, mean, rtol=1e-4, atol=1e-6)
        assert not torch.allclose(constant.token_D, cache.mean_token(), rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_the_token_loss_is_that_of_the_resized_teacher(build_trainer: Build) -> None:
    trainer = build_trainer("loss.grid=[3,5]", "loss.level=token")
    batch = trainer.validation.reader.read(0)
    x_t = trainer.objective.corrupt(batch.x0, batch.noise, batch.t_B)
    with torch.no_grad():
        out = trainer.model.eval()(x_t, batch.t_B, batch.condition, None, batch.grids)
    assert out.tokens["mid"].grid == (3, 5)
    terms = trainer.loss(torch.zeros(10), out, batch, 5, lambda x: x)
    target = resized(batch.teacher_BND, (3, 5))
    expected = 1 - F.cosine_similarity(out.tokens["mid"].x_BND, target, dim=-1).mean(1)
    torch.testing.assert_close(terms.per_sample["token"], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_by_default_the_stored_mean_token_is_the_floor_bit_for_bit(build_trainer: Build) -> None:
    trainer = build_trainer(*TWO_TAPS)
    (constant,) = trainer.validation.constants[""]  # both taps are compared on the teacher's grid
    assert constant.share == 1.0
    assert torch.equal(constant.token_D, trainer.reader.cache.mean_token())
    found = trainer.validation(trainer.model, step=2)
    batches = [trainer.validation.reader.read(i) for i in range(2)]
    rows = [
        1
        - (F.normalize(constant.token_D.expand_as(b.teacher_BND), dim=-1) * F.normalize(b.teacher_BND.float(), dim=-1))
        .sum(-1)
        .mean(1)
        for b in batches
    ]
    assert found["floor/constant_token"] == torch.cat(rows).double().sum().item() / 20


@pytest.mark.slow
def test_with_a_normalised_target_there_is_no_constant(build_trainer: Build) -> None:
    trainer = build_trainer("loss.grid=student", "loss.spatial_norm=0.5", "loss.manifold_weight=0")
    assert trainer.validation.constants == {}
    assert "floor/constant_token" not in trainer.validation(trainer.model, step=2)


def test_the_mean_over_buckets_is_weighted_by_their_numbers_of_tokens(build_trainer: Build) -> None:
    """Two stand-ins for buckets share the records; one is compared on the teacher's own grid."""
    trainer = build_trainer("loss.grid=student")
    cache, loss = trainer.reader.cache, trainer.loss

    class Two:
        buckets = (cache, cache)
        teacher_names = ("",)

    (found,) = constant_tokens(Two(), loss, [{"mid": (4, 4)}, {"mid": (2, 2)}])[""]  # type: ignore[arg-type]
    tokens = cache.teacher_BND([*cache.splits["train"]])
    large, small = resized(tokens, (4, 4)), F.normalize(tokens.float(), dim=-1)
    mean = (large.sum((0, 1)) + small.sum((0, 1))) / (len(tokens) * (16 + 4))
    torch.testing.assert_close(found.token_D, mean, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_the_evaluation_of_alignment_compares_what_the_loss_compares(make_policy_context: Build) -> None:
    context: Context = make_policy_context("loss.grid=student", *TWO_TAPS)
    settings: dict[str, Any] = {"tap": "mid", "timestep": 500, "timesteps": [], "neighbours": 3, "images": 12}
    found = TeacherAlignment(**settings)(context)
    samples = subset(held_out_samples(context), 12)
    own = context.cache.teacher_BND(samples)
    train = context.cache.teacher_BND([*context.cache.splits["train"]])
    assert own is not None
    assert train is not None
    for tap, ending in (("mid", ""), ("dec_first", "/dec_first")):
        (chunk,) = chunks(context, samples, (tap,), 500)
        head, target = chunk.heads[tap], resized(own, GRIDS[tap])
        assert head.grid == GRIDS[tap]
        cosine = F.cosine_similarity(head.x_BND, target, dim=-1).mean().item()
        mean = resized(train, GRIDS[tap]).mean((0, 1))
        by_chance = F.cosine_similarity(target, mean.expand_as(target), dim=-1).mean().item()
        pooled = [F.normalize(F.normalize(x, dim=-1).mean(1), dim=-1).double() for x in (head.x_BND, target)]
        off = ~torch.eye(12, dtype=torch.bool)
        mae = (pooled[0] @ pooled[0].T - pooled[1] @ pooled[1].T)[off].abs().mean().item()
        assert found[f"final/token_cosine{ending}"] == pytest.approx(cosine, abs=1e-5)
        assert found[f"final/token_cosine_above_constant{ending}"] == pytest.approx(cosine - by_chance, abs=1e-5)
        assert found[f"final/similarity_mae{ending}"] == pytest.approx(mae, abs=1e-5)


@pytest.fixture
def make_policy_context(build_trainer: Build, tmp_path: Path) -> Build:
    """make_policy_context(*overrides): the context of a trainer at step 0."""

    def make(*overrides: str) -> Context:
        trainer = build_trainer(*overrides)
        trainer.model.eval()
        parts: dict[str, Any] = {"objective": trainer.objective, "loss": trainer.loss, "track": None}
        parts |= {"cache": trainer.reader.cache, "folder": tmp_path, "device": torch.device("cpu")}
        return Context(model=trainer.model, seed=0, step=0, untrained=lambda: trainer.model, **parts)

    return make


# --- refusals -----------------------------------------------------------------------------------------------


@pytest.mark.fast(1)
@pytest.mark.parametrize("grid", ["smaller", "[2,2]"])
def test_a_policy_without_effect_is_refused(build_trainer: Build, grid: str) -> None:
    with pytest.raises(UserError, match=r"^loss.grid=.* has no effect here, as it is the teacher's grid at every tap"):
        build_trainer(f"loss.grid={grid}")


@pytest.mark.slow
def test_an_unknown_policy_is_refused_before_anything_is_built(compose: Build) -> None:
    with pytest.raises(UserError, match="^loss.grid=students: give teacher, student, smaller, or rows and columns"):
        check(compose("loss.grid=students"), ["loss.grid=students"])
    with pytest.raises(UserError, match=r"^loss.grid=\[0, 4\]: give 1 or more"):
        check(compose("loss.grid=[0,4]"), ["loss.grid=[0,4]"])


@pytest.mark.slow
def test_a_head_that_does_not_resize_works_with_any_teacher_on_the_taps_grid(
    compose: Build, small_sit: list[str], trainer_of: Build
) -> None:
    """8x8 patches and a teacher of 4x4: refused on the teacher's grid, with a message that names the solution."""
    other = [*small_sit, "backbone.patch=2"]
    with pytest.raises(UserError, match="8x8 patches and the teacher 4x4 tokens.*loss.grid=student"):
        check(compose(*other), other)
    own = [*other, "loss.grid=student"]
    check(compose(*own), own)
    trainer = trainer_of(*own)
    before = {name: p.detach().clone() for name, p in trainer.model.heads.named_parameters()}
    for step in range(2):  # a SiT's gates begin at 0
        trainer.update(step, trainer.reader.read(step), with_tap_gradients=False)
    assert any(not torch.equal(p, before[name]) for name, p in trainer.model.heads.named_parameters())
    with pytest.raises(UserError, match=r"the tap has 8x8 tokens .*head=repa_mlp resizes neither"):
        trainer_of(*other, "loss.grid=[4,4]")


@pytest.mark.slow
def test_the_target_keeps_its_type_on_its_own_grid(build_trainer: Build) -> None:
    trainer = build_trainer()
    batch = trainer.validation.reader.read(0)
    assert isinstance(batch.teachers[""], Tokens)
    assert trainer.loss.targets(batch.teachers[""]) is batch.teachers[""]
