"""The runs of a sweep are composed and checked before the first one begins."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import OmegaConf, open_dict

from urepa.cli import CONF
from urepa.core.errors import UserError
from urepa.runs.run_folder import to_plain
from urepa.training.checks import sweep_points
from urepa.training.checks.sweep_points import _check_batch, _compose, _without_values, find_mistakes

Points = list[tuple[str, ...]]


class Sweeps:
    """What Hydra hands to a sweeper."""

    def __init__(self, *launcher: str) -> None:
        self.config_loader = GlobalHydra.instance().config_loader()
        self.hydra_context = self
        self.config = self.config_loader.load_configuration("train", list(launcher), RunMode.MULTIRUN)

    def mistakes(self, points: Points) -> dict[int, str]:
        return find_mistakes(self.config_loader, self.config, points)

    def sentence(self, *swept: Sequence[str]) -> str:
        with pytest.raises(UserError) as raised:
            _check_batch(self, list(product(*swept)))
        return str(raised.value)


@pytest.fixture
def sweeps(compose: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """In an empty working folder. `compose`: Hydra knows the schema."""
    monkeypatch.chdir(tmp_path)
    with initialize_config_dir(CONF, version_base="1.3"):
        yield Sweeps


def test_a_sweep_without_a_mistake_passes(sweeps: type[Sweeps]) -> None:
    _check_batch(sweeps(), [(f"head.depth={d}", f"seed={s}") for d in (1, 2) for s in (0, 1)])


@pytest.mark.slow
def test_only_some_runs_are_refused(sweeps: type[Sweeps]) -> None:
    seeds = ("seed=0", "seed=1")
    found = sweeps().sentence(("tracking=none",), ("head.depth=1", "head.depth=0", "head.depth=-1"), seeds)
    assert found == (
        "head.depth=0: give 1 or more, at most 1,000,000 (no run was begun: 4 of 6 cannot run, also head.depth=-1)"
    )
    found = sweeps().sentence(seeds, ("+ablation=baseline", "+ablation=lora_16"))
    assert found == (
        "+ablation=lora_16 is for the backbone sd15 or sdxl or kolors, not for tiny_unet (no run was begun: 2 of 4 "
        "cannot run)"
    )


@pytest.mark.slow
def test_what_does_not_compose_is_named_too(sweeps: type[Sweeps]) -> None:
    found = sweeps().sentence(("head=conv", "head=repa_mlp_small"), ("head.depth=1", "head.depth=2"))
    assert found == (
        "head=repa_mlp_small: there is no key 'head.depth' here; it is one of head=conv, masked_adapter (no run was "
        "begun: 2 of 4 cannot run)"
    )


def test_a_value_of_another_type_is_refused_as_hydra_would(sweeps: type[Sweeps]) -> None:
    assert (
        sweeps().sentence(("seed=0", "seed=x")) == "seed=x: give a whole number (no run was begun: 1 of 2 cannot run)"
    )


def test_a_mistake_of_a_combination_names_both_keys(sweeps: type[Sweeps]) -> None:
    rates = ("trainer.ema_warmup=false", "trainer.ema_warmup=true")
    found = sweeps().sentence(rates, ("trainer.ema_decay=0.99", "trainer.ema_decay=0.05"), ("seed=0", "seed=1"))
    assert found.startswith("trainer.ema_warmup=true trainer.ema_decay=0.05: trainer.ema_warmup=true has no effect")
    assert found.endswith("(no run was begun: 2 of 8 cannot run)")


def test_missing_images_refuse_new_runs_only(sweeps: type[Sweeps]) -> None:
    """Of a run that is finished they may have been removed."""
    given = ("data.source=folder", "data.images=gone", "data.num_classes=3")
    points = [(*given, f"seed={s}") for s in (0, 1)]
    assert sorted(sweeps().mistakes(points)) == [0, 1]
    finished = Path("outputs/quickstart,data.images=gone,data.num_classes=3,data.source=folder/seed0")
    finished.mkdir(parents=True)
    (finished / "summary.json").touch()
    assert sorted(sweeps().mistakes(points)) == [1]


def test_the_batch_divides_over_the_gpus_of_a_job(sweeps: type[Sweeps]) -> None:
    launcher = ("hydra/launcher=slurm_h200", "hydra.launcher.gpus=5", "hydra.launcher.nodes=3")
    found = sweeps(*launcher).sentence(("seed=0", "seed=1"))
    assert "does not divide into 15 processes" in found


@pytest.mark.slow
def test_values_set_in_a_composed_config_are_those_of_a_composition(
    sweeps: type[Sweeps], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also lists, null and interpolations; two compositions for 24 runs."""
    heads = ("head=conv", "head=repa_mlp_small")
    rest = ("backbone.attention=[false,true,true]", "backbone.attention=[false,false,true]")
    limits = ("data.limit=null", "data.limit=100")
    names = ("data.root=${oc.env:HOME}/a", "data.root=b", "data.root=c")
    points = list(product(rest, heads, limits, names))
    sweep = sweeps()
    shapes = [_without_values(point, ()) for point in points]
    assert sorted(set(shapes)) == [(head,) for head in heads]
    config, before = None, None
    for shape, point in sorted(zip(shapes, points, strict=True)):
        config = _compose(sweep.config_loader, sweep.config, point, shape, config if shape == before else None)
        before = shape
        whole = sweep.config_loader.load_sweep_config(sweep.config, list(point))
        with open_dict(whole):
            del whole["hydra"]
        assert to_plain(config) == to_plain(whole)
        assert OmegaConf.to_yaml(config) == OmegaConf.to_yaml(whole)
    composed: list[Any] = []
    monkeypatch.setattr(sweep.config_loader, "load_sweep_config", _counting(sweep.config_loader, composed))
    assert sweep.mistakes(points) == {}
    assert len(composed) == 2


@pytest.mark.slow
def test_classes_are_counted_once_for_the_same_images(
    sweeps: type[Sweeps], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for images, count in (("two", 2), ("three", 3)):
        for i in range(count):
            (tmp_path / images / f"class{i}").mkdir(parents=True)
            (tmp_path / images / f"class{i}" / "0.png").touch()
    sweep, classes = sweeps(), dict[bytes, int]()
    found = []
    for images in ("two", "three", "two", "three"):
        given = ["data=folder", f"data.images={images}"]
        config = sweep_points._compose(sweep.config_loader, sweep.config, tuple(given), tuple(given), None)
        plain = sweep_points._plain(config, classes)
        assert OmegaConf.is_interpolation(config.data, "num_classes"), "another run may have other images"
        found.append(plain["data"]["num_classes"])
    assert (found, sorted(classes.values())) == ([2, 3, 2, 3], [2, 3])
    shutil.rmtree(tmp_path / "three")
    assert sweep_points._plain(config, classes) == plain, "nothing is counted again"


def _counting(loader: Any, composed: list[Any]) -> Callable[..., Any]:
    composing = loader.load_sweep_config

    def load(master: Any, overrides: list[str]) -> Any:
        composed.append(overrides)
        return composing(master, overrides)

    return load


def test_overrides_that_touch_each_other_are_composed(sweeps: type[Sweeps]) -> None:
    """A later one decides, as in Hydra."""
    assert sweep_points._sets_a_value("data.limit=3", ["data.limit", "seed"])
    assert not sweep_points._sets_a_value("data.limit=3", ["data.limit", "data"])
    assert not sweep_points._sets_a_value("data.dropout={a:1}", ["data.dropout"])
    assert not sweep_points._sets_a_value("+data.x=3", ["data.x"])
    assert not sweep_points._sets_a_value("head=conv", ["head"])
