"""The contents of a VAE's config.json: its class, and the constants that convert its latents z to a track's x0.

Without torch, as `describe` uses it too. Shapes: B images, C latent channels, H and W rows and columns of a latent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from urepa.core.errors import UserError
from urepa.core.files import read_json
from urepa.core.hub_names import is_hub_id, resolve

if TYPE_CHECKING:
    from torch import Tensor

KL, DC = "AutoencoderKL", "AutoencoderDC"
CLASSES = (KL, DC)  # diffusers' classes; AutoencoderDC has no posterior
# the values for VAEs and manifests without these entries
NEUTRAL: dict[str, Any] = {"shift_factor": 0.0, "latents_mean": None, "latents_std": None}


@dataclass(frozen=True)
class LatentScaling:
    """x0 = (z − shift)·scale, or (z − mean)·scale/std with one mean and std per channel: as in diffusers'
    pipeline_stable_diffusion_3_img2img.py and pipeline_stable_diffusion_xl_img2img.py, in the same order of
    operations."""

    scaling_factor: float
    shift_factor: float = 0.0
    latents_mean: tuple[float, ...] | None = None
    latents_std: tuple[float, ...] | None = None

    @classmethod
    def of(cls, config: Mapping[str, Any], name: str) -> LatentScaling:
        """The scaling in a VAE's config. Raises UserError if only one of latents_mean and latents_std is there, if they
        have another number of channels than the latents, or if there is a shift as well."""
        scale, given = float(config["scaling_factor"]), config.get("shift_factor")
        shift = 0.0 if given is None else float(given)
        mean: Any = config.get("latents_mean")
        std: Any = config.get("latents_std")
        if mean is None and std is None:
            return cls(scale, shift)
        fault = _fault(shift, mean, std, config.get("latent_channels"))
        if fault is not None:
            raise UserError(f"the config.json of data.vae={name} {fault}; correct it in a local copy, data.vae=FOLDER")
        return cls(scale, shift, tuple(map(float, mean)), tuple(map(float, std)))

    def to_x0(self, z: Tensor) -> Tensor:
        """The VAE's latents [B,C,H,W], such as a posterior's mean or mode, to x0."""
        if self.latents_mean is not None:
            return (z - _per_channel(z, self.latents_mean)) * self.scaling_factor / self._std(z)
        return (z - self.shift_factor) * self.scaling_factor if self.shift_factor else z * self.scaling_factor

    def to_z(self, x0: Tensor) -> Tensor:
        """x0 [B,C,H,W] to the latents that the VAE decodes."""
        if self.latents_mean is not None:
            return x0 * self._std(x0) / self.scaling_factor + _per_channel(x0, self.latents_mean)
        z = x0 / self.scaling_factor
        return z + self.shift_factor if self.shift_factor else z

    def std_to_x0(self, std_BCHW: Tensor) -> Tensor:
        """A posterior's standard deviation in the scale of x0; a shift does not change it."""
        x0_std = std_BCHW * self.scaling_factor
        return x0_std if self.latents_std is None else x0_std / self._std(std_BCHW)

    def _std(self, like: Tensor) -> Tensor:
        assert self.latents_std is not None
        return _per_channel(like, self.latents_std)

    def facts(self) -> dict[str, Any]:
        """The entries of a manifest. Neutral values are left out, so that manifests of VAEs without them equal those of
        earlier versions."""
        values: dict[str, Any] = {"shift_factor": self.shift_factor}
        if self.latents_mean is not None and self.latents_std is not None:
            values |= {"latents_mean": list(self.latents_mean), "latents_std": list(self.latents_std)}
        return {"scaling_factor": self.scaling_factor} | {k: v for k, v in values.items() if v != NEUTRAL[k]}

    @property
    def words(self) -> str:
        """The scaling as text, to follow "the posterior's mode"."""
        if self.latents_mean is not None:
            return "normalised per channel by its latents_mean and latents_std, times its scaling factor"
        return f"{'less its shift factor, ' if self.shift_factor else ''}times its scaling factor"


def _per_channel(like: Tensor, values: tuple[float, ...]) -> Tensor:
    """[C,1,1]"""
    return like.new_tensor(values).view(-1, 1, 1)


def _fault(shift: float, mean: Any, std: Any, channels: Any) -> str | None:
    """The fault in a config's statistics, as the predicate of a sentence; None if there is none."""
    if mean is None or std is None:
        there, lacking = ("latents_std", "latents_mean") if mean is None else ("latents_mean", "latents_std")
        return f"has {there} but no {lacking}"
    if not len(mean) == len(std) == (len(mean) if channels is None else channels):
        return f"has a latents_mean of {len(mean)} and a latents_std of {len(std)} numbers for {channels} channels"
    if min(std) <= 0:
        return f"has a latents_std of {min(std)}, where it must be above 0"
    return "has both shift_factor and latents_mean, of which diffusers' pipelines use one" if shift else None


def known_config(weights: str) -> dict[str, Any] | None:
    """The config.json in a local folder or in the hub's cache; None if it is in neither. Nothing is fetched."""
    if not is_hub_id(weights):
        found = [file for place in ("vae", ".") if (file := Path(weights) / place / "config.json").is_file()]
        return dict(read_json(found[0])) if found else None
    from huggingface_hub import try_to_load_from_cache

    name, revision = resolve(weights)
    for place in ("vae/config.json", "config.json"):
        cached = try_to_load_from_cache(name, place, revision=revision)
        if isinstance(cached, str):
            return dict(read_json(Path(cached)))
    return None


def known_scaling(weights: str) -> LatentScaling | None:
    """The constants in the config; None if the config is not on this disk or has none."""
    config = known_config(weights)
    return None if config is None or "scaling_factor" not in config else LatentScaling.of(config, weights)


def class_name(config: Mapping[str, Any], name: str) -> str:
    """The class that a config names. Raises UserError for a class that urepa does not load."""
    found = str(config.get("_class_name", KL))
    if found not in CLASSES:
        raise UserError(f"data.vae={name} is of the class {found}; give one of {' or '.join(CLASSES)}")
    return found


def refuse_other_scaling(where: Path, manifest: Mapping[str, Any], scaling: LatentScaling, weights: str) -> None:
    """Raises UserError if the latents of a manifest were made with other constants than those of the VAE that decodes
    them. `where` is the manifest's folder. A manifest without constants, of an adopted store, is accepted."""
    if "scaling_factor" not in manifest:
        return
    there, here = NEUTRAL | dict(manifest), NEUTRAL | scaling.facts()
    differing = [f"{key}: {there[key]!r} there, {value!r} here" for key, value in here.items() if there[key] != value]
    if differing:
        raise UserError(
            f"the latents of {where} were scaled otherwise than data.vae={weights} expects "
            f"({', '.join(differing)}); give data.vae=FOLDER with the VAE and config.json that made them"
        )
