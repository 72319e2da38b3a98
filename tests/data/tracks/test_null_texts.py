"""The null text condition: the record of the empty prompt, or zeros; and conditions of encoders without a pooled
vector."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from captioned import LENGTH, captioned_track, clip_at, overrides, write_captioned
from text_folders import write_t5

from urepa.core.conditions import Condition
from urepa.core.errors import UserError
from urepa.core.part_names import POOLED, TEXT
from urepa.core.text_protocols import EncodedText
from urepa.data.reader import Layout, TrainingReader
from urepa.data.stores.text_records import TextShape
from urepa.data.text_conditions import encode_texts
from urepa.method.objectives.flow_math import FlowMath
from urepa.training.checks.sizes import check_shapes

OBJECTIVE = FlowMath("linear", "uniform")
OF_SD15 = {"padding": "attended", "null_text": "empty"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images in PLACE/images."""
    root = tmp_path_factory.mktemp("nulls")
    write_captioned(root / "images")
    return root


def of_no_caption(encoder: Any) -> tuple[torch.Tensor, ...]:
    """Tokens [L,D], mask [L] and vector [P] of the empty prompt, as a store has them."""
    shape = TextShape.of(encoder)
    found = shape.unpack(encode_texts(encoder.build(), shape, [""]))
    return found.tokens_BLD[0], found.mask_BL[0], found.pooled_BP[0]


def holds(condition: Condition, row: int, expected: tuple[torch.Tensor, ...]) -> bool:
    tokens_LD, mask_L, pooled_P = expected
    text = condition[TEXT]
    assert text.mask_BL is not None
    same = torch.allclose(text.tokens_BLD[row], tokens_LD, rtol=2**-10, atol=1e-6)
    same &= torch.equal(text.mask_BL[row], mask_L) and not text.given_B[row]
    return same and torch.allclose(condition[POOLED].vector_BD[row], pooled_P, rtol=2**-10, atol=1e-6)


def test_the_empty_prompts_record_is_the_null_condition(place: Path, tmp_path: Path) -> None:
    """In training if a caption is withheld, in the null condition and for an empty prompt; with and without caches."""
    encoder = clip_at(place, **OF_SD15)
    expected = of_no_caption(encoder)
    assert expected[0].any()
    assert expected[1].all()
    track = captioned_track(place / "images", tmp_path, encoder, cfg_dropout=0.5).build()
    cache = track.open(None)
    (batch,) = TrainingReader(cache, OBJECTIVE, Layout(8), seed=0).read(0)
    withheld = (~batch.condition[TEXT].given_B).nonzero().flatten().tolist()
    assert 0 < len(withheld) < 8
    assert all(holds(batch.condition, row, expected) for row in withheld)
    closed = captioned_track(place / "images", tmp_path / "nowhere", encoder).build().conditions
    for conditions in (cache.conditions, closed):
        assert all(holds(conditions.null(2), row, expected) for row in range(2))
        assert holds(conditions.of_prompts(["a red b", ""]), 1, expected)
    never = captioned_track(place / "images", tmp_path, encoder, cfg_dropout=1.0).build().conditions
    assert holds(never.of_prompts(["a red b"]), 0, expected)  # what it was trained under
    cache.close()


def test_masked_positions_of_the_empty_prompt_do_not_count(place: Path, tmp_path: Path) -> None:
    encoder = clip_at(place, null_text="empty")
    null = captioned_track(place / "images", tmp_path, encoder).build().conditions.null(1)
    assert null[TEXT].mask_BL is not None
    assert null[TEXT].mask_BL.tolist() == [[True] * 2 + [False] * (LENGTH - 2)]


def test_zeros_are_the_null_condition_as_in_earlier_versions(place: Path, tmp_path: Path) -> None:
    """Zeros at positions that all count. The text encoder does not run."""
    track = captioned_track(place / "images", tmp_path, clip_at(place), cfg_dropout=0.5).build()
    null = track.conditions.null(2)
    assert not track.conditions.networks
    assert not null[TEXT].value.any()
    assert not null[POOLED].value.any()
    assert null[TEXT].mask_BL is not None
    assert null[TEXT].mask_BL.all()
    assert null[TEXT].null is None


def test_a_plan_runs_no_text_encoder(tmp_path: Path) -> None:
    encoder = clip_at(tmp_path, model=str(tmp_path / "nowhere"), **OF_SD15)
    conditions = captioned_track(tmp_path / "images", tmp_path, encoder).build().conditions
    example = conditions.example(3)
    assert example[TEXT].tokens_BLD.shape == (3, LENGTH, 16)
    with pytest.raises(UserError, match="nowhere has no config.json"):
        conditions.null(3)


def test_an_encoder_without_a_vector(place: Path, tmp_path: Path) -> None:
    """Its conditions have tokens alone, and so has the null condition."""
    encoder = write_t5(tmp_path / "t5")
    track = captioned_track(place / "images", tmp_path / "root", encoder).build()
    cache = track.open(None)
    assert cache.text.shape == (encoder.length * encoder.width + encoder.length,)
    assert track.settings.condition_widths == {TEXT: encoder.width}
    conditions = cache.conditions
    for condition in (conditions.of_prompts(["a red b", ""]), conditions.null(2), conditions.example(2)):
        assert condition.names == (TEXT,)
        assert condition[TEXT].tokens_BLD.shape == (2, encoder.length, encoder.width)
    null = conditions.null(1)[TEXT]
    assert torch.equal(null.tokens_BLD[0], of_no_caption(encoder)[0])
    assert null.mask_BL is not None
    assert null.mask_BL.sum() == 1  # the token that ends it
    (batch,) = TrainingReader(cache, OBJECTIVE, Layout(8), seed=0).read(0)
    assert batch.condition.names == (TEXT,)
    cache.close()


def test_a_backbone_that_takes_a_vector_refuses_it(compose: Callable[..., Any], tmp_path: Path) -> None:
    given = overrides(tmp_path / "images", tmp_path / "data", tmp_path / "t5", "data.num_classes=2")
    config = compose(*["text_encoder@data.text_encoder=t5" if one.endswith("encoder=clip") else one for one in given])
    advice = r"choose a backbone of .*sd15_text.*, or other data, or another text_encoder@data\.text_"
    with pytest.raises(UserError, match=f"conditions have text; {advice}"):
        check_shapes(config)


def test_values_that_a_record_cannot_hold_are_refused() -> None:
    tokens = torch.full((1, 2, 3), 7e4)
    with pytest.raises(UserError, match="returns values up to 70000, but caption records"):
        TextShape(2, 3, 0).pack(EncodedText(tokens, torch.ones(1, 2, dtype=torch.bool), torch.zeros(1, 0)))
