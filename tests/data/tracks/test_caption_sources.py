"""Tracks over the same captioned photographs from a folder, parquet files, tar shards and a hub: equal records with
their images, and changes of files and columns."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from captioned import captioned_track, clip_at, write_captioned
from captioned_sources import members_of, rows_of, serve_hub, write_parquet, write_tar
from PIL import Image

from urepa.core.errors import UserError
from urepa.data.cache import SPLITS
from urepa.data.sources.caption_files import read_captions
from urepa.data.sources.image_sources import SOURCES
from urepa.data.stores.record_reading import Store

TEXTS = ("parquet", "webdataset")
# what a track over a hub's data set has, printed by a process that asks the real client
ASK_HUB = """
import json, sys
sys.path[:0] = json.loads(sys.argv[1])
from pathlib import Path
from captioned import captioned_track, clip_at
from test_caption_sources import contents_of
place = Path(sys.argv[2])
settings = captioned_track(Path("owner/captioned"), place / "root", clip_at(place), source="hub")
print(json.dumps(contents_of(settings)))
"""


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keeps the caches that `datasets` makes of parquet files in the test's own folder."""
    import datasets

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("hf"))
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same data in PLACE/folder, PLACE/parquet and PLACE/webdataset, in two files each."""
    root = tmp_path_factory.mktemp("sources")
    rows = rows_of(write_captioned(root / "folder"))
    clip_at(root)
    for i, part in enumerate((rows[:10], rows[10:])):
        write_parquet(root / "parquet" / f"train-{i:05d}.parquet", part)
        write_tar(root / "webdataset" / f"{i:05d}.tar", members_of(part))
    return root


def settings_of(place: Path, root: Path, source: str, **changes: Any) -> Any:
    return captioned_track(place / source, root, clip_at(place), source=source, **changes)


def contents_of(settings: Any) -> dict[str, Any]:
    """The content of the track's caches: the number of samples of each split, each image's latent and class with its
    captions, and the records of the captions."""
    cache = settings.build().open(None)
    written = {
        row["id"]: row["captions"]
        for row in map(json.loads, (settings.folder / "captions.jsonl").open(encoding="utf-8"))
    }
    images = []
    for split in SPLITS:
        for sample, x0 in zip(cache.splits[split], cache.x0(cache.splits[split]).numpy(), strict=True):
            assert tuple(written[sample.sample_id]) == cache.conditions.captions[sample.sample_id]
            images.append([x0.tobytes().hex(), sample.class_id, written[sample.sample_id]])
    keys = sorted(cache.text.keys())
    records = {key: cache.text.tensor([key]).numpy().tobytes().hex() for key in keys}
    counts = {split: len(cache.splits[split]) for split in SPLITS}
    cache.close()
    return {"counts": counts, "images": sorted(images), "records": records}


@pytest.fixture(scope="module")
def expected(place: Path) -> dict[str, Any]:
    """The content for the folder, whose captions are those of its text files, compared by each image's own pixels."""
    found = contents_of(settings_of(place, place / "root", "folder"))
    assert found["counts"] == {"train": 16, "val": 4, "test": 4}
    assert Counter(json.dumps([c, texts]) for _, c, texts in found["images"]) == Counter(
        json.dumps([class_id, texts]) for _, _, texts, class_id in rows_of(place / "folder")
    )
    return found


@pytest.mark.parametrize("source", TEXTS)
def test_each_source_gives_the_folders_records(
    place: Path, tmp_path: Path, expected: dict[str, Any], source: str
) -> None:
    settings = settings_of(place, tmp_path, source)
    assert contents_of(settings) == expected
    settings.check_inputs(4)
    assert settings.build().source_changes() is None


