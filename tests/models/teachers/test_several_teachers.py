"""Several teachers at once: composed on the command line, trained, validated, resumed, planned, described and
evaluated."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from class_ids import of_ids
from hydra.errors import HydraException
from torch import Tensor

from urepa.core.errors import UserError
from urepa.core.types import Batch, Tokens
from urepa.costs.estimate import Device, plan
from urepa.data.stores.disk_sizes import reader_bytes
from urepa.method.losses import loss_math
from urepa.method.losses.urepa_loss import URepaLoss
from urepa.method.losses.urepa_loss_math import AlignmentLoss
from urepa.method.schedules.constant import Constant
from urepa.method.training_step import Aligned, step_terms
from urepa.models.teachers.several_teachers import SeveralTeachers, by_name
from urepa.prefetch import required_files
from urepa.reports.description.markdown_and_latex import as_markdown
from urepa.reports.description.methodology import methodology
from urepa.reports.description.subject import subject_of
from urepa.runs import checkpoint
from urepa.runs.run_folder import teacher_name
from urepa.training.assembly import build_part, evaluate_ema
from urepa.training.checks.combinations import check

Build = Callable[..., Any]
Compose = Callable[..., dict[str, Any]]
BOTH = (
    "teacher=several",
    "+teacher@teacher.teachers.fine=efficientnet_lite0",
    "+teacher@teacher.teachers.coarse=efficientnet_lite0",
    "teacher.teachers.coarse.image_size=160",
)
DEVICE = Device("x", "cpu", None, None)


@pytest.fixture
def overrides(small_sit: list[str]) -> list[str]:
    """The tiny SiT with EfficientNet at two image sizes, both with 4x4 tokens."""
    return [*(o for o in small_sit if not o.startswith("teacher.")), *BOTH]


@pytest.fixture
def train(trainer_of: Build, overrides: list[str]) -> Build:
    return lambda *more: trainer_of(*overrides, *more)


def steps(trainer: Any, first: int, last: int) -> None:
    for step in range(first, last):
        trainer.update(step, trainer.reader.read(step), with_tap_gradients=False)


def weights(trainer: Any, part: str = "") -> dict[str, Tensor]:
    return {k: v.detach().clone() for k, v in trainer.model.named_parameters() if k.startswith(part)}


# --- the sum ------------------------------------------------------------------------------------------------


def made_up(**teachers: Tensor) -> Batch:
    x0 = torch.zeros(4, 1, 2, 2)
    tokens = {name: Tokens(x_BND, {6: (2, 3), 9: (3, 3)}[x_BND.shape[1]]) for name, x_BND in teachers.items()}
    return Batch(list("abcd"), x0, x0, torch.zeros(4), of_ids(torch.zeros(4, dtype=torch.long), 3), tokens)


def urepa_loss(taps: dict[str, float], **changes: Any) -> AlignmentLoss:
    settings: dict[str, Any] = {"lambda_max": 0.5, "warmup_steps": 0, "manifold_weight": 3.0, "spike_threshold": 0.1}
    return URepaLoss(**settings, level="both", taps=taps, **changes).build(schedule=Constant(), max_steps=100)


def test_the_terms_are_means_over_taps_and_teachers_by_their_weights() -> None:
    """The teachers have different widths and grids."""
    torch.manual_seed(0)
    shapes = {"a": (4, 6, 5), "b": (4, 9, 7)}
    teachers = {name: F.normalize(torch.randn(shape), dim=-1) for name, shape in shapes.items()}
    students = {f"{tap}/{name}": torch.randn(shape) for tap in ("mid", "end") for name, shape in shapes.items()}
    grids = {"a": (2, 3), "b": (3, 3)}
    output = Aligned(torch.zeros(4, 1, 1, 1), {}, {k: Tokens(x, grids[k[-1]]) for k, x in students.items()})
    loss = urepa_loss({"mid": 3.0, "end": 1.0}, teachers={"b": 4.0})
    terms = loss(torch.rand(4), output, made_up(**teachers), 9, lambda x: x)
    token, manifold = {"a": 0.0, "b": 0.0}, 0.0
    for tap, tap_share in (("mid", 0.75), ("end", 0.25)):
        for name, share in (("a", 0.2), ("b", 0.8)):
            student, teacher = students[f"{tap}/{name}"], teachers[name]
            token[name] += tap_share * (1 - F.cosine_similarity(student, teacher, dim=-1).mean().item())
            pair = loss_math.pool_tokens(student), loss_math.pool_tokens(teacher)
            both = (loss_math.manifold_loss_sample(*pair) + loss_math.manifold_loss_token(student, teacher)) / 2
            manifold += tap_share * share * both.item()
    means = {name: value.item() for name, value in terms.means().items()}
    assert means["token/a"] == pytest.approx(token["a"])
    assert means["token/b"] == pytest.approx(token["b"])
    assert means["token"] == pytest.approx(0.2 * token["a"] + 0.8 * token["b"])
    assert means["manifold"] == pytest.approx(manifold)
    assert means["total"] == pytest.approx(means["diffusion"] + 0.5 * (means["token"] + 3 * manifold))


def test_a_teacher_twice_at_half_weight_is_that_teacher() -> None:
    torch.manual_seed(0)
    teacher, student, diffusion = torch.randn(4, 6, 5), torch.randn(4, 6, 5), torch.rand(4)
    found = []
    for names in (("",), ("a", "b")):
        tokens = {f"mid/{name}" if name else "mid": Tokens(student, (2, 3)) for name in names}
        loss = urepa_loss({"mid": 1.0}, teachers={"a": 0.5, "b": 0.5})
        output = Aligned(torch.zeros(4, 1, 1, 1), {}, tokens)
        found.append(loss(diffusion, output, made_up(**dict.fromkeys(names, teacher)), 9, lambda x: x))
    once, twice = found
    for key, value in once.means().items():
        torch.testing.assert_close(twice.means()[key], value)
    assert "token/" not in str(once.means())


# --- training -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_step_compares_each_head_with_its_own_teacher(train: Build) -> None:
    trainer = train("+loss.teachers.fine=3")
    assert list(trainer.model.heads) == ["block_3/fine", "block_3/coarse"]
    fine, coarse = (head.layers[0].weight for head in trainer.model.heads.values())
    assert not torch.equal(fine, coarse)
    steps(trainer, 0, 2)
    (batch,) = trainer.reader.read(2)
    assert not torch.equal(batch.teachers["fine"].x_BND, batch.teachers["coarse"].x_BND)
    terms, output = step_terms(trainer.model, trainer.objective, trainer.loss, batch, 2, lambda x: x)
    cosine = {
        name: F.cosine_similarity(output.tokens[f"block_3/{name}"].x_BND, own.x_BND.float(), dim=-1).mean()
        for name, own in batch.teachers.items()
    }
    pull = 0.75 * (1 - cosine["fine"]) + 0.25 * (1 - cosine["coarse"])
    torch.testing.assert_close(terms.total, terms.per_sample["diffusion"].mean() + 0.5 * pull)
    row = trainer.log(3, trainer.update(2, [batch], with_tap_gradients=True))
    assert row["train/token"] == pytest.approx(0.75 * row["train/token/fine"] + 0.25 * row["train/token/coarse"])


@pytest.mark.slow
def test_reading_ahead_gives_the_same_batches(train: Build) -> None:
    """The reader threads' memory contains both stores' records."""
    trainer = train()
    with torch.no_grad():
        for step, (batch,) in enumerate(trainer.reader.stream(0, 6)):
            (own,) = trainer.reader.read(step)
            assert all(torch.equal(batch.teachers[name].x_BND, own.teachers[name].x_BND) for name in ("fine", "coarse"))


@pytest.mark.slow
def test_a_run_of_two_teachers_is_validated_resumed_and_evaluated(train: Build) -> None:
    trainer = train("+loss.teachers.fine=3", "optimizer.warmup_ratio=0")
    steps(trainer, 0, 2)
    trainer.save(2)
    steps(trainer, 2, 4)
    whole, row = weights(trainer), trainer.validate(4)
    for key in ("val/token", "floor/constant_token"):
        assert row[key] == pytest.approx(0.75 * row[f"{key}/fine"] + 0.25 * row[f"{key}/coarse"])
        assert row[f"{key}/fine"] != row[f"{key}/coarse"]
    found = checkpoint.newest(trainer.folder / "checkpoints")
    trainer = train("+loss.teachers.fine=3", "optimizer.warmup_ratio=0")
    assert trainer.restore(found, None) == 2
    steps(trainer, 2, 4)
    assert all(torch.equal(v, whole[k]) for k, v in weights(trainer).items())


@pytest.mark.slow
def test_a_teacher_of_weight_zero_changes_nothing_but_its_head(
    trainer_of: Build, overrides: list[str], small_sit: list[str]
) -> None:
    """The other teacher's heads and the backbone take the same steps as with that teacher alone."""
    ends = {}
    for name, command in (("alone", small_sit), ("both", [*overrides, "+loss.teachers.coarse=0"])):
        trainer = trainer_of(*command)
        head = trainer.model.heads["block_3" if name == "alone" else "block_3/fine"]
        if name == "alone":
            first = {k: v.detach().clone() for k, v in head.state_dict().items()}
        head.load_state_dict(first)
        steps(trainer, 0, 3)
        ends[name] = weights(trainer, "backbone."), {k: v.clone() for k, v in head.state_dict().items()}
    for alone, both in zip(*ends.values(), strict=True):
        for key, value in alone.items():
            torch.testing.assert_close(both[key], value, rtol=1e-4, atol=1e-6)
    assert any(not torch.equal(v, ends["alone"][1][k]) for k, v in first.items())


