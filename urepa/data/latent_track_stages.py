"""Checks whether a stage of `urepa.preprocess` can be run on a track of latents, without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from urepa.core.errors import UserError
from urepa.data.lists.bucket_shapes import BUCKETS
from urepa.data.lists.classes import class_names
from urepa.data.lists.paths import is_finished, lost_list_error, no_list_error, unfinished_error
from urepa.data.sources.source_files import check_images
from urepa.data.track_image_tokens import NO_IMAGE_TOKENS

if TYPE_CHECKING:
    from urepa.data.tracks.latent_track import LatentTrack

OF_IMAGES = ("images", "latents", "tokens", "image_tokens")  # stages that need the lists


def check_latent_stage(track: LatentTrack, stage: str) -> None:
    """Raises UserError if a stage's inputs are missing, or if the stage has no effect."""
    if stage == "text" and track.text_encoder is None:
        raise UserError(f"data={track.name} has no captions, so there is nothing to encode; leave that stage out")
    if stage == "image_tokens" and track.image_encoder is None:
        raise UserError(NO_IMAGE_TOKENS.format(name=track.name))
    if stage == "adopt" and (track.buckets is not None or track.captions is not None):
        raise UserError("stage=adopt takes in squares with classes; leave data.buckets and data.captions out")
    if stage in ("all", "text"):
        track.check_text_files()
    missing = [path for path in track.lists.values() if not path.exists()]
    online = {"latents": track.online_latents, "tokens": track.online_teacher}
    if stage in ("all", "manifest") and missing:
        check_images(str(track.source), track.images, by_class=track.by_class)
    elif stage in ("images", "latents", "tokens", "image_tokens", "text") and missing and not online.get(stage, False):
        raise no_list_error(missing[0])
    elif stage in ("images", "latents", "tokens", "image_tokens") and not track.has_bucket_lists():
        raise no_list_error(track.folder / BUCKETS)
    elif stage == "adopt" and missing:
        raise lost_list_error(missing[0], track.remake)
    elif stage == "verify":
        track.check_inputs(1)
    elif stage == "digest":
        for store in (*track.latents_folders(), *track.text_folders):
            if not is_finished(store):
                raise unfinished_error(store, track.remake)
    elif stage == "prompts" and track.class_names is not None and not (track.folder / track.prompts).exists():
        class_names(track.class_names)
