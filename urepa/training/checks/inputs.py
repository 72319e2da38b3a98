"""Whether what a command is to read is there: paths and numbers of images that files' names and sizes tell, before
torch loads. What only their content tells is said where it is read."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from urepa.config.declared import declaration_of
from urepa.core.errors import UserError
from urepa.core.files import check_file_target, check_folder_target
from urepa.core.protocols import OneTeacher, Teacher
from urepa.data.sources.image_folder import class_places, readable
from urepa.data.tracks.classes import class_names, folder_of
from urepa.data.tracks.paths import (
    is_finished,
    lost_list_error,
    no_cache_error,
    no_list_error,
    remake_latents_text,
    remake_pixels_text,
    tokens_name,
    unfinished_error,
)
from urepa.data.tracks.pixel_sizes import check_channels
from urepa.data.tracks.split_sizes import (
    DIGITS,
    check_batch_size,
    check_shares,
    expected_latent_samples,
    expected_samples,
    refuse_other_classes,
)
from urepa.evaluation.classifier_file import NAME, refuse_other
from urepa.models.backbones.backbone_sizes import check_prompts
from urepa.runs.checkpoint_folders import no_checkpoint, steps
from urepa.runs.summary import FILE as SUMMARY
from urepa.training.checks.sizes import check_teacher, check_track


def check_run_inputs(config: dict[str, Any], folder: Path) -> None:
    """UserError if a run that starts in this folder lacks an input. Not checked for a run that resumes or is finished:
    its images, caches or warm start may be gone."""
    if config["resume"] is not None or steps(folder / "checkpoints") or (folder / SUMMARY).exists():
        return
    source = config["warm_start"]
    if source is not None and not steps(Path(source) / "checkpoints"):
        raise no_checkpoint(Path(source))
    data, trainer = config["data"], config["trainer"]
    if _is_small(data):
        check_small_track(data)
    else:
        check_large_track(data)
    check_image_count(data, trainer["batch_size"])
    if config["loss"].get("taps"):
        check_teachers_files(data, config["teacher"])
    if "prompts" in config["backbone"]:
        check_prompts(Path(config["backbone"]["prompts"]))


def check_plan_inputs(config: dict[str, Any]) -> None:
    """UserError if the images of a planned run cannot be counted, or are too few for a batch."""
    data = config["data"]
    if _is_small(data) or not all(path.exists() for path in _lists(data)):
        check_batch_size(config["trainer"]["batch_size"], _split_sizes(data)["train"])


def check_preprocess(config: dict[str, Any]) -> None:
    """UserError where caches cannot be made: of parts that do not fit, or images that are not there."""
    data, stage = config["data"], config["stage"]
    check_teacher(config["teacher"])
    check_track(data)
    if not Path(data["root"]).is_dir():
        check_folder_target("data.root", Path(data["root"]))
    if _is_small(data):
        if stage not in ("all", "verify", "digest") or config["shard"] != "0/1":
            raise UserError(f"data={data['name']} is built in one go: leave stage and shard out")
        check_small_track(data | {"build_on_first_use": True})
        check_teachers_files(data, config["teacher"])
    else:
        _check_stage(data, stage)


def check_classifier(config: dict[str, Any]) -> Path:
    """The file that a track's classifier goes to. UserError where it cannot be trained or written, or is there of other
    settings."""
    data = config["data"]
    if not _is_small(data):
        raise UserError(f"data={data['name']} is a latent track, read in parts; give a small one, as data=cifar10_12k")
    check_track(data)
    check_small_track(data | {"build_on_first_use": True})
    out = Path(data["root"]) / NAME if config["out"] is None else Path(config["out"])
    if not out.is_file() and (config["out"] is not None or out.parent.is_dir()):
        check_file_target("out", out)
    if out.is_file():
        asked: dict[str, Any] = {"epochs": config["epochs"], "seed": config["seed"], "image_size": data["image_size"]}
        if not is_finished(folder_of(data) / "latents"):  # else its caches count, and are asked
            asked |= {"train_images": _split_sizes(data)["train"]}
        refuse_other(out, asked)
    return out


def _is_small(data: dict[str, Any]) -> bool:
    return bool(data["_target_"].endswith(".PixelTrack"))


def check_teachers_files(data: dict[str, Any], teacher: dict[str, Any]) -> None:
    """UserError where a teacher is a file that is not there, and has yet to be asked for tokens."""
    declared: Teacher = declaration_of(teacher)
    for one in declared.members().values():
        if data["online_teacher"] or not _has_tokens(data, one):
            one.check_files()


def _has_tokens(data: dict[str, Any], teacher: OneTeacher) -> bool:
    """Are they kept? Of a large track they are there, or their lack was said."""
    if not _is_small(data):
        return True
    known = teacher.stored_as()
    name = tokens_name(known["model"], known["image_size"], teacher.grid, known.get("positions"))
    return is_finished(folder_of(data) / name)


# --- tracks that are built in one go --------------------------------------------------------------------------


def check_small_track(data: dict[str, Any]) -> None:
    """UserError where a small track's latents are not made yet, and may not be, or cannot from these images."""
    latents = folder_of(data) / "latents"
    if is_finished(latents):
        return
    if not data["build_on_first_use"]:
        raise no_cache_error(latents, remake_pixels_text(data["name"]))
    if not Path(data["root"]).is_dir():
        check_folder_target("data.root", Path(data["root"]))
    check_images(data["source"], data["images"])
    check_classes(data)