@pytest.mark.slow
def test_online_teachers_give_the_tokens_of_their_caches(train: Build) -> None:
    trainer = train()
    (cached,) = trainer.reader.read(0)
    (asked,) = train("data.online_teacher=true").reader.read(0)
    assert list(asked.teachers) == ["fine", "coarse"]
    for name, tokens in cached.teachers.items():
        torch.testing.assert_close(asked.teachers[name].x_BND, tokens.x_BND.float(), rtol=0, atol=2e-3)


@pytest.mark.slow
def test_evaluations_read_the_first_and_alignment_reads_each(
    train: Build, compose: Compose, overrides: list[str]
) -> None:
    trainer = train()
    more = ("evaluation=[alignment,spatial]", "evaluation.alignment.tap=block_3", "evaluation.spatial.tap=block_3")
    times = ("evaluation.alignment.timestep=0.1", "evaluation.alignment.timesteps=[0.1,0.5]")
    config = compose(
        *(o for o in overrides if o != "evaluation=none"), *more, *times, "evaluation.spatial.timestep=0.5"
    )
    config["evaluation"]["alignment"] |= {"images": 20, "neighbours": 3}
    found = evaluate_ema(config, trainer, build_part(config["data"]), 0)
    found.require_all()
    each = [{k: v for k, v in found.metrics.items() if k.endswith(f"/{name}")} for name in ("fine", "coarse")]
    assert [k.rpartition("/")[0] for k in each[0]] == [k.rpartition("/")[0] for k in each[1]]
    assert len(each[0]) == 8
    assert each[0]["final/cka/fine"] != each[1]["final/cka/coarse"]
    assert "final/cka_by_t/block_3/coarse/0.500" in found.metrics
    first = trainer.reader.cache.teacher_BND(trainer.reader.cache.splits["test"], "fine").float()
    contrast = (first - first.mean(1, keepdim=True)).square().sum(-1).mean(1).sqrt().mean()
    assert found.metrics["final/rmsc/teacher"] == pytest.approx(contrast.item(), abs=1e-3)


