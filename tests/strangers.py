"""Attacks that somebody may write into a run's config.yaml: each would create a marker file, or reveal a secret of the
environment, if anything in it ran or were read."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SECRET = "UREPA_TEST_SECRET"  # of the environment
VALUE = "the secret's value"
PARTS = (
    "backbone",
    "lora",
    "head",
    "teacher",
    "objective",
    "loss",
    "schedule",
    "data",
    "optimizer",
    "tracking",
    "evaluation",
)


def payload(marker: Path) -> dict[str, Any]:
    """A part that creates the marker if Hydra instantiates it: `open` is on no block-list."""
    return {"_target_": "builtins.open", "file": str(marker), "mode": "w"}


def _put(config: dict[str, Any], key: str, value: Any) -> str:
    """The config with a value at a dotted key, as text."""
    changed = copy.deepcopy(config)
    place = changed
    *groups, name = key.split(".")
    for group in groups:
        place = place.setdefault(group, {})
    place[name] = value
    return json.dumps(changed)


def forms(config: dict[str, Any], marker: Path) -> Iterator[tuple[str, str]]:
    """A name and the text of a config.yaml, one for each attack."""
    bad = payload(marker)
    yield from ((f"{part} replaced", _put(config, part, bad)) for part in PARTS)
    yield from ((f"inside {part}", _put(config, f"{part}.x", bad)) for part in PARTS)
    for key in ("loss.taps", "tracking.tags", "optimizer.lr", "trainer.max_steps", "trainer.x", "x", "seed", "arm"):
        yield f"at {key}", _put(config, key, bad)
    for key in ("loss.taps", "tracking.tags", "optimizer.lr", "trainer"):
        yield f"a _target_ in {key}", _put(config, f"{key}._target_", "builtins.breakpoint")
    yield "in a list", _put(config, "optimizer.betas", [bad, 0.9])
    yield "in a list of lists", _put(config, "backbone.block_out_channels", [[bad]])
    for schema in ("generation.Generation", "inception_score.InceptionScore", "clip_score.ClipScore"):
        part = {"_target_": f"urepa.evaluation.measures.{schema}", "images": bad}
        yield f"images of {schema}", _put(config, "evaluation.x", part)
    part = {"_target_": "urepa.evaluation.measures.generation.Generation", "encoders": {"x": bad}}
    yield "an encoder", _put(config, "evaluation.x", part)
    yield (
        "one of several teachers",
        _put(config, "teacher", {"_target_": "urepa.models.teachers.several_teachers.Several", "teachers": {"a": bad}}),
    )
    yield (
        "a function of ours",
        _put(config, "objective", {"_target_": "urepa.core.files.write_whole", "path": str(marker), "content": ""}),
    )
    yield "a part of another kind", _put(config, "objective", config["loss"])
    yield "a list as _target_", _put(config, "objective._target_", ["builtins.open", str(marker)])
    yield "arguments by place", _put(config, "objective._args_", [bad])
    yield "not recursive", _put(config, "objective._recursive_", False)
    yield "not partial", _put(config, "backbone._partial_", False)
    yield from _in_yaml(json.dumps(config), marker)
    yield from _interpolated(config)


def _in_yaml(whole: str, marker: Path) -> Iterator[tuple[str, str]]:
    """Attacks by features of YAML that JSON lacks."""
    start = whole.rstrip("}").rstrip()  # a flow mapping's inner braces do not matter: these texts are never whole runs
    target = f"_target_: builtins.open, file: {marker}, mode: w"
    yield "an alias", f"x: &x {{{target}}}\nobjective: *x\nbackbone: {{}}\ndata: {{}}\n"
    yield "a merged mapping", f"x: &x {{{target}}}\nobjective: {{<<: *x}}\nbackbone: {{}}\ndata: {{}}\n"
    yield (
        "an escaped key",
        whole[:-1] + f', "obj\\u0065ctive": {{"\\x5ftarget\\x5f": "builtins.open", "file": "{marker}"}}}}',
    )
    yield "a key twice", whole[:-1] + f', "objective": {{{target}}}}}'
    yield "a folded target", f"backbone:\n  _target_: >-\n    builtins.open\n  file: {marker}\n  mode: w\ndata: {{}}\n"
    yield "two documents", f"{whole}\n---\nobjective: {{{target}}}\n"
    for tag in ("object/apply:builtins.open", "object/new:builtins.open", "name:builtins.open"):
        yield f"!!python/{tag}", whole[:-1] + f', "objective": !!python/{tag} ["{marker}", w]}}'
    yield (
        "!!python/object/apply with keywords",
        whole[:-1] + (f', "objective": !!python/object/apply:builtins.open {{kwds: {{file: "{marker}", mode: w}}}}}}'),
    )
    yield "a path", whole[:-1] + ', "resume": !!python/object/apply:pathlib.PosixPath [/etc, passwd]}'
    for tag in ("binary aGk=", "timestamp 2026-01-01", "set {a, b}"):
        yield f"!!{tag}", whole[:-1] + f', "resume": !!{tag}}}'
    yield "a tag of others", whole[:-1] + ', "resume": !theirs x}'
    yield (
        "aliases without end",
        "a: &a [x, x]\n"
        + "".join(f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(9 * [f'*{chr(97 + i)}'])}]\n" for i in range(9)),
    )
    yield "a deep nest", "[" * 200_000
    yield "a deep nest of mappings", "{a: " * 100_000
    yield "much text", f"x: {'y' * 2_000_000}\n{start}"


def _interpolated(config: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Attacks by interpolations, which OmegaConf would resolve."""
    secret = f"${{oc.env:{SECRET}}}"
    for key in ("data.name", "tracking.tags.x", "tracking.uri", "data.root", "backbone.x", "resume", "x"):
        yield f"the environment at {key}", _put(config, key, secret)
    yield "the environment in a list", _put(config, "optimizer.betas", [secret, 0.9])
    yield "the environment in a key", _put(config, "tracking.tags", {secret: "x"})
    yield "the environment in a text", _put(config, "data.name", f"a{secret}b")
    yield "decoded", _put(config, "seed", f"${{oc.decode:{secret}}}")
    yield "with a default", _put(config, "data.name", f"${{oc.env:NOT_THERE,{secret}}}")
    yield "another node", _put(config, "data.name", "${data.root}")
    yield "a resolver of ours", _put(config, "data.name", "${run_name:}")
    yield "an escaped one", _put(config, "data.name", f"\\{secret}")
    yield "as a _target_", _put(config, "objective._target_", secret)
