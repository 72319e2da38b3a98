"""Checks finished caches: their records, and that a sample's latents and tokens come from the same field of view.

Shapes: S samples, h/w token grid, P = S·h·w places, D token width, F features of a latent's patch, CHW latent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from urepa.core import progress
from urepa.core.errors import UserError
from urepa.core.files import write_whole
from urepa.data.cache import FAULT, UNKNOWN, Cache
from urepa.data.lists.paths import is_finished
from urepa.data.lists.samples import Keys, Sample, fixed_subset
from urepa.data.online_encoders import OnlineLatents
from urepa.data.stores.lmdb_store import batches_of
from urepa.data.stores.record_reading import Store

CHUNK = 128  # records checked together
SAMPLES = 256  # samples in the spatial check; more if a sample has few tokens
ROWS_PER_DIMENSION = 16  # tokens in the fit per dimension of a token
RIDGE = 0.1
MARGIN = 1.05  # another field of view must explain this many times the variance of the stored one to count as a fault
CLEARLY = 0.05  # ... and this much more R², if there are fewer samples than the check needs
Moved = Callable[[Tensor], Tensor]  # latents [S,C,H,W] as they would look from another field of view


class Fault(UserError):
    """A fault of the store in `folder`. Once it is marked, training refuses the store."""

    def __init__(self, folder: Path, text: str) -> None:
        super().__init__(text)
        self.folder = folder

    def mark(self) -> None:
        """Writes the fault beside the records of a finished store."""
        if is_finished(self.folder):
            write_whole(self.folder / FAULT, str(self))


class TooFewSamples(UserError):
    """A store has too few samples to compare fields of view; this does not mean that they differ."""


@contextmanager
def marked_faults() -> Iterator[None]:
    """Within this context a Fault that is raised is also written beside its store."""
    try:
        yield
    except Fault as fault:
        fault.mark()
        raise


@dataclass(frozen=True)
class Finding:
    """How well tokens explain the latents (R² on held-out samples) if the latents were moved like `name`."""

    name: str
    r2: float


def verify(name: str, cache: Cache) -> list[TooFewSamples]:
    """Checks every record of an open cache and its field of view, and prints the results. Raises a Fault at the first
    fault. With an online teacher there are no tokens to check; online latents are computed only for the field of view.
    For records without digests it prints that they were not compared with what was written. Returns the comparisons of
    fields of view that were left out because there were too few samples."""
    assert cache.grids
    left_out = []
    if cache.image_tokens is not None:
        left_out += verify_image_tokens(name, cache, cache.image_tokens)
    splits = cache.splits
    stored = {teacher: tokens for teacher, tokens in cache.tokens.items() if isinstance(tokens, Store)}
    latents = cache.latents if isinstance(cache.latents, Store) else None
    stores = [*([] if latents is None else [latents]), *stored.values()]
    for store in stores:
        count_check(store)
    if cache.images is not None:
        cache.images.require_whole(progress.bar(Keys(splits.values()), desc="verify images", unit="image"))
    views = {"": list(splits.values())} | ({"mirrored ": [splits["train"].as_mirrored()]} if cache.flips else {})
    for view, parts in views.items():
        keys = Keys(parts)
        if latents is not None:
            check_records(latents, keys, unit_length=False)
            if view:
                mirror_check(latents, parts[0])
        state = state_of([store.mirror if view else store for store in stores])
        if not stored and latents is not None:
            print(f"{name}: {len(keys)} {view}latents {state}")
        elif not stored:
            print(f"{name}: the images of {len(keys)} {view}samples are whole")
        for teacher, tokens in stored.items():
            check_records(tokens, keys, unit_length=True)
            train = views["mirrored "][0] if view else splits["train"]
            whose, what = f"{teacher}'s tokens" if teacher else "tokens", f"{name}: {len(keys)} {view}samples {state}"
            try:
                findings = spatial_check(cache.latents, tokens, train, cache.grids[teacher])
            except TooFewSamples as few:
                print(f"{what}; whether latents and {whose} see the same field of view was not checked: {few}")
                left_out.append(few)
                continue
            print(f"{what}; {whose} explain the latents as follows (R²):")
            for finding in findings[:4]:
                print(f"  {finding.r2:6.3f}  {finding.name}")
    return left_out


def verify_image_tokens(name: str, cache: Cache, store: Store) -> list[TooFewSamples]:
    """The same checks of the image tokens of conditions, whose patches must see what the latents see."""
    count_check(store)
    keys = Keys(cache.splits.values())
    check_records(store, keys, unit_length=False)
    whole = f"{name}: the image tokens of {len(keys)} samples {state_of([store])}"
    try:
        findings = spatial_check(cache.latents, PatchesOf(store), cache.splits["train"], tuple(store.manifest["grid"]))
    except TooFewSamples as few:
        print(f"{whole}; whether latents and patches see the same field of view was not checked: {few}")
        return [few]
    print(f"{whole}; the patches explain the latents best {findings[0].name} (R² {findings[0].r2:.3f})")
    return []


class PatchesOf:
    """The patches in a store of image tokens, without the vectors, as a store of tokens."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.shape = (store.shape[0] - 1, store.shape[1])

    def read(self, keys: list[str]) -> np.ndarray:
        """Records [R,T,D]."""
        return self.store.read(keys)[:, 1:]

    def folder_of(self, key: str) -> Path:
        """The folder of the record with this key."""
        return self.store.folder_of(key)


