"""Values that are logged of a NanoDiT: compared with plain computations, and without an effect on the run."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from captioned_photos import nanodit_overrides, write_captioned_photos
from photos import write_clip_text
from torch import Tensor, nn

from urepa.core.backbone_protocols import ExpectedRange
from urepa.core.conditions import Condition, Part
from urepa.core.part_names import CLS, PATCHES, TEXT
from urepa.core.types import Batch
from urepa.method.training_step import Aligned
from urepa.models.backbones.nanodit_net import NanoDiTNetwork
from urepa.training.non_finite_guard import Guard
from urepa.training.observed import Blocks, Observed

DROPOUT = {"text+image": 0.1, "image": 0.3, "text": 0.05}
PARTS = (TEXT, CLS, PATCHES)


def network(**changes: Any) -> NanoDiTNetwork:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"patches": True, "recompute": False} | changes
    found = NanoDiTNetwork((2, 4, 4), 2, 2, 8, 2, (3, 5, 4), "both", True, sizes["patches"], False, sizes["recompute"])
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.normal_(std=0.3)
    return found


def condition(batch: int = 4) -> Condition:
    random = torch.Generator().manual_seed(1)
    text = Part.of(torch.randn(batch, 3, 3, generator=random), torch.ones(batch, 3, dtype=torch.bool))
    cls = Part.of(torch.randn(batch, 5, generator=random))
    patches = Part.of_image(torch.randn(batch, 4, 4, generator=random), (2, 2))
    return Condition({TEXT: text, CLS: cls, PATCHES: patches})


def batch_of(own: Condition) -> Batch:
    x0 = torch.zeros(len(own), 2, 4, 4)
    return Batch(["a"] * len(own), x0, x0, torch.zeros(len(own)), own, {})


def run(net: NanoDiTNetwork, own: Condition, x_t: Tensor | None = None) -> Tensor:
    x_t = torch.randn(len(own), 2, 4, 4, generator=torch.Generator().manual_seed(2)) if x_t is None else x_t
    prediction: Tensor = net(x_t, torch.full((len(own),), 0.5), own).prediction_RCHW
    return prediction


def test_norms_of_the_own_gradients_and_the_rms_of_the_prediction() -> None:
    net, own = network(), condition()
    observed = Observed(net, DROPOUT, PARTS)
    halves = [own.rows(torch.tensor([0, 1])), own.rows(torch.tensor([2, 3]))]
    observed.begin([batch_of(half) for half in halves], logs=True)
    predictions = []
    for half in halves:
        predictions.append(run(net, half))
        predictions[-1].sum().backward()
        observed.note(Aligned(predictions[-1], {}, {}))
    observed.end()
    expected = {
        "dino_patch_proj": [net.dino_patch_proj.weight.grad, net.dino_patch_proj.bias.grad],
        **{name: [getattr(net, name).grad] for name in ("null_text", "null_dino", "null_dino_patch_token")},
    }
    flat = {name: torch.cat([g.flatten() for g in found]) for name, found in expected.items()}
    for parameter in net.parameters():
        parameter.grad = None  # what is logged is of before the clipping
    row = observed.row()
    assert {name: row[f"grad_norm/{name}"] for name in flat} == pytest.approx(
        {name: math.sqrt(float((g.double() ** 2).sum())) for name, g in flat.items()}
    )
    assert row["grad_norm/dino_patch_proj"] > 0
    both = torch.cat(predictions).detach().double()
    assert row["train/prediction_rms"] == pytest.approx(math.sqrt(float((both**2).mean())))


def test_shares_of_what_the_samples_of_an_update_lost() -> None:
    observed = Observed(network(), DROPOUT, PARTS)
    lost = condition(8).drop({"text+image": torch.arange(8) == 0, "image": (torch.arange(8) // 2) == 1})
    observed.begin([batch_of(lost.rows(torch.arange(5))), batch_of(lost.rows(torch.arange(5, 8)))], logs=True)
    shares = {key.removeprefix("train/withheld/"): value for key, value in observed.row().items()}
    assert shares == {"nothing": 5 / 8, "text+image": 1 / 8, "image": 2 / 8, "text": 0}


def test_shares_are_on_the_device_where_ranks_add_them() -> None:
    observed = Observed(network().to("meta"), DROPOUT, PARTS)
    observed.begin([batch_of(condition())], logs=True)
    assert {value.device.type for value in observed._values.values()} == {"meta"}


@pytest.fixture
def mesh() -> Iterator[Any]:
    """Of one process, in which FSDP2's modules are the same as among several."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def test_sharded_blocks_are_found_and_their_gradients_measured(mesh: Any) -> None:
    from torch.distributed.fsdp import fully_shard

    rows = []
    for is_sharded in (False, True):
        net = network().train()
        if is_sharded:
            for module in (*net.blocks, net):
                fully_shard(module, mesh=mesh)
        observed = Observed(net, DROPOUT, PARTS)
        assert observed.blocks is not None
        observed.begin([batch_of(condition())], logs=True)
        prediction = run(net, condition())
        observed.note(Aligned(prediction, {}, {}))
        prediction.sum().backward()
        flags = observed.end()
        assert flags is not None
        assert flags.tolist() == [False] * 5
        rows.append(observed.row())
        net.blocks[0].mlp.fc1.weight.grad.fill_(math.inf)
        assert observed.blocks.name(observed.blocks.flags().tolist()) == "the gradient of blocks.0"
    assert rows[1] == pytest.approx(rows[0], rel=1e-5)


