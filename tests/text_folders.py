"""Small random text encoders of the model families, in the folders and with the tokenizers of their pipelines, and the
declarations that read them."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from photos import write_clip_text, write_clip_tokenizer
from torch import Tensor

from urepa.core.text_protocols import EncodedText, stacked_layers
from urepa.models.text_encoders.chatglm import ChatGLM
from urepa.models.text_encoders.flux_text import FluxText
from urepa.models.text_encoders.gemma import Gemma
from urepa.models.text_encoders.hidream_text import HiDreamText
from urepa.models.text_encoders.mistral3 import Mistral3
from urepa.models.text_encoders.sana_text import SanaText
from urepa.models.text_encoders.sd3_text import SD3Text
from urepa.models.text_encoders.sdxl_text import SDXLText
from urepa.models.text_encoders.t5 import T5
from urepa.models.text_encoders.umt5 import UMT5

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def write_second_clip(folder: Path) -> None:
    """Writes tokenizer_2/ and text_encoder_2/ of width 24, with a vector of 20; the tokenizer pads with another
    token."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    words = write_clip_tokenizer(folder / "tokenizer_2", pad="a")
    CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=words,
            hidden_size=24,
            intermediate_size=32,
            num_hidden_layers=3,
            num_attention_heads=2,
            projection_dim=20,
            hidden_act="gelu",
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=2,
        )
    ).save_pretrained(folder / "text_encoder_2")


def write_sdxl(folder: Path) -> SDXLText:
    """Writes encoders of widths 16 and 24, with a vector of 20."""
    write_clip_text(folder, seed=0)
    write_second_clip(folder)
    return SDXLText(model=str(folder), width=40, pooled_width=20, length=77, null_text="zeros")


def write_t5_parts(folder: Path, number: str = "", width: int = 16, *, is_umt5: bool = False) -> None:
    """Writes tokenizer{number}/ and text_encoder{number}/ of a T5; letters and a few syllables, all else unknown."""
    from transformers import T5Config, T5EncoderModel, T5Tokenizer, UMT5Config, UMT5EncoderModel

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(letter, -3.0) for letter in LETTERS] + [("▁re", -2.5), ("at", -2.5)]
    T5Tokenizer(vocab=pieces, extra_ids=0).save_pretrained(folder / f"tokenizer{number}")
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    config = (UMT5Config if is_umt5 else T5Config)(vocab_size=len(pieces), d_model=width, **sizes)
    network: Any = (UMT5EncoderModel if is_umt5 else T5EncoderModel)(config)
    network.save_pretrained(folder / f"text_encoder{number}")


def write_t5(folder: Path) -> T5:
    """Writes an encoder of width 16, as the first text encoder."""
    write_t5_parts(folder)
    known: dict[str, Any] = {"padding": "masked", "lowercase": True, "computed_in": "float32", "null_text": "empty"}
    return T5(model=str(folder), encoder_number=1, width=16, length=20, **known)


def write_gemma(folder: Path) -> Gemma:
    """Writes an encoder of width 16; bytes and a few syllables. Its tokenizer pads at the beginning."""
    from transformers import Gemma2Config, Gemma2Model, GemmaTokenizer

    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{i:02X}>" for i in range(256)), "▁"]
    vocab = {piece: i for i, piece in enumerate([*pieces, *LETTERS, "re", "at"])}
    tokenizer = GemmaTokenizer(vocab=vocab, merges=[("r", "e"), ("a", "t")], add_bos_token=True)
    assert tokenizer.padding_side == "left"
    tokenizer.save_pretrained(folder / "tokenizer")
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=len(vocab),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=64,
    )
    Gemma2Model(config).save_pretrained(folder / "text_encoder")
    known: dict[str, Any] = {"lowercase": True, "before": None, "computed_in": "float32", "null_text": "empty"}
    return Gemma(model=str(folder), width=16, layer=-1, length=24, **known)


def write_sana(folder: Path) -> SanaText:
    """Writes the same, for captions after an instruction."""
    plain = vars(write_gemma(folder))
    return SanaText(**plain | {"_target_": SanaText._target_, "before": "Make it RE\nPrompt: "})


# --- of several encoders ----------------------------------------------------------------------------------------

OF_ALL: dict[str, Any] = {"computed_in": "float32", "null_text": "empty"}


