"""Pictures of a model at one step: fixed validation images, the principal components of the teacher's, the head's and
the tap's tokens as colours, the similarity of all tokens to one of them, and samples.

Nothing here uses a global random generator or changes a weight, so pictures during training leave the run as it is.

Shapes: B images, N tokens of a grid (h, w), D width, K = 3 components, S side of an image.
"""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from urepa.core import look_sheets, random_draws
from urepa.core.class_token_protocols import class_values
from urepa.core.conditions import without_never_given
from urepa.core.errors import UserError
from urepa.core.files import write_whole
from urepa.core.look_sheets import Cells
from urepa.core.png import to_pixels
from urepa.core.types import Tokens
from urepa.data.lists.samples import Sample, fixed_subset
from urepa.evaluation.context import Context
from urepa.evaluation.features import chunks, teacher_tokens
from urepa.evaluation.images.generated_images_math import decode_rgb
from urepa.method.ddpm_sampling import sample_by

MOST_BLOCKS = 1000  # that are tried as taps
OUTLIERS = 0.02  # share of tokens at each end of a component whose colours are those of the last within
# viridis at equal distances: dark is a cosine of 0 or less, bright one of 1
RAMP = np.array([(68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)], dtype=np.float64)
MARK = (255, 64, 32)


@dataclass(frozen=True)
class Look:
    """What is shown.

    Args:
        images: validation images, chosen by their ids, so that all runs on the same data show the same ones.
        patch: the token to which similarities are taken: its place in shares of the rows and of the columns.
        noise: the time at which tokens are read, as a share of the way to noise.
        tap: None: the tap that the run aligns or, without one, a middle one.
        sampler_steps, guidance: of the samples, each under the condition of the image beside it.
    """

    images: int = 6
    patch: tuple[float, float] = (0.5, 0.5)
    noise: float = 0.25
    tap: str | None = None
    sampler_steps: int = 20
    guidance: float = 1.0


def write_sheet(asked: Look, context: Context, file: Path | None = None) -> tuple[Path, list[str]]:
    """Writes the sheet of the context's step, RUN/look/step_....png unless `file` is given. Returns its path, and
    sentences on what it lacks."""
    cells, missing = pictures(asked, context)
    if not cells:
        raise UserError(f"nothing can be shown: {'; '.join(missing)}")
    if file is None:
        file = context.folder / look_sheets.FOLDER / look_sheets.sheet_name(context.step)
    file.parent.mkdir(parents=True, exist_ok=True)
    where = f", bucket {context.cache.bucket}" if context.cache.bucket else ""
    tap = _tap(asked, context)
    read = "" if tap is None else f": tap {tap}, {asked.noise:.0%} of the way to noise"
    caption = f"step {context.step:,}{where}{read}"
    write_whole(file, look_sheets.sheet_png(cells, caption))
    return file, missing


def write_sheets(asked: Look, contexts: Sequence[Context]) -> dict[str, str]:
    """`write_sheet` of each bucket during training. Returns what could not be shown, by "look" or "look/HxW"; other
    errors than a user's are returned too, with a traceback on stderr, because the run must not be lost."""
    failures = {}
    for context in contexts:
        name = f"{look_sheets.FOLDER}/{context.cache.bucket}" if context.cache.bucket else look_sheets.FOLDER
        try:
            _, missing = write_sheet(asked, context)
        except (UserError, OSError) as error:
            missing = [str(error)]
        except Exception as error:  # noqa: BLE001
            traceback.print_exc()
            missing = [f"{type(error).__name__}: {error}".splitlines()[0]]
        if missing:
            failures[name] = "; ".join(missing)
    return failures


