"""Captions that are encoded in training (`data.online_text`), against the store of their records: their values, what a
step draws of them, steps of a training, and what is refused.

Shapes: B samples, L positions, D width.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from captioned import captioned_track, clip_at, overrides, write_captioned
from text_folders import write_t5

from urepa.core.conditions import Condition
from urepa.core.errors import UserError
from urepa.costs.estimate import count
from urepa.data.lists.captions import EMPTY
from urepa.data.online_encoders import OnlineText
from urepa.data.reader import Layout, TrainingReader, ValidationReader
from urepa.method.objectives.flow_math import FlowMath
from urepa.models.text_encoders.t5 import T5
from urepa.training.provenance import data_difference, data_facts

OBJECTIVE = FlowMath("linear", "uniform")
ROUNDED = {"rtol": 2**-10, "atol": 1e-6}  # of fp16, in which a store has its records
TEACHER = ("teacher=efficientnet_lite0_s16", "teacher.image_size=64", "teacher.grid=[4,4]")
T5_KEYS: dict[str, Any] = {"padding": "masked", "computed_in": "float32", "null_text": "empty"}
SMALL = ("data.num_classes=2", "trainer.max_steps=3", "data.limit=null")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images in PLACE/images, a small CLIP in PLACE/clip and T5 in PLACE/t5."""
    root = tmp_path_factory.mktemp("online")
    write_captioned(root / "images")
    write_t5(root / "t5")
    return root


def encoders(place: Path) -> dict[str, Any]:
    """One with a vector and the empty prompt for no caption, one without a vector, one with zeros for no caption."""
    return {
        "clip": clip_at(place, padding="attended", null_text="empty"),
        "t5": T5(model=str(place / "t5"), encoder_number=1, width=16, length=20, lowercase=True, **T5_KEYS),
        "zeros": clip_at(place),
    }


def both(place: Path, root: Path, encoder: Any) -> list[Any]:
    """The open caches of a track with a store, and of the same without."""
    settings = [
        captioned_track(place / "images", root, encoder, cfg_dropout=0.3, online_text=on) for on in (False, True)
    ]
    return [one.build().open(None) for one in settings]


def assert_close(found: Condition, expected: Condition) -> None:
    """In all parts, and exactly where a sample's caption is withheld and which positions count."""
    assert found.names == expected.names
    for name in found.names:
        ours, theirs = found[name], expected[name]
        assert torch.equal(ours.given_B, theirs.given_B)
        assert (ours.mask_BL is None) == (theirs.mask_BL is None)
        assert ours.mask_BL is None or torch.equal(ours.mask_BL, theirs.mask_BL)
        torch.testing.assert_close(ours.value, theirs.value, **ROUNDED)
        assert (ours.null is None) == (theirs.null is None)
        if ours.null is not None:
            torch.testing.assert_close(ours.null, theirs.null, **ROUNDED)


@pytest.mark.fast(1)
@pytest.mark.parametrize("name", ["clip", "t5", "zeros"])
def test_values_are_those_of_the_store(place: Path, tmp_path: Path, name: str) -> None:
    """To the rounding of its records: of training batches with what they draw and withhold, of validation, of prompts
    and for no caption."""
    stored, online = both(place, tmp_path, encoders(place)[name])
    assert isinstance(online.text, OnlineText)
    readers = [TrainingReader(cache, OBJECTIVE, Layout(8), seed=0) for cache in (stored, online)]
    withheld, moved = 0, 0.0
    for step in range(3):
        (theirs,), (ours,) = (reader.read(step) for reader in readers)
        assert ours.ids == theirs.ids
        assert_close(ours.condition, theirs.condition)
        withheld += int((~ours.condition["text"].given_B).sum())
        moved = max(moved, float((ours.condition["text"].value - theirs.condition["text"].value).abs().max()))
    assert 0 < withheld < 24
    assert moved > 0, "online values are not rounded"
    groups = [ValidationReader(cache, OBJECTIVE, 4).read(0).condition for cache in (online, stored)]
    assert_close(*groups)
    assert_close(*(cache.conditions.of_prompts(["a red b", "zzz", EMPTY]) for cache in (online, stored)))
    assert_close(*(cache.conditions.null(2) for cache in (online, stored)))
    stored.close()
    online.close()


def test_no_records_are_made(place: Path, tmp_path: Path) -> None:
    """And the run's record says of which captions and weights the conditions were."""
    track = captioned_track(place / "images", tmp_path, encoders(place)["clip"], online_text=True)
    cache = track.build().open(None)
    assert track.captions_file.is_file()
    assert not track.text_folder.exists()
    manifest = cache.fingerprint()["text"]
    assert (manifest["kind"], len(manifest["captions_sha256"])) == ("online", 64)
    assert len(manifest["encoder"]["weights_sha256"]) == 64
    assert not track.build().has_caches(None), "they cannot be compared without asking the encoder"
    cache.close()