def test_two_names_may_share_a_store(make_track: Build, teacher: Any) -> None:
    """LMDB opens it only once in a process."""
    several = SeveralTeachers({"a": teacher, "b": teacher})
    cache = make_track().open(several)
    tokens = cache.teachers(cache.splits["train"])
    assert torch.equal(tokens["a"].x_BND, tokens["b"].x_BND)
    assert torch.equal(cache.mean_token("a"), cache.mean_token("b"))
    cache.close()


# --- what it costs and how it is called ------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_of_two_teachers_is_planned_and_described(compose: Compose, overrides: list[str]) -> None:
    config = compose(*overrides, "+loss.teachers.fine=3")
    planned, track, teacher = plan(config, DEVICE), build_part(config["data"]), build_part(config["teacher"])
    assert [cache.name for cache in planned.counted.caches] == ["latents", "tokens_fine", "tokens_coarse"]
    assert planned.counted.reader_bytes == reader_bytes(track, teacher, 8) == 2 * 4 * 8 * 16 * 1280 * 2
    head = 32 * 16 + 16 + 16 * 16 + 16 + 16 * 1280 + 1280
    assert planned.counted.parameters["head"] == {"all": 2 * head, "trainable": 2 * head}
    text = as_markdown("", methodology(subject_of(config, planned), "A test."))
    assert "aligned to 2 teachers at once" in text
    assert "The 2 head(s) have" in text
    assert "| block\\_3/fine | 4×4, 32 | 4×4, 1280 | 0.75 |" in text.replace("block_3", "block\\_3")
    assert "Images are resized to 128×128" in text
    assert "Images are resized to 160×160" in text
    online = plan(compose(*overrides, "data.online_teacher=true"), DEVICE)
    alone = [
        plan(compose(*overrides, "data.online_teacher=true", f"teacher.teachers.{name}.image_size=128"), DEVICE)
        for name in ("coarse", "fine")
    ]
    assert alone[0].flops("forward")["teacher"] < online.flops("forward")["teacher"]
    assert online.counted.parameters["teacher"]["all"] == alone[1].counted.parameters["teacher"]["all"]