@torch.no_grad()
def pictures(asked: Look, context: Context) -> tuple[Cells, list[str]]:
    """The columns of a sheet, and why others are missing: a run without a teacher has no components of a teacher, and a
    latent track without its VAE here has neither images nor samples."""
    samples = fixed_subset(context.cache.splits["val"], "look", asked.images)
    missing: list[str] = []
    shown: dict[str, list[np.ndarray]] = {}
    try:
        shown[look_sheets.IMAGE] = _rgb(context, context.cache.x0(samples))
        shown[look_sheets.SAMPLE] = _rgb(context, draw_samples(asked, context, samples))
    except UserError as error:
        missing.append(str(error))
    marks: dict[str, tuple[int, int]] = {}
    tap = _tap(asked, context)
    if tap is None:
        missing.append("this backbone has no tap that could be found by itself; give tap=NAME")
    elif class_values(context.model.backbone):
        missing.append("this backbone takes a class token with each image, and there is none for images noised here")
    else:
        shown |= token_pictures(asked, context, samples, tap, marks)
    latent = context.cache.x0(samples[:1]).shape
    height, width = shown[look_sheets.IMAGE][0].shape[:2] if look_sheets.IMAGE in shown else latent[-2:]
    size = look_sheets.tile_size(width, height)
    cells = {name: [look_sheets.as_tile(Image.fromarray(p), size) for p in own] for name, own in shown.items()}
    if marks and look_sheets.IMAGE in cells:
        marks[look_sheets.IMAGE] = next(iter(marks.values()))
    for name, grid in marks.items():
        for image in cells[name]:
            _mark(image, grid, asked.patch)
    return cells, missing


def token_pictures(
    asked: Look, context: Context, samples: Sequence[Sample], tap: str, marks: dict[str, tuple[int, int]]
) -> dict[str, list[np.ndarray]]:
    """Components and similarities of the tokens, [h,w,3] per image, by column. `marks` gets the grids of the columns
    with similarities. The head's tokens are shown in the teacher's components, the tap's, of another width, in their
    own."""
    time = context.objective.time_at(asked.noise)
    (chunk,) = chunks(context, samples, [tap], time)
    of_tap, of_head = chunk.taps[tap], chunk.heads.get(tap)
    shown = {look_sheets.TAP: Basis.of(of_tap).colours(of_tap)}
    near = {look_sheets.NEAR_TAP: of_tap}
    if of_head is not None:
        of_teacher = teacher_tokens(context, samples)
        basis = Basis.of(of_teacher)
        shown |= {look_sheets.TEACHER: basis.colours(of_teacher), look_sheets.HEAD: basis.colours(of_head)}
        near = {look_sheets.NEAR_TEACHER: of_teacher, look_sheets.NEAR_HEAD: of_head}
    for name, tokens in near.items():
        shown[name] = [ramp(similarity) for similarity in similarity_maps(tokens, asked.patch)]
        marks[name] = tokens.grid
    return shown


@dataclass(frozen=True)
class Basis:
    """Principal components of unit tokens: their mean [D], directions [D,K], and the range [K] of each that is mapped
    to colours from 0 to 1."""

    mean_D: Tensor
    directions_DK: Tensor
    low_K: Tensor
    high_K: Tensor

    @staticmethod
    def of(tokens: Tokens) -> Basis:
        """The first three components of these tokens. Each points to its longer tail, so that neither the order of the
        images nor the sign of an eigenvector decides the colours."""
        unit_MD = _unit(tokens).flatten(0, 1)
        mean_D = unit_MD.mean(0)
        centred_MD = unit_MD - mean_D
        _, directions_DK = _eigen(centred_MD)
        projected_MK = centred_MD @ directions_DK
        sign_K = torch.where(projected_MK.pow(3).sum(0) < 0, -1.0, 1.0).to(projected_MK)
        projected_MK = projected_MK * sign_K
        ends = torch.tensor([OUTLIERS, 1 - OUTLIERS], dtype=projected_MK.dtype)
        low_K, high_K = torch.quantile(projected_MK, ends, dim=0)
        return Basis(mean_D, directions_DK * sign_K, low_K, high_K)

    def colours(self, tokens: Tokens) -> list[np.ndarray]:
        """Tokens of the same width as RGB [h,w,3] per image, uint8."""
        projected_BNK = (_unit(tokens) - self.mean_D) @ self.directions_DK
        span_K = (self.high_K - self.low_K).clamp_min(1e-12)
        shares_BNK = ((projected_BNK - self.low_K) / span_K).clamp(0, 1)
        missing = 3 - shares_BNK.shape[-1]  # tokens of fewer than three dimensions
        shares_BN3 = torch.nn.functional.pad(shares_BNK, (0, missing), value=0.5)
        pixels_BN3 = (shares_BN3 * 255).round().to(torch.uint8)
        return list(pixels_BN3.unflatten(1, tokens.grid).numpy())


