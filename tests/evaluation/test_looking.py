"""Pictures of a run: what they show, and that they leave the training as it is."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from urepa.core import look_sheets
from urepa.core.look_sheets import HEAD, IMAGE, NEAR_HEAD, NEAR_TAP, NEAR_TEACHER, SAMPLE, TAP, TEACHER
from urepa.core.types import Tokens
from urepa.evaluation.context import Context
from urepa.evaluation.looking import Basis, Look, middle_tap, pictures, ramp, similarity_maps, write_sheets
from urepa.runs.metrics import TIMINGS, read_rows

Build = Callable[..., Any]
STEPS = ("trainer.max_steps=4", "trainer.log_every=1", "trainer.validate_every=2", "trainer.checkpoint_every=4")


def cells_in(png: bytes) -> look_sheets.Cells:
    return look_sheets.cells_of(Image.open(BytesIO(png)))


@pytest.mark.slow
def test_training_is_unchanged_by_pictures(build_trainer: Build) -> None:
    plain = build_trainer(*STEPS)
    plain.fit(0)
    parameters = {n: p.detach().clone() for n, p in plain.model.named_parameters()}
    shown = build_trainer(*STEPS, "trainer.look_every=2", "trainer.look_share=1000")
    shown.fit(0)
    assert all(torch.equal(p, parameters[n]) for n, p in shown.model.named_parameters())
    assert all(torch.equal(value, plain.ema.shadow[n]) for n, value in shown.ema.shadow.items())
    rows = [
        [{k: v for k, v in row.items() if k not in TIMINGS} for row in read_rows(t.metrics.path)]
        for t in (plain, shown)
    ]
    assert rows[0] == rows[1]
    files = sorted((shown.folder / "look").iterdir())
    assert [file.name for file in files] == ["step_00000002.png", "step_00000004.png"], "also at the last step"
    sheets = [cells_in(file.read_bytes()) for file in files]
    assert list(sheets[0]) == [IMAGE, TEACHER, HEAD, TAP, NEAR_TEACHER, NEAR_HEAD, SAMPLE]
    assert all(len(own) == 6 for own in sheets[0].values())
    for same in (IMAGE, TEACHER, NEAR_TEACHER):
        assert [i.tobytes() for i in sheets[0][same]] == [i.tobytes() for i in sheets[1][same]]
    assert [i.tobytes() for i in sheets[0][SAMPLE]] != [i.tobytes() for i in sheets[1][SAMPLE]]
    assert shown.looking.seconds > 0
    again = build_trainer(*STEPS)
    assert again.looking.every is None


@pytest.fixture
def seen(build_trainer: Build, small_run: list[str], compose: Callable[..., Any]) -> Callable[..., Context]:
    """seen(*overrides): the context of the small model at step 0, with its track."""
    from urepa.config.declared import declaration_of
    from urepa.training.assembly import build_part, contexts_of

    def make(*overrides: str) -> Context:
        trainer = build_trainer(*overrides)
        trainer.model.eval()
        config = compose(*small_run)
        assert declaration_of(config["data"]) is not None
        return contexts_of(config, trainer, build_part(config["data"]), 0)[0]

    return make


@pytest.mark.slow
def test_a_run_without_a_teacher_shows_its_tap_and_samples(seen: Callable[..., Context]) -> None:
    context = seen("loss=none")
    cells, missing = pictures(Look(images=2, sampler_steps=2), context)
    assert (set(cells), missing) == ({IMAGE, TAP, NEAR_TAP, SAMPLE}, [])
    assert middle_tap(context.model.backbone) == "mid"
    assert write_sheets(Look(images=2, sampler_steps=2, tap="no_such"), [context])["look"].startswith(
        "this backbone has no tap 'no_such'"
    )


@pytest.mark.parametrize(("count", "width"), [(60, 12), (20, 40)])
def test_components_are_those_of_an_independent_analysis(count: int, width: int) -> None:
    from sklearn.decomposition import PCA

    generator = torch.Generator().manual_seed(0)
    scale_D = torch.linspace(3, 0.1, width)
    x_BND = torch.randn(2, count, width, generator=generator) * scale_D + 1
    grid = (count // 4, 4)
    unit_MD = torch.nn.functional.normalize(x_BND.double(), dim=-1).flatten(0, 1).numpy()
    expected_MK = PCA(3, svd_solver="full").fit_transform(unit_MD)
    expected_MK *= np.where((expected_MK**3).sum(0) < 0, -1, 1)
    low, high = np.quantile(expected_MK, [0.02, 0.98], axis=0)
    colours = ((expected_MK - low) / (high - low)).clip(0, 1).reshape(2, *grid, 3) * 255
    tokens = Tokens(x_BND, grid)
    found = np.stack(Basis.of(tokens).colours(tokens)).astype(float)
    assert np.abs(found - colours).max() <= 0.51
    scaled = np.stack(Basis.of(tokens).colours(Tokens(7 * x_BND, grid)))
    assert np.array_equal(scaled, found), "directions are shown, not lengths"


def test_similarities_are_cosines_to_the_chosen_token() -> None:
    x_1ND = torch.tensor([[[1.0, 0], [0, 2], [3, 3], [-1, 0], [5, 0], [0, -1]]])
    (map_hw,) = similarity_maps(Tokens(x_1ND, (2, 3)), (0.9, 0.4))  # row 1, column 1: [5, 0]
    assert np.allclose(map_hw, [[1, 0, 0.5**0.5], [-1, 1, 0]])
    colours = ramp(map_hw)
    assert colours[0, 0].tolist() == [253, 231, 37]
    assert colours[1, 0].tolist() == colours[0, 1].tolist() == [68, 1, 84], "0 and below"
    assert ramp(np.array([[0.5]]))[0, 0].tolist() == [33, 145, 140]


def solid(colour: str, count: int) -> list[Image.Image]:
    return [Image.new("RGB", (96, 72), colour)] * count


def test_pictures_are_cut_out_of_a_sheet_and_put_into_strips() -> None:
    sheets = {}
    for step, colour in ((20, "red"), (100, "blue")):
        png = look_sheets.sheet_png({HEAD: solid(colour, 3), TEACHER: solid("lime", 3)}, "a caption")
        sheets[step] = cells_in(png)
        assert list(sheets[step]) == [TEACHER, HEAD]
        assert [image.tobytes() for image in sheets[step][HEAD]] == [i.tobytes() for i in solid(colour, 3)]
    strip_png = look_sheets.strip_png(sheets, images=2)
    assert strip_png is not None
    strip = np.asarray(Image.open(BytesIO(strip_png)))
    where = {
        name: np.argwhere((strip == rgb).all(-1))
        for name, rgb in {"teacher": (0, 255, 0), "first": (255, 0, 0), "last": (0, 0, 255)}.items()
    }
    assert all(len(found) == 2 * 96 * 72 for found in where.values())
    lefts = [where[name][:, 1].min() for name in ("teacher", "first", "last")]
    assert lefts == sorted(lefts)
    assert len(set(lefts)) == 3
    assert look_sheets.strip_png({1: {IMAGE: solid("red", 1)}}) is None


@pytest.mark.parametrize(
    "layout",
    ["", "no JSON", "[]", '{"columns": ["head"], "rows": 1, "left": 0, "top": 0, "tile": [9, 9], "step": [1, 1]}',
     '{"columns": ["head"], "rows": 99, "left": 1, "top": 1, "tile": [9, 9], "step": [9, 9]}',
     '{"columns": ["<b>"], "rows": 1, "left": 1, "top": 1, "tile": [9, 9], "step": [9, 9]}',
     '{"columns": ["head"], "rows": 3, "left": 1, "top": 1, "tile": [40, 40], "step": [40, 1]}',
     '{"columns": ["head"], "rows": 1, "left": "1", "top": 1, "tile": [9, 9], "step": [9, 9]}', "[" * 200_000,
     '{"columns": ["head"], "rows": true, "left": 1, "top": 1, "tile": [9, 9], "step": [9, 9]}'],
)  # fmt: skip
def test_an_image_without_a_fitting_layout_is_no_sheet(layout: str) -> None:
    image = Image.new("RGB", (50, 50))
    image.text = {look_sheets.LAYOUT: layout}  # type: ignore[attr-defined]
    assert look_sheets.cells_of(image) == {}


def test_steps_are_spread_evenly() -> None:
    assert look_sheets.spread([3, 1, 2], 5) == [1, 2, 3]
    assert look_sheets.spread(range(0, 101, 10), 3) == [0, 50, 100]
