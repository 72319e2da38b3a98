"""The text stage with text encoders of several networks: records, the null condition, an interrupted and resumed store;
and the tracks of the published families, composed without their weights.

Shapes: S stacked layers, L positions, D width of a token, P width of the pooled vector.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from captioned import captioned_track, write_captioned
from flat_photos import CAPTIONS
from text_folders import write_hidream, write_sd3

from urepa.config.declared import declaration_of
from urepa.core.part_names import LAYERS, POOLED, TEXT
from urepa.data.lists.captions import caption_key
from urepa.data.reader import Layout, TrainingReader
from urepa.data.stages.build import Build
from urepa.data.stores.lmdb_store import StoreWriter
from urepa.data.stores.record_reading import Store
from urepa.data.stores.text_records import TextShape
from urepa.data.text_conditions import encode_texts
from urepa.data.tracks import caption_caches
from urepa.method.objectives.flow_math import FlowMath
from urepa.prefetch import required_files

WRITERS: dict[str, Callable[[Path], Any]] = {"sd3": write_sd3, "hidream": write_hidream}


def overrides_of(name: str, encoder: Any) -> list[str]:
    """The overrides that choose the small text encoder of a family."""
    given = {k: v for k, v in dataclasses.asdict(encoder).items() if k != "_target_"}
    return [f"text_encoder@data.text_encoder={name}", *(f"data.text_encoder.{k}={v}" for k, v in given.items())]


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITERS)
def test_the_text_stage_of_a_latent_track(
    name: str, whole: Path, bucket_build: Callable[..., Build], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted before every second transaction and resumed, it equals the network's output for each caption."""
    encoder = WRITERS[name](tmp_path / name)
    root = Path(shutil.copytree(whole, tmp_path / "cache"))
    build = bucket_build(root, *overrides_of(name, encoder)[1:], encoder=name)
    folder, put, calls = root / f"text_{encoder.stored_as()}", StoreWriter.put, []
    monkeypatch.setattr(caption_caches, "CHUNK", 2)

    def sometimes(self: StoreWriter, *args: Any) -> None:
        calls.append(self.folder)
        if len(calls) % 2:
            raise KeyboardInterrupt
        put(self, *args)

    with monkeypatch.context() as broken:
        broken.setattr(StoreWriter, "put", sometimes)
        for _ in range(len(CAPTIONS)):
            assert not (folder / "manifest.json").exists()
            with pytest.raises(KeyboardInterrupt):
                build.run("text")
            if len(calls) > 4:
                break
    assert set(calls) == {folder}
    build.run("text")
    build.run("verify")
    store, shape = Store(folder), TextShape.of(encoder)
    assert store.count() == len(CAPTIONS)
    manifest, network = store.manifest, encoder.build()
    assert manifest.get("layers") == ([0, 1, 2] if name == "hidream" else None)
    assert manifest["shape"] == [shape.values]
    for text in CAPTIONS:
        own = store.tensor([caption_key(text)])
        torch.testing.assert_close(own, encode_texts(network, shape, [text]), rtol=2**-9, atol=1e-3)
    store.close()
    cache = build.track.open(build.teacher)
    (batch,) = TrainingReader(cache, FlowMath("linear", "uniform"), Layout(4), seed=0).read(0)
    assert batch.condition.names == ((TEXT, POOLED, LAYERS) if name == "hidream" else (TEXT, POOLED))
    cache.close()


@pytest.mark.slow
def test_layers_are_read_and_withheld_with_their_tokens(tmp_path: Path) -> None:
    """Under one name; withheld ones equal those of the empty prompt, also in the null condition."""
    encoder = write_hidream(tmp_path / "hidream")
    write_captioned(tmp_path / "images")
    track = captioned_track(tmp_path / "images", tmp_path / "root", encoder, cfg_dropout=0.5).build()
    assert track.condition_widths == {TEXT: 24, POOLED: 32, LAYERS: 16}
    cache = track.open(None)
    network, shape = encoder.build(), TextShape.of(encoder)
    empty = shape.unpack(encode_texts(network, shape, [""])).layers_BSLE
    red = shape.unpack(encode_texts(network, shape, ["a red b"])).layers_BSLE
    assert empty is not None
    assert red is not None
    assert (red - empty).abs().max() > 0.1
    (batch,) = TrainingReader(cache, FlowMath("linear", "uniform"), Layout(8), seed=0).read(0)
    given_B = batch.condition[TEXT].given_B
    assert 0 < given_B.sum() < 8
    assert torch.equal(batch.condition[LAYERS].given_B, given_B)
    near: dict[str, Any] = {"rtol": 2**-9, "atol": 1e-3}
    torch.testing.assert_close(
        batch.condition[LAYERS].layers_BSLD[~given_B], empty.expand(int((~given_B).sum()), -1, -1, -1), **near
    )
    asked = cache.conditions.of_prompts(["a red b", ""])[LAYERS]
    torch.testing.assert_close(asked.layers_BSLD, torch.cat([red, empty]), **near)
    torch.testing.assert_close(cache.conditions.null(1)[LAYERS].layers_BSLD, empty, **near)
    assert cache.conditions.example(2)[LAYERS].layers_BSLD.shape == (2, 3, 24, 16)
    cache.close()


