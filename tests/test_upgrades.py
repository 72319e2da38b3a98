"""A stored config of an earlier version, as this version composes one."""

from __future__ import annotations

import pytest

from urepa.errors import UserError
from urepa.nested import flatten
from urepa.teachers.vit import ViT
from urepa.upgrades import KEY, SCHEMA, stored, upgrade, upgrade_flat

VIT = "urepa.teachers.vit.ViT"
DINO = {"_target_": VIT, "family": "dinov2", "image_size": 224, "patch": 14}
OLD = {"trainer": {"max_steps": 3}, "teacher": {"teachers": {"a": DINO}}, "loss": {}}


def test_a_key_that_did_not_exist_gets_the_value_that_means_what_the_code_did():
    new = upgrade(OLD)
    assert new["trainer"] == {"max_steps": 3, "ema_warmup": False}
    assert new["teacher"]["teachers"]["a"]["positions"] == "transformers"
    assert "ema_warmup" not in OLD["trainer"], "the caller's config is left alone"


@pytest.mark.parametrize(
    ("changes", "positions"),
    [
        ({}, "transformers"),
        ({"image_size": 448}, "transformers"),
        ({"image_size": 518}, "meta"),
        ({"family": "dinov2_registers"}, None),
        ({"family": "clip", "image_size": 448}, None),
    ],
)
def test_an_old_teachers_positions_are_what_a_teacher_takes(changes, positions):
    """At 518 px nothing is resampled, and a run of before is comparable with one of now."""
    new = upgrade({"teacher": DINO | changes})["teacher"]
    assert new["positions"] == positions
    ViT(new["family"], "m", new["image_size"], new["patch"], [4, 4], 32, new["positions"])
    flat = {f"teacher.{key}": str(value) for key, value in (DINO | changes).items()}
    assert upgrade_flat(flat, 0)["teacher.positions"] == str(positions)


def test_a_small_track_of_before_left_no_image_out():
    track = {"_target_": "urepa.data.pixels.PixelTrack", "limit": 3}
    assert upgrade({"data": track})["data"]["max_skipped"] == 0.0
    flat = {f"data.{key}": str(value) for key, value in track.items()}
    assert upgrade_flat(flat, 0)["data.max_skipped"] == "0.0"


def test_what_this_version_stored_is_read_as_it_was_written():
    config = {"trainer": {"max_steps": 3}, "teacher": {"_target_": VIT}}
    assert stored(config)[KEY] == SCHEMA
    assert upgrade(stored(config)) == config


def test_mlflows_parameters_and_a_folders_config_become_the_same():
    flat = {key: str(value) for key, value in flatten(OLD).items()}
    assert upgrade_flat(flat, 0) == {key: str(value) for key, value in flatten(upgrade(OLD)).items()}
    assert upgrade_flat({"a": "1", "a.b": "2"}, 0) == {"a": "1", "a.b": "2"}, "another program's parameters"


@pytest.mark.parametrize("number", [SCHEMA + 1, -1, "x", 1.5])
def test_another_form_is_refused(number):
    with pytest.raises(UserError, match="later one"):
        upgrade({KEY: number})
