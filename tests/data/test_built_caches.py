"""Existing caches: what is refused when they are opened, several teachers, adopting, staging, and online encoders in
their place."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from earlier import with_mid_in_keys, without_digests
from photos import TRAIN, VAL, WIDTH, overrides

from urepa.core.errors import UserError
from urepa.data import local_copies
from urepa.data.stages.build import Build
from urepa.data.stores.lmdb_store import Part, StoreWriter
from urepa.data.stores.record_reading import Store
from urepa.training.assembly import build_part


def copy_of(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "cache"))


def test_a_truncated_store_is_an_error_before_the_first_read(built: Path, build_of: Any, tmp_path: Path) -> None:
    root = copy_of(built, tmp_path)
    data = root / "dino_tokens_lmdb" / "data.mdb"
    data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
    with pytest.raises(UserError, match="data.mdb is truncated"):
        build_of(root).track.open(build_of(root).teacher)


def test_a_missing_record_is_an_error_before_the_first_step(built: Path, build_of: Any, tmp_path: Path) -> None:
    import lmdb

    root = copy_of(built, tmp_path)
    with lmdb.open(str(root / "vae_latents_lmdb"), map_size=2**30) as env, env.begin(write=True) as txn:
        txn.delete(b"train_china_0003")
    with pytest.raises(UserError, match="lacks 1 of 80 records \\(first: 'train_china_0003'\\)"):
        build_of(root).track.open(None)


def test_a_changed_csv_is_an_error(built: Path, build_of: Any, tmp_path: Path) -> None:
    root = copy_of(built, tmp_path)
    text = (root / "train_200k.csv").read_text()
    (root / "train_200k.csv").write_text(text.replace("train_china_0003,0", "train_china_0003,1"))
    with pytest.raises(UserError, match="train_200k.csv has changed"):
        build_of(root, f"data.stage_to={tmp_path / 'local'}").track.open(None)
    assert not (tmp_path / "local").exists()  # nothing is copied that is refused


def test_another_teacher_or_size_refuses_and_names_both(built: Path, build_of: Any) -> None:
    build = build_of(built, "teacher.image_size=112", "teacher.family=dinov2_registers", "teacher.positions=null")
    with pytest.raises(UserError, match="family: 'dinov2' there, 'dinov2_registers' here.*image_size: 56 there, 112"):
        build.track.open(build.teacher)


@pytest.mark.slow
def test_a_store_of_an_earlier_version_is_read_with_its_own_rule_of_positions(
    built: Path, build_of: Any, tmp_path: Path
) -> None:
    """Its manifest does not say how positions were resampled: by transformers' rule, which is no longer the default."""
    root = copy_of(built, tmp_path)
    file = root / "dino_tokens_lmdb" / "manifest.json"
    manifest = json.loads(file.read_text())
    assert manifest["teacher"].pop("positions") == "meta"
    file.write_text(json.dumps(manifest))
    for run in ("tokens", None):
        build = build_of(root)
        with pytest.raises(UserError, match=r"differently \(teacher.positions: 'transformers' there, 'meta' here\)"):
            build.run(run) if run else build.track.open(build.teacher)
    same = build_of(root, "teacher.positions=transformers")
    same.run("tokens")
    cache = same.track.open(same.teacher)
    assert len(cache.splits["train"]) == TRAIN
    cache.close()


@pytest.mark.slow
def test_two_teachers_tokens_lie_side_by_side(built: Path, build_of: Any, tmp_path: Path) -> None:
    root = copy_of(built, tmp_path)
    first = root / "dino_tokens_lmdb"
    before = {p.name: p.read_bytes() for p in first.iterdir() if p.is_file() and not p.name.endswith("lock.mdb")}
    larger = ("teacher.image_size=112", "teacher.grid=[8,8]")
    for _ in ("whole", "begun"):
        with pytest.raises(UserError, match=r"was made differently.*image_size: 56 there, 112 here"):
            build_of(root, *larger).run("tokens")
        (first / "manifest.json").unlink(missing_ok=True)
    (first / "manifest.json").write_bytes(before["manifest.json"])
    second = build_of(root, *larger, "data.tokens=tokens_112")
    second.run("tokens")
    assert second.track.open(second.teacher).tokens[""].shape == (64, WIDTH)
    assert {name: (first / name).read_bytes() for name in before} == before


