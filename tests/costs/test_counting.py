"""A step's counts, compared with closed forms, with real tensors, and with torch's own measurement of memory."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from itertools import accumulate
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from urepa.costs.counting import SavedBytes, StepCount, count_step, norm_as_on_cuda, on_fake_cpu
from urepa.training.assembly import build_part


def counted(model: nn.Module, *shape: int, on: Callable[[nn.Module], Any] = on_fake_cpu) -> StepCount:
    """The counts of a step on an input that needs a gradient; parts are the model's children."""

    def step() -> Tensor:
        return model(torch.zeros(*shape, requires_grad=True)).sum()

    with on(model):
        return count_step(model, lambda name: name.split(".")[0], step)


def on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return build()


class Attention(nn.Module):
    """Two heads after one projection, followed by another projection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.project = nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x_BND: Tensor) -> Tensor:
        q = self.project(x_BND).unflatten(-1, (2, -1)).transpose(1, 2)
        return self.out(F.scaled_dot_product_attention(q, q, q).transpose(1, 2).flatten(2))


@pytest.mark.parametrize(
    ("build", "shape", "products"),
    [
        (lambda: nn.Sequential(nn.Linear(6, 10)), (4, 6), 4 * 6 * 10),
        (lambda: nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, stride=2)), (2, 3, 8, 8), 2 * 16 * 8 * 3 * 9),
    ],
    ids=["linear", "conv"],
)
def test_a_layers_flops_are_the_closed_form(build: Any, shape: tuple[int, ...], products: int) -> None:
    both = counted(on_meta(build), *shape)
    assert both.forward == {"0": 2 * products}
    assert both.backward == {"0": 2 * 2 * products}  # towards the input and towards the weight
    frozen = counted(on_meta(build).requires_grad_(False), *shape)
    assert frozen.forward == {"0": 2 * products}
    assert frozen.backward == {"0": 2 * products}  # towards the input alone


def test_attentions_flops_are_the_closed_form() -> None:
    batch, tokens, width = 3, 16, 32
    count = counted(on_meta(lambda: Attention(width)).requires_grad_(False), batch, tokens, width)
    linear, scores = 2 * batch * tokens * width**2, 2 * batch * tokens**2 * width
    assert count.forward == {"project": linear + 2 * scores, "out": linear}
    assert count.backward == {"out": linear + 4 * scores, "project": linear}


class Chain(nn.Module):
    """Frozen, adapted and frozen layers: gradients stop before the first."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, 32).requires_grad_(False)
        self.middle = nn.Linear(32, 64)
        self.last = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 8)).requires_grad_(False)
        self.again = False

    def forward(self, x: Tensor) -> Tensor:
        x = self.middle(self.first(x.detach()))
        return checkpoint(self.last, x, use_reentrant=False) if self.again else self.last(x)


def test_flops_are_given_by_part_and_direction() -> None:
    count = counted(on_meta(Chain), 5, 16)
    first, middle, last = (2 * 5 * n for n in (16 * 32, 32 * 64, 64 * 128 + 128 * 8))
    assert count.forward == {"first": first, "middle": middle, "last": last}
    assert count.backward == {"last": last, "middle": middle}


def test_what_checkpointing_computes_again_counts_backward() -> None:
    plain, again = on_meta(Chain), on_meta(Chain)
    again.again = True
    a, b = counted(plain, 5, 16), counted(again, 5, 16)
    assert b.forward == a.forward
    # the last product is not needed again
    assert b.backward["last"] == a.backward["last"] + 2 * 5 * (64 * 128)
    assert sum(b.saved.values()) < sum(a.saved.values())


def test_saved_bytes_are_the_closed_form() -> None:
    count = counted(on_meta(Chain), 5, 16)
    # the middle's input for its weight, and what GELU saw; frozen layers need none, weights do not count
    assert count.saved == {"middle": 4 * 5 * 32, "last": 4 * 5 * 128}


def test_a_storage_counts_once_however_often_it_is_saved() -> None:
    a, b = nn.Linear(16, 4), nn.Linear(16, 4)
    x = torch.zeros(5, 16)
    with SavedBytes(nn.ModuleList([a, b])) as saved:
        (a(x) + b(x[:, :]) + a(x.view(5, 16)[:5])).sum()
    assert saved.total == x.nbytes


