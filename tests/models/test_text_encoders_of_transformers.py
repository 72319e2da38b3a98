"""The text encoders of SD3, Flux, Flux.2, Chroma, AuraFlow, Lumina2 and HiDream against their own pipelines'
`encode_prompt`.

Shapes: B texts, L positions, D width, P width of the pooled vector, S stacked layers, E width of their tokens.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from text_folders import TEXTS, close, encoded
from transformers import AutoTokenizer, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from urepa.models.text_encoders.flux_text_net import flux_text
from urepa.models.text_encoders.hidream_text_net import hidream_text
from urepa.models.text_encoders.mistral3_net import mistral3
from urepa.models.text_encoders.sd3_text_net import sd3_text
from urepa.models.text_encoders.t5_net import umt5

NOWHERE = "owner/name"  # a hub id of which the cache has no file
PUBLISHED: dict[str, tuple[Callable[[], Any], list[float]]] = {  # with their parameters in billions
    "sd3": (lambda: sd3_text(NOWHERE, (77, 256), 4096, 2048, "bfloat16"), [0.124, 0.695, 4.762]),
    "flux": (lambda: flux_text(NOWHERE, (77, 512), 4096, 768, "bfloat16"), [0.123, 4.762]),
    "umt5": (lambda: umt5(NOWHERE, 256, 2048, "bfloat16"), [1.224]),
    "hidream": (
        lambda: hidream_text(NOWHERE, NOWHERE, [0], 128, (4096, 4096, 2048), "bfloat16"),
        [0.124, 0.695, 4.762, 8.030],
    ),
    "mistral3": (lambda: mistral3(NOWHERE, [10, 20, 30], 512, 15360, "bfloat16"), [24.011]),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_plan_knows_the_published_sizes_without_files(name: str) -> None:
    build, billions = PUBLISHED[name]
    empty = build().build_without_weights()
    found = [sum(value.numel() for value in one.parameters()) / 1e9 for one in empty]
    assert found == pytest.approx(billions, abs=6e-4)


@torch.no_grad()
def test_t5_is_chromas(declared: Callable[[str], Any]) -> None:
    """Masked, except one position after the caption, with the network's output there."""
    from diffusers import ChromaPipeline
    from transformers import T5EncoderModel

    encoder = replace(declared("t5"), padding="one_counts", lowercase=False)
    place = Path(encoder.model)
    network = T5EncoderModel.from_pretrained(place / "text_encoder")
    tokenizer = AutoTokenizer.from_pretrained(place / "tokenizer")
    pipe: Any = ChromaPipeline(None, None, network, tokenizer, None)
    tokens_BLD, _, mask_BL, empty_BLD, _, empty_mask_BL = pipe.encode_prompt(
        TEXTS, device=torch.device("cpu"), max_sequence_length=encoder.length
    )
    for texts, tokens, mask in ((TEXTS, tokens_BLD, mask_BL.bool()), ([""] * 3, empty_BLD, empty_mask_BL.bool())):
        found = encoded(encoder, texts)
        assert torch.equal(found.mask_BL, mask)
        close(found.tokens_BLD[mask], tokens[mask])
    assert empty_mask_BL.sum(1).tolist() == [2] * 3
    assert encoder.stored_as() == replace(encoder, padding="masked").stored_as() + "_one_counts"


