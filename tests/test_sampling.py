"""Samplers against diffusers' own pipeline, bit for bit, and against a model that knows the answer."""

from __future__ import annotations

import pytest
import torch
from runs import small_pipeline
from sd import SMALL, write_unet
from torch import Tensor, nn

from urepa.backbones.unet import UNet
from urepa.contracts import Condition, Denoised
from urepa.objectives import DDPM, DDPMEpsilon, DDPMVelocity
from urepa.sampling import SAMPLERS, image_noise, sample, scheduler_for

LINEAR = (0.00085, 0.012, "linear", 1000)
SCALED = (0.00085, 0.012, "scaled_linear", 1000)
SHAPE = (4, 8, 8)


def noise_of(count: int) -> Tensor:
    return torch.stack([image_noise(3, 7, i, SHAPE) for i in range(count)])


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> UNet:
    from diffusers import UNet2DConditionModel

    folder = write_unet(tmp_path_factory.mktemp("sampling"), **SMALL)
    torch.manual_seed(0)
    return UNet(UNet2DConditionModel.from_pretrained(folder / "unet"), torch.randn(11, 77, 16)).eval()


@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("objective", [DDPMVelocity(*LINEAR), DDPMEpsilon(*SCALED)])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_steps_are_diffusers_own_bit_for_bit(
    backbone: UNet, sampler: str, objective: DDPM, guidance: float
) -> None:
    import diffusers

    own = {"clip_sample": False} if sampler == "ddim" else {}
    scheduler = getattr(diffusers, SAMPLERS[sampler])(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="linear" if isinstance(objective, DDPMVelocity) else "scaled_linear",
        prediction_type="v_prediction" if isinstance(objective, DDPMVelocity) else "epsilon",
        timestep_spacing="trailing",
        steps_offset=1,
        **own,
    )
    pipe = small_pipeline(backbone.unet, scheduler)
    ids = torch.tensor([4, 2])
    theirs = pipe(
        latents=noise_of(2),
        prompt_embeds=backbone.embedding_KLE[ids],
        negative_prompt_embeds=backbone.embedding_KLE[[10, 10]],
        guidance_scale=guidance,
        num_inference_steps=6,
        output_type="latent",
    ).images
    ours = sample(backbone, noise_of(2), Condition(ids, 10), scheduler_for(objective, sampler), 6, guidance)
    assert torch.equal(ours, theirs)


class Knows(nn.Module):
    """Predicts exactly for data that is one point, by the objective's own definitions."""

    def __init__(self, objective: DDPM, x0: Tensor) -> None:
        super().__init__()
        self.objective, self.x0 = objective, x0

    def forward(self, x_t: Tensor, t_B: Tensor, condition: Condition) -> Denoised:
        t_B = t_B.long()
        signal, sigma = self.objective.signal_and_noise(t_B)
        x0 = self.x0.expand_as(x_t)
        return Denoised(self.objective.target(x0, (x_t - signal * x0) / sigma, t_B))


@pytest.mark.parametrize("objective", [DDPMVelocity(*LINEAR), DDPMEpsilon(*SCALED)])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_model_that_knows_the_answer_is_brought_to_it(sampler: str, objective: DDPM) -> None:
    x0 = torch.linspace(-1.5, 1.5, 256).view(1, *SHAPE)
    model = Knows(objective, x0)
    found = sample(model, noise_of(3), Condition(torch.zeros(3).long(), 1), scheduler_for(objective, sampler), 8, 1.0)
    torch.testing.assert_close(found, x0.expand(3, -1, -1, -1), atol=1e-5, rtol=0)


def test_noise_has_an_address() -> None:
    one = image_noise(0, 207, 3, SHAPE)
    assert torch.equal(one, image_noise(0, 207, 3, SHAPE))
    others = [(1, 207, 3), (0, 208, 3), (0, 207, 4), (0, 3, 207)]
    assert all(not torch.equal(one, image_noise(*address, SHAPE)) for address in others)
    many = torch.stack([image_noise(0, c, i, SHAPE) for c in range(10) for i in range(10)])
    assert abs(float(many.mean())) < 0.03
    assert abs(float(many.std()) - 1) < 0.03
