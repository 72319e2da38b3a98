"""EfficientNet-Lite0 and -Lite2: the network determines which block gives the last map of a stride."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from urepa.models.teachers.efficientnet_lite2 import EfficientNetLite2 as Settings
from urepa.models.teachers.efficientnet_net import EfficientNetLite0Network, EfficientNetLite2Network
from urepa.models.teachers.efficientnet_sizes import LITE0, LITE2


@pytest.mark.parametrize(("teacher", "maps"), [(EfficientNetLite0Network, LITE0), (EfficientNetLite2Network, LITE2)])
def test_the_table_of_maps_is_the_networks(teacher: Any, maps: dict[int, tuple[int, int]]) -> None:
    network = teacher(64, [1, 1], 32).build_without_weights()
    found, x = {}, network._swish(network._bn0(network._conv_stem(torch.rand(1, 3, 64, 64))))
    for number, block in enumerate(network._blocks):
        x = block(x)
        found[64 // x.shape[-1]] = (number, x.shape[1])
    assert {stride: found[stride] for stride in (8, 16)} == {stride: maps[stride] for stride in (8, 16)}
    assert maps[32] == (found[32][0], network._conv_head.out_channels) == (len(network._blocks) - 1, 1280)


@pytest.mark.slow
@pytest.mark.parametrize("stride", [8, 16, 32])
def test_lite2s_tokens_are_its_maps(stride: int) -> None:
    teacher = EfficientNetLite2Network(64, [2, 2], stride)
    images = torch.rand(2, 3, 64, 64)
    tokens = teacher.tokens(images)
    assert (tokens.x_BND.shape, tokens.grid) == ((2, 4, teacher.width), (2, 2))
    found: list[torch.Tensor] = []
    place = teacher._model._bn1 if stride == 32 else teacher._model._blocks[teacher.last_block]
    hook = place.register_forward_hook(lambda module, given, out: found.append(out))
    teacher._model.extract_features((images * 255 - 127) / 128)
    hook.remove()
    map_BDhw = found[0].clamp(0, 6) if stride == 32 else found[0]  # ReLU6 is behind the last BatchNorm alone
    pooled = torch.nn.functional.adaptive_avg_pool2d(map_BDhw, 2).flatten(2).transpose(1, 2)
    torch.testing.assert_close(tokens.x_BND, torch.nn.functional.normalize(pooled, dim=-1), atol=1e-5, rtol=1e-4)


def test_another_network_is_refused() -> None:
    told = EfficientNetLite2Network(128, [4, 4], 32).manifest()
    assert (told["model"], told["width"]) == ("efficientnet-lite2", 1280)
    assert told["weights_sha256"] != EfficientNetLite0Network(128, [4, 4], 32).weights_sha256()
    assert EfficientNetLite2Network(128, [4, 4], 16).manifest()["model"] == "efficientnet-lite2-s16"


def test_its_settings_are_lite0s(compose: Any) -> None:
    there, beside = (compose(f"teacher=efficientnet_lite{n}")["teacher"] for n in (2, 0))
    assert there.pop("_target_") == Settings._target_ != beside.pop("_target_")
    assert there == beside
