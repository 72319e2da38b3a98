"""REG: the loss by the paper's formula, whose gradients reach what, samplers over both parts, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from class_ids import of_ids
from torch import Tensor

from urepa.config.alterations import alters
from urepa.core.class_token_protocols import CLASS_TOKEN
from urepa.core.errors import UserError
from urepa.core.nested_dicts import flatten
from urepa.core.types import Batch, Denoised, Tokens, no_rows
from urepa.method.class_tokens import PackedState, class_token
from urepa.method.ddpm_sampling import sample_by
from urepa.method.heads.conv_net import ConvHead
from urepa.method.losses.reg import Reg
from urepa.method.losses.reg_math import RegLoss
from urepa.method.objectives.ddpm_math import EpsilonMath
from urepa.method.objectives.flow_math import FlowMath
from urepa.method.schedules.constant import Constant
from urepa.method.training_step import AlignedModel, Terms, step_terms
from urepa.models.backbones.class_token_sit_net import ClassTokenSiTNetwork
from urepa.models.backbones.sit_net import SiTNetwork, modulate
from urepa.reports.comparison.comparable import incomparable_keys
from urepa.training.checks.losses import check_class_token

Build = Callable[..., Any]
SIZES: tuple[Any, ...] = ((3, 8, 8), 3, 2, 4, 16, 2, False, "sincos")
E = 5
FLOW = FlowMath("linear", "uniform")


def network() -> ClassTokenSiTNetwork:
    """A small one, none of whose weights is 0."""
    torch.manual_seed(0)
    own = ClassTokenSiTNetwork(*SIZES, class_token=E)
    with torch.no_grad():
        for parameter in own.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return own


def model() -> AlignedModel:
    return AlignedModel(network(), {"block_1": ConvHead(1, "after", in_width=16, out_width=E)})


def batch() -> Batch:
    random = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random)

    return Batch(
        ids=["a", "b", "c"],
        x0=normal(3, 3, 8, 8),
        noise=normal(3, 3, 8, 8),
        t_B=torch.tensor([0.1, 0.5, 0.8]),
        condition=of_ids(torch.tensor([0, 2, 1]), 3),
        teachers={"": Tokens(normal(3, 16, E), (4, 4))},
        class_noise_BE11=normal(3, E, 1, 1),
    )


def declared(**changes: Any) -> Reg:
    given: dict[str, Any] = {"lambda_max": 0.5, "warmup_steps": 0, "manifold_weight": 0.0, "level": "token"}
    given |= {"taps": {"block_1": 1.0}, "spike_threshold": float("inf"), "class_weight": 0.03}
    return Reg(**given | changes)


def loss(**changes: Any) -> RegLoss:
    return declared(**changes).build(schedule=Constant(), max_steps=10)


def terms_of(own: AlignedModel, of: RegLoss, given: Batch) -> Terms:
    return step_terms(own, FLOW, of, given, 0, lambda x_BD: x_BD)[0]


def test_the_loss_is_the_papers_formula() -> None:
    """By hand, sample by sample, from the network's layers."""
    own, given = model(), batch()
    terms = terms_of(own, loss(), given)
    net: Any = own.backbone
    diffusion, of_class, cosines = [], [], []
    for b in range(3):
        t = float(given.t_B[b])
        units = [token / np.linalg.norm(token) for token in given.teachers[""].x_BND[b].double().numpy()]
        mean = np.mean(units, axis=0)
        c = torch.tensor((mean - mean.mean()) / mean.std(), dtype=torch.float32)
        assert given.class_noise_BE11 is not None
        own_noise = given.class_noise_BE11[b, :, 0, 0]
        z_t = (1 - t) * given.x0[b] + t * given.noise[b]
        c_t = (1 - t) * c + t * own_noise
        first = net.wg_norm(net.cls_projectors2(c_t))
        x = torch.cat([first[None], net.x_embedder(z_t[None])[0] + net.pos_embed[0]])[None]
        cond = net.t_embedder(given.t_B[b : b + 1]) + net.y_embedder(given.condition["class"])[b : b + 1]
        for k, block in enumerate(net.blocks):
            x = block(x, cond)
            if k == 1:
                tapped = Tokens(x[:, 1:], (4, 4))
                projected = own.heads["block_1"](tapped, given.t_B[b : b + 1], (4, 4)).x_BND[0]
                cosines.append(torch.cosine_similarity(projected, given.teachers[""].x_BND[b], dim=-1).mean())
        normed = modulate(net.final_layer.norm_final(x), *net.final_layer.adaLN_modulation(cond).chunk(2, dim=-1))[0]
        predicted = net._unpatchify(net.final_layer.linear(normed[None, 1:]), (4, 4))[0]
        diffusion.append(((predicted - (given.noise[b] - given.x0[b])) ** 2).mean())
        of_class.append(((net.final_layer.linear_cls(normed[0]) - (own_noise - c)) ** 2).mean())
    torch.testing.assert_close(terms.per_sample["diffusion"], torch.stack(diffusion), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(terms.per_sample[CLASS_TOKEN], torch.stack(of_class), rtol=1e-4, atol=1e-5)
    expected = sum(diffusion) / 3 + 0.03 * sum(of_class) / 3 + 0.5 * (1 - sum(cosines) / 3)
    torch.testing.assert_close(terms.total, expected, rtol=1e-4, atol=1e-5)


def reached(value: Tensor, own: AlignedModel) -> set[str]:
    names, weights = zip(*own.named_parameters(), strict=True)
    found = torch.autograd.grad(value, weights, allow_unused=True, retain_graph=True)
    return {name for name, gradient in zip(names, found, strict=True) if gradient is not None and gradient.any()}


def test_each_term_reaches_its_own_layers_and_what_both_parts_share() -> None:
    own, given = model(), batch()
    terms = terms_of(own, loss(), given)
    of_class = reached(terms.per_sample[CLASS_TOKEN].mean(), own)
    of_image = reached(terms.per_sample["diffusion"].mean(), own)
    of_alignment = reached(terms.alignment, own)  # type: ignore[arg-type]
    everything = {name for name, _ in own.named_parameters()}
    heads = {name for name in everything if name.startswith("heads.")}
    image_output = {f"backbone.final_layer.linear.{kind}" for kind in ("weight", "bias")}
    class_output = {f"backbone.final_layer.linear_cls.{kind}" for kind in ("weight", "bias")}
    later = {n for n in everything if n.startswith(("backbone.blocks.2", "backbone.blocks.3", "backbone.final_layer"))}
    keys = {name for name in everything if name.endswith("qkv.bias")}  # a key's bias has none, in part: left out
    assert of_class - keys == everything - heads - image_output - keys
    assert of_image - keys == everything - heads - class_output - keys, "the image attends to the class token"
    assert of_alignment - keys == everything - later - class_output - keys


def test_at_weights_of_0_the_gradient_is_that_of_the_diffusion_term_bit_for_bit() -> None:
    """What is left of REG is the input: the noised class token, which the image attends to."""
    own, given = model(), batch()
    terms = terms_of(own, loss(lambda_max=0.0, class_weight=0.0), given)
    names, weights = zip(*own.backbone.named_parameters(), strict=True)
    of_all = torch.autograd.grad(terms.total, weights, retain_graph=True)
    alone = torch.autograd.grad(terms.per_sample["diffusion"].mean(), weights, allow_unused=True)
    for name, ours, theirs in zip(names, of_all, alone, strict=True):
        assert not ours.any() if theirs is None else torch.equal(ours, theirs), name
    other = replace(given, class_noise_BE11=given.class_noise_BE11 + 1)  # type: ignore[operator]
    moved = terms_of(own, loss(lambda_max=0.0, class_weight=0.0), other)
    assert not torch.allclose(moved.per_sample["diffusion"], terms.per_sample["diffusion"])


def test_the_class_token_is_standardised_and_needs_no_unit_tokens() -> None:
    tokens = batch().teachers[""]
    c = class_token(tokens).flatten(1)
    torch.testing.assert_close(c.mean(1), torch.zeros(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(c.std(1, correction=0), torch.ones(3), atol=1e-5, rtol=0)
    scaled = replace(tokens, x_BND=7 * tokens.x_BND)
    torch.testing.assert_close(class_token(scaled).flatten(1), c)


def test_the_network_has_the_image_at_its_taps_and_the_sits_weights() -> None:
    own, given = network(), batch()
    x_t, c_t = given.x0, given.class_noise_BE11
    torch.manual_seed(3)
    plain = dict(SiTNetwork(*SIZES).named_parameters())
    torch.manual_seed(3)
    drawn = dict(ClassTokenSiTNetwork(*SIZES, class_token=E).named_parameters())
    assert all(torch.equal(drawn[name], weight) for name, weight in plain.items())
    assert drawn.keys() - plain.keys() == {
        f"{part}.{kind}"
        for part in ("cls_projectors2", "wg_norm", "final_layer.linear_cls")
        for kind in ("weight", "bias")
    }
    whole = own(x_t, given.t_B, given.condition, ("block_2",), class_BE11=c_t)
    assert whole.features["block_2"].x_BND.shape == (3, 16, 16)
    some = own(x_t, given.t_B, given.condition, ("block_2",), torch.tensor([2, 0]), class_BE11=c_t)
    torch.testing.assert_close(some.prediction_RCHW, whole.prediction_RCHW[[2, 0]])
    torch.testing.assert_close(some.class_RE11, whole.class_RE11[[2, 0]])
    none = own(x_t, given.t_B, given.condition, ("block_2",), no_rows(x_t.device), class_BE11=c_t)
    assert torch.equal(none.features["block_2"].x_BND, whole.features["block_2"].x_BND)
    with pytest.raises(UserError, match="there is none for images that are noised outside of training"):
        own(x_t, given.t_B, given.condition)


class Known:
    """The exact predictor of data whose class token is always `c`, and whose image is the class token's mean."""

    class_values = E

    def __init__(self, objective: Any, c_E: Tensor) -> None:
        self.objective, self.c_E = objective, c_E

    def __call__(self, x_t: Tensor, t_B: Tensor, condition: Any, class_BE11: Tensor) -> Denoised:
        signal, sigma = self.objective.signal_and_noise(t_B.to(x_t.device))
        of_class = self.predicted(class_BE11, self.c_E.view(1, E, 1, 1), signal, sigma)
        x0 = self.objective.to_x0(class_BE11, of_class, t_B).mean(1, keepdim=True)  # of what is predicted of the class
        return Denoised(self.predicted(x_t, x0.expand_as(x_t), signal, sigma), class_RE11=of_class)

    def predicted(self, x_t: Tensor, x0: Tensor, signal: Tensor, sigma: Tensor) -> Tensor:
        noise = (x_t - signal * x0) / sigma
        return noise - x0 if isinstance(self.objective, FlowMath) else noise


@pytest.mark.parametrize("sampler", ["euler", "heun", "ddim"])
@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("side", [2, 4])
def test_sampling_denoises_both_parts(sampler: str, guidance: float, side: int) -> None:
    """With one possible x0 every sampler arrives there; the class token fills channels of 2x2 in part, and of 4x4."""
    objective: Any = EpsilonMath(0.00085, 0.012, "linear", 1000) if sampler == "ddim" else FLOW
    c_E = torch.tensor([1.0, -2.0, 0.5, 3.0, 0.25])
    known = Known(objective, c_E)
    noise = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(2))
    condition = of_ids(torch.tensor([0, 1]), 3)

    def rngs() -> list[np.random.Generator]:
        return [np.random.default_rng(k) for k in range(2)]

    image = sample_by(known, objective, noise, condition, rngs(), sampler, 7, guidance)
    torch.testing.assert_close(image, torch.full_like(noise, float(c_E.mean())), atol=2e-4, rtol=1e-4)
    both = PackedState(known, (3, side, side))
    class_noise = torch.randn(2, E, 1, 1, generator=torch.Generator().manual_seed(3))
    for part, expected in zip(both.split(both.join(noise, class_noise)), (noise, class_noise), strict=True):
        assert torch.equal(part, expected)
    state = sample_by(both, objective, both.join(noise, class_noise), condition, rngs(), sampler, 7, guidance)
    torch.testing.assert_close(both.split(state)[1][:, :, 0, 0], c_E.expand(2, E), atol=2e-4, rtol=1e-4)


def test_the_class_tokens_noise_is_an_images_own() -> None:
    """The first draw of its generator, whatever the batch: an image does not depend on the others."""
    seen: list[Tensor] = []

    class Recording(Known):
        def __call__(self, x_t: Tensor, t_B: Tensor, condition: Any, class_BE11: Tensor) -> Denoised:
            seen.append(class_BE11)
            return super().__call__(x_t, t_B, condition, class_BE11)

    known, noise = Recording(FLOW, torch.zeros(E)), torch.zeros(2, 3, 2, 2)
    both = of_ids(torch.tensor([0, 1]), 3)
    sample_by(known, FLOW, noise, both, [np.random.default_rng(k) for k in (4, 5)], "sde", 3, 1.0)
    first = np.random.default_rng(5).standard_normal((E, 1, 1), dtype=np.float32)
    assert torch.equal(seen[0][1], torch.from_numpy(first))


def test_settings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match=r"give loss\.diffusion_fraction=1"):
        loss(diffusion_fraction=0.5)
    with pytest.raises(UserError, match="the class token comes from the teacher at every update"):
        declared().build(schedule=Constant(stop_step=4), max_steps=10)
    with pytest.raises(UserError, match="a class token is that of one teacher"):
        declared().check_teachers(["a", "b"])


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ("loss=reg", r"give a SiT with backbone\.class_token=112"),
        ("loss=reg backbone.class_token=8", r"give a SiT with backbone\.class_token=112"),
        ("loss=none backbone.class_token=8", r"needs a loss that trains it.*give loss=reg"),
        ("loss=reg backbone.class_token=112 evaluation=knn", r"evaluation\.knn noises images itself"),
        ("loss=reg backbone.class_token=112 evaluation=denoising", r"evaluation\.denoising noises images itself"),
    ],
)
def test_parts_that_do_not_go_together_are_refused(compose: Build, overrides: str, words: str) -> None:
    config = compose("+experiment=repa_cifar10_cpu", *overrides.split())
    with pytest.raises(UserError, match=words):
        check_class_token(config)
    check_class_token(compose("+experiment=repa_cifar10_cpu", "loss=reg", "backbone.class_token=112"))