def state_of(stores: Sequence[Store | None]) -> str:
    """The result for stores without a fault, as text."""
    bare = [store.folder.name for store in stores if store is not None and store.digests is None]
    if not bare:
        return "are whole"
    return (
        f"are there and finite, but not compared with what was written: {' and '.join(bare)} "
        f"{'has' if len(bare) == 1 else 'have'} no digests of records (stage=digest makes some of what is there now)"
    )


def count_check(store: Store) -> None:
    """Raises a Fault if records are missing. Records beyond the manifest's count belong to another list."""
    there, counted = store.count(), store.manifest.get("count", 0)
    if there < counted:
        raise Fault(store.folder, f"{store.folder} holds {there} records, its manifest counts {counted}; make it again")
    if store.mirror is not None:
        count_check(store.mirror)


def weights_check(tokens: Store, teacher: Any) -> None:
    """Raises a Fault if the tokens were made with other weights than the teacher's, if those are on this disk: two
    folders of weights may have the same name."""
    facts = tokens.manifest["teacher"] if "teacher" in tokens.manifest else tokens.manifest["encoder"]
    known = facts.get("weights_sha256", UNKNOWN)
    if known != UNKNOWN and teacher.is_local and teacher.weights_sha256() != known:
        whose = "teacher" if "teacher" in tokens.manifest else "image encoder"
        raise Fault(
            tokens.folder,
            f"{tokens.folder} was made with other weights of {facts['model']} than the {whose} has here; give those, "
            "or make it again",
        )


def check_records(store: Store, keys: Keys, unit_length: bool) -> None:
    """Checks that every key has a finite record that matches its digest, and that tokens have unit length. Reads the
    records in chunks; raises a Fault at the first fault."""
    bar = progress.bar(keys, desc=f"verify {store.folder.name}", unit="record")
    for part in batches_of(bar, CHUNK):
        folder = store.folder_of(part[0])  # one folder: either all keys are of mirror images or none is
        raw_RB = np.empty((len(part), store.record_bytes), dtype=np.uint8)
        try:
            values = store.tensor(part, raw_RB).float().numpy()
        except UserError as error:
            raise Fault(folder, str(error)) from error
        changed = store.first_changed(part, raw_RB)
        if changed is not None:
            raise Fault(folder, f"{folder}: record '{changed}' has changed since it was written; make it again")
        finite = np.isfinite(values).reshape(len(part), -1).all(1)
        if not finite.all():
            raise Fault(folder, f"{folder}: record '{part[int(np.argmin(finite))]}' is not finite; make it again")
        if unit_length:
            length = np.linalg.norm(values, axis=-1).reshape(len(part), -1)
            row, token = np.unravel_index(np.abs(length - 1).argmax(), length.shape)
            if abs(length[row, token] - 1) > 0.02:
                raise Fault(folder, f"{folder}: tokens of '{part[row]}' have length {length[row, token]:.3f}, not 1")


def mirror_check(latents: Store, samples: Sequence[Sample]) -> None:
    """Raises a Fault unless the mirrored latents are nearer to the plain latents' mirror image than to the plain
    latents. (They do not equal it, as a VAE is not symmetric. Channels are averaged, because unshuffled pixels change
    their channel.) Whether tokens agree with the mirrored latents is left to the spatial check."""
    chosen = fixed_subset(samples, "spatial", SAMPLES)
    keys = [s.sample_id for s in chosen], [s.key for s in chosen]
    plain, mirrored = (torch.from_numpy(latents.read(own)).mean(1) for own in keys)
    if float((mirrored - plain.flip(-1)).pow(2).sum()) > float((mirrored - plain).pow(2).sum()):
        assert latents.mirror is not None
        raise Fault(
            latents.mirror.folder,
            f"{latents.mirror.folder} does not hold the mirror images of {latents.folder}; delete it and make it again",
        )


