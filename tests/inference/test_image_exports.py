"""Exports of a model whose conditions have an image: they make the run's images without its caches, and say in one line
what does not fit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from captioned_photos import write_nanodit_run
from published import asking, files

from urepa.config.declared import declaration_of
from urepa.core.errors import UserError
from urepa.data.image_statistics import ImageStatistics
from urepa.inference.export_weights import export
from urepa.inference.image_request import generate
from urepa.runs.run_folder import require_config

pytestmark = pytest.mark.slow
Compose = Callable[..., dict[str, Any]]
QUICK = ("n=1", "steps=2", "size=64x96")
MODES = {
    "nothing": [],
    "text": ["prompt=flower"],
    "image": ["image"],
    "both": ["prompt=flower", "image", "guidance_text=3", "guidance_image=2"],
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, compose: Compose) -> dict[str, Any]:
    """A run with its export; `parts` says what its weights are of. Patches are standardised by their own statistics."""
    place = tmp_path_factory.mktemp("nanodit")
    run, parts = write_nanodit_run(place, compose, "data.patch_statistics=patches")
    track_of(run).open(None).close()  # makes the caches
    exported = export(compose(f"run='{run}'", f"out={place / 'export'}", root="export"))
    return {"run": run, "parts": parts, "export": exported, "place": place}


def track_of(run: Path) -> Any:
    return declaration_of(require_config(run)["data"]).build()


def given(made: dict[str, Any], mode: str) -> list[str]:
    image = next((made["place"] / "photos").glob("flower/wide_*.png"))
    return [f"image='{image}'" if one == "image" else one for one in MODES[mode]]


def test_an_export_makes_the_runs_images_in_four_modes_without_its_caches(
    made: dict[str, Any], compose: Compose, tmp_path: Path
) -> None:
    ask = asking(compose)
    for mode in MODES:
        generate(ask(f"run='{made['run']}'", *QUICK, *given(made, mode), f"out={tmp_path / 'run' / mode}"))
    caches = made["place"] / "caches"
    caches.rename(caches.with_name("elsewhere"))
    try:
        for mode in MODES:
            out = tmp_path / "export" / mode
            generate(ask(f"checkpoint='{made['export']}'", *made["parts"], *QUICK, *given(made, mode), f"out={out}"))
            assert files(out) == files(tmp_path / "run" / mode)
    finally:
        caches.with_name("elsewhere").rename(caches)
    assert len({next(iter(files(tmp_path / "run" / mode).values())) for mode in MODES}) == 4
    request = json.loads((tmp_path / "export" / "image" / "request.json").read_text())
    assert len(request["image_statistics"]) == 64
    assert "- image\\_statistics.json" in (made["export"] / "README.md").read_text()


def test_the_file_has_the_statistics_that_are_applied(made: dict[str, Any]) -> None:
    """Against the mean and deviation of the training records, of which the file's are before their rounding to fp16."""
    stored = ImageStatistics.read(made["export"] / "image_statistics.json", 112)
    cache = track_of(made["run"]).open(None)
    records = [b.image_tokens.tensor([s.key for s in b.splits["train"]]).double() for b in cache.buckets]
    by_vectors = replace(cache.buckets[0].conditions, own_statistics=False).applied
    cache.close()
    vectors = torch.cat([one[:, 0] for one in records])
    patches = torch.cat([one[:, 1:].flatten(0, 1) for one in records])
    pairs = [(stored.vectors, vectors), (stored.patches, patches), (by_vectors.patches, vectors)]
    for (mean, deviation), values in pairs:
        torch.testing.assert_close(mean, values.mean(0).float(), rtol=1e-3, atol=2e-3)
        torch.testing.assert_close(deviation, values.std(0, correction=0).float(), rtol=1e-3, atol=2e-3)


def test_mistakes_are_one_line(made: dict[str, Any], compose: Compose, tmp_path: Path) -> None:
    ask = asking(compose)
    folder = shutil.copytree(made["export"], tmp_path / "copy")
    asked = [f"checkpoint='{folder}'", *made["parts"], *QUICK, *given(made, "image"), f"out={tmp_path / 'out'}"]
    file = folder / "image_statistics.json"
    stored = json.loads(file.read_text())

    def refused(content: dict[str, Any] | None, words: str) -> None:
        file.unlink(missing_ok=True)
        if content is not None:
            file.write_text(json.dumps(content))
        with pytest.raises(UserError, match=words):
            generate(ask(*asked))

    refused(stored | {"encoder": {"weights_sha256": "0" * 64}}, "not those of the training's image tokens")
    refused(stored | {"patches": [[0.0], [1.0]]}, "statistics of another width than the image encoder's 112")
    refused({"vectors": 1}, "is not the statistics of an export")
    refused(None, "there are no image tokens at .*give data.root=FOLDER")
    caches = made["place"] / "caches"
    caches.rename(caches.with_name("elsewhere"))
    try:
        with pytest.raises(UserError, match="there are no image tokens at .*give data.root=FOLDER"):
            export(compose(f"run='{made['run']}'", f"out={tmp_path / 'second'}", root="export"))
    finally:
        caches.with_name("elsewhere").rename(caches)
    assert not (tmp_path / "second").exists()
    exported = export(
        compose(f"run='{made['run']}'", f"out={tmp_path / 'third'}", f"data.root={caches}", root="export")
    )
    assert (exported / "image_statistics.json").exists()