def test_nothing_is_logged_between_logged_steps_or_of_another_network() -> None:
    for net, logs in ((network(), False), (nn.Linear(2, 2), True)):
        observed = Observed(net, {"class": 0.1}, ("class",)) if logs else Observed(net, DROPOUT, PARTS)
        observed.begin([batch_of(condition())], logs)
        observed.note(Aligned(torch.ones(2, 2, 4, 4), {}, {}))
        assert (observed.end() is None) is logs
        assert observed.row() == {}
        assert observed.is_active is not logs


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(
    ("damaged", "place"),
    [("blocks.1.mlp.fc1.weight", "blocks.1"), ("x_embedder.proj.weight", "before blocks.0"),
     ("output.linear.weight", "after blocks.1"), (None, "the gradient of blocks.0")],
)  # fmt: skip
def test_the_place_of_a_value_that_is_not_finite(damaged: str | None, place: str, recompute: bool) -> None:
    net = network(recompute=recompute).train()
    blocks = Blocks(net)
    run(net, condition()).sum().backward()
    assert not blocks.flags().any()
    blocks.begin()
    if damaged is not None:
        net.zero_grad()
        dict(net.named_parameters())[damaged].data[0] = math.nan
        run(net, condition()).detach()
    else:
        net.blocks[0].mlp.fc1.weight.grad.fill_(math.inf)
    if damaged == "output.linear.weight":
        assert not blocks.flags().any()
    assert blocks.name(blocks.flags().tolist()) == place
    blocks.begin()
    net.eval()
    run(net, condition())  # a validation is no update
    assert not blocks.flags()[:3].any()


def test_bucket_and_block_are_written_beside_the_samples(tmp_path: Path) -> None:
    from urepa.core.errors import UserError
    from urepa.method.training_step import Terms

    def where(step: int, places: Any) -> dict[str, str]:
        return {"bucket": f"bucket of {step}", "block": f"block {list(places).index(True)}"}

    guard = Guard(tmp_path, 1, torch.device("cpu"), where=where)
    values = torch.tensor([1.0, math.nan])
    guard.judge(
        3, ["a", "b"], [Terms(values.mean(), {"diffusion": values})], torch.tensor(1.0), None, torch.eye(3).bool()[2]
    )
    with pytest.raises(
        UserError, match=r"not finite .trainer.max_skipped=1., the last block 2, in bucket bucket of 3; "
    ):
        guard.read(4, True)
    (line,) = (tmp_path / "bad_samples.jsonl").read_text().splitlines()
    assert json.loads(line) == {
        "step": 3, "cause": "loss", "sample_ids": ["b"], "bucket": "bucket of 3", "block": "block 2",
    }  # fmt: skip