def write_projected_clips(folder: Path) -> None:
    """Writes the first two text encoders of SD3 and HiDream, of widths 16 and 24, with vectors of 12 and 20."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    write_clip_text(folder, seed=0)
    config = CLIPTextConfig.from_pretrained(folder / "text_encoder")
    config.projection_dim = 12
    CLIPTextModelWithProjection(config).save_pretrained(folder / "text_encoder")
    write_second_clip(folder)


def write_sd3(folder: Path) -> SD3Text:
    """Writes CLIPs of width 40 together and a T5 of width 48."""
    write_projected_clips(folder)
    write_t5_parts(folder, "_3", width=48)
    return SD3Text(model=str(folder), width=48, pooled_width=32, clip_length=77, t5_length=20, **OF_ALL)


def write_flux(folder: Path) -> FluxText:
    """Writes a CLIP of width 16 and a T5 of width 24."""
    write_clip_text(folder, seed=0)
    write_t5_parts(folder, "_2", width=24)
    return FluxText(model=str(folder), width=24, pooled_width=16, length=20, clip_length=77, **OF_ALL)


def write_umt5(folder: Path) -> UMT5:
    """Writes an encoder of width 16."""
    write_t5_parts(folder, is_umt5=True)
    return UMT5(model=str(folder), width=16, length=20, **OF_ALL)


def bytes_tokenizer(first: str, last: str, pad: str | None, **how: Any) -> Any:
    """One token per byte, with `first` before every text, as in the tokenizers of Llama 3 and Mistral."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = [token for token in (first, last, pad) if token is not None]
    vocab = {piece: i for i, piece in enumerate([*special, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    made = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.post_processor = processors.TemplateProcessing(
        single=f"{first} $A", pair=None, special_tokens=[(first, vocab[first])]
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token=first, eos_token=last, pad_token=pad, **how)


LLAMA_SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
}


def write_hidream(folder: Path) -> HiDreamText:
    """Writes CLIPs and a T5 of width 24, and a Llama of three layers of width 16 in a folder of its own,
    FOLDER-llama."""
    from transformers import LlamaConfig, LlamaForCausalLM

    write_projected_clips(folder)
    write_t5_parts(folder, "_3", width=24)
    llama = folder.with_name(f"{folder.name}-llama")
    tokenizer = bytes_tokenizer("<|begin_of_text|>", "<|eot_id|>", None)
    tokenizer.save_pretrained(llama)
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=80, **LLAMA_SIZES)
    LlamaForCausalLM(config).save_pretrained(llama)
    widths: dict[str, Any] = {"width": 24, "layers_width": 16, "pooled_width": 32}
    return HiDreamText(model=str(folder), llama=str(llama), layers=[0, 1, 2], length=24, **widths, **OF_ALL)


# as the published one, of text alone
CHAT = (
    "{{ bos_token }}{% for message in messages %}{% set text = message['content'][0]['text'] %}"
    "{% if message['role'] == 'system' %}[SYSTEM_PROMPT]{{ text }}[/SYSTEM_PROMPT]"
    "{% else %}[INST]{{ text }}[/INST]{% endif %}{% endfor %}"
)


def write_mistral3(folder: Path) -> Mistral3:
    """Writes a language model of four layers of width 16 with a small vision tower. Its tokenizer pads on the left."""
    from transformers import Mistral3Config, Mistral3ForConditionalGeneration

    tokenizer = bytes_tokenizer("<s>", "</s>", "<pad>", padding_side="left")
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder / "tokenizer")
    torch.manual_seed(0)
    language = LLAMA_SIZES | {"num_hidden_layers": 4, "vocab_size": len(tokenizer), "max_position_embeddings": 512}
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"head_dim": 8, "image_size": 28, "patch_size": 14}
    config = Mistral3Config(
        text_config={"model_type": "mistral", **language}, vision_config={"model_type": "pixtral", **vision}
    )
    Mistral3ForConditionalGeneration(config).save_pretrained(folder / "text_encoder")
    return Mistral3(model=str(folder), width=48, joined=[1, 2, 3], length=320, **OF_ALL)


def write_kolors(folder: Path, length: int = 24) -> ChatGLM:
    """Writes an encoder of width 32 with 64 positions, or `length` if that is more; its tokenizer is trained by
    sentencepiece."""
    import sentencepiece
    from diffusers.pipelines.kolors.text_encoder import ChatGLMConfig, ChatGLMModel
    from diffusers.pipelines.kolors.tokenizer import ChatGLMTokenizer

    written, place = io.BytesIO(), folder / "tokenizer"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a red cat", "it is blue", LETTERS] * 5),
        model_writer=written,
        vocab_size=320,
        model_type="bpe",
        hard_vocab_limit=False,
        byte_fallback=True,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    place.mkdir(parents=True)
    (place / "tokenizer.model").write_bytes(written.getvalue())
    tokenizer = ChatGLMTokenizer(str(place / "tokenizer.model"))
    tokenizer.save_pretrained(place)
    config = ChatGLMConfig(
        num_layers=2,
        padded_vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        ffn_hidden_size=48,
        kv_channels=8,
        num_attention_heads=4,
        seq_length=max(64, length),
        multi_query_attention=True,
        multi_query_group_num=2,
        add_qkv_bias=True,
        original_rope=True,
    )
    torch.manual_seed(0)
    network = ChatGLMModel(config, empty_init=False)
    with torch.no_grad():  # the class leaves the weights of its norms as memory has them
        for name, parameter in network.named_parameters():
            parameter.copy_(float("norm" in name) + 0.1 * torch.randn(parameter.shape))
    network.save_pretrained(folder / "text_encoder")
    return ChatGLM(model=str(folder), width=32, length=length, computed_in="float32", null_text="empty")


# --- what their tests have alike --------------------------------------------------------------------------------

WRITERS: dict[str, Callable[[Path], Any]] = {
    "sdxl_text": write_sdxl,
    "t5": write_t5,
    "gemma": write_gemma,
    "sana_text": write_sana,
    "chatglm": write_kolors,
    "sd3_text": write_sd3,
    "flux_text": write_flux,
    "umt5": write_umt5,
    "hidream_text": write_hidream,
    "mistral3": write_mistral3,
}
TEXTS = ["a red cat", "", "It is BLUE and" + " a cat" * 30]  # the last one is longer than any length here


def encoded(encoder: Any, texts: list[str] = TEXTS) -> EncodedText:
    """Encodes texts and checks the declared sizes."""
    network = encoder.build()
    found: EncodedText = network.encode(network.tokenize(texts).inputs_BKL)
    assert found.tokens_BLD.shape == (len(texts), encoder.length, encoder.width)
    assert found.mask_BL.shape == (len(texts), encoder.length)
    assert found.pooled_BP.shape == (len(texts), encoder.pooled_width)
    assert {t.dtype for t in (found.tokens_BLD, found.pooled_BP)} == {torch.float32}
    if layers := stacked_layers(encoder):
        assert found.layers_BSLE is not None
        assert found.layers_BSLE.shape == (len(texts), len(layers), encoder.length, encoder.layers_width)
    assert not found.tokens_BLD[~found.mask_BL].any()
    return found


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
