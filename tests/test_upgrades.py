"""A stored config of an earlier version, as this version composes one."""

from __future__ import annotations

import pytest

from urepa.errors import UserError
from urepa.nested import flatten
from urepa.upgrades import KEY, SCHEMA, stored, upgrade, upgrade_flat

VIT = "urepa.teachers.vit.ViT"
OLD = {"trainer": {"max_steps": 3}, "teacher": {"teachers": {"a": {"_target_": VIT, "model": "m"}}}, "loss": {}}


def test_a_key_that_did_not_exist_gets_the_value_that_means_what_the_code_did():
    new = upgrade(OLD)
    assert new["trainer"] == {"max_steps": 3, "ema_warmup": False}
    assert new["teacher"]["teachers"]["a"]["positions"] == "transformers"
    assert "ema_warmup" not in OLD["trainer"], "the caller's config is left alone"


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
