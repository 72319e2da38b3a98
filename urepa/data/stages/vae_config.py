"""The contents of a VAE's config.json: its class, and the constants that convert its latents z to a track's x0. No
other module converts z to x0 or back.

Without torch, as `describe` uses it too. Shapes: B images, C latent channels, H and W rows and columns of a latent, p
side of the squares that are packed into channels.
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

KL, DC, FLUX2 = "AutoencoderKL", "AutoencoderDC", "AutoencoderKLFlux2"
CLASSES = (KL, DC, FLUX2)  # diffusers' classes; AutoencoderDC has no posterior
# the values for VAEs and manifests without these entries
NEUTRAL: dict[str, Any] = {"shift_factor": 0.0, "latents_mean": None, "latents_std": None, "patch": 1}
WEIGHTS = "diffusion_pytorch_model.safetensors"


@dataclass(frozen=True)
class LatentScaling:
    """x0 = (z − shift)·scale, or (z − mean)·scale/std with one mean and std per channel: as in diffusers'
    pipeline_stable_diffusion_3_img2img.py and pipeline_stable_diffusion_xl_img2img.py, in the same order of operations.
    Flux.2's z are first packed, each p×p square into channels, and then normalised by the mean and variance in the
    VAE's `bn`: as in pipeline_flux2.py."""

    scaling_factor: float
    shift_factor: float = 0.0
    latents_mean: tuple[float, ...] | None = None
    latents_std: tuple[float, ...] | None = None
    patch: int = 1  # p

    @classmethod
    def of_bn(cls, config: Mapping[str, Any], mean: Tensor, variance: Tensor) -> LatentScaling:
        """The constants of an AutoencoderKLFlux2, from its config and the float32 statistics of its `bn`, which
        normalises the packed channels."""
        std = (variance + config["batch_norm_eps"]).sqrt()
        return cls(1.0, latents_mean=tuple(mean.tolist()), latents_std=tuple(std.tolist()), patch=patch_of(config))

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
        """The VAE's latents [B,C,H,W], such as a posterior's mean or mode, to x0 [B,C·p·p,H/p,W/p]."""
        z = self.pack(z)
        if self.latents_mean is not None:
            return (z - _per_channel(z, self.latents_mean)) * self.scaling_factor / self._std(z)
        return (z - self.shift_factor) * self.scaling_factor if self.shift_factor else z * self.scaling_factor

    def to_z(self, x0: Tensor) -> Tensor:
        """x0 [B,C·p·p,H/p,W/p] to the latents [B,C,H,W] that the VAE decodes."""
        if self.latents_mean is not None:
            return self.unpack(x0 * self._std(x0) / self.scaling_factor + _per_channel(x0, self.latents_mean))
        z = x0 / self.scaling_factor
        return self.unpack(z + self.shift_factor if self.shift_factor else z)

    def pack(self, z: Tensor) -> Tensor:
        """[B,C,H,W] to [B,C·p·p,H/p,W/p]: each p×p square into channels."""
        if self.patch == 1:
            return z
        return z.unflatten(3, (-1, self.patch)).unflatten(2, (-1, self.patch)).permute(0, 1, 3, 5, 2, 4).flatten(1, 3)

    def unpack(self, packed: Tensor) -> Tensor:
        """The inverse of `pack`."""
        if self.patch == 1:
            return packed
        return packed.unflatten(1, (-1, self.patch, self.patch)).permute(0, 1, 4, 2, 5, 3).flatten(4, 5).flatten(2, 3)

    def std_to_x0(self, std_BCHW: Tensor) -> Tensor:
        """A posterior's standard deviation in the scale of x0; a shift does not change it."""
        x0_std = self.pack(std_BCHW) * self.scaling_factor
        return x0_std if self.latents_std is None else x0_std / self._std(x0_std)

    def _std(self, like: Tensor) -> Tensor:
        assert self.latents_std is not None
        return _per_channel(like, self.latents_std)

    def facts(self) -> dict[str, Any]:
        """The entries of a manifest. Neutral values are left out, so that manifests of VAEs without them equal those of
        earlier versions."""
        values: dict[str, Any] = {"shift_factor": self.shift_factor}
        if self.latents_mean is not None and self.latents_std is not None:
            values |= {"latents_mean": list(self.latents_mean), "latents_std": list(self.latents_std)}
        values["patch"] = self.patch
        return {"scaling_factor": self.scaling_factor} | {k: v for k, v in values.items() if v != NEUTRAL[k]}

    @property
    def words(self) -> str:
        """The scaling as text, to follow "the posterior's mode"."""
        if self.patch > 1:
            return (
                f"{self.patch}×{self.patch} of them packed into channels, which its batch norm's statistics normalise"
            )
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
    file = _known_file(weights, "config.json")
    return None if file is None else dict(read_json(file))


def _known_file(weights: str, file: str) -> Path | None:
    """A file of a VAE, in a pipeline or by itself, in a local folder or in the hub's cache; None if it is in
    neither."""
    if not is_hub_id(weights):
        found = [place for folder in ("vae", ".") if (place := Path(weights) / folder / file).is_file()]
        return found[0] if found else None
    from huggingface_hub import try_to_load_from_cache

    name, revision = resolve(weights)
    for inside in (f"vae/{file}", file):
        cached = try_to_load_from_cache(name, inside, revision=revision)
        if isinstance(cached, str):
            return Path(cached)
    return None


def known_scaling(weights: str) -> LatentScaling | None:
    """The constants in the config; None if the config is not on this disk or has none. For Flux.2's VAE two tensors of
    its weights are read."""
    config = known_config(weights)
    if config is not None and config.get("_class_name") == FLUX2:
        return _known_bn(config, weights)
    return None if config is None or "scaling_factor" not in config else LatentScaling.of(config, weights)


def _known_bn(config: Mapping[str, Any], weights: str) -> LatentScaling | None:
    file = _known_file(weights, WEIGHTS)
    if file is None:
        return None
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        mean, variance = (opened.get_tensor(f"bn.running_{name}").float() for name in ("mean", "var"))
    return LatentScaling.of_bn(config, mean, variance)


def patch_of(config: Mapping[str, Any] | None) -> int:
    """The side p of the squares that are packed into x0's channels, by the VAE's config; 1 without a config. Raises
    UserError if they are not squares."""
    rows, columns = (config or {}).get("patch_size") or (1, 1)
    if rows != columns:
        raise UserError(f"data.vae has a patch_size of {rows}x{columns}; give one with squares")
    return int(rows)


def class_name(config: Mapping[str, Any], name: str) -> str:
    """The class that a config names. Raises UserError for a class that urepa does not load."""
    found = str(config.get("_class_name", KL))
    if found not in CLASSES:
        raise UserError(f"data.vae={name} is of the class {found}; give one of {' or '.join(CLASSES)}")
    return found


def scaling_of_facts(facts: Mapping[str, Any]) -> LatentScaling:
    """The scaling in a manifest's entries, as `LatentScaling.facts` wrote them."""
    mean, std = facts.get("latents_mean"), facts.get("latents_std")
    return LatentScaling(
        float(facts["scaling_factor"]),
        float(facts.get("shift_factor", 0.0)),
        None if mean is None else tuple(map(float, mean)),
        None if std is None else tuple(map(float, std)),
        int(facts.get("patch", 1)),
    )


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
