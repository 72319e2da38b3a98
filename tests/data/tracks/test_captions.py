"""Captions of a small track: lists, records, and conditions of samples (B samples, L positions, D width)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from captioned import LENGTH, captioned_track, clip_at, overrides, write_captioned
from PIL import Image
from transformers import CLIPTextModel, CLIPTokenizer

from urepa.core import random_draws
from urepa.core.errors import UserError
from urepa.core.part_names import POOLED, TEXT
from urepa.costs.benchmark.what_can_be_timed import check_bench
from urepa.data.lists.captions import caption_key
from urepa.data.reader import Layout, TrainingReader, ValidationReader
from urepa.data.stages.verify import Fault
from urepa.data.stores.record_reading import Store
from urepa.data.tracks import caption_caches
from urepa.evaluation.image_conditions import condition_of_images
from urepa.evaluation.measures.clip_score_math import score_prompts
from urepa.method.objectives.flow_math import FlowMath
from urepa.models.text_encoders.text_transformer_net import TextTransformer
from urepa.runs.stored_config import check_config
from urepa.training.assembly import build_part

OBJECTIVE = FlowMath("linear", "uniform")
CAPTIONS = 9  # different ones of `write_captioned`, with the empty one: 3 of each kind, and one of each


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images in PLACE/images, and their track's caches in PLACE/root."""
    root = tmp_path_factory.mktemp("captions")
    write_captioned(root / "images")
    return root


@pytest.fixture(scope="module")
def opened(place: Path) -> Any:
    """The track and its open cache."""
    track = captioned_track(place / "images", place / "root", clip_at(place)).build()
    cache = track.open(None)
    yield track, cache
    cache.close()


def copied(place: Path, tmp_path: Path) -> Path:
    """The images and the encoder, without caches."""
    shutil.copytree(place / "images", tmp_path / "images")
    shutil.copytree(place / "clip", tmp_path / "clip")
    return tmp_path


def text_store(track: Any) -> Store:
    return Store(track.text.folder)


def raw(track: Any) -> dict[str, bytes]:
    """The bytes of every record of the text store, by its key."""
    store = text_store(track)
    keys = sorted(store.keys())
    found = {key: store.tensor([key]).numpy().tobytes() for key in keys}
    store.close()
    return found


# --- what is written down ---------------------------------------------------------------------------------------


def test_captions_are_stored_beside_the_lists(opened: Any, place: Path) -> None:
    track, cache = opened
    rows = [json.loads(line) for line in (track.folder / "captions.jsonl").read_text().splitlines()]
    listed = {sample_id for split in cache.splits.values() for sample_id in split.ids()}
    assert {row["id"] for row in rows} == listed
    for row in rows:
        _, kind, number = row["id"].split("_")
        assert row["captions"] == (place / "images" / kind / f"{number}.txt").read_text().splitlines()