def _eigen(centred_MD: Tensor) -> tuple[Tensor, Tensor]:
    """The largest eigenvalues [K] of the covariance and their directions [D,K], from the smaller of the two products.
    Exact, because the faster randomised methods draw from torch's generator."""
    count, width = centred_MD.shape
    k = min(3, width, count)
    if width <= count:
        values, vectors = torch.linalg.eigh(centred_MD.T @ centred_MD)
        return values[-k:].flip(0), vectors[:, -k:].flip(1)
    values, vectors = torch.linalg.eigh(centred_MD @ centred_MD.T)
    directions_DK = centred_MD.T @ vectors[:, -k:].flip(1)
    return values[-k:].flip(0), directions_DK / directions_DK.norm(dim=0).clamp_min(1e-12)


def similarity_maps(tokens: Tokens, patch: tuple[float, float]) -> list[np.ndarray]:
    """The cosine of every token with the one at `patch`, [h,w] per image."""
    unit_BND = _unit(tokens)
    row, column = place_in(tokens.grid, patch)
    chosen_BD = unit_BND[:, row * tokens.grid[1] + column]
    return list(torch.einsum("bnd,bd->bn", unit_BND, chosen_BD).unflatten(1, tokens.grid).numpy())


def place_in(grid: tuple[int, int], patch: tuple[float, float]) -> tuple[int, int]:
    """The row and column of a grid at these shares of its rows and columns."""
    row, column = (min(int(share * length), length - 1) for share, length in zip(patch, grid, strict=True))
    return row, column


def ramp(cosines_hw: np.ndarray) -> np.ndarray:
    """Cosines as colours [h,w,3]: dark at 0 and below, bright at 1. The scale is fixed, so that maps of several steps
    and runs can be compared."""
    place = np.clip(cosines_hw, 0, 1) * (len(RAMP) - 1)
    colours = [np.interp(place, np.arange(len(RAMP)), RAMP[:, channel]) for channel in range(3)]
    return np.stack(colours, axis=-1).round().astype(np.uint8)


def draw_samples(asked: Look, context: Context, samples: Sequence[Sample]) -> Tensor:
    """Samples x0 [B,C,H,W] by the objective's usual sampler, each under the condition of its image, from noise that is
    addressed by the image's id and so the same at every step and in every run."""
    x0 = context.cache.x0(samples)
    rngs = [random_draws.generator(random_draws.digest64("look", s.sample_id), "sample") for s in samples]
    noise = torch.stack([random_draws.normal(tuple(x0.shape[1:]), rng) for rng in rngs]).to(context.device)
    conditions = context.cache.conditions
    condition = without_never_given(conditions.of_samples(samples, None, x0), conditions.dropout).to(context.device)
    steps, guidance = asked.sampler_steps, asked.guidance
    return sample_by(context.model.backbone, context.objective, noise, condition, rngs, None, steps, guidance)


def middle_tap(backbone: Any) -> str | None:
    """A tap for a backbone of a run that aligns none: a U-Net's middle block, or the block half way through a
    transformer. None for a backbone with other names."""
    if _has_tap(backbone, "mid"):
        return "mid"
    blocks = next(k for k in range(MOST_BLOCKS) if not _has_tap(backbone, f"block_{k}"))
    return f"block_{(blocks - 1) // 2}" if blocks else None


def _has_tap(backbone: Any, tap: str) -> bool:
    try:
        backbone.tap_width(tap)
    except UserError:
        return False
    return True


def _tap(asked: Look, context: Context) -> str | None:
    """The tap that is read."""
    if asked.tap is not None:
        return asked.tap
    return next(iter(context.model.taps), None) or middle_tap(context.model.backbone)


def _unit(tokens: Tokens) -> Tensor:
    """Tokens of unit length [B,N,D], on the CPU in float64."""
    return torch.nn.functional.normalize(tokens.x_BND.detach().cpu().double(), dim=-1)


def _rgb(context: Context, x0: Tensor) -> list[np.ndarray]:
    """Pixels [S,S,3] of each image."""
    return [to_pixels(image) for image in decode_rgb(context, x0)]


def _mark(image: Image.Image, grid: tuple[int, int], patch: tuple[float, float]) -> None:
    """Draws a frame around a token's place in a picture."""
    row, column = place_in(grid, patch)
    height, width = image.height / grid[0], image.width / grid[1]
    box = (column * width, row * height, (column + 1) * width - 1, (row + 1) * height - 1)
    ImageDraw.Draw(image).rectangle(box, outline=MARK, width=2)
