"""Trains the masked autoencoder whose encoder is `teacher=own_mae`: AdamW with a warm-up and a cosine schedule. The
random mask is the only augmentation, as it suffices in the paper (arXiv 2111.06377). All random draws are addressed, so
the same number of threads gives the same weights again, also after a kill.

Shapes: B batch, S image size, N patches, K visible ones.
"""

from __future__ import annotations

import io
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn

from urepa.core import progress, random_draws
from urepa.core.errors import UserError
from urepa.core.files import write_whole
from urepa.core.hashing import file_sha256
from urepa.core.weights_metadata import as_metadata
from urepa.data.online_encoders import own_device
from urepa.evaluation.classifier_training import CHUNK, Labelled, read_split
from urepa.method.step_schedules import cosine_with_warmup
from urepa.models.teachers.own_mae_net import DECODER_DEPTH, DECODER_WIDTH, MaskedAutoencoder
from urepa.models.teachers.own_mae_sizes import KEY, EncoderSettings, refuse_other
from urepa.models.weight_files import read_torch

BATCH = 256
BETAS = (0.9, 0.95)  # the paper's
WEIGHT_DECAY = 0.05  # the paper's
WARMUP = 0.05  # share of the updates
KEPT_EVERY = 60.0  # seconds, at least, between two states that are kept