@pytest.mark.slow
def test_a_data_set_of_the_hub_gives_the_same_records(place: Path, tmp_path: Path, expected: dict[str, Any]) -> None:
    """With the real client and a local server."""
    files = {file.name: file for file in (place / "parquet").iterdir()}
    paths = json.dumps([str(Path(__file__).parent), str(Path(__file__).parents[2])])
    shutil.copytree(place / "clip", tmp_path / "clip")
    with serve_hub(files) as address:
        known = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
        known |= {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "hf")}
        command = [sys.executable, "-c", ASK_HUB, paths, str(tmp_path)]
        done = subprocess.run(command, env=known, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == expected


@pytest.mark.parametrize("source", TEXTS)
def test_without_labels_there_is_one_class(place: Path, tmp_path: Path, source: str) -> None:
    rows = rows_of(place / "folder")
    write_parquet(tmp_path / "parquet" / "train.parquet", rows, labels=False)
    write_tar(tmp_path / "webdataset" / "0.tar", members_of(rows, labels=False, as_json=True))
    shutil.copytree(place / "clip", tmp_path / "clip")
    with pytest.raises(UserError, match="the images have 1 classes; data.num_classes=2: give 1 for these"):
        settings_of(tmp_path, tmp_path / "root", source).build().open(None)
    settings = settings_of(tmp_path, tmp_path / "root", source, num_classes=1)
    assert settings.count_classes() == 1
    assert {class_id for _, class_id, _ in contents_of(settings)["images"]} == {0}


def rewrite(place: Path, source: str) -> str:
    """Changes the caption of the last image and returns the name of its file."""
    rows = rows_of(place / "folder")[10:]
    rows[-1] = (*rows[-1][:2], ["something else"], rows[-1][3])
    if source == "parquet":
        return write_parquet(place / source / "train-00001.parquet", rows).name
    return write_tar(place / source / "00001.tar", members_of(rows)).name


@pytest.mark.parametrize("source", TEXTS)
def test_files_that_have_changed_are_not_built_from_again(place: Path, tmp_path: Path, source: str) -> None:
    for name in ("folder", source, "clip"):
        shutil.copytree(place / name, tmp_path / name)
    settings = settings_of(tmp_path, tmp_path / "root", source)
    settings.build().open(None).close()
    for file in (tmp_path / source).iterdir():
        os.utime(file)  # a copy has its own times
    assert settings.build().source_changes() is None
    name = rewrite(tmp_path, source)
    assert settings.build().source_changes() == f"1 rewritten ({name})"
    shutil.rmtree(next(settings.folder.glob("text_*")))  # there is something to build
    with pytest.raises(UserError, match=f"is not what the caches in .* were made from .1 rewritten .{name}"):
        settings.build().open(None)
    shutil.rmtree(tmp_path / source)
    settings.build().open(None).close()  # what was written down is enough


@pytest.mark.slow
def test_a_killed_build_is_continued_only_with_the_same_captions(place: Path, tmp_path: Path) -> None:
    """Captions of an earlier content of the shard do not stay, whether they were written down or not."""
    for name in ("folder", "webdataset", "clip"):
        shutil.copytree(place / name, tmp_path / name)
    settings = settings_of(tmp_path, tmp_path / "root", "webdataset")
    settings.build().open(None).close()
    (settings.folder / "latents" / "manifest.json").unlink()
    rewrite(tmp_path, "webdataset")
    assert ["something else"] in [texts for _, _, texts in contents_of(settings)["images"]]


def test_captions_of_another_column_are_kept_apart(place: Path, tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow.parquet import write_table

    rows = rows_of(place / "folder")
    columns = {"image": [image for _, image, _, _ in rows], "label": [c for _, _, _, c in rows]}
    columns |= {"short": [f"s{c}" for _, _, _, c in rows], "long": [f"long {c}" for _, _, _, c in rows]}
    (tmp_path / "parquet").mkdir()
    write_table(pa.table(columns), tmp_path / "parquet" / "train.parquet")
    shutil.copytree(place / "clip", tmp_path / "clip")
    with pytest.raises(UserError, match=r"has none of text, caption, captions; name the"):
        settings_of(tmp_path, tmp_path / "root", "parquet").build().open(None)
    assert not (tmp_path / "root").exists()
    for column, first in (("short", "s"), ("long", "long "), ("short", "s")):
        track = settings_of(tmp_path, tmp_path / "root", "parquet", caption_column=column).build()
        cache = track.open(None)
        assert set(cache.conditions.captions.values()) == {(f"{first}0",), (f"{first}1",)}
        assert cache.text.folder == track.text.folder
        cache.close()
    assert len(list(track.folder.glob("text_*"))) == len(list(track.folder.glob("captions*.jsonl"))) == 2
    assert len(list(track.folder.glob("latents*"))) == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"caption_column": "text", "source": "folder"}, "data.caption_column has no effect without"),
        (
            {"caption_column": "text", "captions": None, "text_encoder": None},
            "data.caption_column has no effect without",
        ),
        (
            {"captions": "classes"},
            "data.captions=classes needs the names of a folder's classes; data.source=parquet has",
        ),
        ({"source": "cifar_binary"}, "data.captions needs data.source=folder or parquet or webdataset or hub; drop it"),
    ],
)
def test_settings_that_do_not_fit_the_source(place: Path, tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    settings = captioned_track(place / "parquet", tmp_path, clip_at(place), **({"source": "parquet"} | changes))
    with pytest.raises(UserError, match=said):
        settings.check()


@pytest.mark.slow
@pytest.mark.parametrize("source", TEXTS)
def test_images_of_several_shapes_go_to_buckets(place: Path, tmp_path: Path, source: str) -> None:
    shutil.copytree(place / "folder", tmp_path / "folder")
    shutil.copytree(place / "clip", tmp_path / "clip")
    for file in sorted((tmp_path / "folder").rglob("*.png"))[::2]:
        Image.open(file).resize((12, 6)).save(file)
    rows = rows_of(tmp_path / "folder")
    write_parquet(tmp_path / "parquet" / "train.parquet", rows)
    write_tar(tmp_path / "webdataset" / "0.tar", members_of(rows))
    found = {}
    for name in ("folder", source):
        settings = settings_of(tmp_path, tmp_path / "root", name, buckets=[[8, 8], [4, 8]], validation_images=6)
        settings.build().open(None).close()
        known = json.loads((settings.folder / "buckets.json").read_text())
        found[name] = {bucket: sum(counts.values()) for bucket, counts in known.items()}
    assert found[source] == found["folder"] == {"8x8": 12, "4x8": 12}


def test_the_text_store_has_no_more_than_the_captions(expected: dict[str, Any], place: Path) -> None:
    folder = next(settings_of(place, place / "root", "folder").folder.glob("text_*"))
    store = Store(folder)
    assert store.count() == len(expected["records"])
    store.close()


@pytest.mark.slow
@pytest.mark.parametrize("source", TEXTS)
def test_latents_are_listed_with_captions_and_buckets(
    bucket_build: Callable[..., Any], flat_images: Path, tmp_path: Path, source: str
) -> None:
    """The stages up to the rectangles: each bucket has as many samples as with the folder, and each image its
    captions."""
    rows = []
    for row in SOURCES["folder"](str(flat_images)):
        file = flat_images / row.path
        rows.append((file.stem, file.read_bytes(), read_captions(flat_images, [row])[row.name], 0))
    if source == "parquet":
        write_parquet(tmp_path / source / "train.parquet", rows, labels=False)
    else:
        write_tar(tmp_path / source / "0.tar", members_of(rows, labels=False))
    counts, found = {}, {}
    for name, images, more in (("folder", flat_images, []), (source, tmp_path / source, [f"data.source={source}"])):
        build = bucket_build(tmp_path / f"{name}-latents", *more, images=images)
        build.run("manifest")
        build.run("images")
        folder = tmp_path / f"{name}-latents"
        (known,) = json.loads((folder / "buckets.json").read_text()).values()
        counts[name] = {bucket: sum(own.values()) for bucket, own in known.items()}
        written = map(json.loads, (folder / "captions.jsonl").read_text().splitlines())
        found[name] = sorted(row["captions"] for row in written)
        assert {path.parent.parent.parent.name for path in folder.rglob("*.zip")} == known.keys()
    assert counts[source] == counts["folder"]
    assert found[source] == found["folder"] == sorted(captions for _, _, captions, _ in rows)
