"""The quick composition gives the same configs as Hydra, and refuses the same input in one line."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import edge
import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf, _utils
from yaml import YAMLError

from urepa.cli import CONF, prepare
from urepa.config import quick_composition, repeated_composition
from urepa.config.commands import COMMANDS
from urepa.config.conf_options import options_of

MALFORMED = {
    "seed: 1\nseed: 2\n": "line 2, column 1: found duplicate key seed",
    "trainer:\n  max_steps: 1\n  max_steps: 2\n": "line 3, column 3: found duplicate key max_steps",
    "seed: a: b\n": "line 1, column 8: mapping values are not allowed here",
    "seed: [1, 2\n": "line 2, column 1: expected ',' or ']', but got '<stream end>'",
    "trainer:\n\tmax_steps: 1\n": "line 2, column 1: found character '\\t' that cannot start any token",
    "seed: *other\n": "line 1, column 7: found undefined alias 'other'",
    "seed: !!python/object/apply:os.getpid []\n": "line 1, column 7: could not determine a constructor for the tag"
    " 'tag:yaml.org,2002:python/object/apply:os.getpid'",
}
VALUES = "{a: 1e-4, b: 010, c: 1:30, d: 2026-11-29, e: yes, f: ~, g: .5, h: '1', i: 1_000, j: [.inf, 0x1f], 5: on}"


@pytest.fixture(autouse=True)
def _prepared() -> None:
    prepare()


@pytest.fixture
def both(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Any]], tuple[Any, Any]]:
    """both(work): the results of `work` with Hydra's and OmegaConf's own code, and with this project's."""

    def twice(work: Callable[[], Any]) -> tuple[Any, Any]:
        ours = work()
        with monkeypatch.context() as patched:
            for (holder, name), original in zip(quick_composition.PARTS, quick_composition.ORIGINALS, strict=True):
                assert getattr(holder, name) is not original
                patched.setattr(holder, name, original)
            return work(), ours

    return twice


def composed(root: str, *overrides: str) -> tuple[str, Any]:
    """The config as text, which shows the order of keys, and as plain data with Hydra's own settings."""
    with initialize_config_dir(CONF, version_base="1.3"):
        config = hydra_compose(root, list(overrides), return_hydra_config=True)
    return OmegaConf.to_yaml(config), OmegaConf.to_container(config)


@pytest.mark.fast(1)
@pytest.mark.parametrize("experiment", options_of("experiment"))
def test_every_experiment_is_composed_as_by_hydra(experiment: str, both: Callable[..., Any]) -> None:
    theirs, ours = both(lambda: composed("train", f"+experiment={experiment}", "seed=3"))
    assert ours == theirs
    assert ours[1]["hydra"]["runtime"]["choices"]["experiment"] == experiment


@pytest.mark.fast(1)
@pytest.mark.parametrize("root", sorted(root for root in COMMANDS if (Path(CONF) / f"{root}.yaml").is_file()))
def test_every_command_is_composed_as_by_hydra(root: str, both: Callable[..., Any]) -> None:
    theirs, ours = both(lambda: composed(root))
    assert ours == theirs


@pytest.mark.slow
def test_later_compositions_are_composed_as_by_hydra(both: Callable[..., Any]) -> None:
    """Arms after each other, which begin where the last one has merged the same files, and one with an own value."""
    arms = [f"+ablation={arm}" for arm in ("lora_16", "taps_three", "no_warmup", "taps_three_lora_all")]

    def each() -> list[Any]:
        own = composed("train", "+experiment=track_a", arms[1], "loss.taps.mid=0.25")
        return [own, *(composed("train", "+experiment=track_a", arm) for arm in arms)]

    merges = repeated_composition.MERGED
    theirs, ours = both(each)
    assert ours == theirs
    assert any(step[0] == "experiment/track_a" for steps in merges for step in steps), "nothing was taken from before"