def test_a_value_outside_of_its_range_is_remarked_once(tmp_path: Path) -> None:
    net, file = network(patches=False), tmp_path / "metrics.jsonl"
    net.ranges = (
        ExpectedRange("grad_norm", None, 5.0, 100),
        ExpectedRange("train/prediction_rms", 0.5, 3.0, 101, onwards=True),
    )
    rows = [(50, 9.0, 9.0), (100, 6.0, 9.0), (120, 7.0, 2.0), (140, 1.0, 4.0), (160, 1.0, 4.0)]
    said = {}
    observed = Observed(net, DROPOUT, PARTS)
    for step, norm, rms in rows:
        row = {"step": step, "time": step, "grad_norm": norm, "train/prediction_rms": rms}
        with open(file, "a") as opened:
            opened.write(json.dumps(row) + "\n")
        said[step] = observed.remarks(step, row, file)
    assert said == {
        50: [], 100: ["grad_norm is 6; expected is at most 5 at step 100"], 120: [],
        140: ["train/prediction_rms is 4; expected is 0.5 to 3 from step 101 on"], 160: [],
    }  # fmt: skip
    resumed = Observed(net, DROPOUT, PARTS)
    assert resumed.remarks(180, {"grad_norm": 9.0, "train/prediction_rms": 9.0}, file) == []


@pytest.fixture(scope="module")
def overrides(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    here = tmp_path_factory.mktemp("nanodit")
    photos, clip = write_captioned_photos(here / "photos", 8), write_clip_text(here / "clip")
    sizes = ("backbone.depth=2", "backbone.width=32", "backbone.heads=2", "trainer.batch_size=4")
    return nanodit_overrides(photos, here / "caches", clip, *sizes)


@pytest.mark.slow
def test_a_run_is_the_same_with_and_without_and_names_what_is_not_finite(
    trainer_of: Callable[..., Any], overrides: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ends, rows, original = [], [], NanoDiTNetwork.__init__
    for is_observed in (True, False):
        if not is_observed:

            def without(self: NanoDiTNetwork, *args: Any) -> None:
                original(self, *args)
                del self.observed

            monkeypatch.setattr(NanoDiTNetwork, "__init__", without)
        trainer = trainer_of(*overrides, "trainer.max_steps=3")
        row = {}
        for step in range(3):
            row = trainer.log(step + 1, trainer.update(step, trainer.reader.read(step), with_tap_gradients=True))
        ends.append({name: value.detach().clone() for name, value in trainer.tensors()["weights"].items()})
        rows.append(row | trainer.validate(3))
        if is_observed:
            by_hand = []
            with torch.no_grad(), trainer.ema.use_averages():
                for group in range(len(trainer.validation.reader.groups)):
                    batch = trainer.validation.reader.read(group)
                    x_t = trainer.objective.corrupt(batch.x0, batch.noise, batch.t_B)
                    out = trainer.model.eval()(x_t, batch.t_B, batch.condition.null(), None, batch.grids)
                    target = trainer.objective.target(batch.x0, batch.noise, batch.t_B)
                    by_hand += (out.prediction_RCHW - target).pow(2).flatten(1).mean(1).tolist()
            assert rows[0]["floor/null_condition"] == pytest.approx(sum(by_hand) / len(by_hand), rel=1e-5)
            dict(trainer.model.named_parameters())["backbone.blocks.1.mlp.fc1.weight"].data[0] = math.nan
            trainer.update(3, trainer.reader.read(3), with_tap_gradients=False)
            trainer.guard.report(True)
            (line,) = (trainer.folder / "bad_samples.jsonl").read_text().splitlines()
            bucket = trainer.reader.cache.buckets[trainer.reader.order.read(3)[0]].bucket
            assert {"block": "blocks.1", "bucket": bucket}.items() <= json.loads(line).items()
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    new = rows[0].keys() - rows[1].keys()
    assert {key.partition("/")[0] for key in new} == {"train", "grad_norm", "floor"}
    assert {"train/withheld/text+image", "train/prediction_rms", "grad_norm/null_text", "floor/null_condition"} <= new
    shares = [value for key, value in rows[0].items() if key.startswith("train/attention_mass/")]
    assert len(shares) == 3
    assert sum(shares) == pytest.approx(1, abs=1e-5)
    same = rows[1].keys() - {"images_per_s", "data_wait_share"}
    assert {key: rows[0][key] for key in same} == {key: rows[1][key] for key in same}
