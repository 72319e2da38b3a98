"""CLIP score, compared with transformers' own forward pass on a small random checkpoint in the real format."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from contexts import context_of
from photos import write_sd
from toy_runs import write_run

from urepa.core.errors import UserError
from urepa.evaluation.context import Context
from urepa.evaluation.images.generated_images import GeneratedImages
from urepa.evaluation.measures.clip_score import ClipScore
from urepa.inference.open_run import load

IMAGES = GeneratedImages(count=12, sampler="ddim", steps=2, guidance=1.0, batch_size=5)
MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP checkpoint in transformers' format, and names of ten classes."""
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

    root = tmp_path_factory.mktemp("clip")
    write_sd(root / "sd")
    torch.manual_seed(0)
    text = CLIPTextConfig.from_pretrained(root / "sd" / "text_encoder")
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=4
    )
    model = CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=8))
    with torch.no_grad():  # transformers starts so small that texts and images are alike
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(root / "clip")
    shutil.copytree(root / "sd" / "tokenizer", root / "clip", dirs_exist_ok=True)
    (root / "names.txt").write_text("zero\none\ntwo\nthree\nfour\nfive\nsix\nseven\neight\nnine\n")
    return root


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory, compose: Callable[..., Any], small_run: list[str]) -> Any:
    run = write_run(tmp_path_factory.mktemp("outputs") / "quickstart" / "seed0", compose(*small_run), 10)
    opened = load(run, "cpu")
    cache = opened.track.open(None)
    yield context_of(opened, cache, run, 10)
    cache.close()


@pytest.mark.slow
def test_the_score_is_transformers_own(folder: Path, context: Context) -> None:
    from transformers import CLIPModel, CLIPTokenizer

    found = ClipScore(images=IMAGES, model=str(folder / "clip"), class_names=str(folder / "names.txt"))(context)
    clip: Any = CLIPModel.from_pretrained(folder / "clip")
    names = (folder / "names.txt").read_text().split()
    tokenizer = CLIPTokenizer.from_pretrained(folder / "clip")
    scores = []
    for ids, rgb in IMAGES.rgb(context):
        for class_id, image in zip(ids, rgb, strict=True):
            text = tokenizer(f"a photo of a {names[class_id]}", return_tensors="pt", padding="max_length")
            pixels = (image - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)  # 16 px already
            with torch.no_grad():
                out = clip(input_ids=text.input_ids, pixel_values=pixels[None])
            scores.append(max(out.logits_per_image.item() / clip.logit_scale.exp().item() * 100, 0.0))
    assert found["final/clip_score"] == pytest.approx(sum(scores) / 12, rel=1e-4)
    assert 0 in scores, "a negative cosine counts as 0"
    assert max(scores) - min(scores) > 1


@pytest.mark.slow
def test_what_is_missing_is_said(folder: Path, context: Context, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the CLIP score's model=.*nowhere could not be loaded"):
        ClipScore(images=IMAGES, model=str(tmp_path / "nowhere"), class_names=str(folder / "names.txt"))(context)
    with pytest.raises(UserError, match="class_names=imagenet has 1000 names; this run has 10 classes"):
        ClipScore(images=IMAGES, model=str(folder / "clip"), class_names="imagenet")(context)