def test_a_file_that_has_changed_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "main.yaml"

    def read() -> Any:
        with initialize_config_dir(str(tmp_path), version_base="1.3"):
            return OmegaConf.to_container(hydra_compose("main"))

    for text, value in (("a: {b: 1}", 1), ("a: {b: 1}", 1), ("a: {b: 10}", 10), ("a: {b: 2}", 2)):
        file.write_text(text)
        found = read()
        assert found == {"a": {"b": value}}
        found["a"]["b"] = 3  # of this composition alone


def test_a_choice_that_refers_to_another_group_is_resolved(both: Callable[..., Any], tmp_path: Path) -> None:
    """An interpolation in a defaults list, and one of a group that does not exist."""
    for name, text in {
        "main": "defaults:\n- small\n- head: ${small}\n- optional other: ${small}_${small}\n- _self_\n",
        "broken": "defaults:\n- small\n- head: ${large}\n- _self_\n",
        "small": "width: 3\n",
        "head/conv": "depth: 2\n",
        "other/conv_conv": "both: 1\n",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.yaml").write_text(text.replace("- small", "- small: conv"))
    (tmp_path / "small").mkdir()
    (tmp_path / "small.yaml").rename(tmp_path / "small" / "conv.yaml")

    def chosen() -> tuple[Any, str]:
        with initialize_config_dir(str(tmp_path), version_base="1.3"):
            config = OmegaConf.to_container(hydra_compose("main"))
            with pytest.raises(HydraException) as refused:
                hydra_compose("broken")
        return config, str(refused.value)

    theirs, ours = both(chosen)
    assert ours == theirs
    assert ours[0] == {"small": {"width": 3}, "head": {"depth": 2}, "other": {"both": 1}}
    assert "${large}" in ours[1]


@pytest.mark.slow
def test_every_file_is_read_as_by_omegaconf(both: Callable[..., Any]) -> None:
    files = sorted(Path(CONF).rglob("*.yaml"))
    assert len(files) > 100
    theirs, ours = both(lambda: {file: OmegaConf.to_yaml(OmegaConf.load(file)) for file in files})
    assert ours == theirs


def test_values_have_the_types_of_omegaconf(both: Callable[..., Any]) -> None:
    theirs, ours = both(lambda: repr(OmegaConf.to_container(OmegaConf.create(VALUES))))
    assert ours == theirs


@pytest.mark.fast(3)
@pytest.mark.parametrize("text", MALFORMED)
@pytest.mark.parametrize("as_file", [True, False])
def test_malformed_input_is_refused_with_the_same_message(text: str, as_file: bool, both: Callable[..., Any]) -> None:
    def refusal() -> str:
        with pytest.raises(YAMLError) as refused:
            OmegaConf.load(io.StringIO(text)) if as_file else OmegaConf.create(text)
        return str(refused.value)

    theirs, ours = both(refusal)
    assert ours == theirs


def test_one_class_loads_all_files() -> None:
    """OmegaConf makes a new loader class for each file."""
    assert _utils.get_yaml_loader() is _utils.get_yaml_loader()


@pytest.mark.fast(2)
@pytest.mark.parametrize(("text", "reason"), MALFORMED.items())
def test_a_malformed_file_of_the_user_is_one_line(
    text: str, reason: str, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "own" / "experiment" / "mine.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(text)
    done = edge.run(capfd, "urepa.train", ["--config-dir", "own", "+experiment=mine"], tmp_path)
    assert (done.code, done.err) == (1, f"error: {file}, {reason}\n")


def test_a_file_that_is_not_text_is_one_line(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "own" / "experiment" / "mine.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("seed: \x01\n")
    done = edge.run(capfd, "urepa.train", ["--config-dir", "own", "+experiment=mine"], tmp_path)
    assert done.code == 1
    assert done.err.splitlines()[1:] == []
    assert f'special characters are not allowed in "{file}"' in done.err
