"""The text encoders of the model families, compared with their own pipelines' `encode_prompt`: tokens, masks and
vectors, truncation, the checks of settings, and unusual texts.

Shapes: B texts, L positions, D width, P width of the pooled vector.
"""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from captioned import clip_at
from omegaconf import OmegaConf
from text_folders import TEXTS, WRITERS, close, encoded
from torch.nn import Linear
from transformers import AutoTokenizer, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from urepa.cli import CONF
from urepa.config.parts import KINDS
from urepa.core.errors import UserError
from urepa.costs.online_costs import text_cost

LACKING = "the package sentencepiece is not installed, which Kolors' tokenizer needs (pip install sentencepiece)"
needs_sentencepiece = pytest.mark.skipif(find_spec("sentencepiece") is None, reason=LACKING)
POSITIONS = {  # the setting that positions limit, and how many there are; of the others they are relative
    "sdxl_text": ("length", 77),
    "gemma": ("length", 64),
    "chatglm": ("length", 64),
    "sd3_text": ("clip_length", 77),
    "flux_text": ("clip_length", 77),
    "hidream_text": ("length", 77),
    "mistral3": ("length", 512),
}
FAMILIES = [pytest.param(name, marks=needs_sentencepiece if name == "chatglm" else ()) for name in WRITERS]


# --- the pipelines' own -----------------------------------------------------------------------------------------


@torch.no_grad()
def test_clip_of_sd15_is_its_pipelines(tmp_path: Path) -> None:
    """All 77 positions of the last layer after its norm, with attended padding."""
    from diffusers import StableDiffusionPipeline

    encoder = clip_at(tmp_path, length=77, padding="attended")
    place = tmp_path / "clip"
    pipe: Any = StableDiffusionPipeline(
        None,
        CLIPTextModel.from_pretrained(place / "text_encoder"),
        CLIPTokenizer.from_pretrained(place / "tokenizer"),
        None,
        None,
        None,
        None,
        requires_safety_checker=False,
    )
    expected, negative = pipe.encode_prompt(TEXTS, torch.device("cpu"), 1, True)
    found = encoded(encoder)
    close(found.tokens_BLD, expected)
    close(encoded(encoder, [""]).tokens_BLD[0], negative[0])
    assert found.mask_BL.all()
    masked = encoded(clip_at(tmp_path, length=77))
    assert not torch.equal(masked.mask_BL, found.mask_BL)
    assert encoder.stored_as() == clip_at(tmp_path, length=77).stored_as() + "_attended"


@pytest.mark.slow
@torch.no_grad()
def test_sdxl_is_its_pipelines(declared: Callable[[str], Any]) -> None:
    """The second-to-last layers of both encoders, joined; the second encoder's projected vector; two different
    paddings."""
    from diffusers import StableDiffusionXLPipeline

    encoder = declared("sdxl_text")
    place = Path(encoder.model)
    pipe: Any = StableDiffusionXLPipeline(
        None,
        CLIPTextModel.from_pretrained(place / "text_encoder"),
        CLIPTextModelWithProjection.from_pretrained(place / "text_encoder_2"),
        CLIPTokenizer.from_pretrained(place / "tokenizer"),
        CLIPTokenizer.from_pretrained(place / "tokenizer_2"),
        None,
        None,
        add_watermarker=False,
    )
    given = {"device": torch.device("cpu"), "do_classifier_free_guidance": True}
    tokens_BLD, zeros_BLD, pooled_BP, zeros_BP = pipe.encode_prompt(TEXTS, **given)
    found = encoded(encoder)
    close(found.tokens_BLD, tokens_BLD)
    close(found.pooled_BP, pooled_BP)
    assert found.mask_BL.all()
    assert not zeros_BLD.any()  # what null_text=zeros stands for
    assert not zeros_BP.any()
    _, tokens_BLD, _, pooled_BP = pipe.encode_prompt(TEXTS, negative_prompt=["red"] * 3, **given)
    close(encoded(encoder, ["red"] * 3).tokens_BLD, tokens_BLD)
    close(encoded(encoder, ["red"] * 3).pooled_BP, pooled_BP)


@needs_sentencepiece
@torch.no_grad()
def test_kolors_is_its_pipelines(declared: Callable[[str], Any]) -> None:
    """The second-to-last layer, with padding at the beginning; the last token of the last layer."""
    from diffusers import KolorsPipeline
    from diffusers.pipelines.kolors.text_encoder import ChatGLMModel
    from diffusers.pipelines.kolors.tokenizer import ChatGLMTokenizer

    encoder = declared("chatglm")
    place = Path(encoder.model)
    pipe: Any = KolorsPipeline(
        None,
        ChatGLMModel.from_pretrained(place / "text_encoder"),
        ChatGLMTokenizer.from_pretrained(place / "tokenizer"),
        None,
        None,
    )
    tokens_BLD, empty_BLD, pooled_BP, empty_BP = pipe.encode_prompt(
        TEXTS, torch.device("cpu"), 1, True, max_sequence_length=encoder.length
    )
    found, empty = encoded(encoder), encoded(encoder, [""] * 3)
    close(found.tokens_BLD, tokens_BLD)
    close(found.pooled_BP, pooled_BP)
    close(empty.tokens_BLD, empty_BLD)
    close(empty.pooled_BP, empty_BP)
    assert found.mask_BL.all()


