"""Which settings make a run what it is, and the comparison of a config with the stored one."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from urepa.core.nested_dicts import flatten

# Keys that do not change what a run computes: they are part neither of its folder's name nor of its identity.
NOT_IDENTITY = (
    "tracking",
    "resume",
    "data.root",
    "data.images",
    "data.stage_to",
    "backbone.prompts",  # a file in data.root
    "data.build_on_first_use",
    "trainer.log_every",
    "trainer.checkpoint_every",
    "trainer.evaluate_every",
    "trainer.evaluation_share",
    "trainer.look_every",
    "trainer.look_share",
    "trainer.keep_last",
    "trainer.sharding",
    "trainer.threads",
    "trainer.max_skipped",
    "hydra",
)
# a path; the summary has the digest of an evaluation's file, and a teacher's is among the facts of its tokens
WEIGHTS = re.compile(r"evaluation\..*\.weights|teacher\.(?:.*\.)?weights")


@lru_cache(maxsize=4096)  # a comparison asks for the same few hundred keys for every run
def is_identity(key: str) -> bool:
    """Whether runs that differ in the value of this dotted key are different runs."""
    return not any(key == k or key.startswith(f"{k}.") for k in NOT_IDENTITY)


def is_file_of_weights(key: str) -> bool:
    """Whether a key of the config is where weights lie: digests say which weights they are."""
    return WEIGHTS.fullmatch(key) is not None


def differences(known: dict[str, Any], current: dict[str, Any]) -> list[str]:
    """Identity keys whose values differ, as `key: known there, current here`. The location of an encoder's weights is
    ignored."""
    there, here = flatten(known), flatten(current)
    keys = [k for k in sorted(there.keys() | here.keys()) if is_identity(k) and not is_file_of_weights(k)]
    absent = "nothing"
    return [
        f"{k}: {there.get(k, absent)} there, {here.get(k, absent)} here"
        for k in keys
        if there.get(k, absent) != here.get(k, absent)
    ]