def spatial_check(
    latents: Store | OnlineLatents, tokens: Store | PatchesOf, samples: Sequence[Sample], grid: tuple[int, int]
) -> list[Finding]:
    """Fits latent patches linearly from tokens on half of the samples and scores the fit on the other half, with the
    latents as stored and as they would look mirrored, shifted, sheared or from another sample. Raises a Fault of the
    tokens that names the view that fits better than the stored one, and TooFewSamples with the number needed. The
    findings are sorted, best first."""
    count, width = grid[0] * grid[1], tokens.shape[-1]
    wanted = max(SAMPLES, 2 * ROWS_PER_DIMENSION * width // count)
    chosen = fixed_subset(samples, "spatial", wanted)
    least = max(-(-4 * width // count), 8)
    if len(chosen) < least:
        raise TooFewSamples(
            f"there are {len(chosen)} training samples, at least {least} are needed, with {count} tokens each of width "
            f"{width}"
        )
    x0 = torch.from_numpy(latents.read([s.key for s in chosen]))
    x0 = x0[:, 0] if x0.ndim == 5 else x0  # moments: the mean
    reader = Reader(torch.from_numpy(tokens.read([s.key for s in chosen])))
    moves = views((x0.shape[-2] // grid[0], x0.shape[-1] // grid[1]))
    findings = [Finding(name, reader.explained_variance(patches(moved(x0), grid))) for name, moved in moves.items()]
    findings.sort(key=lambda f: -f.r2)
    own = next(f for f in findings if f.name == "as stored")
    best = findings[0]
    another = own.r2 <= 0 or best.r2 > MARGIN * own.r2
    hardly = best.r2 <= 0 or (own.r2 > 0 and best.r2 <= own.r2 + CLEARLY)
    if len(chosen) < wanted and another and hardly:
        raise TooFewSamples(f"the {len(chosen)} training samples are too few to tell, at least {wanted} are needed")
    if another:
        raise Fault(
            tokens.folder_of(chosen[0].key),
            f"latents and tokens do not see the same field of view: tokens explain {own.r2:.1%} of the latents as "
            f"stored, and {best.r2:.1%} of them {best.name}; make one of the two again from the same crop",
        )
    return findings


def views(cells: tuple[int, int]) -> dict[str, Moved]:
    """The moves by which faulty caches are known to differ, with shifts by half a token and by a whole one. `cells` are
    the rows and columns of a latent per token. Smaller shifts cannot be told from those that padding causes in a
    network's own features."""
    moves: dict[str, Moved] = {
        "as stored": lambda x: x,
        "mirrored": lambda x: x.flip(-1),
        "upside down": lambda x: x.flip(-2),
        "transposed": lambda x: x.mT,
        "of another sample": lambda x: x.roll(1, 0),
        "sheared as 36x36": shear,
    }
    for share, (high, wide) in (("half a token", [max(n // 2, 1) for n in cells]), ("a token", cells)):
        for name, dy, dx in (("right", 0, -1), ("left", 0, 1), ("down", -1, 0), ("up", 1, 0)):
            moves[f"shifted {name} by {share}"] = partial(torch.roll, shifts=(dy * high, dx * wide), dims=(-2, -1))
    return moves


def shear(x0: Tensor) -> Tensor:
    """The first 1,296 of 37x37 places read as 36x36 (docs/errata.md), resized to the latent's size."""
    fine = F.adaptive_avg_pool2d(x0, (37, 37)).flatten(2)[:, :, :1296].unflatten(2, (36, 36))
    return F.interpolate(fine, size=x0.shape[-2:], mode="bilinear", align_corners=False)


def patches(x0: Tensor, grid: tuple[int, int]) -> Tensor:
    """The mean of each channel over a token's area, less the sample's mean: [S,h·w,F]."""
    means = F.adaptive_avg_pool2d(x0, grid).flatten(2).mT
    return means - means.mean(1, keepdim=True)


class Reader:
    """Ridge regression from tokens [S,N,D] to a latent's patches, fitted to the first half of the samples and
    scored on the second. The mean at each place is subtracted from both, so that what images have in common at a
    place (sky at the top) explains nothing."""

    def __init__(self, tokens_SND: Tensor) -> None:
        self.half = len(tokens_SND) // 2
        self.fit_x, self.test_x = self._halves(tokens_SND)
        gram_DD = self.fit_x.mT @ self.fit_x
        gram_DD += RIDGE * gram_DD.diagonal().mean() * torch.eye(len(gram_DD), dtype=gram_DD.dtype)
        self.factor_DD = torch.linalg.cholesky(gram_DD)

    def _halves(self, values_SNF: Tensor) -> tuple[Tensor, Tensor]:
        centred = (values_SNF - values_SNF[: self.half].mean(0, keepdim=True)).double()
        return centred[: self.half].flatten(0, 1), centred[self.half :].flatten(0, 1)

    def explained_variance(self, patches_SNF: Tensor) -> float:
        """R² on the second half of the samples."""
        fit_y, test_y = self._halves(patches_SNF)
        weights = torch.cholesky_solve(self.fit_x.mT @ fit_y, self.factor_DD)
        return 1 - float((test_y - self.test_x @ weights).pow(2).sum() / test_y.pow(2).sum())
