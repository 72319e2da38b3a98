"""An encoder to which the run is aligned is recognised under another name."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from urepa.evaluation.context import Context
from urepa.evaluation.encoders.pixels_net import PixelsNetwork
from urepa.evaluation.measures.image_distances_math import is_circular


class Named(PixelsNetwork):
    """A ViT with some name, in its manifest and weights."""

    def __init__(self, model: str, weights: str, width: int = 768) -> None:
        super().__init__(2)
        self.model, self.weights, self.width = model, weights, width

    def manifest(self) -> dict[str, Any]:
        return {"family": "dinov2", "model": self.model, "width": self.width}

    def weights_sha256(self) -> str:
        return self.weights


@pytest.mark.fast(2)
@pytest.mark.parametrize(
    ("teacher", "circular", "warned"),
    [
        ({"model": "dinov2-base"}, True, False),
        ({"model": "dinov2_vitb14_pretrain.pth", "weights_sha256": "abc"}, True, False),
        ({"model": "dinov2_vitb14_pretrain.pth", "weights_sha256": "other"}, False, False),
        ({"model": "dinov2_vitb14_pretrain.pth"}, False, True),  # an online teacher's
        ({"model": "unknown", "family": "unknown", "width": "unknown", "weights_sha256": "unknown"}, False, True),
        ({"model": "dinov2-large", "width": 1024}, False, False),
        ({"model": "clip-base", "family": "clip"}, False, False),
    ],
)
def test_one_network_under_two_names_is_circular(
    context: Context, teacher: dict[str, Any], circular: bool, warned: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = {"teacher": {"family": "dinov2", "width": 768} | teacher}
    told = replace(context, cache=replace(context.cache, tokens={"": SimpleNamespace(manifest=manifest)}))
    assert is_circular(told, Named("dinov2-base", "abc")) is circular
    assert ("may be one network" in capsys.readouterr().out) is warned
