"""Keys of tokens: sample ids in new stores; stores of earlier versions, whose keys end in "_mid", contain the same
data."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import lmdb
import pytest
import torch
from earlier import with_mid_in_keys

from urepa.core.errors import UserError
from urepa.data.cache import mirrored_folder
from urepa.data.stages import verify
from urepa.data.stores.lmdb_store import Part

TOKENS = "dino_tokens_lmdb"
FORMS = ("", "_mid")


def keys_on_disk(store: Path) -> set[str]:
    """The keys as LMDB stores them."""
    found: set[str] = set()
    for data in store.rglob("data.mdb"):
        with lmdb.open(str(data.parent), readonly=True, lock=False) as env, env.begin() as txn:
            found |= {key.decode() for key in txn.cursor().iternext(values=False) if not key.startswith(b"__")}
    return found


def dies_after(build: Any, batches: int) -> None:
    """Makes the teacher's next batches and then kills the process."""
    tokens, asked = build.teacher.tokens, []

    def dying(images: torch.Tensor) -> Any:
        asked.append(len(images))
        if len(asked) > batches:
            raise KeyboardInterrupt
        return tokens(images)

    build.teacher.tokens = dying


def opened(build: Any) -> tuple[dict[str, str], torch.Tensor, list[str]]:
    """The identity of the data, some tokens with their mirror images, and all ids."""
    cache = build.track.open(build.teacher)
    train = cache.splits["train"]
    chosen = [*train[:5], *(train.as_mirrored()[2:6] if cache.flips else [])]
    found = cache.content(), cache.teacher_BND(chosen), [i for rows in cache.splits.values() for i in rows.ids()]
    cache.close()
    return found


def test_new_stores_have_sample_ids_as_keys(built_with_flips: Path, build_of: Any) -> None:
    _, _, ids = opened(build_of(built_with_flips, "data.flip=true"))
    assert keys_on_disk(built_with_flips / TOKENS) == set(ids) == keys_on_disk(built_with_flips / "vae_latents_lmdb")
    train = {i for i in ids if i.startswith("train")}
    assert keys_on_disk(mirrored_folder(built_with_flips / TOKENS)) == train
    for store in (built_with_flips / TOKENS, mirrored_folder(built_with_flips / TOKENS)):
        assert json.loads((store / "manifest.json").read_text())["key_suffix"] == ""


@pytest.mark.slow
@pytest.mark.parametrize("which", [("",), ("_flip",), ("", "_flip")])
def test_stores_of_earlier_versions_are_the_same_data(
    built_with_flips: Path, build_of: Any, tmp_path: Path, which: tuple[str, ...]
) -> None:
    """Also if one of the two is new; opening existing data makes nothing."""
    root = Path(shutil.copytree(built_with_flips, tmp_path / "cache"))
    for flip in which:
        with_mid_in_keys(root / f"{TOKENS}{flip}")
        assert all(key.endswith("_mid") for key in keys_on_disk(root / f"{TOKENS}{flip}"))
    build, new = build_of(root, "data.flip=true"), opened(build_of(built_with_flips, "data.flip=true"))
    content, tokens, ids = opened(build)
    assert (content, ids) == (new[0], new[2])
    assert torch.equal(tokens, new[1])
    before = {p: p.read_bytes() for p in root.glob(f"{TOKENS}*/*.mdb") if p.name == "data.mdb"}
    for stage in ("tokens", "verify", "digest", "verify"):
        build.run(stage)
    assert {p: p.read_bytes() for p in before} == before
    assert opened(build)[0] == content


def test_verify_finds_a_changed_record_of_an_earlier_version(built: Path, build_of: Any, tmp_path: Path) -> None:
    root = Path(shutil.copytree(built, tmp_path / "cache"))
    with_mid_in_keys(root / TOKENS)
    with lmdb.open(str(root / TOKENS), map_size=2**30) as env, env.begin(write=True) as txn:
        value = bytearray(txn.get(b"train_china_0003_mid"))
        value[0] ^= 1
        txn.put(b"train_china_0003_mid", bytes(value))
    with pytest.raises(UserError, match="record 'train_china_0003' has changed"):
        build_of(root).run("verify")