@dataclass(frozen=True)
class Kept:
    """The state of a training that has not ended, in a file beside that of the encoder."""

    file: Path
    of: str  # the settings and images; a state of others is not used

    def store(self, epochs: int, network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Writes the state after some epochs, atomically."""
        buffer = io.BytesIO()
        state = {"of": self.of, "epochs": epochs, "network": network.state_dict()}
        torch.save(state | {"optimizer": optimizer.state_dict()}, buffer)
        write_whole(self.file, buffer.getvalue())

    def load(self, network: nn.Module, optimizer: torch.optim.Optimizer) -> int:
        """Loads a state. Returns its number of epochs, 0 if there is none of these settings and images."""
        if not self.file.is_file():
            return 0
        found = read_torch(self.file)
        if found["of"] != self.of:
            print(f"{self.file} is of other settings or images and is not used")
            return 0
        network.load_state_dict(found["network"])
        optimizer.load_state_dict(found["optimizer"])
        print(f"continuing after epoch {found['epochs']}", flush=True)
        return int(found["epochs"])


def train_encoder(track: Any, settings: EncoderSettings, out: Path) -> None:
    """Trains an encoder and writes it to `out`, or says that it exists. Raises UserError if an existing file has other
    images or settings. Test images are not read."""
    cache = track.open(None)
    train, val = (read_split(track, cache, split) for split in ("train", "val"))
    train_ids, val_ids = (list(cache.splits[split].ids()) for split in ("train", "val"))
    cache.close()
    about = asdict(settings) | {
        "train_images": len(train),
        "validation_images": len(val),
        "train_samples": train.digest,
        "validation_samples": val.digest,
        "decoder_width": DECODER_WIDTH,
        "decoder_depth": DECODER_DEPTH,
        "batch_size": min(BATCH, len(train)),
        "betas": BETAS,
        "weight_decay": WEIGHT_DECAY,
        "warmup": WARMUP,
    }
    kept = Kept(out.with_name(f"{out.name}.partial"), as_metadata(KEY, about)[KEY])
    if out.exists():
        told = refuse_other(out, about)
        print(f"{out} is there already, of these images and settings; delete it to train it again")
    else:
        print(
            f"training own_mae on {len(train):,} images of {track.name} ({settings.visible} of {settings.patches} "
            f"patches visible), {settings.epochs} epochs",
            flush=True,
        )
        network = fit(train, settings, kept)
        losses = {"train_loss": loss_of(network, settings, train, train_ids)}
        losses |= {"validation_loss": loss_of(network, settings, val, val_ids)}
        told = {name: f"{loss:.6g}" for name, loss in losses.items()}
        write_whole(out, save(network.encoder.cpu().state_dict(), as_metadata(KEY, about | told)))
        print(f"written: {out}")
    kept.file.unlink(missing_ok=True)
    print(
        f"masked loss {float(told['train_loss']):.3f} on {len(train):,} training and "
        f"{float(told['validation_loss']):.3f} on {len(val):,} validation images; weights sha256 {file_sha256(out)}"
    )


def fit(train: Labelled, settings: EncoderSettings, kept: Kept | None = None) -> MaskedAutoencoder:
    """Trains a masked autoencoder for some passes over the images. Returns it in eval mode. Raises UserError if
    training diverged.

    Args:
        kept: the state from which it continues, if there is one, and which it writes now and then; None: neither.
    """
    device, seed = own_device(), settings.seed
    with random_draws.torch_seed(seed, "encoder"):
        network = MaskedAutoencoder(settings.patch, settings.width, settings.depth).to(device)
    optimizer = _optimizer(network, settings.learning_rate)
    size = min(BATCH, len(train))
    per_epoch = len(train) // size
    done = 0 if kept is None else kept.load(network, optimizer)
    since = time.monotonic()
    with progress.bar(total=settings.epochs * per_epoch, initial=done * per_epoch, desc="training", unit="step") as bar:
        for epoch in range(done, settings.epochs):
            order_R = random_draws.generator(seed, "encoder/order", step=epoch).permutation(len(train))
            for index in range(per_epoch):
                step = epoch * per_epoch + index
                images_B3SS, _ = train.batch(order_R[index * size : (index + 1) * size])
                visible_BK = training_mask(settings, step, size)
                loss = network(images_B3SS.to(device), visible_BK.to(device)).mean()
                factor = cosine_with_warmup(step + 1, settings.epochs * per_epoch + 1, WARMUP)
                for group in optimizer.param_groups:
                    group["lr"] = settings.learning_rate * factor
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                bar.update(1)
            if not bool(torch.isfinite(loss)):
                raise UserError("the encoder's loss is not finite, so it is of no use; give a smaller learning_rate")
            if kept is not None and epoch + 1 < settings.epochs and time.monotonic() - since >= KEPT_EVERY:
                kept.store(epoch + 1, network, optimizer)
                since = time.monotonic()
    return network.eval()


def _optimizer(network: MaskedAutoencoder, learning_rate: float) -> torch.optim.AdamW:
    """AdamW; biases, LayerNorms and the mask token do not decay."""
    decaying: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for parameter in network.parameters():
        (decaying if parameter.ndim > 1 and parameter.shape[0] > 1 else others).append(parameter)
    groups = [{"params": decaying, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=BETAS)


def training_mask(settings: EncoderSettings, step: int, size: int) -> Tensor:
    """The visible patches [B,K] of a training batch, addressed by (seed, step, position)."""
    draws = (random_draws.generator(settings.seed, "encoder/mask", step, position) for position in range(size))
    return visible_patches(draws, settings)


def visible_patches(draws: Iterable[np.random.Generator], settings: EncoderSettings) -> Tensor:
    """The indices of the visible patches [B,K] in ascending order, drawn for each image from its own generator."""
    chosen = [np.sort(rng.permutation(settings.patches)[: settings.visible]) for rng in draws]
    return torch.from_numpy(np.stack(chosen))


@torch.inference_mode()
def loss_of(network: MaskedAutoencoder, settings: EncoderSettings, images: Labelled, ids: list[str]) -> float:
    """The mean masked loss of these images, under masks that depend on an image's id alone."""
    device = next(network.parameters()).device
    total = 0.0
    for start in range(0, len(images), CHUNK):
        images_B3SS, _ = images.batch(slice(start, start + CHUNK))
        digests = [random_draws.digest64("encoder", sample_id) for sample_id in ids[start : start + CHUNK]]
        visible_BK = visible_patches((random_draws.generator(d, "encoder/mask") for d in digests), settings)
        total += float(network(images_B3SS.to(device), visible_BK.to(device)).double().sum())
    return total / len(images)