@torch.no_grad()
def test_gemma_is_lumina2s(declared: Callable[[str], Any]) -> None:
    """The last layer but one, with the system prompt before every caption but the empty one."""
    from diffusers import Lumina2Pipeline
    from transformers import Gemma2Model

    place = Path(declared("gemma").model)
    pipe: Any = Lumina2Pipeline(
        None,
        None,
        None,
        Gemma2Model.from_pretrained(place / "text_encoder"),
        AutoTokenizer.from_pretrained(place / "tokenizer"),
    )
    assert pipe.system_prompt + " <Prompt Start> " == yaml_value("conf/data/lumina2_captions.yaml", "before")
    pipe.system_prompt = "you are Red"  # shorter than the small network's positions
    encoder = replace(declared("gemma"), layer=-2, lowercase=False, before="you are Red <Prompt Start> ", length=40)
    tokens_BLD, mask_BL, empty_BLD, empty_mask_BL = pipe.encode_prompt(TEXTS, max_sequence_length=40)
    given = [text for text in TEXTS if text]  # the pipeline puts it before an empty prompt too
    rows = [bool(text) for text in TEXTS]
    for texts, tokens, mask in ((given, tokens_BLD[rows], mask_BL[rows]), ([""] * 3, empty_BLD, empty_mask_BL)):
        found, mask = encoded(encoder, texts), mask.bool()
        assert torch.equal(found.mask_BL, mask)
        close(found.tokens_BLD[mask], tokens[mask])
    assert encoder.stored_as() != replace(encoder, before=None).stored_as()
    assert "before" not in declared("gemma").build().manifest()  # as stores of before it


def yaml_value(file: str, key: str) -> Any:
    settings: Any = OmegaConf.load(Path(__file__).parents[2] / file)
    return settings.text_encoder[key]


@pytest.mark.slow
@torch.no_grad()
def test_sd3_is_its_pipelines(declared: Callable[[str], Any]) -> None:
    """Both CLIPs' last layer but one, side by side and padded to T5's width, then T5's tokens; both vectors."""
    from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline
    from transformers import T5EncoderModel

    encoder = declared("sd3_text")
    place = Path(encoder.model)
    pipe: Any = StableDiffusion3Pipeline(
        None,
        FlowMatchEulerDiscreteScheduler(),
        None,
        CLIPTextModelWithProjection.from_pretrained(place / "text_encoder"),
        CLIPTokenizer.from_pretrained(place / "tokenizer"),
        CLIPTextModelWithProjection.from_pretrained(place / "text_encoder_2"),
        CLIPTokenizer.from_pretrained(place / "tokenizer_2"),
        T5EncoderModel.from_pretrained(place / "text_encoder_3"),
        AutoTokenizer.from_pretrained(place / "tokenizer_3"),
    )
    tokens_BLD, empty_BLD, pooled_BP, empty_BP = pipe.encode_prompt(
        TEXTS, None, None, device=torch.device("cpu"), negative_prompt=[""] * 3, max_sequence_length=encoder.t5_length
    )
    found, empty = encoded(encoder), encoded(encoder, [""] * 3)
    close(found.tokens_BLD, tokens_BLD)
    close(found.pooled_BP, pooled_BP)
    close(empty.tokens_BLD, empty_BLD)
    close(empty.pooled_BP, empty_BP)
    assert found.mask_BL.all()
    assert encoder.length == 97


@torch.no_grad()
def test_flux_is_its_pipelines(declared: Callable[[str], Any]) -> None:
    from diffusers import FluxPipeline
    from transformers import T5EncoderModel

    encoder = declared("flux_text")
    place = Path(encoder.model)
    pipe: Any = FluxPipeline(
        None,
        None,
        CLIPTextModel.from_pretrained(place / "text_encoder"),
        CLIPTokenizer.from_pretrained(place / "tokenizer"),
        T5EncoderModel.from_pretrained(place / "text_encoder_2"),
        AutoTokenizer.from_pretrained(place / "tokenizer_2"),
        None,
    )
    tokens_BLD, pooled_BP, _ = pipe.encode_prompt(
        TEXTS, None, device=torch.device("cpu"), max_sequence_length=encoder.length
    )
    found = encoded(encoder)
    close(found.tokens_BLD, tokens_BLD)
    close(found.pooled_BP, pooled_BP)
    assert found.mask_BL.all()