def test_a_route_and_a_class_token_are_refused_together(compose: Build) -> None:
    from urepa.config.declared import declaration_of

    more = ("backbone.class_token=112", "backbone.route=[1,3]", "backbone.route_share=0.5")
    with pytest.raises(UserError, match="has no place for the token of backbone.class_token=112"):
        declaration_of(compose("+experiment=repa_cifar10_cpu", *more)["backbone"]).check((3, 32, 32))


def test_its_losses_are_not_compared_with_those_of_others(compose: Build) -> None:
    """The noised class token carries information about the image. Values of generated images have no part in it."""
    ours, theirs = (
        {key: str(value) for key, value in flatten(compose("+experiment=repa_cifar10_cpu", *more)).items()}
        for more in (("loss=reg", "backbone.class_token=112"), ())
    )
    assert alters("backbone.class_token", ours, theirs) == {"every term"}
    assert "every term" in alters("loss._target_", ours, theirs)
    assert alters("loss.class_weight", ours, ours | {"loss.class_weight": "1"}) == {"total"}
    other = {"teacher.whiten": "true", "teacher.content": "b"}  # another class token
    for key in ("val/diffusion", "val/class_token", "val/x0_error"):
        assert incomparable_keys(key, ours | other, ours) == sorted(other)
        assert incomparable_keys(key, ours, ours | other) == sorted(other)
    assert not incomparable_keys("val/diffusion", theirs | other, theirs), "without a class token they are one quantity"
