"""Parts of another package, and what may be compared across their settings and across the parts: by their declarations,
and for a setting without one by the default of its kind in `urepa.core.comparability`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field, make_dataclass
from typing import Any

import pytest
from made_up import changed

from urepa.config.parts import KINDS, SCHEMAS
from urepa.core.comparability import ALIGNMENT, EVERYTHING, MANIFOLD, NOTHING, TOKEN, TOTAL
from urepa.core.declared_keys import setting
from urepa.core.evaluation_protocols import Metric
from urepa.reports.comparison.comparable import incomparable_keys, noise_schedule_keys, unpairing_keys
from urepa.reports.comparison.evaluation_protocol import differences, protocol
from urepa.reports.comparison.metric_columns import metrics_of
from urepa.reports.comparison.read_runs import as_text
from urepa.reports.comparison.results import Results
from urepa.reports.comparison.tables import terminal

TERMS = ("total", "diffusion", "token", "manifold", "x0_error")
EVERY = " ".join(TERMS)
NEW = "gamma"


@pytest.fixture
def declare(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """declare(kind, name, said, **of_class): a subclass of the config's part of this kind with one more setting, which
    declares `said`; `of_class` replaces inherited declarations. Returns the part's settings."""

    def declared(kind: str, name: str = "Mine", said: dict[str, Any] | None = None, **of_class: Any) -> dict[str, Any]:
        base, target = SCHEMAS[config[kind]["_target_"]], f"mine.{kind}.{name}"
        more = [("_target_", str, field(default=target)), (NEW, float, setting("a new one", 1.0, **(said or {})))]
        cls = make_dataclass(name, more, bases=(base,), namespace=of_class)
        monkeypatch.setitem(SCHEMAS, target, cls)
        monkeypatch.setitem(KINDS[kind], target, cls)
        return config[kind] | {"_target_": target, NEW: 1.0}

    return declared


def comparable(arm: dict[str, str], baseline: dict[str, str]) -> str:
    return " ".join(t for t in TERMS if not incomparable_keys(f"val/{t}", arm, baseline))


@pytest.mark.parametrize(
    ("kind", "silent"),
    [
        ("loss", ""),
        ("objective", ""),
        ("teacher", ""),
        ("schedule", "diffusion token manifold x0_error"),
        ("head", EVERY),
        ("backbone", EVERY),
        ("lora", EVERY),
        ("optimizer", EVERY),
    ],
)
def test_a_setting_without_a_declaration(
    config: dict[str, Any], declare: Callable[..., dict[str, Any]], kind: str, silent: str
) -> None:
    """And a setting that declares to alter nothing, in another part of the kind."""
    for said, expected in (({}, silent), ({"alters": NOTHING}, EVERY)):
        baseline = config | {kind: declare(kind, said=said)}
        one, other = as_text(changed(baseline, {f"{kind}.{NEW}": 2.0})), as_text(baseline)
        assert comparable(one, other) == expected
        silent_objective = kind == "objective" and not said
        assert noise_schedule_keys(one, other) == ([f"objective.{NEW}"] if silent_objective else [])
        assert unpairing_keys(one, other) == []
        assert not differences(protocol(one, {}), protocol(other, {}))
        assert incomparable_keys("final/tap_knn", one, other) == []
    unpaired = config | {kind: declare(kind, said={"alters": NOTHING, "unpairs": True})}
    assert unpairing_keys(as_text(changed(unpaired, {f"{kind}.{NEW}": 2.0})), as_text(unpaired)) == [f"{kind}.{NEW}"]


@pytest.mark.parametrize(
    ("said", "is_compared"), [({}, False), ({"alters": (EVERYTHING,)}, False), ({"alters": NOTHING}, True)]
)
def test_a_tracks_setting_without_a_declaration_sets_runs_apart(
    config: dict[str, Any], declare: Callable[..., dict[str, Any]], said: dict[str, Any], is_compared: bool
) -> None:
    baseline = config | {"data": declare("data", said=said)}
    one, other = as_text(changed(baseline, {f"data.{NEW}": 2.0})), as_text(baseline)
    found = [key for key, _, _ in differences(protocol(one, {}), protocol(other, {}))]
    assert found == ([] if is_compared else [f"data.{NEW}"])


def test_a_trainers_setting_stays_comparable(config: dict[str, Any]) -> None:
    for key, value in {"trainer.accumulation": 4, "trainer.ema_decay": 0.5, "trainer.of_later": 1, "later": 2}.items():
        one, other = as_text(config | {key: value}), as_text(config)
        assert comparable(one, other) == EVERY
        assert unpairing_keys(one, other) == []
        assert not differences(protocol(one, {}), protocol(other, {}))


@pytest.mark.parametrize(("said", "shown"), [({}, False), ({"alters": NOTHING}, True)])
def test_the_table_marks_metrics_altered_by_an_undeclared_setting(
    add: Callable[..., None],
    results: Callable[..., Results],
    declare: Callable[..., dict[str, Any]],
    said: dict[str, Any],
    shown: bool,
) -> None:
    loss = declare("loss", said=said)
    add(changes={"loss": loss})
    add("arm", {"loss": loss | {NEW: 2.0}}, values=lambda seed: {"val/diffusion": 0.25 + 0.001 * seed})
    study = results()
    (arm,) = [row for row in study.rows if row.arm.label != study.study.baseline.label]
    assert arm.cells["val/diffusion"].has_value == shown
    columns = [line.split() for line in terminal(study, 200).splitlines()]
    line = next(words for words in columns if words[:1] == ["arm"] and len(words) > 5 and "±" in words)
    assert ("≠" in line) != shown


