"""Images to files of codes and back, through the commands' own functions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from toy_runs import write_run

import urepa
from urepa import detokenize as detokenize_command
from urepa import tokenize as tokenize_command
from urepa.core import random_draws
from urepa.core.errors import UserError
from urepa.core.hashing import digest64
from urepa.core.part_names import CODES
from urepa.export import check as check_export
from urepa.generate import check_run_request
from urepa.inference.export_weights import export
from urepa.inference.token_codes import detokenize, tokenize
from urepa.training.assembly import build_model, build_part

Compose = Callable[..., dict[str, Any]]
NAMES = ["a.png", "below/b.png", "c.png"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, compose: Compose, small_flextok: list[str]) -> Path:
    return write_run(tmp_path_factory.mktemp("outputs") / "flextok" / "seed0", compose(*small_flextok), 10)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for name in NAMES:
        (root / name).parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(root / name)
    (root / "notes.txt").write_text("no image")
    return root


@pytest.fixture(scope="module")
def codes(run: Path, photos: Path, compose: Compose, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("codes") / "codes.safetensors"
    asked = compose(f"run='{run}'", f"images='{photos}'", f"out='{out}'", "batch_size=2", root="tokenize")
    tokenize_command.check(asked)
    assert tokenize(asked).startswith("3 images as 8 codes each")
    return out


@pytest.mark.slow
def test_a_row_is_the_codes_of_an_image(run: Path, photos: Path, codes: Path) -> None:
    stored = load_file(codes)["codes"]
    assert (stored.dtype, tuple(stored.shape)) == (torch.int32, (3, 8))
    assert ((stored >= 0) & (stored < 64_000)).all()
    opened = urepa.load(run, device="cpu")
    for row, name in zip(stored, NAMES, strict=True):
        pixels = np.asarray(Image.open(photos / name))
        x0 = opened.track.to_x0(opened.track.cut(pixels)[None])
        vectors = opened.model.backbone.encoder(x0)
        assert torch.equal(opened.model.backbone.encoder.quantiser.vectors(row[None].long()), vectors)


@pytest.mark.slow
@pytest.mark.parametrize(("keep", "rule", "guidance"), [(8, "cfg", 3.0), (2, "cfg", 1.0), (4, "apg", 5.0)])
def test_images_of_codes_are_euler_steps_from_addressed_noise(
    run: Path, codes: Path, compose: Compose, tmp_path: Path, keep: int, rule: str, guidance: float
) -> None:
    steps, out = 4, tmp_path / "images"
    given = [f"keep={keep}", f"rule={rule}", f"guidance={guidance}", f"steps={steps}", "seed=3"]
    given = [key for key in given if not (guidance == 1 and key.startswith("rule"))]
    asked = compose(f"run='{run}'", f"codes='{codes}'", f"out='{out}'", "batch_size=2", *given, root="detokenize")
    detokenize_command.check(asked, [key.partition("=")[0] for key in given])
    assert detokenize(asked) == f"3 images from the first {keep} of 8 codes in {out}/"
    opened = urepa.load(run, device="cpu")
    stored, backbone = load_file(codes)["codes"].long(), opened.model.backbone
    for i, name in enumerate(NAMES):
        rng = random_draws.generator(3, "detokenize", digest64(name) >> 1)
        x, condition = (
            random_draws.normal((4, 8, 8), rng)[None].double(),
            backbone.condition_of(stored[i : i + 1], torch.tensor([keep])),
        )
        running: Any = 0.0
        for step in range(steps, 0, -1):
            t_B = torch.tensor([step / steps])
            with torch.no_grad():
                c, u = (backbone(x.float(), t_B, k).prediction_RCHW.double() for k in (condition, condition.null()))
            d = c - u
            if rule == "apg":
                running = d = d - 0.5 * running
                d = d * min(1, 2.5 / float(d.norm()))
                d = d - (d * c).sum() / (c * c).sum() * c
            x = x - (c + (guidance - 1) * d) / steps
        expected = (opened.track.to_rgb(x.float())[0].permute(1, 2, 0) * 255).numpy()
        made = np.asarray(Image.open((out / name).with_suffix(".png"))).astype(float)
        assert np.abs(made - expected).max() < 0.6


@pytest.mark.slow
def test_codes_that_are_not_kept_change_nothing(run: Path, codes: Path, compose: Compose, tmp_path: Path) -> None:
    from safetensors import safe_open

    with safe_open(codes, "pt") as stored:
        metadata, own = stored.metadata(), stored.get_tensor("codes")
    other = own.clone()
    other[:, 2:] = (other[:, 2:] + 777) % 64_000
    save_file({"codes": other}, tmp_path / "other.safetensors", metadata)
    for keep, alike in ((2, True), (3, False)):
        made = []
        for file in (codes, tmp_path / "other.safetensors"):
            out = tmp_path / f"{file.stem}{keep}"
            detokenize(
                compose(f"run='{run}'", f"codes='{file}'", f"out='{out}'", f"keep={keep}", "steps=2", root="detokenize")
            )
            made.append([(out / name).read_bytes() for name in NAMES])
        assert (made[0] == made[1]) == alike


def rewritten(codes: Path, out: Path, rows: Any = None, **changes: str) -> Path:
    from safetensors import safe_open

    with safe_open(codes, "pt") as stored:
        metadata, own = stored.metadata(), stored.get_tensor("codes")
    save_file({"codes": own if rows is None else rows}, out, metadata | changes)
    return out


@pytest.mark.fast(1)
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"weights": "others"}, "was made with other weights than this run's newest"),
        ({"names": json.dumps(["../a.png", "b", "c"])}, "which is not a path below a folder"),
        ({"names": json.dumps(["/a.png", "b", "c"])}, "which is not a path below a folder"),
        ({"names": json.dumps(["a.png", "a.jpg", "c"])}, "two images of the file would be written to"),
        ({"names": "["}, "is not a file of python -m urepa.tokenize"),
        ({"rows": torch.full((3, 8), 64_000, dtype=torch.int32)}, "this run has 8 per image, from 0 to 63999"),
        ({"rows": torch.zeros(3, 7, dtype=torch.int32)}, "this run has 8 per image, from 0 to 63999"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(
    run: Path, codes: Path, compose: Compose, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    file = rewritten(codes, tmp_path / "odd.safetensors", **changes)
    with pytest.raises(UserError, match=words):
        detokenize(compose(f"run='{run}'", f"codes='{file}'", f"out='{tmp_path / 'out'}'", root="detokenize"))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_mistakes_are_said_before_torch_is_needed(run: Path, codes: Path, compose: Compose, tmp_path: Path) -> None:
    def tokenizing(*given: str) -> None:
        tokenize_command.check(compose(*given, root="tokenize"))

    def detokenizing(*given: str) -> None:
        own = [f"run='{run}'", f"codes='{codes}'", f"out='{tmp_path / 'out'}'", *given]
        detokenize_command.check(compose(*own, root="detokenize"), [key.partition("=")[0] for key in given])

    with pytest.raises(UserError, match="say which run: python -m urepa.tokenize"):
        tokenizing()
    with pytest.raises(UserError, match="images=nowhere is not a folder"):
        tokenizing(f"run='{run}'", "images=nowhere", "out=x.safetensors")
    with pytest.raises(UserError, match="give a name that ends in .safetensors"):
        tokenizing(f"run='{run}'", f"images='{tmp_path}'", "out=x.pt")
    with pytest.raises(UserError, match="keep=9: this run has 8 codes per image"):
        detokenizing("keep=9")
    with pytest.raises(UserError, match="eta has no effect without rule=apg"):
        detokenizing("rule=cfg", "eta=0.5")
    with pytest.raises(UserError, match="rule has no effect with guidance=1"):
        detokenizing("rule=cfg", "guidance=1")


@pytest.mark.slow
def test_another_backbones_run_has_no_codes(compose: Compose, small_sit: list[str], tmp_path: Path) -> None:
    sit = write_run(tmp_path / "outputs" / "sit" / "seed0", compose(*small_sit), 2)
    with pytest.raises(UserError, match="trained a transformer, which has no codes; give the run of a tokenizer"):
        tokenize_command.require_tokenizer(sit)


def test_images_of_classes_are_refused(run: Path, compose: Compose) -> None:
    with pytest.raises(UserError, match="this run decodes images from codes, not from classes or prompts: encode"):
        check_run_request(compose(f"run='{run}'", root="generate"))


@pytest.mark.slow
def test_an_export_begins_another_run(run: Path, compose: Compose, small_flextok: list[str], tmp_path: Path) -> None:
    asked = compose(f"run='{run}'", f"out='{tmp_path / 'export'}'", root="export")
    check_export(asked)
    folder = export(asked)
    config = compose(*small_flextok, "loss=none", f"backbone.weights='{folder}'", "optimizer=adamw_flextok")
    track = build_part(config["data"])
    model, _ = build_model(config, track, None, build_part(config["loss"], schedule=None, max_steps=10))
    opened = urepa.load(run, device="cpu").model.backbone
    x_t, condition = torch.randn(2, 4, 8, 8), opened.condition_of(torch.arange(16).view(2, 8), torch.tensor([8, 3]))
    assert condition.names == (CODES,)
    with torch.no_grad():
        one, other = (net(x_t, torch.tensor([0.2, 0.9]), condition).prediction_RCHW for net in (opened, model.backbone))
    assert torch.equal(one, other)