@pytest.mark.slow
@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("suffix", FORMS)
def test_a_half_built_store_continues_with_its_own_keys(
    built: Path, build_of: Any, tmp_path: Path, suffix: str, parts: int
) -> None:
    root = Path(shutil.copytree(built, tmp_path / "cache"))
    shutil.rmtree(root / TOKENS)
    of_part = [Part(i, parts) for i in range(parts)]
    for part in of_part:
        build_of(root, part=part).run("images")
    killed = build_of(root, part=of_part[0])
    dies_after(killed, 1)
    with pytest.raises(KeyboardInterrupt):
        killed.run("tokens")
    if suffix:
        with_mid_in_keys(root / TOKENS)
    half = keys_on_disk(root / TOKENS)
    assert half
    for part in of_part:
        build_of(root, part=part).run("tokens")
    build = build_of(root)
    content, tokens, ids = opened(build)
    assert keys_on_disk(root / TOKENS) == {f"{i}{suffix}" for i in ids} > half
    assert (content, ids) == (opened(build_of(built))[0], opened(build_of(built))[2])
    assert torch.equal(tokens, opened(build_of(built))[1])
    assert json.loads((root / TOKENS / "manifest.json").read_text()).get("key_suffix") == (None if suffix else "")
    build.run("verify")


@pytest.mark.parametrize("suffix", FORMS)
def test_a_small_tracks_half_built_store_continues_too(make_track: Any, teacher: Any, suffix: str) -> None:
    """The batches before the kill are not made again, and mirror images may be added later."""
    track, seen = make_track(), []

    class Watched(type(teacher)):  # type: ignore[misc]
        def tokens(self, images: Any) -> Any:
            seen.append(len(images))
            if len(seen) == dies:
                raise KeyboardInterrupt
            return super().tokens(images)

    dies = 1
    with pytest.raises(KeyboardInterrupt):
        track.open(Watched())
    (folder,) = track.tokens_folders(teacher).values()
    dies = 0
    cache = track.open(Watched())
    cache.close()
    if suffix:
        with_mid_in_keys(folder)
    (folder / "manifest.json").unlink()
    with lmdb.open(str(folder), map_size=2**30) as env, env.begin(write=True) as txn:
        for key in list(txn.cursor().iternext(values=False))[-5:]:
            txn.delete(key)
    (folder / "lock.mdb").unlink()
    seen.clear()
    flipped = make_track(flip=True)
    cache = flipped.open(Watched())
    ids = {i for rows in cache.splits.values() for i in rows.ids()}
    assert sum(seen) == 5 + len(cache.splits["train"])
    assert keys_on_disk(folder) == {f"{i}{suffix}" for i in ids}
    assert keys_on_disk(mirrored_folder(folder)) == set(cache.splits["train"].ids())
    verify.verify("this", cache)
    cache.close()


@pytest.mark.slow
def test_a_sample_id_may_end_in_mid(material: Path, build_of: Any, tmp_path: Path) -> None:
    photos = Path(shutil.copytree(material / "photos", tmp_path / "photos"))
    shutil.copy(photos / "train/china/0004.png", photos / "train/china/0003_mid.png")
    build = build_of(tmp_path / "cache", f"data.images={photos}", "data.train_images=null")
    for stage in ("manifest", "images", "latents", "tokens"):
        build.run(stage)
    cache = build.track.open(build.teacher)
    of = {s.sample_id: s for s in cache.splits["train"]}
    one, same, other = (of[f"train_china_{name}"] for name in ("0003_mid", "0004", "0003"))
    assert torch.equal(cache.teacher_BND([one]), cache.teacher_BND([same]))
    assert torch.equal(cache.x0([one]), cache.x0([same]))
    assert not torch.equal(cache.teacher_BND([one]), cache.teacher_BND([other]))
    cache.close()
