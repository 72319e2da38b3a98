"""Track A on SD-1.5, small and real: its settings, its trained weights, its arms and its checkpoints."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate import Accelerator
from hydra import compose, initialize_config_dir
from sd import TEACHER, small_parts, write_cache, write_unet

from urepa.cli import CONF, prepare
from urepa.costs.counting import SavedBytes
from urepa.costs.estimate import Device, plan
from urepa.models.unet_families import FAMILIES
from urepa.models.weight_files import trainable
from urepa.runs.checkpoint import newest, save
from urepa.runs.run_folder import to_plain
from urepa.runs.trackers.no_tracking import NoShipper
from urepa.training.trainer_assembly import build

pytestmark = pytest.mark.long


def composed(*overrides: str) -> dict[str, Any]:
    prepare()
    with initialize_config_dir(CONF, version_base="1.3"):
        return to_plain(compose("train", ["+experiment=track_a", "tracking=none", *overrides]))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return small_parts(tmp_path_factory.mktemp("small_sd"))


def small_overrides(small: dict[str, Path]) -> list[str]:
    return [
        f"backbone.weights={small['weights']}",
        f"data.root={small['data']}",
        "data.latent_shape=[4,8,8]",
        "teacher.grid=[4,4]",
        "teacher.width=24",
        "trainer.precision=fp32",
        "trainer.batch_size=2",
        "trainer.validation_group=2",
        "trainer.max_steps=4",
        "loss.warmup_steps=0",
        "optimizer.warmup_ratio=0",
    ]


def trainer_for(config: dict[str, Any], folder: Path) -> Any:
    shipper = NoShipper()
    return build(config, folder, Accelerator(cpu=True), shipper)[0]


def test_track_a_has_the_documented_settings() -> None:
    config = composed()
    trainer, loss, objective = config["trainer"], config["loss"], config["objective"]
    assert objective["_target_"].endswith("DDPMVelocity")
    assert (objective["beta_start"], objective["beta_end"]) == (0.00085, 0.012)
    assert (objective["beta_schedule"], objective["timesteps"]) == ("linear", 1000)
    assert (loss["lambda_max"], loss["warmup_steps"], loss["manifold_weight"]) == (0.5, 3000, 3.0)
    assert (loss["level"], loss["taps"]) == ("sample", {"mid": 1.0})
    assert (trainer["max_steps"], trainer["batch_size"], trainer["precision"]) == (62480, 128, "bf16")
    assert (trainer["validate_every"], trainer["checkpoint_every"], trainer["clip_norm"]) == (3000, 6000, 1.0)
    assert (trainer["ema_decay"], config["seed"], config["data"]["cfg_dropout"]) == (0.9995, 42, 0.1)
    assert (config["lora"]["rank"], config["lora"]["alpha"], config["head"]["depth"]) == (8, None, 2)
    optimizer = config["optimizer"]
    assert optimizer["lr"] == {"lora": 1e-4, "head": 1e-4}
    assert optimizer["weight_decay"] == {"lora": 0.0, "head": 0.01}
    assert (optimizer["betas"], optimizer["eps"], optimizer["warmup_ratio"]) == ([0.9, 0.999], 1e-8, 0.1)


@pytest.mark.fast(1)
@pytest.mark.parametrize(
    ("experiment", "changed"),
    [
        ("track_a_native", {"objective._target_", "objective.beta_schedule"}),
        ("track_b", {"data.name", "data.root", "data.train", "data.train_images", "backbone.prompts"}),
    ],
)
def test_the_other_experiments_change_only_what_they_name(experiment: str, changed: set[str]) -> None:
    from urepa.core.nested_dicts import flatten

    prepare()
    with initialize_config_dir(CONF, version_base="1.3"):
        a, b = (flatten(to_plain(compose("train", [f"+experiment={e}"]))) for e in ("track_a", experiment))
    assert {k for k in a.keys() | b.keys() if a.get(k) != b.get(k)} == changed


def test_equal_decay_is_one_override() -> None:
    config = composed("optimizer.weight_decay.lora=0.01")
    assert set(config["optimizer"]["weight_decay"].values()) == {0.01}


def steps_of(trainer: Any, count: int) -> list[Any]:
    updates = []
    for step in range(count):
        updates.append(trainer.update(step, trainer.reader.read(step), with_tap_gradients=False))
    trainer.reader.cache.close()  # LMDB opens a store once a process; the next read opens it again
    return updates


@pytest.mark.slow
def test_small_track_a_trains_lora_and_head_and_nothing_else(small: dict[str, Path], tmp_path: Path) -> None:
    trainer = trainer_for(composed(*small_overrides(small)), tmp_path)
    assert_trains_the_right_weights(trainer, lora_tensors=16)


def assert_trains_the_right_weights(trainer: Any, lora_tensors: int) -> None:
    names = trainable(trainer.model)
    assert sum("lora_" in n for n in names) == lora_tensors
    assert all("lora_" in n or n.startswith("heads.mid.") for n in names)
    groups = {g["name"]: (g["weight_decay"], len(g["params"])) for g in trainer.optimizer.param_groups}
    assert groups == {"lora": (0.0, lora_tensors), "head": (0.01, 3)}
    before = {n: p.detach().clone() for n, p in names.items()}
    steps_of(trainer, 2)  # B starts at 0, so A's first gradient is 0
    batch = trainer.reader.read(2)[0]
    terms, output = trainer.forward(batch, 2)
    terms.total.backward()
    for name, p in trainer.model.named_parameters():
        if name in names:
            assert p.grad is not None, name
            assert p.grad.norm() > 0, name
            assert math.isfinite(float(p.grad.norm())), name
        else:
            assert p.grad is None, name
    assert output.features["mid"].x_BND.requires_grad
    trainer.optimizer.zero_grad()
    steps_of(trainer, 1)
    assert all(not torch.equal(p, before[n]) for n, p in names.items())


@pytest.mark.slow
def test_nothing_in_the_encoder_records_a_graph(small: dict[str, Path], tmp_path: Path) -> None:
    trainer = trainer_for(composed(*small_overrides(small), "+loss.taps.enc_last=1.0"), tmp_path)
    assert_encoder_records_nothing(trainer)


def assert_encoder_records_nothing(trainer: Any) -> None:
    recorded: dict[str, bool] = {}
    hooks = [
        m.register_forward_hook(lambda _m, _i, out, n=n: recorded.update({n: _first(out).requires_grad}))
        for n, m in trainer.model.backbone.unet.named_modules()
        if n.startswith(("conv_in", "time_embedding", "down_blocks"))
    ]
    trainer.forward(trainer.reader.read(0)[0], 0)
    for hook in hooks:
        hook.remove()
    assert len(recorded) > 20
    assert not any(recorded.values())


def _first(output: Any) -> torch.Tensor:
    return output if isinstance(output, torch.Tensor) else _first(output[0])


def test_a_tap_that_no_lora_precedes_warns_once(small: dict[str, Path], tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="'enc_last'.*trains its head alone") as caught:
        trainer_for(composed(*small_overrides(small), "+loss.taps.enc_last=1.0"), tmp_path)
    assert len([w for w in caught if "head alone" in str(w.message)]) == 1


NEED_CACHES = {"full_data", "samples_100k", "teacher_224", "teacher_clip", "teacher_mae", "teacher_cls_20"}
NEED_CACHES |= {"teacher_block_17"}
ARMS = {
    file.stem
    for file in (Path(CONF) / "ablation").glob("*.yaml")
    if not file.stem.startswith("urepa_")  # of other experiments
    and "sd15" in (yaml.safe_load(file.read_text()).get("arm") or {"families": ["sd15"]})["families"]
} - NEED_CACHES


@pytest.mark.slow
@pytest.mark.parametrize("arm", sorted(ARMS))
@pytest.mark.filterwarnings("ignore:nothing trainable precedes")
def test_every_arm_takes_a_step(small: dict[str, Path], tmp_path: Path, arm: str) -> None:
    own = ("trainer.batch_size=4", "trainer.validation_group=4", "trainer.max_steps=9", f"+ablation={arm}")
    settings = [o for o in small_overrides(small) if not o.startswith("loss.warmup_steps")]
    trainer = trainer_for(composed(*settings, *own), tmp_path)
    before = {n: p.detach().clone() for n, p in trainable(trainer.model).items()}
    steps_of(trainer, 3)
    moved = {n.split(".")[0] for n, p in trainable(trainer.model).items() if not torch.equal(p, before[n])}
    assert moved == {"backbone", "heads"}  # at lambda 0 the head moves by its weight decay
    assert all(p.isfinite().all() for p in trainable(trainer.model).values())
    assert trainer.guard.read(3, True)["guard/skipped_steps"] == 0


@pytest.mark.slow
def test_a_checkpoint_holds_trainables_only_and_resumes_exactly(small: dict[str, Path], tmp_path: Path) -> None:
    config = composed(*small_overrides(small))
    whole = trainer_for(config, tmp_path)
    steps_of(whole, 4)
    first = trainer_for(config, tmp_path)
    steps_of(first, 2)
    first.save(2)
    found = newest(tmp_path / "checkpoints")
    assert found is not None
    assert set(found.tensors("weights")) == set(trainable(first.model))
    second = trainer_for(config, tmp_path)
    assert second.restore(found, None) == 2
    for step in (2, 3):
        second.update(step, second.reader.read(step), with_tap_gradients=False)
    for name, p in trainable(whole.model).items():
        assert torch.equal(p, trainable(second.model)[name]), name
        assert torch.equal(whole.ema.shadow[name], second.ema.shadow[name]), name


@pytest.mark.slow
def test_gradient_checkpointing_changes_no_gradient(small: dict[str, Path], tmp_path: Path) -> None:
    gradients = []
    for on in ("false", "true"):
        config = composed(*small_overrides(small), f"backbone.gradient_checkpointing={on}")
        trainer = trainer_for(config, tmp_path)
        trainer.prepared.train()
        trainer.forward(trainer.reader.read(0)[0], 0)[0].total.backward()
        gradients.append({n: p.grad for n, p in trainable(trainer.model).items()})
    assert all(torch.equal(gradients[0][n], gradients[1][n]) for n in gradients[0])


@pytest.mark.slow
@pytest.mark.usefixtures("room_for_sd15")
@pytest.mark.timeout(1500)
def test_three_steps_of_track_a_on_the_real_architecture(tmp_path: Path) -> None:
    """Random weights in a local diffusers folder, the store's own cache, both warm-ups at 0. With 16x16 latents: the
    architecture determines which weights train and what is kept for them, and a step at 64x64 takes 20 times as
    long."""
    write_unet(tmp_path / "weights", **FAMILIES["sd15"].architecture)
    write_cache(tmp_path / "data", 4, (4, 16, 16), 768, TEACHER)
    config = composed(
        f"backbone.weights={tmp_path / 'weights'}",
        f"data.root={tmp_path / 'data'}",
        "data.latent_shape=[4,16,16]",
        "trainer.precision=fp32",
        "trainer.batch_size=2",
        "trainer.validation_group=2",
        "trainer.max_steps=8",
        "loss.warmup_steps=0",
        "optimizer.warmup_ratio=0",
    )
    trainer = trainer_for(config, tmp_path)
    assert sum(p.numel() for p in trainable(trainer.model).values()) == 155_648 + 2_360_320
    assert_trains_the_right_weights(trainer, lora_tensors=16)
    assert_encoder_records_nothing(trainer)
    with SavedBytes(trainer.model) as saved:
        trainer.forward(trainer.reader.read(0)[0], 0)
    planned = plan(config, Device("cpu", "cpu", None, None))
    assert planned.saved_bytes == pytest.approx(saved.total, rel=0.05)
    trainer.save(3)
    found = newest(tmp_path / "checkpoints")
    assert found is not None
    assert sum(f.stat().st_size for f in found.folder.iterdir()) < 45e6
    assert all("lora_" in n or n.startswith("heads.") for n in found.tensors("weights"))
    for shard in (tmp_path / "weights" / "unet").iterdir():
        shard.unlink()


def test_saving_keeps_no_frozen_weight(tmp_path: Path) -> None:
    save(tmp_path / "c", 1, {p: {"a": torch.ones(1)} for p in ("weights", "ema", "optimizer")}, {}, "x: 1")
    assert newest(tmp_path / "c") is not None