def check_images(source: str, images: str) -> None:
    """UserError where a source's files are not there."""
    if source == "folder":
        class_places(Path(images), readable())
    elif source in ("cifar_binary", "parquet"):
        from urepa.data.sources.image_sources import cifar_files, parquet_files

        looks = {"cifar_binary": cifar_files, "parquet": parquet_files}
        looks[source](images)


def check_classes(data: dict[str, Any]) -> None:
    """UserError where the images are of other classes or channels, or too few, as far as files' names tell: of a folder
    its classes, of the digits everything."""
    if data["source"] == "folder":
        classes = class_places(Path(data["images"]), readable())[0]
        refuse_other_classes(set(range(len(classes))), data["num_classes"])
    if data["source"] == "digits":
        refuse_other_classes(set(range(len(DIGITS))), data["num_classes"])
        check_shares([(number, 0) for number in DIGITS], _held_out_sizes(data), data["limit"])
        check_channels(data["channels"], 1)


def check_image_count(data: dict[str, Any], batch_size: int) -> None:
    """UserError if the images do not fill one batch; for tracks whose config states the number of images."""
    if _is_small(data) and (data["limit"] is not None or data["source"] == "digits"):
        check_batch_size(batch_size, _split_sizes(data)["train"])


def _held_out_sizes(data: dict[str, Any]) -> dict[str, int]:
    return {"val": data["validation_images"], "test": data["test_images"]}


def _split_sizes(data: dict[str, Any]) -> dict[str, int]:
    """The number of samples of each split, also if the caches do not exist yet."""
    if _is_small(data):
        return expected_samples(
            data["limit"], _held_out_sizes(data), partial(_count_source_images, data["source"], data["images"])
        )
    wanted = {"train": data["train_images"], "val": data["val_images"]}
    images = "imagenet" if data["class_names"] == "imagenet" else data["images"]
    return expected_latent_samples(wanted, partial(_count_source_images, data["source"], images))


def _count_source_images(source: str, images: str) -> dict[str, int]:
    from urepa.data.sources.image_sources import count_images  # with numpy and Pillow

    return count_images(source, images)


# --- tracks that are made in stages ---------------------------------------------------------------------------


def _lists(data: dict[str, Any]) -> list[Path]:
    return [Path(data["root"]) / data[split] for split in ("train", "val")]


def check_large_track(data: dict[str, Any]) -> None:
    """UserError where the lists or the latents of a large track are not there."""
    for path in (*_lists(data), *_latents_folders(data)):
        if not path.exists():
            raise no_cache_error(path, _remake_text(data))


def _latents_folders(data: dict[str, Any]) -> list[Path]:
    """The folder of the latents; empty if they are computed online."""
    return [] if data["online_latents"] else [Path(data["root"]) / data["latents"]]


def _remake_text(data: dict[str, Any]) -> str:
    keys = ("name", "images", "root", "flip", "online_teacher", "online_latents")
    return remake_latents_text(*(data[key] for key in keys))


def _check_stage(data: dict[str, Any], stage: str) -> None:
    """UserError where a stage of a large track lacks what it reads."""
    missing = [path for path in _lists(data) if not path.exists()]
    online = {"latents": data["online_latents"], "tokens": data["online_teacher"]}
    if stage in ("all", "manifest") and missing:
        check_images(data["source"], data["images"])
    elif stage in ("images", "latents", "tokens") and missing and not online.get(stage, False):
        raise no_list_error(missing[0])
    elif stage == "adopt" and missing:
        raise lost_list_error(missing[0], _remake_text(data))
    elif stage == "verify":
        check_large_track(data)
    elif stage == "digest":
        for store in _latents_folders(data):
            if not is_finished(store):
                raise unfinished_error(store, _remake_text(data))
    elif stage == "prompts" and data["class_names"] is not None and not (Path(data["root"]) / data["prompts"]).exists():
        class_names(data["class_names"])
