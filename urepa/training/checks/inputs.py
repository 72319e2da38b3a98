"""Checks whether a command's inputs exist, from file names and sizes, before torch is loaded. Checks of the files'
contents are made where they are read."""

from __future__ import annotations

import pickle
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from urepa.config.command_schemas import BESIDE
from urepa.config.declared import declaration_of
from urepa.core.backbone_protocols import Backbone
from urepa.core.errors import UserError, in_bucket
from urepa.core.evaluation_protocols import ImageCounts
from urepa.core.files import check_file_target, check_folder_target
from urepa.core.protocols import Teacher
from urepa.core.track_protocols import Track
from urepa.data.lists.paths import no_cache_error
from urepa.data.lists.split_sizes import check_batch_size
from urepa.data.tracks.latent_track import LatentTrack
from urepa.evaluation import classifier_file
from urepa.evaluation.image_counts import cache_counts, image_counts
from urepa.models.teachers import own_mae_sizes
from urepa.runs.checkpoint_folders import no_checkpoint, steps
from urepa.runs.summary import FILE as SUMMARY
from urepa.training.checks.sizes import check_teacher

if TYPE_CHECKING:
    from urepa.data.bucketed_cache import Caches


def check_run_inputs(config: dict[str, Any], folder: Path) -> None:
    """Raises UserError if a run that starts in this folder lacks an input. A run that resumes or is finished is not
    checked: its images, caches or warm start may have been removed."""
    if not has_begun(config, folder):
        check_images(config)
        check_files(config)


def has_begun(config: dict[str, Any], folder: Path) -> bool:
    """Whether the run in this folder resumes or is finished."""
    return config["resume"] is not None or bool(steps(folder / "checkpoints")) or (folder / SUMMARY).exists()


def check_files(config: dict[str, Any]) -> None:
    """Raises UserError if a new run lacks a checkpoint or weights."""
    source = config["warm_start"]["checkpoint"]
    if source is not None and not Path(source).is_file() and not steps(Path(source) / "checkpoints"):
        raise no_checkpoint(Path(source))
    if declaration_of(config["loss"]).taps:
        check_teachers_files(declaration_of(config["data"]), config["teacher"])
    backbone: Backbone = declaration_of(config["backbone"])
    backbone.check_files()
    check_evaluation_inputs(config)


def check_evaluation_inputs(config: dict[str, Any]) -> None:
    """Raises UserError if an input of an evaluation other than the run's own images is missing or does not fit."""
    for name, settings in config["evaluation"].items():
        evaluation = declaration_of(settings)
        if hasattr(evaluation, "check_run"):
            evaluation.check_run(config, f"evaluation.{name}.")


def check_images(config: dict[str, Any]) -> None:
    """Raises UserError if a new run lacks images or caches, or has too few for its batches or evaluations. Images are
    counted, which takes seconds for ten thousands of them."""
    track: Track = declaration_of(config["data"])
    track.check_inputs(config["trainer"]["batch_size"])
    samples = None if track.has_latents() else track.expected_samples()
    if samples is not None:  # otherwise it is checked with the caches, before step 0
        check_evaluations(config["evaluation"], image_counts(samples, config["data"]["num_classes"]))


def images_of(config: dict[str, Any]) -> bytes:
    """What `check_images` reads of a config: with equal ones it has the same result."""
    return pickle.dumps([config["data"], config["evaluation"], config["trainer"]["batch_size"]])


def check_evaluations(evaluations: dict[str, Any], there: ImageCounts) -> None:
    """Raises one UserError for all evaluations of a config that need more images than there are."""
    told = []
    for name, settings in evaluations.items():
        evaluation = declaration_of(settings)
        try:
            if hasattr(evaluation, "check_images"):
                evaluation.check_images(there, f"evaluation.{name}.")
        except UserError as error:
            told.append(f"evaluation.{name}: {error}")
    if told:
        raise UserError("; ".join(told))


def check_opened_images(evaluations: dict[str, Any], cache: Caches) -> None:
    """The same for the images of each bucket of opened caches, and for the caches that evaluations open."""
    for bucket in cache.buckets:
        with in_bucket(bucket.bucket):
            check_evaluations(evaluations, cache_counts(bucket))
    for name, settings in evaluations.items():
        evaluation = declaration_of(settings)
        if hasattr(evaluation, "check_opened"):
            evaluation.check_opened(cache, f"evaluation.{name}.")


def check_plan_inputs(config: dict[str, Any]) -> None:
    """Raises UserError if the images of a planned run cannot be counted, or are too few for a batch."""
    track: Track = declaration_of(config["data"])
    samples = track.expected_samples()
    if samples is not None:
        check_batch_size(config["trainer"]["batch_size"], samples["train"])


