"""README and docs/: their commands compose, and their links lead to existing places."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, IntervalSweep

from launchers.ablation_grid import settings_of, split_arguments
from urepa.cli import CONF
from urepa.compare import with_select_prefix
from urepa.config.command_line import check_arguments, quote_argument
from urepa.config.commands import COMMANDS
from urepa.generate import config_root

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MODULES = {command.module for command in COMMANDS.values()}
LINK = re.compile(r"\]\(([^)\s]+)\)")
LONGEST = 220  # lines of README


def blocks(page: Path) -> Iterator[str]:
    """The lines of code blocks, indented or fenced, with continued lines joined."""
    fenced, joined = False, ""
    for line in page.read_text().splitlines():
        if line.startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            joined += line.strip()
            if not joined.endswith("\\"):
                yield joined
                joined = ""
            else:
                joined = joined[:-1]


def commands(page: Path) -> Iterator[tuple[str, list[str]]]:
    """Each command of urepa: its module and arguments."""
    for line in blocks(page):
        for part in re.split(r" && |^\$ ", line):
            words = shlex.split(part, comments=True) if "python -m " in part else []
            if "-m" in words and (module := words[words.index("-m") + 1]) in MODULES:
                yield module, words[words.index("-m") + 2 :]


ALL = sorted({(module, tuple(words)) for page in PAGES for module, words in commands(page)})


def first_of_each(arguments: list[str]) -> list[str]:
    """A sweep's first run: the first value of each override with several."""
    chosen = []
    for override in OverridesParser.create().parse_overrides(arguments):
        value = override.value()
        if isinstance(value, Glob):
            options = sorted(p.stem for p in (Path(CONF) / override.key_or_group).glob("*.yaml"))
            chosen.append(f"{override.get_key_element()}={value.filter(options)[0]}")
        elif isinstance(value, IntervalSweep):
            chosen.append(f"{override.get_key_element()}={value.start}")
        elif override.is_sweep_override():
            chosen.append(f"{override.get_key_element()}={next(iter(override.sweep_string_iterator()))}")
        else:
            chosen.append(str(override.input_line))
    return chosen


@pytest.mark.slow  # a hundred commands and more are composed
@pytest.mark.parametrize(
    ("module", "words"), ALL, ids=lambda value: " ".join(value) if isinstance(value, tuple) else value
)
def test_a_command_of_a_page_composes(module: str, words: tuple[str, ...], compose: Callable[..., Any]) -> None:
    arguments = [word for word in words if word not in ("-m", "--help", "-h")]
    # of a file that is not here; other overrides take its place before anything is composed
    arguments = [word for word in arguments if not word.startswith("+simpletuner=")]
    if flags := [word for word in arguments if word.startswith("--")]:
        arguments = arguments[: arguments.index(flags[0])]  # --cfg job, --info defaults-tree
    if module == "launchers.ablation_grid":
        own, arguments = split_arguments(arguments)
        study = settings_of(own)["study"]
        arguments = [*(study["overrides"] if study is not None else []), *arguments]
        name = "train"
    elif module == "urepa.generate":
        name = config_root(arguments)
    else:
        name = next(name for name, command in COMMANDS.items() if command.module == module)
    if name in ("status", "write_captions", "idx_images"):  # they take files and folders, and no keys
        return
    if name == "compare":
        arguments = [with_select_prefix(argument) for argument in arguments]
    arguments = [quote_argument(argument, sweeps="-m" in words) for argument in arguments]
    chosen = first_of_each(arguments) if "-m" in words else arguments
    check_arguments(chosen, name)
    with initialize_config_dir(CONF, version_base="1.3"):
        hydra_compose(name, chosen)


def anchors(page: Path) -> set[str]:
    """The anchors that code hosts make of headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_existing_places(page: Path) -> None:
    for target in LINK.findall(page.read_text()):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file), target


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "index.md").read_text()
    assert [page.name for page in PAGES[1:] if page.name != "index.md" and f"({page.name})" not in index] == []


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= LONGEST
