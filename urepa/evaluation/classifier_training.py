"""Trains the classifier whose features `urepa.evaluation.encoders.cifar_cnn` gives: AdamW with a cosine schedule,
images flipped and shifted at random. All random draws are addressed, so the same number of threads gives the same
weights again.

Shapes: R images, B batch, S image size.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor

from urepa.core import progress, random_draws
from urepa.core.errors import UserError
from urepa.core.files import write_whole
from urepa.core.hashing import file_sha256
from urepa.data.cache import Cache
from urepa.data.lists.content import Identity
from urepa.data.lists.samples import digests_of
from urepa.data.online_encoders import own_device
from urepa.evaluation.classifier_file import as_metadata, refuse_other
from urepa.evaluation.encoders.cifar_cnn_net import Classifier
from urepa.method.step_schedules import cosine_with_warmup

BATCH = 128
LEARNING_RATE = 2e-3  # peak; a cosine schedule ends at 0
WEIGHT_DECAY = 0.05
SHIFT = 3  # at most, in pixels, in each direction
CHUNK = 512  # images that are read or classified at a time


@dataclass(frozen=True)
class Labelled:
    """The images of a split with their classes."""

    images_R3SS: Tensor  # uint8
    classes_R: Tensor
    digest: str  # of ids, classes, split and pixels, independent of their order

    def __len__(self) -> int:
        return len(self.classes_R)

    def batch(self, at: Any) -> tuple[Tensor, Tensor]:
        """RGB in [0,1] and class ids of the images with these indices."""
        return self.images_R3SS[at].float() / 255, self.classes_R[at]


def read_split(track: Any, cache: Cache, split: str) -> Labelled:
    """The images as evaluations see them, rounded to multiples of 1/255."""
    samples = cache.splits[split]
    parts = [
        (track.to_rgb(cache.x0(samples[start : start + CHUNK])) * 255).round().to(torch.uint8)
        for start in range(0, len(samples), CHUNK)
    ]
    images_R3SS = torch.cat(parts)
    pixels_R1 = digests_of((image.numpy().tobytes() for image in images_R3SS), 8)
    return Labelled(images_R3SS, torch.from_numpy(samples.class_ids().copy()), Identity(samples).of(pixels_R1))


def train_classifier(track: Any, epochs: int, seed: int, out: Path) -> None:
    """Trains a classifier and writes it to `out`, or says that it exists. Raises UserError if an existing file has
    other images or settings."""
    cache = track.open(None)
    train, test = (read_split(track, cache, split) for split in ("train", "test"))
    cache.close()
    about = {
        "train_images": len(train),
        "test_images": len(test),
        "train_samples": train.digest,
        "test_samples": test.digest,
        "classes": track.num_classes,
        "image_size": track.image_size,
        "epochs": epochs,
        "seed": seed,
        "batch_size": min(BATCH, len(train)),
        "learning_rate": LEARNING_RATE,
        "weight_decay": WEIGHT_DECAY,
        "shift": SHIFT,
    }
    if out.exists():
        accuracy = refuse_other(out, about)["accuracy"]
        print(f"{out} is there already, of these images and settings; delete it to train it again")
    else:
        print(
            f"training cifar_cnn on {len(train):,} images of {track.name} ({track.num_classes} classes, "
            f"{track.image_size} px), {epochs} epochs",
            flush=True,
        )
        network = fit(train, track.num_classes, epochs, seed)
        accuracy = f"{accuracy_of(network, test):.6g}"
        write_whole(out, save(network.cpu().state_dict(), as_metadata(about | {"accuracy": accuracy})))
        print(f"written: {out}")
    print(f"accuracy {float(accuracy):.3f} on {len(test):,} test images; weights sha256 {file_sha256(out)}")


def fit(train: Labelled, num_classes: int, epochs: int, seed: int) -> Classifier:
    """Trains a classifier for `epochs` passes over the images. Returns it in eval mode. Raises UserError if training
    diverged."""
    device = own_device()
    with random_draws.torch_seed(seed, "classifier"):
        network = Classifier(num_classes).to(device)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # 20 % faster on a CPU
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    size = min(BATCH, len(train))
    per_epoch = len(train) // size
    with progress.bar(total=epochs * per_epoch, desc="training", unit="step") as bar:
        for epoch in range(epochs):
            order_R = random_draws.generator(seed, "classifier/order", step=epoch).permutation(len(train))
            for index in range(per_epoch):
                step = epoch * per_epoch + index
                images_B3SS, classes_B = train.batch(order_R[index * size : (index + 1) * size])
                moved_B3SS = augment(images_B3SS, seed, step).to(device, memory_format=torch.channels_last)
                logits_BK = network(moved_B3SS)
                loss = F.cross_entropy(logits_BK, classes_B.to(device))
                optimizer.param_groups[0]["lr"] = LEARNING_RATE * cosine_with_warmup(step, epochs * per_epoch, 0.0)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                bar.update(1)
    if not bool(torch.isfinite(loss)):
        raise UserError("the classifier's loss is not finite, so it is of no use; take another seed")
    network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return network.eval()


def augment(images_B3SS: Tensor, seed: int, step: int) -> Tensor:
    """Flips each image at random and shifts it by up to 3 pixels in each direction, addressed by (seed, step,
    position). The border is filled with grey."""
    size = images_B3SS.shape[-1]
    padded = F.pad(images_B3SS, (SHIFT,) * 4, value=0.5)
    moved = []
    for position, image in enumerate(padded):
        rng = random_draws.generator(seed, "classifier/augmentation", step, position)
        down, right, is_flipped = rng.integers(0, (2 * SHIFT + 1, 2 * SHIFT + 1, 2)).tolist()
        crop = image[:, down : down + size, right : right + size]
        moved.append(crop.flip(-1) if is_flipped else crop)
    return torch.stack(moved)


@torch.inference_mode()
def accuracy_of(network: Classifier, test: Labelled) -> float:
    """The share of images that the classifier labels correctly, in [0,1]."""
    device = next(network.parameters()).device
    right = 0
    for start in range(0, len(test), CHUNK):
        images_B3SS, classes_B = test.batch(slice(start, start + CHUNK))
        right += int((network(images_B3SS.to(device)).argmax(1).cpu() == classes_B).sum())
    return right / len(test)