def test_a_caption_that_many_share_is_encoded_once(opened: Any, place: Path) -> None:
    """The empty caption has a record too. Records are transformers' own output, in fp16, of each caption alone."""
    track, cache = opened
    store = cache.text
    assert store.count() == CAPTIONS
    assert len(cache.splits["train"]) + 8 == 24
    model = CLIPTextModel.from_pretrained(place / "clip" / "text_encoder").eval()
    tokenizer: Any = CLIPTokenizer.from_pretrained(place / "clip" / "tokenizer")
    for text in ("", "a red b", "it is blue"):
        ids = tokenizer([text], padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt")
        with torch.no_grad():
            out = model(ids.input_ids, attention_mask=ids.attention_mask)
        record = track.conditions.shape.unpack(store.tensor([caption_key(text)]))
        mask_BL = ids.attention_mask.bool()
        assert torch.equal(record.mask_BL, mask_BL)
        expected = torch.where(mask_BL.unsqueeze(2), out.last_hidden_state, 0)
        torch.testing.assert_close(record.tokens_BLD, expected, rtol=2**-10, atol=1e-5)
        torch.testing.assert_close(record.pooled_BP, out.pooler_output, rtol=2**-10, atol=1e-5)


def test_its_manifest_says_what_it_was_made_of(opened: Any) -> None:
    _, cache = opened
    manifest = cache.text.manifest
    assert manifest["encoder"].items() >= {"model": "clip", "layer": -1, "length": LENGTH}.items()
    assert len(manifest["encoder"]["weights_sha256"]) == 64
    assert (manifest["kind"], manifest["count"], manifest["dtype"]) == ("text", CAPTIONS, "float16")
    assert cache.fingerprint()["text"] == manifest
    assert "text" in cache.content()


def test_an_image_without_a_caption_is_found_before_anything_is_made(place: Path, tmp_path: Path) -> None:
    images = copied(place, tmp_path) / "images"
    (images / "blue" / "003.txt").unlink()
    (images / "red" / "001.txt").unlink()
    track = captioned_track(images, tmp_path / "root", clip_at(tmp_path)).build()
    with pytest.raises(UserError, match=r"^blue/003\.png has no caption \(2 of 24 images have none\)"):
        track.open(None)
    assert not (tmp_path / "root").exists()


def test_images_and_encoder_are_not_needed_again(place: Path, tmp_path: Path) -> None:
    where = copied(place, tmp_path)
    settings = captioned_track(where / "images", tmp_path / "root", clip_at(where))
    first = settings.build().open(None)
    condition = first.conditions.of_samples(list(first.splits["val"]))
    first.close()
    shutil.rmtree(where / "images")
    shutil.rmtree(where / "clip")
    settings.check_inputs(4)
    again = settings.build().open(None)
    assert torch.equal(
        again.conditions.of_samples(list(again.splits["val"]))[TEXT].tokens_BLD, condition[TEXT].tokens_BLD
    )
    again.close()


@pytest.mark.slow
def test_a_killed_build_is_completed_with_the_same_result(
    opened: Any, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It encodes only the missing captions."""
    monkeypatch.setattr(caption_caches, "CHUNK", 2)
    whole = captioned_track(place / "images", tmp_path / "whole", clip_at(place)).build()
    whole.build(None)
    track = captioned_track(place / "images", tmp_path / "killed", clip_at(place)).build()
    encode, asked = TextTransformer.encode, []

    def killed(self: TextTransformer, inputs_BKL: torch.Tensor) -> Any:
        asked.append(len(inputs_BKL))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return encode(self, inputs_BKL)

    monkeypatch.setattr(TextTransformer, "encode", killed)
    with pytest.raises(KeyboardInterrupt):
        track.build(None)
    assert not (track.text.folder / "manifest.json").exists()
    assert not track.has_caches(None)
    asked[:] = [0] * 3
    track.build(None)
    assert sum(asked) == CAPTIONS - 4
    assert raw(track) == raw(whole)
    assert text_store(track).manifest["digests_sha256"] == text_store(whole).manifest["digests_sha256"]


def test_truncated_captions_are_reported_once(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    track = captioned_track(place / "images", tmp_path, clip_at(place, length=7)).build()
    for _ in range(2):
        track.open(None).close()
    out = capsys.readouterr().out
    line = "5 of 8 captions are longer than data.text_encoder.length=7 tokens and are cut; the longest has 10"
    assert out.count(line) == 1
    assert "left out" not in out  # text files are read


def test_captions_that_have_changed_are_not_trained_on(place: Path, tmp_path: Path) -> None:
    where = copied(place, tmp_path)
    settings = captioned_track(where / "images", tmp_path / "root", clip_at(where))
    settings.build().open(None).close()
    assert settings.build().source_changes() is None
    (where / "images" / "red" / "004.txt").write_text("something else")
    assert settings.build().source_changes() == "other captions of 1 images (first: 'all_red_004')"


def test_a_damaged_record_is_found(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    track = captioned_track(place / "images", tmp_path, clip_at(place)).build()
    cache = track.open(None)
    track.text.verify(cache.text)
    assert "the records of 8 captions and the empty one are whole" in capsys.readouterr().out
    (at,) = cache.text.places([caption_key("a red b")])["offset"]
    cache.close()
    with open(track.text.folder / "data.mdb", "r+b") as file:
        file.seek(int(at) + 1)
        file.write(b"\x11")
    cache = track.open(None)
    with pytest.raises(Fault, match="has changed since it was written"):
        track.text.verify(cache.text)
    cache.close()


@pytest.mark.slow
def test_another_encoder_has_a_store_of_its_own_and_other_settings_are_refused(place: Path, tmp_path: Path) -> None:
    captioned_track(place / "images", tmp_path, clip_at(place)).build().open(None).close()
    other = captioned_track(place / "images", tmp_path, clip_at(place, layer=-2)).build()
    assert not other.has_caches(None)
    other.open(None).close()
    track = captioned_track(place / "images", tmp_path, clip_at(place)).build()
    (track.text.file).write_text(track.text.file.read_text().replace("a red b", "a red bee"))
    with pytest.raises(UserError, match="was made differently .captions_sha256: .*; choose another data.root"):
        track.open(None)


@pytest.mark.slow
def test_names_of_classes_as_prompts(place: Path, tmp_path: Path) -> None:
    """The same latents as with captions of files."""
    both = [captioned_track(place / "images", tmp_path, clip_at(place), captions=c) for c in ("files", "classes")]
    caches = [settings.build().open(None) for settings in both]
    assert caches[0].latents.folder == caches[1].latents.folder
    assert caches[1].text.count() == 3
    samples = list(caches[1].splits["val"])
    condition = caches[1].conditions.of_samples(samples)
    prompts = [f"a photo of a {('blue', 'red')[s.class_id]}" for s in samples]
    assert torch.equal(condition[TEXT].tokens_BLD, caches[1].conditions.of_prompts(prompts)[TEXT].tokens_BLD)
    assert (both[1].folder / "captions_classes.jsonl").is_file()
    for cache in caches:
        cache.close()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"captions": None}, "data.text_encoder has no effect without data.captions"),
        ({"text_encoder": None}, "data.captions=files needs a text encoder; give data=captions"),
        ({"source": "digits"}, "data.captions needs data.source=folder"),
    ],
)
def test_incompatible_settings_are_refused(place: Path, tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    settings = captioned_track(place / "images", tmp_path, clip_at(place), **changes)
    with pytest.raises(UserError, match=said):
        settings.check()


# --- conditions -------------------------------------------------------------------------------------------------


def test_each_step_draws_a_caption_by_its_address(opened: Any) -> None:
    """By the seed, the step and the position in the global batch, however the batch is divided."""
    _, cache = opened
    conditions = cache.conditions
    whole = TrainingReader(cache, OBJECTIVE, Layout(8), seed=3)
    drawn = set()
    for step in range(6):
        (batch,) = whole.read(step)
        for p, sample_id in enumerate(batch.ids):
            texts = conditions.captions[sample_id]
            number = int(random_draws.generator(3, "caption", step, p).integers(len(texts)))
            drawn.add((len(texts), number))
            record = conditions.shape.unpack(cache.text.tensor([caption_key(texts[number])]))
            if batch.condition[TEXT].given_B[p]:
                assert torch.equal(batch.condition[TEXT].tokens_BLD[p], record.tokens_BLD[0])
                assert torch.equal(batch.condition[TEXT].mask_BL[p], record.mask_BL[0])
                assert torch.equal(batch.condition[POOLED].vector_BD[p], record.pooled_BP[0])
        parts = [
            part
            for rank in range(2)
            for part in TrainingReader(cache, OBJECTIVE, Layout(8, 2, rank, 2), seed=3).read(step)
        ]
        by_id = {i: part.condition[TEXT].tokens_BLD[k] for part in parts for k, i in enumerate(part.ids)}
        assert all(torch.equal(by_id[i], batch.condition[TEXT].tokens_BLD[k]) for k, i in enumerate(batch.ids))
    assert drawn == {(1, 0), (2, 0), (2, 1)}


def test_validation_takes_the_first_caption(opened: Any) -> None:
    _, cache = opened
    batch = ValidationReader(cache, OBJECTIVE, 4).read(0)
    texts = [cache.conditions.captions[i][0] for i in batch.ids]
    expected = cache.conditions.of_prompts(texts)
    assert torch.equal(batch.condition[TEXT].tokens_BLD, expected[TEXT].tokens_BLD)
    assert batch.condition[TEXT].given_B.all()


def test_tokens_and_vector_are_withheld_together(opened: Any) -> None:
    """At the requested rate; a withheld caption is the empty prompt and the null condition, bit for bit."""
    _, cache = opened
    reader = TrainingReader(cache, OBJECTIVE, Layout(8), seed=0)
    conditions = [reader.read(step)[0].condition for step in range(60)]
    given = torch.cat([c[TEXT].given_B for c in conditions])
    assert torch.equal(given, torch.cat([c[POOLED].given_B for c in conditions]))
    assert 0.05 < float((~given).float().mean()) < 0.16  # of 480, 0.1
    one, empty = conditions[0].null().rows(torch.tensor([0])), cache.conditions.of_prompts([" "])
    null = cache.conditions.null(1)
    for name in (TEXT, POOLED):
        for other in (empty, null):
            assert torch.equal(one[name].value, other[name].value)
            assert torch.equal(one[name].given_B, other[name].given_B)
    assert torch.equal(one[TEXT].mask_BL, empty[TEXT].mask_BL)
    assert torch.equal(one[TEXT].mask_BL, null[TEXT].mask_BL)


def test_prompts_are_encoded_as_the_store_would_have_them(opened: Any, place: Path) -> None:
    """A track that is not open encodes them; an open one encodes those without a record."""
    track, cache = opened
    prompts = ["a red b", "never seen", ""]
    closed, there = track.conditions.of_prompts(prompts), cache.conditions.of_prompts(prompts)
    assert torch.equal(closed[TEXT].given_B, torch.tensor([True, True, False]))
    for name in (TEXT, POOLED):
        torch.testing.assert_close(closed[name].value, there[name].value, rtol=2**-10, atol=1e-6)
        assert torch.equal(closed[name].value[1:], there[name].value[1:])
    alone = track.conditions.of_prompts(["never seen"])  # whatever it is beside
    assert torch.equal(alone[TEXT].tokens_BLD[0], closed[TEXT].tokens_BLD[1])
    with pytest.raises(UserError, match="conditions are captions, not classes"):
        track.conditions.of_classes([0])


def test_prompts_are_for_the_encoder_of_the_training(opened: Any, tmp_path: Path) -> None:
    _, cache = opened
    other = captioned_track(Path("images"), tmp_path, clip_at(tmp_path)).build()
    model = CLIPTextModel.from_pretrained(tmp_path / "clip" / "text_encoder")
    with torch.no_grad():
        next(model.parameters()).add_(0.1)
    model.save_pretrained(tmp_path / "clip" / "text_encoder")
    with pytest.raises(UserError, match="has other weights here than the one that encoded the training captions"):
        other.conditions.made_by(cache.text.manifest).of_prompts(["a"])


def test_a_model_trained_without_captions_gets_the_null_condition(place: Path, tmp_path: Path) -> None:
    track = captioned_track(place / "images", tmp_path, clip_at(place), cfg_dropout=1.0).build()
    assert not track.conditions.of_prompts(["a"])[TEXT].given_B.any()


def test_buckets_share_the_captions(place: Path, tmp_path: Path) -> None:
    changes = {"image_size": 8, "buckets": [[8, 8], [4, 8]], "validation_images": 6}
    images = tmp_path / "images"
    shutil.copytree(place / "images", images)
    for i, file in enumerate(sorted(images.rglob("*.png"))):
        if i % 2:
            Image.open(file).resize((12, 6)).save(file)
    track = captioned_track(images, tmp_path / "root", clip_at(place), **changes).build()
    cache = track.open(None)
    assert len(cache.buckets) == 2
    assert {bucket.text for bucket in cache.buckets} == {cache.buckets[0].text}
    (batch,) = TrainingReader(cache, OBJECTIVE, Layout(4), seed=0).read(0)
    assert batch.condition[TEXT].tokens_BLD.shape == (4, LENGTH, 16)
    assert cache.fingerprint()["text"]["count"] == CAPTIONS
    cache.close()


@pytest.mark.slow
def test_a_run_learns_from_captions(trainer_of: Callable[..., Any], place: Path, tmp_path: Path) -> None:
    """Every parameter of the condition changes in a few steps of the trainer."""
    trainer = trainer_of(
        *overrides(place / "images", tmp_path, place / "clip", "trainer.max_steps=3", "head=irepa"),
        *("teacher=efficientnet_lite0_s16", "teacher.image_size=64", "teacher.grid=[4,4]"),
    )
    before = {name: p.detach().clone() for name, p in trainer.model.backbone.named_parameters()}
    trainer.fit(0)
    after = dict(trainer.model.backbone.named_parameters())
    for name in ("unet.encoder_hid_proj.weight", "unet.class_embedding.linear_1.weight", "null_D", "null_P"):
        assert not torch.equal(before[name], after[name]), name
    row = [json.loads(line) for line in trainer.metrics.path.read_text().splitlines()][-1]
    assert np.isfinite(row["val/diffusion"])


def test_a_part_of_a_config_holds_the_encoder(compose: Callable[..., Any], place: Path, tmp_path: Path) -> None:
    """As stored and read again; only a part of this kind is accepted."""
    config = compose(*overrides(place / "images", tmp_path, place / "clip"))
    checked = check_config({key: value for key, value in config.items() if key != "arm"})
    of_sd15 = {"padding": "attended", "null_text": "empty"}
    assert build_part(checked["data"]).text.encoder == clip_at(place, **of_sd15)
    config["data"]["text_encoder"] = {"_target_": "urepa.models.backbones.text_unet.TextUNet"}
    with pytest.raises(UserError, match=r"data.text_encoder names .* which is no"):
        check_config(config)


def test_bench_and_clip_score_refuse_captions(
    compose: Callable[..., Any], opened: Any, place: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="bench times steps with class ids as conditions, and this"):
        check_bench(compose(*overrides(place / "images", tmp_path, place / "clip"), root="bench"))
    _, cache = opened
    asked, context = SimpleNamespace(check_images=lambda there: None), SimpleNamespace(cache=cache)
    with pytest.raises(UserError, match="this run was trained on captions; leave this evaluation out"):
        score_prompts(asked, context)  # type: ignore[arg-type]


def test_generated_images_use_captions_of_validation_images(opened: Any) -> None:
    """Captions of the same class, each once before any is repeated."""
    _, cache = opened
    images = [(1, 0), (0, 0), (1, 1), (1, 2), (0, 3)]
    own = {c: [s for s in cache.splits["val"] if s.class_id == c] for c in (0, 1)}
    expected = cache.conditions.of_samples([own[c][i % len(own[c])] for c, i in images])
    for name in (TEXT, POOLED):
        assert torch.equal(condition_of_images(cache, images)[name].value, expected[name].value)
    with pytest.raises(UserError, match="class 7 has no validation image whose caption"):
        condition_of_images(cache, [(7, 0)])
