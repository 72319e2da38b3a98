"""Every command's --help shows its own keys, their meanings and the values that Hydra composes for them."""

from __future__ import annotations

import functools
import re
import string
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, fields, make_dataclass
from pathlib import Path
from typing import Any

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from urepa.cli import CONF
from urepa.config.command_schemas import IdxImages, Images, Status, Train, WriteCaptions
from urepa.config.commands import COMMANDS
from urepa.config.help import KeyRow, format_value, help_text, table
from urepa.config.parts import SCHEMAS, parts_of
from urepa.config.ranges import RANGES
from urepa.core.declared_keys import keys_of, part, setting
from urepa.core.nested_dicts import flatten
from urepa.inference.published_weights import OF_WEIGHTS

START = 'if __name__ == "__main__":'
OF_FOLDERS = {"status", "write_captions", "idx_images"}  # which are none of Hydra's
ROOTS = sorted(COMMANDS.keys() - OF_FOLDERS)
Compose = Callable[..., dict[str, Any]]


@pytest.fixture(autouse=True)
def _narrow(compose: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    """Schemas and resolvers are registered, and the terminal has 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")


@functools.cache
def helped(root: str, *overrides: str) -> tuple[str, DictConfig]:
    """The help text, and the config that Hydra composes."""
    with initialize_config_dir(CONF, version_base="1.3"):
        config = hydra_compose(root, list(overrides), return_hydra_config=True)
        text = help_text(root, config)
        if root != "ablation_grid":  # which calls Hydra's compose alone
            assert string.Template(config.hydra.help.template).substitute() == text, "what Hydra prints"
        return text, config


def keys_in(text: str) -> dict[str, str]:
    """For each key of a help text, its default and the beginning of its meaning."""
    return {found[1]: found[2] for found in re.finditer(r"^  ([+\w.]+)(?:\s*\n)? {2,}(.*)$", text, re.MULTILINE)}


def composed_keys(config: DictConfig) -> dict[str, Any]:
    """The values that Hydra composes, by dotted key; for a part the chosen option."""
    content: Any = OmegaConf.to_container(config, enum_to_str=True)
    chosen = {k: v for k, v in content.pop("hydra")["runtime"]["choices"].items() if k in content}
    return flatten({k: v for k, v in content.items() if k not in chosen}) | chosen


@pytest.mark.fast(1)
@pytest.mark.parametrize("root", ROOTS)
def test_help_lists_every_key_of_a_command_with_its_value(root: str) -> None:
    text, config = helped(root)
    there = keys_in(text)
    expected = composed_keys(config)
    if root == "generate_checkpoint":  # the rest of a training has no effect on images
        expected = {k: v for k, v in expected.items() if k in OF_WEIGHTS or k in {one.name for one in fields(Images)}}
    lists = {key: value for key, value in expected.items() if isinstance(value, list)}
    assert there.keys() >= expected.keys() - {k for k in expected if k.split(".")[0] in lists}
    for key, value in expected.items():
        default, *meaning = re.split(r" {2,}", there[key], maxsplit=1)
        assert default == format_value(value), key
        assert meaning or default, key
    assert f"{COMMANDS[root].module}: {COMMANDS[root].title.split()[0]}" in text
    assert max(map(len, text.splitlines())) <= 82  # and two for a shell's backslash


@pytest.mark.fast(1)
@pytest.mark.parametrize("options", [(), ("+experiment=track_a",), ("head=irepa_hidden", "evaluation=cifar10_fd")])
def test_help_of_training_lists_the_keys_of_the_composed_parts(options: tuple[str, ...]) -> None:
    text, config = helped("train", *options)
    there = keys_in(text)
    content: Any = OmegaConf.to_container(config, enum_to_str=True)
    keys = {
        key.name
        for place, _, schema in parts_of({k: v for k, v in content.items() if k != "hydra"})
        for key in keys_of(schema, f"{place}.")
        if not key.is_part
    }
    assert len(keys) > 50
    assert keys <= there.keys()
    assert there["trainer.max_steps"].startswith(str(config.trainer.max_steps))
    assert "  head.hidden  256  width between the two layers (1 or more)" in text or "irepa_hidden" not in str(options)


@pytest.mark.parametrize("root", sorted(COMMANDS))
def test_every_key_has_a_meaning_and_every_number_its_range(root: str) -> None:
    for key in keys_of(COMMANDS[root].schema):
        assert len(key.meaning.split()) > 1, key.name
        assert key.range is None or key.range == RANGES[key.name]


@pytest.mark.parametrize("schema", SCHEMAS.values(), ids=SCHEMAS)
def test_every_key_of_a_part_has_a_meaning(schema: type) -> None:
    assert all(len(key.meaning.split()) > 1 for key in keys_of(schema))


def test_a_key_without_a_meaning_is_an_error() -> None:
    @dataclass
    class Bare:
        run: str = setting("a run's folder", "x")
        out: str | None = None

    with pytest.raises(AssertionError, match=r"Bare.out says no meaning"):
        list(keys_of(Bare))
    with pytest.raises(AssertionError, match="says no meaning"):
        list(keys_of(make_dataclass("Empty", [("out", str, setting("", "x"))])))
    with pytest.raises(AssertionError, match="no limit of a setting: {'most'}"):
        setting("images", 4, most=3)


def test_keys_of_one_class_are_not_added_to_another() -> None:
    made = make_dataclass("Made", [("seeds", list[int], setting("seeds", [0, 1])), ("data", Any, part("a track"))])
    made().seeds.append(2)
    assert made().seeds == [0, 1]
    assert [(key.name, key.is_part) for key in keys_of(made)] == [("seeds", False), ("data", True)]


def test_bench_shows_its_own_title_and_keys_before_those_of_a_run() -> None:
    text, _ = helped("bench")
    title, rest = text.split("\n", 1)
    assert title.startswith("urepa.bench: measures how long a training step")
    assert rest.index("\n  bench.steps ") < rest.index("Keys of the run") < rest.index("\n  seed ")
    assert "steps per timed block (1 or more)" in text


@pytest.mark.fast(2)
@pytest.mark.parametrize("root", ["train", "plan", "generate_checkpoint", "evaluate", "preprocess", "ablation_grid"])
def test_the_options_of_a_group_are_its_files(root: str) -> None:
    text, config = helped(root)
    words = " ".join(text.split())
    groups = [key for key in composed_keys(config) if (Path(CONF) / key).is_dir() and key in keys_in(text)]
    assert groups
    for group in groups:
        assert ", ".join(sorted(p.stem for p in (Path(CONF) / group).glob("*.yaml"))) in words
    with_a_plus = {"train": {"+experiment", "+ablation"}, "generate_checkpoint": {"+experiment"}}
    assert {k for k in keys_in(text) if k[0] == "+"} == with_a_plus.get(
        root, with_a_plus["train"] & keys_in(text).keys()
    )
    assert ("--cfg job" in text) is (root != "ablation_grid")


def test_help_shows_overridden_values() -> None:
    text, _ = helped("train", "+experiment=cifar10", "seed=7")
    there = keys_in(text)
    assert there["+experiment"].split()[0] == there["trainer"].split()[0] == "cifar10"
    assert there["seed"].split()[0] == "7"


def test_a_long_list_is_shown_in_one_line() -> None:
    text, config = helped("compare")
    assert len(config.order) > 20
    assert f"[baseline,...] ({len(config.order)})" in text
    assert "lambda_08" not in text
    assert [line for line in text.splitlines() if line.startswith("Keys")] == [
        "Keys: which runs",
        "Keys: how they are compared",
        "Keys: what is written",
        "Keys: while runs train",
    ]


@pytest.mark.parametrize("root", sorted(set(ROOTS) - {"train", "ablation_grid"}))
def test_a_command_that_is_no_run_leaves_no_files_of_hydra(root: str) -> None:
    """Neither .hydra nor multirun/DATE nor an empty outputs/."""
    _, config = helped(root)
    assert config.hydra.output_subdir is None
    assert (config.hydra.run.dir, config.hydra.sweep.subdir) == (".", ".")
    assert Path(config.hydra.sweep.dir).parent == Path(tempfile.gettempdir())
    in_turn = str(config.hydra.launcher["_target_"]).endswith("InTurn")
    assert in_turn is (root in ("evaluate", "generate", "export", "look"))


def test_every_command_has_help() -> None:
    here = Path(CONF).parent
    starts = [p for place in ("urepa", "launchers") for p in (here / place).glob("*.py") if START in p.read_text()]
    modules = {".".join(p.relative_to(here).with_suffix("").parts) for p in starts} - {
        "urepa.cluster.slurm_job"
    }  # for schedulers
    assert modules == {command.module for command in COMMANDS.values()}
    assert COMMANDS.keys() - OF_FOLDERS == {p.stem for p in Path(CONF).glob("*.yaml")}


def test_launchers_show_their_keys_too() -> None:
    text = help_text("status", OmegaConf.structured(Status))
    assert text.startswith("launchers.status: shows the jobs")
    assert keys_in(text)["folder"].startswith("outputs/.jobs  where the jobs are recorded")
    text = help_text("write_captions", OmegaConf.structured(WriteCaptions))
    assert text.startswith("launchers.write_captions: writes captions")
    assert "CIFAR-10 as {train,test}/CLASS/*.png" in keys_in(text)["folder"]
    text = help_text("idx_images", OmegaConf.structured(IdxImages))
    assert "python -m launchers.idx_images IMAGES LABELS FOLDER\n" in text
    assert list(keys_in(text)) == ["images", "labels", "folder"]


def test_with_published_weights_seed_is_the_seed_of_the_images() -> None:
    (images,) = (key.meaning for key in keys_of(COMMANDS["generate_checkpoint"].schema) if key.name == "seed")
    (training,) = (key.meaning for key in keys_of(Train) if key.name == "seed")
    assert images == next(key.meaning for key in keys_of(Images) if key.name == "seed") != training


def test_a_table_keeps_its_columns() -> None:
    rows = [KeyRow("a", "1", "one two three four five"), KeyRow("b" * 30, "2", "six", ("x", "y"))]
    assert table(rows, 50) == [
        "  a                         1  one two three four",
        "                               five",
        f"  {'b' * 30}  2",
        "                               six",
        "      x, y",
    ]
    assert [format_value(v) for v in (None, True, 0, 1.0, "", [1, 2])] == ["null", "true", "0", "1.0", "", "[1,2]"]
