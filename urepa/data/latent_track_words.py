"""What a track of latents writes of itself in `describe`, without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from urepa.core.descriptions import number, shape
from urepa.data.stages.vae_config import DC, known_config, known_scaling
from urepa.data.track_defaults import ONE_BUCKET_A_BATCH

if TYPE_CHECKING:
    from urepa.data.tracks.latent_track import LatentTrack


def describe_latents(track: LatentTrack, images: str) -> str:
    """Images, classes and x0, as `urepa.core.track_protocols.Track.description`."""
    posterior = "a sample of its posterior, drawn at every update" if track.moments else "its posterior's mode"
    config, scaling = known_config(track.vae), known_scaling(track.vae)
    if config is not None and config.get("_class_name") == DC:  # moments are refused for it
        posterior = "which have no posterior"
    scaled = "shifted and scaled as its config says" if scaling is None else scaling.words
    when = "at every update during training" if track.online_latents else "once"
    text = "" if track.text is None else f", and the classes' prompts by the text encoder of {track.text}"
    made = f"encoded {when} by the VAE of {track.vae} to latents of {' or '.join(map(shape, track.latent_shapes))}"
    order = f" {ONE_BUCKET_A_BATCH}" if len(track.sizes) > 1 else ""
    return (
        f"{track.name} (source {track.source}): {images}, in {number(track.num_classes)} classes. "
        f"{_cut(track)} are {made} ({posterior}, {scaled}){text}.{track.describe_teacher_view()}{order} "
        f"{track.describe_draws()}"
    )


def _cut(track: LatentTrack) -> str:
    """The part of each image that is encoded, as the plural subject of a sentence."""
    if track.buckets is None:
        return f"Central squares at {track.image_size}×{track.image_size} pixels"
    named = " or ".join(map(shape, track.sizes.values()))
    return f"Largest central rectangles of the nearest aspect ratio, resized once to {named} pixels,"