def check_preprocess(config: dict[str, Any]) -> None:
    """Raises UserError if caches cannot be made because parts do not fit or images are missing."""
    check_teacher(config["teacher"])
    track: Track = declaration_of(config["data"])
    track.check()
    if not Path(track.root).is_dir():
        check_folder_target("data.root", Path(track.root))
    check_keys_of_stage(config)
    track.check_stage(config["stage"], config["shard"])
    if config["stage"] in BESIDE:
        check_beside(config, track)
        return
    if track.stages() is None:
        check_teachers_files(track, config["teacher"])


def check_keys_of_stage(config: dict[str, Any]) -> None:
    """Raises UserError if a key of other stages is given to a stage of `preprocess`, or one of its own is missing."""
    stage, judges = config["stage"], ("diagnose", "repair")
    takes = {"webdataset": ("read_shards", "write_shards", *judges), "compared_with": judges}
    takes["shard_size"] = ("write_shards", "repair") if config["webdataset"] is not None else ("write_shards",)
    for key, stages in takes.items():
        if config[key] is not None and stage not in stages:
            raise UserError(
                f"{key}={config[key]} has no effect with stage={stage}; it is for {', '.join(stages)}: drop it"
            )
    if stage in ("read_shards", "write_shards") and config["webdataset"] is None:
        raise UserError(f"stage={stage} needs the folder of the shards: webdataset=FOLDER")


def check_beside(config: dict[str, Any], track: Track) -> None:
    """Raises UserError if a stage beside those that make caches cannot be done, as far as file names show."""
    stage = config["stage"]
    if not isinstance(track, LatentTrack):
        raise UserError(f"stage={stage} is for latent tracks; data={track.name} is none: leave it out")
    if config["shard"] != "0/1":
        raise UserError(f"stage={stage} takes the whole track: leave shard out")
    if stage == "write_shards":
        check_folder_target("webdataset", Path(config["webdataset"]))
    reads_lists = stage in ("write_shards", "statistics") or config["webdataset"] is None
    missing = [path for path in track.lists.values() if reads_lists and not path.exists()]
    if missing:
        raise no_cache_error(missing[0], track.remake)


def check_classifier(config: dict[str, Any]) -> Path:
    """The output file of a track's classifier. Raises UserError if the classifier cannot be trained or written, or if
    the file exists with other settings."""
    track, out = _trained_file(config, classifier_file.NAME)
    if out.is_file():
        asked = {"epochs": config["epochs"], "seed": config["seed"], "image_size": config["data"]["image_size"]}
        classifier_file.refuse_other(out, asked | _known_images(track))
    return out


def check_encoder(config: dict[str, Any]) -> tuple[Path, own_mae_sizes.EncoderSettings]:
    """The output file of a track's encoder, and what is trained. Raises UserError as `check_classifier`."""
    track, out = _trained_file(config, own_mae_sizes.NAME)
    if len(track.bucket_names) > 1:
        raise UserError("data.buckets: the encoder is trained on squares of one size; leave data.buckets out")
    own = {key: config[key] for key in ("width", "depth", "mask_ratio", "learning_rate", "epochs", "seed")}
    settings = own_mae_sizes.EncoderSettings(config["data"]["image_size"], config["patch_size"], **own)
    settings.check()
    if out.is_file():
        own_mae_sizes.refuse_other(out, asdict(settings) | _known_images(track))
    return out, settings


def _trained_file(config: dict[str, Any], name: str) -> tuple[Track, Path]:
    """A small track and the file of a network that is trained on its images. Raises UserError if there are no images or
    the file cannot be written."""
    track: Track = declaration_of(config["data"])
    if track.stages() is not None:
        raise UserError(f"data={track.name} is a latent track, read in parts; give a small one, as data=cifar10_12k")
    track.check()
    track.check_makeable()
    out = Path(track.root) / name if config["out"] is None else Path(config["out"])
    if not out.is_file() and (config["out"] is not None or out.parent.is_dir()):
        check_file_target("out", out)
    return track, out


def _known_images(track: Track) -> dict[str, int]:
    """The number of training images, if it is known without the caches, which give it otherwise."""
    samples = None if track.has_latents() else track.expected_samples()
    return {} if samples is None else {"train_images": samples["train"]}


def check_teachers_files(track: Track, teacher: dict[str, Any]) -> None:
    """Raises UserError if a teacher's file is missing and its tokens are still needed."""
    declared: Teacher = declaration_of(teacher)
    for one in declared.members().values():
        if track.online_teacher or not track.has_tokens(one):
            one.check_files()
