"""Small random text encoders of the model families, in the folders and with the tokenizers of their pipelines, and the
declarations that read them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from photos import write_clip_text, write_clip_tokenizer

from urepa.models.text_encoders.chatglm import ChatGLM
from urepa.models.text_encoders.gemma import Gemma
from urepa.models.text_encoders.sdxl_text import SDXLText
from urepa.models.text_encoders.t5 import T5

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def write_sdxl(folder: Path) -> SDXLText:
    """Writes encoders of widths 16 and 24, with a vector of 20; the second tokenizer pads with another token."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    write_clip_text(folder, seed=0)
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
    return SDXLText(model=str(folder), width=40, pooled_width=20, length=77, null_text="zeros")


def write_t5(folder: Path) -> T5:
    """Writes an encoder of width 16, as the first text encoder; letters and a few syllables, all else unknown."""
    from transformers import T5Config, T5EncoderModel, T5Tokenizer

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(letter, -3.0) for letter in LETTERS] + [("▁re", -2.5), ("at", -2.5)]
    T5Tokenizer(vocab=pieces, extra_ids=0).save_pretrained(folder / "tokenizer")
    torch.manual_seed(0)
    config = T5Config(vocab_size=len(pieces), d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    T5EncoderModel(config).save_pretrained(folder / "text_encoder")
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
    known: dict[str, Any] = {"lowercase": True, "computed_in": "float32", "null_text": "empty"}
    return Gemma(model=str(folder), width=16, layer=-1, length=24, **known)


def write_kolors(folder: Path) -> ChatGLM:
    """Writes an encoder of width 32; its tokenizer is trained by sentencepiece."""
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
        seq_length=64,
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
    return ChatGLM(model=str(folder), width=32, length=24, computed_in="float32", null_text="empty")
