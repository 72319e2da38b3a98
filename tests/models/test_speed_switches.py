"""Speed switches: the same parameter names and the same mathematics, to the stated precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from class_ids import of_ids
from torch import Tensor, nn

from urepa.core.errors import UserError
from urepa.method.heads.conv_net import ConvHead
from urepa.method.training_step import AlignedModel
from urepa.models import speed_switches
from urepa.models.backbones.unet_net import UNet, tiny_unet
from urepa.models.lora.lora_net import add_lora

INPUTS = (
    torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3)),
    torch.tensor([100, 900]),
    of_ids(torch.tensor([0, 3]), 3),
)


def backbone_with_lora() -> UNet:
    torch.manual_seed(0)
    backbone = tiny_unet(
        [32, 64], [False, True], 1, cross_attention_dim=32, head_dim=32, latent_shape=(4, 8, 8), num_classes=3
    )
    add_lora(backbone, 4, None, 0.0, "attention", "mid")
    for name, parameter in backbone.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    return backbone


def model_with(backbone: UNet) -> AlignedModel:
    torch.manual_seed(1)
    return AlignedModel(backbone, {"mid": ConvHead(2, "after", in_width=64, out_width=5)})


def gradient(model: AlignedModel, **autocast: Any) -> Tensor:
    """The gradient of all trained weights, as one vector."""
    with torch.autocast("cpu", dtype=torch.bfloat16, **autocast):
        output = model(*INPUTS)
        loss = output.prediction_RCHW.float().pow(2).mean() + output.tokens["mid"].x_BND[..., 0].mean()
    parameters = [p for p in model.parameters() if p.requires_grad]
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def test_only_frozen_weights_are_held_in_bf16_and_norms_stay() -> None:
    backbone = backbone_with_lora()
    names = list(dict(backbone.named_parameters()))
    speed_switches.hold_frozen_in_bf16(backbone)
    assert list(dict(backbone.named_parameters())) == names
    norms = {
        f"{name}.{own}"
        for name, module in backbone.named_modules()
        if isinstance(module, nn.GroupNorm | nn.LayerNorm)
        for own in ("weight", "bias")
    }
    in_fp32 = {name for name, p in backbone.named_parameters() if p.dtype == torch.float32}
    assert in_fp32 == norms | {name for name in names if "lora_" in name}
    assert len(norms) > 20


@pytest.mark.slow
def test_bf16_weights_give_autocasts_gradient_to_bf16s_precision() -> None:
    exact = gradient(model_with(backbone_with_lora()), enabled=False)
    autocast = gradient(model_with(backbone_with_lora()))
    held = model_with(backbone_with_lora())
    speed_switches.hold_frozen_in_bf16(held.backbone)
    ours = gradient(held)
    assert ours.dtype == torch.float32
    assert 0 < relative(ours, exact) < 2 * relative(autocast, exact) < 0.05


def test_nothing_but_the_norms_sums_and_the_head_is_in_fp32() -> None:
    """All maps between the U-Net's modules are in bf16; tokens and their gradients reach the head in fp32."""
    model = model_with(backbone_with_lora())
    speed_switches.hold_frozen_in_bf16(model.backbone)
    types: dict[str, set[torch.dtype]] = {}

    def note(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            types.setdefault(name.rpartition(".")[2], set()).add(output.dtype)

    for name, module in model.named_modules():
        module.register_forward_hook(lambda m, i, o, name=name: note(name, m, i, o))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        tokens = model(*INPUTS).tokens["mid"].x_BND
    assert tokens.dtype == torch.float32
    maps = {name: t for name, t in types.items() if name.startswith(("norm", "conv", "group", "mid", "resnets"))}
    assert set().union(*maps.values()) == {torch.bfloat16}, maps
    assert len(maps) > 5


@pytest.mark.parametrize("module", [nn.GroupNorm(4, 32), nn.LayerNorm(32), nn.GroupNorm(4, 32, affine=False)])
def test_norms_sum_in_fp32_for_inputs_of_any_dtype(module: nn.Module) -> None:
    """Sums in bf16 would be far off for values around 100, where its step is 0.5."""
    x = (100 + torch.randn(8, 32, generator=torch.Generator().manual_seed(0))).to(torch.bfloat16)
    reference = module(x.float())
    module.__class__ = speed_switches.IN_THEIR_INPUTS_TYPE[type(module)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = module(x)
    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours.float(), reference, rtol=2**-7, atol=2**-7)


@pytest.mark.slow
def test_channels_last_reaches_the_maps_and_keeps_the_gradient() -> None:
    model = model_with(backbone_with_lora())
    before = gradient(model, enabled=False)
    speed_switches.channels_last(model.backbone)
    seen: list[bool] = []
    model.backbone.unet.down_blocks[0].register_forward_hook(
        lambda m, i, o: seen.append(o[0].is_contiguous(memory_format=torch.channels_last))
    )
    assert relative(gradient(model, enabled=False), before) < 1e-5
    assert seen == [True]


def test_a_gpus_kernel_on_a_cpu_is_a_user_error() -> None:
    with pytest.raises(UserError, match="trainer.attention=cudnn"):
        speed_switches.attention("cudnn", torch.device("cpu"))
    assert speed_switches.attention(None, torch.device("cpu"))() is not None


def test_an_order_of_attention_kernels_is_passed_to_torch() -> None:
    """On any machine: the context is entered, and attention gives the same result."""
    q = torch.randn(1, 2, 4, 8)
    plain = F.scaled_dot_product_attention(q, q, q)
    with speed_switches.attention("flash", torch.device("cuda"))():
        torch.testing.assert_close(F.scaled_dot_product_attention(q, q, q), plain)


def test_bf16_weights_need_bf16_steps(compose: Callable[..., dict[str, Any]]) -> None:
    from urepa.training.checks.combinations import check_trainer

    trainer = compose("+experiment=track_a")["trainer"]
    assert (trainer["precision"], trainer["frozen"]) == ("bf16", "bf16")
    assert compose("+experiment=track_a", "trainer.precision=fp32")["trainer"]["frozen"] == "fp32"
    with pytest.raises(UserError, match=r"trainer\.frozen=bf16"):
        check_trainer(trainer | {"precision": "fp32"}, 1)


@pytest.mark.slow
def test_the_switches_reach_the_model(build_trainer: Callable[..., Any]) -> None:
    trainer = build_trainer(
        "trainer.precision=bf16", "trainer.frozen=bf16", "trainer.channels_last=true", "trainer.compile=true"
    )
    backbone = trainer.model.backbone
    assert any(isinstance(m, speed_switches.GroupNorm) for m in backbone.modules())
    assert backbone.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    compiled = {type(m).__name__ for m in backbone.modules() if m._compiled_call_impl is not None}
    assert compiled == {"ResnetBlock2D", "BasicTransformerBlock"} == set(backbone.regions)