@torch.no_grad()
def test_gemma_is_sanas(declared: Callable[[str], Any]) -> None:
    """In lower case, with padding at the end and without the instruction."""
    from diffusers import SanaPipeline
    from transformers import Gemma2Model

    encoder = declared("gemma")
    place = Path(encoder.model)
    pipe: Any = SanaPipeline(
        AutoTokenizer.from_pretrained(place / "tokenizer"),
        Gemma2Model.from_pretrained(place / "text_encoder"),
        None,
        None,
        None,
    )
    tokens_BLD, mask_BL, empty_BLD, empty_mask_BL = pipe.encode_prompt(
        TEXTS, True, "", device=torch.device("cpu"), max_sequence_length=encoder.length
    )
    for texts, tokens, mask in ((TEXTS, tokens_BLD, mask_BL.bool()), ([""] * 3, empty_BLD, empty_mask_BL.bool())):
        found = encoded(encoder, texts)
        assert torch.equal(found.mask_BL, mask)
        close(found.tokens_BLD[mask], tokens[mask])
    assert mask_BL.sum(1).tolist() == [8, 1, 24]


@torch.no_grad()
def test_gemma_after_an_instruction_is_sanas(declared: Callable[[str], Any]) -> None:
    """The pipeline's instruction is that of conf/text_encoder/sana.yaml. The empty prompt, which is the pipeline's
    negative one, is encoded without it."""
    from diffusers import SanaPipeline
    from transformers import Gemma2Model

    encoder = declared("sana_text")
    place = Path(encoder.model)
    parts = (AutoTokenizer.from_pretrained(place / "tokenizer"), Gemma2Model.from_pretrained(place / "text_encoder"))
    pipe: Any = SanaPipeline(*parts, None, None, None)
    given = [text for text in TEXTS if text]
    tokens_BLD, mask_BL, empty_BLD, empty_mask_BL = pipe.encode_prompt(
        *(given, True, ""),
        device=torch.device("cpu"),
        max_sequence_length=encoder.length,
        complex_human_instruction=encoder.before.split("\n"),
    )
    both = [*given, ""]
    tokens, mask = torch.cat([tokens_BLD, empty_BLD[:1]]), torch.cat([mask_BL, empty_mask_BL[:1]]).bool()
    found = encoded(encoder, both)
    assert torch.equal(found.mask_BL, mask)
    close(found.tokens_BLD[mask], tokens[mask])
    plain = encoded(declared("gemma"), both)
    assert found.mask_BL.sum(1).tolist() == [9, 24, 1]  # the instruction's last token too
    assert float((found.tokens_BLD[0, 2:9] - plain.tokens_BLD[0, 1:8]).abs().max()) > 1e-3
    cut = declared("gemma").build().tokenize(both).cut
    assert encoder.build().tokenize(both).cut == [0, cut[1] + 1, 0]
    asked = inspect.signature(pipe.__call__).parameters["complex_human_instruction"].default
    text: Any = OmegaConf.load(Path(CONF) / "text_encoder" / "sana.yaml")
    assert text.before == "\n".join(asked)


@torch.no_grad()
def test_t5_is_pixarts_and_fluxes(declared: Callable[[str], Any]) -> None:
    """In lower case with a mask; and unchanged with all positions attended, as the second text encoder."""
    from diffusers import FluxPipeline, PixArtSigmaPipeline
    from transformers import T5EncoderModel

    encoder = declared("t5")
    place = Path(encoder.model)
    network, tokenizer = (
        T5EncoderModel.from_pretrained(place / "text_encoder"),
        AutoTokenizer.from_pretrained(place / "tokenizer"),
    )
    pixart: Any = PixArtSigmaPipeline(tokenizer, network, None, None, None)
    tokens_BLD, mask_BL, empty_BLD, empty_mask_BL = pixart.encode_prompt(
        TEXTS, True, "", device=torch.device("cpu"), max_sequence_length=encoder.length
    )
    for texts, tokens, mask in ((TEXTS, tokens_BLD, mask_BL.bool()), ([""] * 3, empty_BLD, empty_mask_BL.bool())):
        found = encoded(encoder, texts)
        assert torch.equal(found.mask_BL, mask)
        close(found.tokens_BLD[mask], tokens[mask])
    second = place.parent / "flux"
    for part in ("tokenizer", "text_encoder"):
        shutil.copytree(place / part, second / f"{part}_2")
    flux: Any = FluxPipeline(None, None, None, None, network, tokenizer, None)
    expected = flux._get_t5_prompt_embeds(TEXTS, 1, 24, torch.device("cpu"), torch.float32)
    changes: dict[str, Any] = {"model": str(second), "encoder_number": 2, "padding": "attended", "lowercase": False}
    found = encoded(replace(encoder, length=24, **changes))
    close(found.tokens_BLD, expected)
    assert found.mask_BL.all()
    with pytest.raises(UserError, match=r"has no text_encoder_3/config\.json; give a local folder with tokenizer_3/"):
        replace(encoder, encoder_number=3).check_files()