@torch.no_grad()
def test_umt5_is_auraflows(declared: Callable[[str], Any]) -> None:
    from diffusers import AuraFlowPipeline
    from transformers import UMT5EncoderModel

    encoder = declared("umt5")
    place = Path(encoder.model)
    tokenizer = AutoTokenizer.from_pretrained(place / "tokenizer")
    pipe: Any = AuraFlowPipeline(tokenizer, UMT5EncoderModel.from_pretrained(place / "text_encoder"), None, None, None)
    tokens_BLD, _, empty_BLD, _ = pipe.encode_prompt(
        TEXTS, device=torch.device("cpu"), max_sequence_length=encoder.length
    )
    close(encoded(encoder).tokens_BLD, tokens_BLD)  # zeros behind a caption's end too
    close(encoded(encoder, [""] * 3).tokens_BLD, empty_BLD)


@pytest.mark.slow
@torch.no_grad()
def test_hidream_is_its_pipelines(declared: Callable[[str], Any]) -> None:
    """T5's tokens, whose mask includes all positions although T5 was given a mask; the Llama's layers; both projected
    vectors."""
    from diffusers import HiDreamImagePipeline
    from transformers import LlamaForCausalLM, T5EncoderModel

    encoder = declared("hidream_text")
    place = Path(encoder.model)
    llama = LlamaForCausalLM.from_pretrained(
        encoder.llama, attn_implementation="eager"
    )  # the pipeline asks for weights
    pipe: Any = HiDreamImagePipeline(
        None,
        None,
        CLIPTextModelWithProjection.from_pretrained(place / "text_encoder"),
        CLIPTokenizer.from_pretrained(place / "tokenizer"),
        CLIPTextModelWithProjection.from_pretrained(place / "text_encoder_2"),
        CLIPTokenizer.from_pretrained(place / "tokenizer_2"),
        T5EncoderModel.from_pretrained(place / "text_encoder_3"),
        AutoTokenizer.from_pretrained(place / "tokenizer_3"),
        llama,
        AutoTokenizer.from_pretrained(encoder.llama),
        None,
    )
    t5_BLD, no_t5_BLD, layers_SBLE, no_layers_SBLE, pooled_BP, no_pooled_BP = pipe.encode_prompt(
        TEXTS, device=torch.device("cpu"), max_sequence_length=encoder.length
    )
    for texts, tokens, layers, pooled in (
        (TEXTS, t5_BLD, layers_SBLE, pooled_BP),
        ([""] * 3, no_t5_BLD, no_layers_SBLE, no_pooled_BP),
    ):
        found = encoded(encoder, texts)
        close(found.tokens_BLD, tokens)
        assert found.layers_BSLE is not None
        close(found.layers_BSLE, layers.transpose(0, 1))
        close(found.pooled_BP, pooled)
        assert found.mask_BL.all()
    some = replace(encoder, layers=[2, 0])
    kept = encoded(some, TEXTS).layers_BSLE
    assert kept is not None
    close(kept, layers_SBLE[[2, 0]].transpose(0, 1))
    assert some.stored_as() != encoder.stored_as()
    assert some.build().manifest()["layers"] == [2, 0]


@torch.no_grad()
def test_mistral3_is_flux2s(declared: Callable[[str], Any]) -> None:
    """Three layers side by side, of the system message and the caption in the chat template. The tokenizer
    replaces the processor, which needs torchvision."""
    from diffusers import Flux2Pipeline
    from transformers import Mistral3ForConditionalGeneration

    encoder = declared("mistral3")
    place = Path(encoder.model)
    expected = Flux2Pipeline._get_mistral_3_small_prompt_embeds(
        Mistral3ForConditionalGeneration.from_pretrained(place / "text_encoder"),
        AutoTokenizer.from_pretrained(place / "tokenizer"),
        [*TEXTS, "a [IMG]"],
        max_sequence_length=encoder.length,
        hidden_states_layers=encoder.joined,
    )
    found = encoded(encoder, [*TEXTS, "a [IMG]"])
    close(found.tokens_BLD, expected)
    assert found.mask_BL.all()
    declared_of = inspect.signature(Flux2Pipeline._get_mistral_3_small_prompt_embeds).parameters
    settings = OmegaConf.load(Path(__file__).parents[2] / "conf" / "text_encoder" / "mistral3.yaml")
    assert tuple(settings.joined) == declared_of["hidden_states_layers"].default
    assert settings.length == declared_of["max_sequence_length"].default