OWN = """
from dataclasses import dataclass

from urepa.models.teachers.efficientnet_lite0 import EfficientNetLite0


@dataclass
class Own(EfficientNetLite0):
    _target_: str = "teacher_of_mine.Own"

    def description(self):
        return "The teacher is of my own."
"""


@pytest.mark.slow
def test_a_member_of_a_users_package_is_described(
    compose: Compose, overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "teacher_of_mine.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    config = compose(*overrides)
    config["teacher"]["teachers"]["coarse"]["_target_"] = "teacher_of_mine.Own"
    text = as_markdown("", methodology(subject_of(config, plan(config, DEVICE)), "A test."))
    assert "coarse:\n\nThe teacher is of my own. Its tokens are computed once" in text
    assert "fine:\n\nThe teacher is EfficientNet-Lite0" in text


def test_a_run_has_both_names_and_both_teachers_are_fetched(compose: Compose) -> None:
    both = ("teacher=several", "+teacher@teacher.teachers.d=dinov2_b_224", "+teacher@teacher.teachers.c=clip_l")
    config = compose("+experiment=repa_imagenet256", *both)
    assert teacher_name(config["teacher"]) == "dinov2-base + clip-vit-large-patch14"
    assert {"facebook/dinov2-base", "openai/clip-vit-large-patch14"} <= required_files(config).keys()
    track = build_part(config["data"])
    assert [path.name for path in track.tokens_folders(build_part(config["teacher"])).values()] == [
        f"{track.buckets[0].tokens.name}.d",
        f"{track.buckets[0].tokens.name}.c",
    ]
    assert list(by_name(build_part(compose("teacher=clip_l")["teacher"]))) == [""]


@pytest.mark.fast(1)
@pytest.mark.parametrize(
    ("more", "words"),
    [
        ([*BOTH, "+loss.teachers.other=1"], "loss.teachers.other has no effect: the teachers are fine, coarse"),
        (["+loss.teachers.fine=1"], "loss.teachers.fine has no effect: it needs several teachers"),
        ([*BOTH, "+loss.teachers.fine=0", "+loss.teachers.coarse=0"], "give weights that are not all 0"),
        ([*BOTH, "+loss.teachers.fine=-1"], "loss.teachers.fine=-1.0: give 0 or more"),
    ],
)
def test_invalid_weights_are_refused(compose: Compose, more: list[str], words: str) -> None:
    config = compose("+experiment=repa_cifar10_pixels", *more)
    with pytest.raises(UserError, match=words):
        check(config, ["+experiment=repa_cifar10_pixels", *more])


def test_a_single_member_is_refused(compose: Compose) -> None:
    with pytest.raises(UserError, match="needs two teachers or more"):
        build_part(compose("teacher=several")["teacher"])
    with pytest.raises(UserError, match="may only have letters and digits"):
        SeveralTeachers({"a_b": None, "c": None})
    with pytest.raises(HydraException):
        compose(*BOTH, "teacher.teachers.coarse.imagesize=160")


@pytest.mark.slow
def test_bench_and_adoption_support_one_teacher(compose: Compose, tmp_path: Path, overrides: list[str]) -> None:
    from urepa.costs.benchmark.random_data import SyntheticTrack

    teacher = build_part(compose(*overrides)["teacher"])
    with pytest.raises(UserError, match="times a step with one teacher"):
        SyntheticTrack(str(tmp_path), 2, [1, 2, 2], 2, 0.1).write(teacher)