def test_what_is_cut_is_said_of_the_tokenizer_that_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """SD3's T5, with its own setting; what CLIP truncates is not counted."""
    encoder = dataclasses.replace(write_sd3(tmp_path / "sd3"), t5_length=7, clip_length=5)
    write_captioned(tmp_path / "images")
    captioned_track(tmp_path / "images", tmp_path / "root", encoder).build().open(None).close()
    assert "captions are longer than data.text_encoder.t5_length=7 tokens and are cut; the longest has 1" in (
        capsys.readouterr().out
    )


def test_fewer_captions_are_encoded_together_where_their_records_are_large(tmp_path: Path) -> None:
    def chunk(encoder: Any) -> int:
        settings = captioned_track(tmp_path / "images", tmp_path / "root", encoder)
        return caption_caches.CaptionCaches(settings, "").chunk

    encoder = write_hidream(tmp_path / "hidream")
    large = dataclasses.replace(encoder, layers=list(range(32)), layers_width=4096, width=4096, length=128)
    assert (chunk(encoder), chunk(large)) == (64, 15)


# --- the families' own tracks -----------------------------------------------------------------------------------

TRACKS = {  # latents, the width and length of the text, the other parts, files of the hub that prefetch fetches
    "sd3": ((16, 128, 128), (4096, 333), {POOLED: 2048}, ["text_encoder_3/config.json", "tokenizer_2/*"]),
    "flux": ((16, 128, 128), (4096, 512), {POOLED: 768}, ["text_encoder_2/model*.safetensors*", "tokenizer/*"]),
    "flux2": ((128, 64, 64), (15360, 512), {}, ["text_encoder/model*.safetensors*", "tokenizer/*"]),
    "chroma": ((16, 128, 128), (4096, 512), {}, ["text_encoder/config.json"]),
    "sana": ((32, 32, 32), (2304, 300), {}, ["text_encoder/config.json"]),
    "pixart": ((4, 128, 128), (4096, 300), {}, ["text_encoder/config.json"]),
    "auraflow": ((4, 128, 128), (2048, 256), {}, ["text_encoder/config.json"]),
    "lumina2": ((16, 128, 128), (2304, 256), {}, ["text_encoder/config.json"]),
    "hidream": ((16, 128, 128), (4096, 128), {POOLED: 2048, LAYERS: 4096}, ["text_encoder_3/config.json"]),
}


@pytest.mark.fast(1)
@pytest.mark.parametrize("family", TRACKS)
def test_a_familys_track(family: str, compose: Callable[..., dict[str, Any]]) -> None:
    """Its shapes, and what prefetch fetches: VAE and text encoders of one repository, and the teacher."""
    latents, (width, length), others, files = TRACKS[family]
    parts = compose(f"data={family}_captions", "data.num_classes=2", "data.images=photos", root="preprocess")
    track = declaration_of(parts["data"])
    track.check()
    assert track.latent_shapes[0] == latents
    assert track.condition_widths == {TEXT: width} | others
    assert track.text_encoder.length == length
    channels, rows, _ = latents
    assert track.latent_shapes[1] == (channels, rows * 3 // 4, rows * 5 // 4)
    assert track.text_encoder.description()
    wanted = compose(f"data={family}_captions", "data.num_classes=2", "data.images=photos")
    found = required_files(wanted)
    assert track.text_encoder.model == track.vae
    assert {"vae/config.json", "vae/*.safetensors", *files} <= set(found[track.vae])
    assert "facebook/dinov2-giant" in found
    if family == "hidream":
        llama = found["meta-llama/Meta-Llama-3.1-8B-Instruct"]
        assert {"config.json", "model.safetensors.index.json", "model-*.safetensors", "tokenizer*"} <= set(llama)