# --- what they have alike ---------------------------------------------------------------------------------------


def test_every_text_encoder_of_a_folder_is_tested() -> None:
    assert {*WRITERS, "clip_text", "minilm", "minilm_layers"} == KINDS["text_encoder"].keys()


@pytest.mark.fast(2)
@pytest.mark.parametrize("name", FAMILIES)
def test_other_captions_of_a_batch_have_no_effect(declared: Callable[[str], Any], name: str) -> None:
    """Up to rounding; after a record was read again, the digest of weights and the name are the same."""
    encoder = declared(name)
    encoder.check()
    encoder.check_files()
    together, alone = encoded(encoder), encoded(encoder, TEXTS[:1])
    close(together.tokens_BLD[:1], alone.tokens_BLD)
    close(together.pooled_BP[:1], alone.pooled_BP)
    one, again = encoder.build(), encoder.build()
    assert one.weights_sha256() == again.weights_sha256()
    assert one.manifest() == again.manifest()
    assert one.manifest().items() >= {"model": name_of(encoder), "length": encoder.length}.items()
    cut_at = getattr(encoder, getattr(encoder, "cut_by", "length"))
    assert str(cut_at) in encoder.stored_as()


@pytest.mark.parametrize("name", FAMILIES)
def test_networks_without_weights_have_the_loaded_ones_parameters(declared: Callable[[str], Any], name: str) -> None:
    """And a plan counts each network at the positions that it gets."""
    encoder = declared(name)
    network = encoder.build()
    shapes = [{key: value.shape for key, value in one.named_parameters()} for _, one in network._loaded]
    empty = network.build_without_weights()
    assert [{key: value.shape for key, value in one.named_parameters()} for one in empty] == shapes
    assert {value.device.type for value in empty.parameters()} == {"meta"}
    if name == "sd3_text":
        clip, second, t5 = (sum(m.weight.numel() for m in one.modules() if isinstance(m, Linear)) for one in empty)
        assert text_cost(encoder).flops == 2 * (77 * (clip + second) + 20 * t5)


def name_of(encoder: Any) -> str:
    return Path(encoder.model).name


@pytest.mark.parametrize("name", FAMILIES)
def test_texts_that_are_too_long_are_truncated_and_counted(declared: Callable[[str], Any], name: str) -> None:
    network = declared(name).build()
    assert [bool(cut) for cut in network.tokenize(TEXTS).cut] == [False, False, True]
    longer = network.tokenize([TEXTS[2] + " abc"]).cut[0] - network.tokenize(TEXTS).cut[2]
    assert 1 <= longer <= 6


@pytest.mark.parametrize("name", FAMILIES)
def test_unusual_texts_are_distinguished(declared: Callable[[str], Any], name: str) -> None:
    """Windows line ends, a byte order mark, emoji and a right-to-left script are tokenized and truncated like other
    texts; a byte tokenizer keeps every character."""
    texts = ["a\r\nred", "\ufeffa cat", "a 🐈‍⬛", "قطة", "a" * 400, "\u200f"]
    found = encoded(declared(name), texts)
    if name == "gemma":
        network = declared(name).build()
        for text, (ids_L, mask_L) in zip(texts, network.tokenize(texts).inputs_BKL, strict=True):
            kept = network._loaded[0][0].decode(ids_L[mask_L.bool()], skip_special_tokens=True)
            assert kept == text[: declared(name).length - 1]
    assert found.tokens_BLD.isfinite().all()
    assert found.mask_BL.any(1).all()