@pytest.mark.parametrize(
    ("kind", "said", "expected"),
    [
        ("loss", {}, "diffusion x0_error"),  # a subclass says what its base does
        ("loss", {"alters": NOTHING}, "diffusion x0_error"),  # the other part still does
        ("loss", {"alters": ("x0_error",)}, "diffusion"),
        ("objective", {}, "token manifold x0_error"),
        ("objective", {"alters": (*ALIGNMENT, "diffusion")}, "x0_error"),
        ("teacher", {}, "diffusion x0_error"),
        ("teacher", {"alters": (TOKEN, MANIFOLD, TOTAL, "x0_error")}, "diffusion"),
        ("schedule", {"alters": NOTHING}, "diffusion token manifold x0_error"),
        ("schedule", {"alters": ("token",)}, "diffusion manifold x0_error"),
        ("head", {}, EVERY),
        ("head", {"alters": ("token",)}, "total diffusion manifold x0_error"),
    ],
)
def test_exchanged_parts_alter_what_they_declare(
    config: dict[str, Any], declare: Callable[..., dict[str, Any]], kind: str, said: dict[str, Any], expected: str
) -> None:
    """The declarations of both parts count."""
    other = config | {kind: declare(kind, said={"alters": NOTHING}, **said)}
    for one, two in ((config, other), (other, config)):
        assert comparable(as_text(one), as_text(two)) == expected


@pytest.mark.parametrize("kind", ["loss", "objective", "teacher"])
def test_a_part_without_declarations_alters_every_term(
    config: dict[str, Any], declare: Callable[..., dict[str, Any]], kind: str
) -> None:
    """Like a part that is not declared here: of an earlier version, or of a missing package."""
    for target in (declare(kind, alters=None)["_target_"], "nowhere.Part"):
        arm = changed(config, {f"{kind}._target_": target})
        assert comparable(as_text(arm), as_text(config)) == ""
        assert f"{kind}._target_" in incomparable_keys("val/diffusion", as_text(arm), as_text(config))


@pytest.mark.parametrize(
    ("kind", "expected"), [("loss", ""), ("objective", ""), ("teacher", ""), ("schedule", EVERY[6:]), ("head", EVERY)]
)
def test_unknown_keys_count_as_undeclared(config: dict[str, Any], kind: str, expected: str) -> None:
    one, other = as_text(config) | {f"{kind}.of_before": "1"}, as_text(config)
    assert comparable(one, other) == expected == comparable(other, one)
    of_data = as_text(config) | {"data.of_before": "1"}
    assert [key for key, _, _ in differences(protocol(of_data, {}), protocol(other, {}))] == ["data.of_before"]


def test_a_vits_rule_and_one_of_several_teachers_alter_the_alignment(compose: Callable[..., dict[str, Any]]) -> None:
    config = compose("teacher=several", *(f"+teacher@teacher.teachers.{n}=dinov2_{n}" for n in ("b", "l")))
    for changes in (
        {"teacher.teachers.b.positions": "timm"},
        {"teacher.teachers.b.model": "elsewhere"},
        {"teacher.teachers": {"b": config["teacher"]["teachers"]["b"]}},
        {"loss.teachers": {"b": 2.0}},
    ):
        assert comparable(as_text(changed(config, changes)), as_text(config)) == "diffusion x0_error"


def test_a_losss_own_term_is_a_column_and_depends_on_its_declared_keys(
    config: dict[str, Any], declare: Callable[..., dict[str, Any]]
) -> None:
    column = Metric("val/contrast", "contrastive loss", "↓", rests_on=("teacher",))
    loss = declare("loss", said={"alters": ("contrast",)}, metrics=(column,))
    keys = {"val/contrast", "val/token", "val/total", "val/x0_error"}
    titles = ["total loss\u00a0↓", "contrastive loss\u00a0↓", "token loss\u00a0↓", "x0 error\u00a0↓"]
    assert sorted(m.title for m in metrics_of(keys)) == sorted(titles)
    assert (metrics_of(keys)[0].key, metrics_of(keys)[-1].key) == ("val/total", "val/x0_error")
    baseline = config | {"loss": loss}
    for changes, expected in (
        ({f"loss.{NEW}": 2.0}, [f"loss.{NEW}"]),
        ({"teacher.stride": 8}, ["teacher.stride"]),
        ({"loss.level": "token", "head.depth": 3}, []),
    ):
        arm = as_text(changed(baseline, changes))
        for split in ("train", "val"):
            assert incomparable_keys(f"{split}/contrast", arm, as_text(baseline)) == expected


def test_a_teacher_used_only_by_an_evaluation_alters_no_loss(compose: Callable[..., dict[str, Any]]) -> None:
    config = compose("+experiment=cifar10", "evaluation=cifar10_fd")
    arm = as_text(changed(config, {"evaluation.generation.encoders.efficientnet_lite2.stride": 8}))
    assert comparable(arm, as_text(config)) == EVERY
    assert len(differences(protocol(arm, {}), protocol(as_text(config), {}))) == 1