class Block(nn.Module):
    """A block with every kind of layer that a U-Net has."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 32, 3, padding=1)
        self.norm = nn.GroupNorm(8, 32)
        self.layer_norm = nn.LayerNorm(32)
        self.attention = Attention(32)
        self.out = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        map_BDhw = F.silu(self.norm(self.conv(x)))
        tokens_BND = self.layer_norm(F.interpolate(map_BDhw, scale_factor=2).flatten(2).transpose(1, 2))
        return self.out(F.gelu(self.attention(tokens_BND)))


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_saved_bytes_are_those_of_real_tensors(bf16: bool, frozen: bool) -> None:
    def step(model: nn.Module) -> Tensor:
        x = torch.zeros(3, 4, 8, 8, requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return model(x).sum()

    real, pretended = Block(), on_meta(Block)
    for model in (real, pretended):
        model.conv.requires_grad_(not frozen)
    with SavedBytes(real) as saved:
        step(real)
    with on_fake_cpu(pretended):
        count = count_step(pretended, lambda name: name, lambda: step(pretended))
    assert saved.total > 0
    # in mixed precision torch's shape rules give a norm's few statistics the wrong width
    assert sum(count.saved.values()) == pytest.approx(saved.total, rel=0.02 if bf16 else 0)


def test_norms_save_the_tensors_of_autocast_on_cuda() -> None:
    def saved(as_on_cuda: bool) -> int:
        model = on_meta(lambda: nn.Sequential(nn.Linear(8, 8, bias=False), nn.LayerNorm(8, bias=False)))
        if as_on_cuda:
            norm_as_on_cuda(model)

        def step() -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return model(torch.zeros(5, 8)).sum()

        with on_fake_cpu(model):
            return count_step(model, lambda name: name, step).saved["1"]

    statistics = 2 * 5  # a mean and a deviation a row
    assert saved(as_on_cuda=False) == 2 * (5 * 8 + statistics)
    assert saved(as_on_cuda=True) == 4 * (5 * 8 + statistics)


def test_the_peak_is_what_torch_allocates() -> None:
    """For layers that need no workspace; a convolution's workspace is not part of the plan."""

    def build() -> nn.Module:
        return nn.Sequential(*(layer for n in (64, 32) for layer in (nn.Linear(64, 64), nn.GELU(), nn.Linear(64, n))))

    def step(model: nn.Module) -> Tensor:
        return model(torch.zeros(500, 64)).square().sum()

    real, pretended = build(), on_meta(build)
    step(real).backward()  # the first call of a process keeps a little
    real.zero_grad(set_to_none=True)
    with torch.profiler.profile(profile_memory=True) as profile:
        step(real).backward()
    assert profile.profiler is not None
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    sizes = [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]
    with on_fake_cpu(pretended):
        count = count_step(pretended, lambda name: name, lambda: step(pretended))
    # pretended tensors are let go of a little later: a gradient is there twice while it is taken over
    assert count.peak == pytest.approx(max(accumulate(sizes)), rel=0.1)


@pytest.mark.slow
def test_the_planned_teachers_are_the_published_ones(compose: Callable[..., Any]) -> None:
    sizes = {"dinov2_s": 22.06e6, "dinov2_b": 86.58e6, "dinov2_g": 1136.48e6, "clip_l": 303.97e6}
    for name, parameters in sizes.items():
        teacher = build_part(compose(f"teacher={name}")["teacher"])
        with torch.device("meta"):
            network = teacher.build_without_weights()
        assert sum(p.numel() for p in network.parameters()) == pytest.approx(parameters, rel=1e-3), name


class Checkpointed(nn.Module):
    """Blocks that are computed again in the backward pass."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 64), nn.GELU(), nn.Linear(64, 8)).requires_grad_(False) for _ in range(count)
        )

    def forward(self, x_B8: Tensor) -> Tensor:
        for block in self.blocks:
            x_B8 = checkpoint(block, x_B8, use_reentrant=False)
        return x_B8


def _peak(model: nn.Module, x_B8: Tensor) -> int:
    return count_step(model, lambda name: "blocks", lambda: model(x_B8).sum()).peak


def test_recomputed_activations_are_not_kept() -> None:
    """Each additional block keeps its input until the backward pass. Its activations are computed again and freed."""
    peaks = []
    for count in (2, 6):
        model, x_B8 = Checkpointed(count), torch.randn(1000, 8, requires_grad=True)
        peaks.append(_peak(model, x_B8))
    assert (peaks[1] - peaks[0]) / 4 <= 1.2 * x_B8.nbytes


@pytest.mark.parametrize("pretended", [True, False])
def test_weights_are_not_counted_among_the_tensors_of_a_step(pretended: bool) -> None:
    """Frozen layers of 1 MiB each on a row of 2 KiB. They save nothing, so that two new rows exist at once: a layer's
    input and output, in the backward pass their gradients."""

    def build() -> nn.Module:
        return nn.Sequential(*(nn.Linear(512, 512, bias=False) for _ in range(4))).requires_grad_(False)

    model = on_meta(build) if pretended else build()
    with on_fake_cpu(model) if pretended else nullcontext():
        x_BD = torch.randn(1, 512, requires_grad=True)
        peak = _peak(model, x_BD)
    numbers = 2 * 4  # the sum and its gradient
    assert peak == pytest.approx(2 * x_BD.nbytes + numbers, abs=numbers)