@pytest.mark.parametrize("name", FAMILIES)
def test_sizes_unlike_the_networks_are_refused(declared: Callable[[str], Any], name: str) -> None:
    encoder = declared(name)
    width = encoder.width
    with pytest.raises(UserError, match=rf"has width {width}, not 7; give data\.text_encoder\.width={width}$"):
        replace(encoder, width=7).build().tokenize(["a"])
    if name in POSITIONS:
        key, most = POSITIONS[name]
        with pytest.raises(UserError, match=rf"{key}=600: .* has {most} positions; give as many or fewer"):
            replace(encoder, **{key: 600}).build().tokenize(["a"])
    if name == "gemma":
        with pytest.raises(UserError, match=r"layer=-3: .* has 2 layers; give -2 to -1"):
            replace(encoder, layer=-3).build().tokenize(["a"])
    if name == "sdxl_text":
        with pytest.raises(UserError, match=r"has pooled width 20, not 8; give data\.text_encoder\.pooled_width=20"):
            replace(encoder, pooled_width=8).build().tokenize(["a"])


@pytest.mark.parametrize(("dtype", "most"), [("bfloat16", 0.05), ("float16", 0.01)])
def test_half_precision_is_read_and_recorded(declared: Callable[[str], Any], dtype: str, most: float) -> None:
    encoder = declared("t5")
    half = replace(encoder, computed_in=dtype)
    network = half.build()
    assert network.manifest()["computed_in"] == dtype
    assert half.stored_as() != encoder.stored_as()
    wide = {name for name, p in network._loaded[0][1].named_parameters() if p.dtype != getattr(torch, dtype)}
    assert all(name.endswith(".wo.weight") for name in wide)  # transformers keeps these of a T5 in fp16 at fp32
    assert bool(wide) == (dtype == "float16")
    assert network.weights_sha256() != encoder.build().weights_sha256()
    away = (encoded(half).tokens_BLD - encoded(encoder).tokens_BLD).abs().max()
    assert 0 < away < most * encoded(encoder).tokens_BLD.abs().max()


def test_weights_of_another_network_are_refused(declared: Callable[[str], Any], tmp_path: Path) -> None:
    """They would leave random weights in the network."""
    t5, gemma = Path(declared("t5").model), Path(declared("gemma").model)
    shutil.copytree(t5, tmp_path / "mixed")
    shutil.copy(gemma / "text_encoder" / "model.safetensors", tmp_path / "mixed" / "text_encoder")
    with pytest.raises(UserError, match=r"has no weights of .* are missing\): it is not a T5EncoderModel"):
        replace(declared("t5"), model=str(tmp_path / "mixed")).build().tokenize(["a"])
    (tmp_path / "mixed" / "text_encoder" / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="could not be loaded"):
        replace(declared("t5"), model=str(tmp_path / "mixed")).build().tokenize(["a"])


def test_weights_in_fp16_alone_are_read(declared: Callable[[str], Any], tmp_path: Path) -> None:
    """As some repositories have them."""
    encoder = declared("t5")
    shutil.copytree(encoder.model, tmp_path / "half")
    network = tmp_path / "half" / "text_encoder"
    (network / "model.safetensors").rename(network / "model.fp16.safetensors")
    half = replace(encoder, model=str(tmp_path / "half"))
    half.check_files()
    assert torch.equal(encoded(half).tokens_BLD, encoded(encoder).tokens_BLD)
    (network / "model.fp16.safetensors").unlink()
    with pytest.raises(UserError, match=r"has no text_encoder/model\.safetensors"):
        half.check_files()


# --- the hub ----------------------------------------------------------------------------------------------------


def test_hub_ids(declared: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The files that are downloaded for each; a name without path and revision; one line without internet."""
    hub = "owner/some-name@abc"
    both = replace(declared("sdxl_text"), model=hub)
    both.check_files()  # nothing is asked
    patterns = both.hub_files()[hub]
    assert {"tokenizer/*", "tokenizer_2/*", "text_encoder_2/config.json"} <= set(patterns)
    assert not any("bin" in one for one in patterns)
    assert both.stored_as() == "some-name_sdxl_77"
    assert both.build().manifest()["model"] == "some-name"
    third = replace(declared("t5"), model=hub, encoder_number=3)
    assert third.hub_files()[hub] == [
        "tokenizer_3/*",
        "text_encoder_3/config.json",
        "text_encoder_3/model*.safetensors*",
    ]
    assert declared("t5").hub_files() == {}
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        UserError, match=r"data\.text_encoder\.model=owner/some-name@abc could not be loaded \("
    ) as error:
        both.build().tokenize(["a"])
    assert "HF_HUB_OFFLINE is set" in str(error.value)
    assert str(error.value).endswith("or give a local folder")


def test_without_sentencepiece_the_message_says_how_to_install_it(
    declared: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from urepa.models.text_encoders import chatglm

    monkeypatch.setattr(chatglm, "find_spec", lambda name: None)
    encoder = chatglm.ChatGLM(model="owner/name", width=1, length=3, computed_in="float32", null_text="empty")
    with pytest.raises(UserError, match="run `pip install sentencepiece`"):
        encoder.check_files()