def test_other_weights_are_other_data(place: Path, tmp_path: Path) -> None:
    """A run that goes on is refused with them, as with other records."""
    from photos import write_clip_text

    shutil.copytree(place / "images", tmp_path / "images")
    facts = []
    for seed in (0, 0, 1):
        shutil.rmtree(tmp_path / "clip", ignore_errors=True)
        write_clip_text(tmp_path / "clip", seed=seed)
        track = captioned_track(tmp_path / "images", tmp_path / "root", clip_at(tmp_path), online_text=True).build()
        cache = track.open(None)
        facts.append(data_facts(cache.fingerprint(), {}))
        cache.close()
    assert data_difference(facts[0], facts[1]) is None
    assert "text.online" in str(data_difference(facts[0], facts[2]))


@pytest.mark.slow
def test_threads_that_ask_at_once_get_what_is_asked(place: Path, tmp_path: Path) -> None:
    """Two threads read ahead while a third makes images of prompts; tokenizers of transformers hold a state."""
    cache = both(place, tmp_path, encoders(place)["clip"])[1]
    texts = ["a red b", "it is blue", "a blue c", "zzz"] * 3
    expected = cache.text.of_texts(texts)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(cache.text.of_texts, [texts] * 24):
            assert torch.equal(found, expected)
    cache.close()


@pytest.mark.slow
def test_a_training_is_that_with_the_store(trainer_of: Callable[..., Any], place: Path, tmp_path: Path) -> None:
    """Losses of its steps, to the rounding of the records."""
    clip_at(place)
    given = overrides(place / "images", tmp_path, place / "clip", *TEACHER, *SMALL)
    losses = {}
    for online in ("false", "true"):
        trainer = trainer_of(*given, f"data.online_text={online}")
        losses[online] = [
            float(trainer.update(step, trainer.reader.read(step), with_tap_gradients=False).terms.total.detach())
            for step in range(3)
        ]
        trainer.reader.cache.close()
    assert losses["true"] == pytest.approx(losses["false"], rel=1e-3)
    assert losses["true"] != losses["false"], "they were encoded anew"


# --- what is refused, and what is counted ------------------------------------------------------------------------


def test_an_encoder_that_is_not_there_is_said_before_anything_else(place: Path, tmp_path: Path) -> None:
    settings = captioned_track(place / "images", tmp_path / "root", clip_at(place), online_text=True)
    settings.build().open(None).close()
    gone = captioned_track(
        place / "images", tmp_path / "root", clip_at(place, model=str(tmp_path / "gone")), online_text=True
    )
    with pytest.raises(UserError, match=r"data\.text_encoder\.model=.*gone has no config\.json; give a local folder"):
        gone.check_inputs(4)
    wide = captioned_track(place / "images", tmp_path / "root", clip_at(place, width=17), online_text=True)
    with pytest.raises(UserError, match=r"has width 16, not 17; give data\.text_encoder\.width=16$"):
        wide.build().open(None)


def test_without_captions_it_has_no_effect(place: Path, tmp_path: Path) -> None:
    changes = {"captions": None, "online_text": True}
    with pytest.raises(UserError, match=r"data\.online_text has no effect without data\.captions=files"):
        captioned_track(place / "images", tmp_path, None, **changes).check()


@pytest.mark.slow
def test_a_plan_counts_the_encoder(compose: Callable[..., Any], place: Path, tmp_path: Path) -> None:
    """Its parameters, their memory and what a caption costs, in the place of a cache."""
    encoder = clip_at(place)
    given = overrides(place / "images", tmp_path, place / "clip", *TEACHER, *SMALL)
    stored, online = (count(compose(*given, f"data.online_text={on}"), "cpu") for on in ("false", "true"))
    network = encoder.build()._loaded[0][1]
    parameters = sum(p.numel() for p in network.parameters())
    assert online.parameters["text encoder"] == {"all": parameters, "trainable": 0}
    assert online.weights["text encoder"] == 4 * parameters
    assert {name: n for name, n in online.weights.items() if name != "text encoder"} == stored.weights
    assert [cache.name for cache in stored.caches if cache not in online.caches] == ["text"]
    matrices = sum(m.weight.numel() for m in network.modules() if isinstance(m, torch.nn.Linear))
    assert online.step.forward["text encoder"] == 4 * 2 * encoder.length * matrices
    assert online.forward_per_sample - stored.forward_per_sample == 2 * encoder.length * matrices