@pytest.mark.slow
def test_several_teachers_have_a_store_each(
    built: Path, material: Path, compose: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Beside the store that a single teacher would have; built in one command, verified, and returned by name."""
    root = copy_of(built, tmp_path)
    own = [o for o in overrides(material, root) if not o.startswith("teacher.")]
    for name, size in (("near", 112), ("far", 56)):
        place = f"teacher.teachers.{name}"
        values = {"model": material / "dino", "image_size": size, "grid": "[4,4]", "width": WIDTH}
        own += [f"+teacher@{place}=dinov2_l_224", *(f"{place}.{key}={value}" for key, value in values.items())]
    parts = compose(*own, "teacher=several", root="preprocess")
    several = Build(build_part(parts["data"]), build_part(parts["teacher"]), Part(), batch=8)
    several.run("tokens")
    several.run("verify")
    assert {p.name for p in root.glob("dino_tokens_lmdb*")} == {f"dino_tokens_lmdb{n}" for n in ("", ".near", ".far")}
    said = capsys.readouterr().out
    assert "near's tokens explain the latents" in said
    assert "far's tokens explain the latents" in said
    cache = several.track.open(several.teacher)
    samples = cache.splits["train"][:5]
    tokens = cache.teachers(samples)
    assert list(tokens) == ["near", "far"]
    assert not torch.allclose(tokens["near"].x_BND.float(), tokens["far"].x_BND.float(), atol=0.01)
    assert torch.equal(cache.mean_token("far"), cache.tokens["far"].mean_token())
    single = Build(build_part(parts["data"]), several.teacher.teachers["far"], Part(), batch=8)
    alone = single.track.open(single.teacher)
    torch.testing.assert_close(alone.teacher_BND(samples).float(), tokens["far"].x_BND.float(), rtol=0, atol=2e-3)
    with pytest.raises(UserError, match="adopt them with teacher=NAME"):
        several.run("adopt")
    for opened in (cache, alone):
        opened.close()


@pytest.mark.parametrize("form", ["as built", "as described"])
def test_caches_without_manifests_are_adopted(built: Path, build_of: Any, tmp_path: Path, form: str) -> None:
    root = copy_of(built, tmp_path)
    if form == "as described":
        with_mid_in_keys(root / "dino_tokens_lmdb")
        (root / "dino_tokens_lmdb" / "begun.json").unlink()
    for name in ("vae_latents_lmdb", "dino_tokens_lmdb"):
        for file in ("manifest.json", "done.json", "mean_token.npy"):
            (root / name / file).unlink(missing_ok=True)
        without_digests(root / name)
    (root / "track.json").unlink()
    build = build_of(root)
    with pytest.raises(UserError, match="no manifest.json"):
        build.track.open(build.teacher)
    build.run("adopt")
    cache = build.track.open(build.teacher)
    assert cache.tokens[""].manifest["teacher"]["image_size"] == "unknown"
    assert cache.tokens[""].manifest["adopted"] is True
    assert set(cache.content()) == {"samples", "latents", "latents.held_out", "tokens"}
    for name in ("vae_latents_lmdb", "dino_tokens_lmdb"):
        assert len(np.load(root / name / "digests.npy").T) == TRAIN + VAL
    same = build_of(built).track.open(build.teacher)
    assert cache.content() == same.content()
    same.close()
    digest = hashlib.sha256((root / "dino_tokens_lmdb" / "mean_token.npy").read_bytes()).hexdigest()
    assert cache.tokens[""].manifest["mean_token_sha256"] == digest
    mean = cache.mean_token()
    assert mean is not None
    assert np.allclose(mean, np.load(built / "dino_tokens_lmdb" / "mean_token.npy"), atol=1e-3)
    cache.close()


def test_damaged_caches_are_not_adopted(built: Path, build_of: Any, tmp_path: Path) -> None:
    root = copy_of(built, tmp_path)
    (root / "dino_tokens_lmdb" / "manifest.json").unlink()
    with StoreWriter(root / "dino_tokens_lmdb") as writer:
        writer.put([("train_china_0003", np.ones((16, WIDTH)))])
    with pytest.raises(UserError, match="tokens of 'train_china_0003' have length 5.657, not 1"):
        build_of(root).run("adopt")
    assert not (root / "dino_tokens_lmdb" / "manifest.json").exists()


def test_caches_of_too_few_images_to_compare_are_not_adopted(built: Path, build_of: Any, tmp_path: Path) -> None:
    root, few = copy_of(built, tmp_path), ("data.train_images=6", "data.train=few.csv")
    build_of(root, *few).run("manifest")
    for name in ("vae_latents_lmdb", "dino_tokens_lmdb"):
        (root / name / "manifest.json").unlink()
    with pytest.raises(UserError, match="cannot be checked: there are 6 training samples, at least 8 are needed"):
        build_of(root, *few).run("adopt")
    assert not (root / "dino_tokens_lmdb" / "manifest.json").exists()


def mirror_tokens(root: Path) -> None:
    """The tokens of each sample, in place of those of its mirror image."""
    manifest = {"shape": [16, WIDTH], "dtype": "float16"}
    store = Store(root / "dino_tokens_lmdb", manifest)
    keys = list(store.keys())
    values = store.read(keys).reshape(len(keys), 4, 4, WIDTH)[:, :, ::-1].reshape(len(keys), 16, WIDTH)
    store.close()
    with StoreWriter(root / "dino_tokens_lmdb") as writer:
        writer.put(list(zip(keys, values, strict=True)))
    without_digests(root / "dino_tokens_lmdb")


def test_caches_of_another_view_are_not_adopted(built: Path, build_of: Any, tmp_path: Path) -> None:
    """A second command finds the same."""
    root = copy_of(built, tmp_path)
    for name in ("vae_latents_lmdb", "dino_tokens_lmdb"):
        (root / name / "manifest.json").unlink()
    mirror_tokens(root)
    build = build_of(root)
    for _ in range(2):
        with pytest.raises(UserError, match="do not see the same field of view.*mirrored"):
            build.run("adopt")
        with pytest.raises(UserError, match="vae_latents_lmdb is not a finished cache"):
            build.track.open(build.teacher)
    mirror_tokens(root)
    build.run("adopt")
    build.track.open(build.teacher).close()


def test_caches_that_did_not_pass_verify_are_not_trained_on(built: Path, build_of: Any, tmp_path: Path) -> None:
    root = copy_of(built, tmp_path)
    build = build_of(root)
    mirror_tokens(root)
    build.track.open(build.teacher).close()  # nobody has looked yet
    for _ in range(2):
        with pytest.raises(UserError, match="do not see the same field of view"):
            build.run("verify")
        with pytest.raises(UserError, match="dino_tokens_lmdb did not pass the stage `verify` .*field of view"):
            build.track.open(build.teacher)
    build.track.open(None).close()  # the latents alone are sound
    mirror_tokens(root)
    build.run("verify")
    build.track.open(build.teacher).close()


@pytest.mark.slow
def test_tokens_may_be_in_another_folder_and_are_staged_from_there(
    built: Path, built_with_flips: Path, build_of: Any, tmp_path: Path
) -> None:
    """The description keeps them in /dev/shm."""
    root, elsewhere = Path(shutil.copytree(built_with_flips, tmp_path / "cache")), tmp_path / "shm"
    elsewhere.mkdir()
    for flip in ("", "_flip"):
        shutil.move(root / f"dino_tokens_lmdb{flip}", elsewhere / f"tokens{flip}")
    more = ("data.flip=true", f"data.tokens={elsewhere / 'tokens'}")
    own = build_of(built).track.open(build_of(built).teacher)
    expected = own.teacher_BND(own.splits["train"][:3])
    own.close()
    for stage_to in ((), (f"data.stage_to={tmp_path / 'local'}",)):
        build = build_of(root, *more, *stage_to)
        cache = build.track.open(build.teacher)
        assert cache.tokens[""].folder.is_relative_to(tmp_path / "local") is bool(stage_to)
        assert torch.equal(cache.teacher_BND(cache.splits["train"][:3]), expected)
        assert cache.flips
        cache.close()


def test_a_staged_copy_that_was_lost_or_damaged_is_copied_again(tmp_path: Path) -> None:
    source = tmp_path / "root" / "store"
    source.mkdir(parents=True)
    (source / "data.mdb").write_bytes(b"0123")
    local = tmp_path / "local"

    def staged() -> Path:
        return local_copies.stage([source], tmp_path / "root", local)[source] / "data.mdb"

    copy = staged()
    for content in (None, b"012", b"0129"):
        copy.unlink()
        if content is not None:
            copy.write_bytes(content)
        assert staged().read_bytes() == b"0123"
    inode = copy.stat().st_ino
    os.utime(copy, (1, 1))  # touched, and the same
    assert staged().stat().st_ino == inode
    record = copy.parents[1] / "staged.json"
    record.write_text(json.dumps({"store/data.mdb": [4, (source / "data.mdb").stat().st_mtime_ns]}))  # as it was once
    assert staged().stat().st_ino != inode


@pytest.mark.slow
def test_latents_and_prompts_of_another_origin_are_refused(
    built: Path, material: Path, build_of: Any, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(material / "sd", tmp_path / "other"))
    names = tmp_path / "names.txt"
    names.write_text("flower\ntemple\n")
    for change, words in (
        (f"data.vae={other}", "vae_latents_lmdb was made differently .vae: 'sd' there, 'other' here"),
        (f"data.text={other}", "clip_embeddings_1001.pt was made differently .text: 'sd' there, 'other' here"),
        (f"data.class_names={names}", "clip_embeddings_1001.pt was made differently .class_names_sha256"),
    ):
        with pytest.raises(UserError, match=words):
            build_of(built, change).track.open(None)
    root = copy_of(built, tmp_path)  # older caches do not say
    (root / "clip_embeddings_1001.json").unlink()
    file = root / "vae_latents_lmdb" / "manifest.json"
    file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != "vae"}))
    build_of(root, f"data.vae={other}", f"data.text={other}").track.open(None).close()


def test_a_teacher_of_the_same_name_with_other_weights_is_found(
    built: Path, material: Path, build_of: Any, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    root, other = copy_of(built, tmp_path), Path(shutil.copytree(material / "dino", tmp_path / "dino"))
    weights = load_file(other / "model.safetensors")
    weights["layernorm.bias"] += 1
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    build = build_of(root, f"teacher.model={other}")
    with pytest.raises(UserError, match="dino_tokens_lmdb was made with other weights of dino than"):
        build.run("verify")
    with pytest.raises(UserError, match="did not pass the stage `verify`"):
        build.track.open(build.teacher)
    build_of(root).run("verify")
    build.track.open(None).close()


def test_lost_records_are_found_by_their_number(built: Path, build_of: Any, tmp_path: Path) -> None:
    """In a store that also contains records of other tracks."""
    root = copy_of(built, tmp_path)
    file = root / "vae_latents_lmdb" / "manifest.json"
    build = build_of(root)
    for count in (TRAIN + VAL + 1, TRAIN + VAL - 1):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"count": count}))
        if count > TRAIN + VAL:
            with pytest.raises(UserError, match="vae_latents_lmdb holds 80 records, its manifest counts 81"):
                build.run("verify")
        else:
            build.run("verify")


@pytest.mark.slow
def test_moments_are_sampled_by_address(build_of: Any, tmp_path: Path) -> None:
    from urepa.core import random_draws

    root = tmp_path / "cache"
    build = build_of(root, "data.moments=true")
    for stage in ("manifest", "images", "latents"):
        build.run(stage)
    cache = build.track.open(None)
    samples = cache.splits["train"][:2]
    mean, std = torch.from_numpy(cache.latents.read([s.sample_id for s in samples])).unbind(1)
    assert torch.equal(cache.x0(samples), mean)
    drawn = [cache.x0(samples, [random_draws.generator(s, "posterior", 0, p) for p in range(2)]) for s in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    noise = torch.stack(
        [random_draws.normal((4, 8, 8), random_draws.generator(0, "posterior", 0, p)) for p in range(2)]
    )
    assert torch.allclose(drawn[0], mean + std * noise)
    cache.close()


def test_an_online_teacher_gives_the_tokens_that_a_cache_would(built: Path, build_of: Any) -> None:
    cached, online = build_of(built), build_of(built, "data.online_teacher=true")
    stored, asked = cached.track.open(cached.teacher), online.track.open(online.teacher)
    samples = stored.splits["train"][:5]
    ours, theirs = asked.teacher_BND(samples), stored.teacher_BND(samples)
    assert ours is not None
    assert theirs is not None
    assert torch.allclose(ours, theirs.float(), atol=2e-3)
    means = [cache.mean_token() for cache in (asked, stored)]
    assert torch.allclose(means[0], means[1], atol=2e-3)
    for cache in (stored, asked):
        cache.close()


@pytest.mark.slow
def test_a_track_for_an_online_teacher_has_no_tokens(
    build_of: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build_of(tmp_path / "cache", "data.online_teacher=true", "data.flip=true").run("all")
    assert {p.name for p in (tmp_path / "cache").glob("*_lmdb*")} == {"vae_latents_lmdb", "vae_latents_lmdb_flip"}
    said = capsys.readouterr().out
    assert f"{TRAIN + VAL} latents are whole" in said
    assert f"{TRAIN} mirrored latents are whole" in said


def test_staged_caches_are_checked_copies_that_are_made_once(built: Path, build_of: Any, tmp_path: Path) -> None:
    root = copy_of(built, tmp_path)
    build = build_of(root, f"data.stage_to={tmp_path / 'local'}")
    for _ in range(2):
        cache = build.track.open(build.teacher)
        assert cache.latents.folder.is_relative_to(tmp_path / "local")
        staged = cache.x0(cache.splits["train"][:3])
        cache.close()
        copies = {f: f.stat().st_mtime_ns for f in (tmp_path / "local").rglob("data.mdb")}
        assert len(copies) == 2
    own = build_of(root)
    cache = own.track.open(None)
    assert torch.equal(cache.x0(cache.splits["train"][:3]), staged)
    cache.close()
    again = build.track.open(build.teacher)
    again.close()
    assert {f: f.stat().st_mtime_ns for f in copies} == copies
    os.utime(root / "vae_latents_lmdb" / "data.mdb")  # a source that has changed is copied anew
    build.track.open(build.teacher).close()
    changed = [f for f in copies if f.stat().st_mtime_ns != copies[f]]
    assert [f.parent.name for f in changed] == ["vae_latents_lmdb"]
