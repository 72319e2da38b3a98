"""Every setting of a part is either mentioned in the methodology's text or left to its tables on purpose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest

from urepa.config.declared import declaration_of
from urepa.config.parts import PACKAGES
from urepa.core.descriptions import BackboneFacts, EvaluatedRun
from urepa.costs.estimate import Device, plan
from urepa.method.schedules.constant import Constant
from urepa.method.schedules.cosine import Cosine
from urepa.reports.description.subject import subject_of

Compose = Callable[..., dict[str, Any]]
H200 = Device("H200", "cuda", 790e12, 141e9)

# settings that the words leave to the tables at the end, by the last word of the part's _target_
OF_IMAGE_TOKENS = " image_encoder dropout patch_statistics shuffle_patches"  # read where there is an encoder
UNSPOKEN = {
    "URepaLoss": "spike_threshold taps teachers",  # only counted; shares are told with the taps
    "Haste": "spike_threshold taps teachers",
    "Reg": "spike_threshold taps teachers",
    "PixelTrack": "root images limit validation_images test_images build_on_first_use online_teacher max_skipped "
    "captions caption_column online_text" + OF_IMAGE_TOKENS,
    "LatentTrack": "root images train_images val_images class_names token_dtype max_skipped latents tokens train val "
    "prompts latent_shape online_teacher stage_to captions caption_column online_text" + OF_IMAGE_TOKENS,
    "SD15": "prompts",
}


OF_FEATURES = "knn,linear_probe,alignment,spatial,dense,denoising"
EVERY = f"evaluation=[digits,generation,clip_score,classified,elsewhere,flextok,nanodit,{OF_FEATURES}]"


def read_to_describe(declared: Any, *facts: Any, **known: Any) -> set[str]:
    """The names of the settings that a declaration's description reads; `facts` and `known` are its arguments."""
    read: set[str] = set()

    class Recording(type(declared)):  # type: ignore[misc]
        def __getattribute__(self, name: str) -> Any:
            read.add(name)
            return super().__getattribute__(name)

    declared.__class__ = Recording
    declared.description(*facts, **known)
    return read


@pytest.mark.slow  # SD-1.5 is counted
@pytest.mark.parametrize(
    "overrides",
    [
        [EVERY],
        ["+experiment=track_a"],
        ["+experiment=repa_cifar10"],
        ["+experiment=flextok_smoke"],
        ["+experiment=repa_smoke", "loss=layer_sync"],
        ["+experiment=repa_smoke", "loss=dispersive"],
        ["+experiment=repa_smoke", "loss=self_representation"],
        ["+experiment=repa_smoke", "loss=self_flow"],
        ["+experiment=repa_smoke", "loss=latent_structure"],
        ["+experiment=repa_smoke", "loss=self_transcendence", "loss.guide=outputs/a/seed0"],
        ["+experiment=repa_cifar10_cpu", "+ablation=method_attention", "loss.attention_heads=3"],
        ["+experiment=repa_cifar10_cpu", "teacher=own_mae"],
    ],
)
def test_descriptions_mention_every_setting_of_their_part(compose: Compose, overrides: list[str]) -> None:
    """A new setting of a part must be described, or listed as left out."""
    config = compose(*overrides)
    subject = subject_of(config, plan(config, H200))
    latent_shape, classes = subject.track.latent_shape, subject.track.num_classes
    facts = {
        "backbone": (BackboneFacts(latent_shape, classes, False),),
        "lora": (1, 1),
        "data": ("8 training images",),
        "optimizer": (dict.fromkeys(config["optimizer"]["lr"], 1), 100, 1.0),
    }
    of_loss = {"schedule": Constant(), "max_steps": 100}
    for kind in PACKAGES.keys() & config.keys() - {"tracking", "evaluation"}:
        declared = declaration_of(config[kind])
        known = of_loss if kind == "loss" else {}
        unspoken = set(UNSPOKEN.get(type(declared).__name__, "").split())
        settings = {field.name for field in fields(declared) if field.name != "_target_"}
        assert settings - unspoken <= read_to_describe(declared, *facts.get(kind, ()), **known), kind
    assert "final" in read_to_describe(Cosine(final=0.5))


UNSPOKEN_OF_EVALUATIONS = {
    "SampleGrid": {"shown_per_class"},
    "Dense": {"folder"},
    "GeneratedImages": {"batch_size"},
    "Reconstruction": {"shown"},
    "ImageReconstruction": {"shown"},
    "CaptionChange": {"shown"},
}


@pytest.mark.slow
def test_descriptions_of_evaluations_mention_every_setting(compose: Compose) -> None:
    run = EvaluatedRun(num_classes=10, sampler="ddim", is_aligned=True)
    evaluations = {name: declaration_of(part) for name, part in compose(EVERY)["evaluation"].items()}
    for declared in [*evaluations.values(), evaluations["generation"].images]:
        own = {field.name for field in fields(declared) if field.name != "_target_"}
        name = type(declared).__name__
        assert own - read_to_describe(declared, run) == UNSPOKEN_OF_EVALUATIONS.get(name, set()), name
