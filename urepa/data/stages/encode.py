"""The stages that run a network over images: VAE latents, teacher tokens, prompt embeddings.

Shapes: B batch, S image size, CHW latent, N tokens, D teacher width, K prompts, L text positions.
A batch is one transaction, and batches always have the same boundaries, so the records of a build that was killed and
resumed equal those of an uninterrupted one.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from urepa.core import progress
from urepa.core.errors import UserError
from urepa.core.files import read_json, write_whole
from urepa.core.hub_names import download_failure, resolve
from urepa.data.cache import mean_token_file, mirrored_facts, mirrored_folder, of_unit_length, write_begun
from urepa.data.image_statistics import IMAGE_TOKENS, statistics_file, sums_of
from urepa.data.lists.samples import Sample
from urepa.data.online_encoders import own_device
from urepa.data.stages.vae import load_vae, mode_of, scaling_of
from urepa.data.stages.vae_config import DC
from urepa.data.stores.build_seconds import BuildTime
from urepa.data.stores.digests import manifest_entries
from urepa.data.stores.lmdb_store import Part, StoreWriter
from urepa.data.stores.record_keys import key_suffix, token_key_facts
from urepa.data.stores.record_reading import Store
from urepa.data.stores.sealing import digests_file

Encode = Callable[[Tensor], np.ndarray]  # images [B,C,S,S] -> records [B, ...]
Todo = Callable[[Sequence[Sample]], list[Sample]]  # the samples of a batch without a record yet
Read = Callable[[Todo], Iterator[tuple[Sequence[Sample], Tensor]]]  # these samples with their images, in batches


def device_and_dtype() -> tuple[torch.device, torch.dtype]:
    """This process's device, and bf16 on a GPU or fp32 on a CPU."""
    device = own_device()
    return device, torch.bfloat16 if device.type == "cuda" else torch.float32


@dataclass(frozen=True)
class Output:
    """A store that a stage fills. `facts` are the entries of its manifest, for tokens with that of `token_key_facts`.
    A mirrored store holds the training images' mirror images."""

    folder: Path
    facts: dict[str, Any]
    mirrored: bool = False
    unit: str = "image"  # what one record is made from

    def holds(self, sample: Sample) -> bool:
        """Whether the store has a record of the sample: a mirrored store has training samples only."""
        return sample.split == "train" or not self.mirrored

    @property
    def is_tokens(self) -> bool:
        """Whether the records are a teacher's tokens: of unit length, and summed for their mean."""
        return self.facts.get("kind") == "tokens"

    def sum_of(self, values: np.ndarray) -> np.ndarray | None:
        """What training records add to the store's sum; None for a store without."""
        if self.is_tokens:
            return _token_sum(of_unit_length(values, self.facts["teacher"]))
        return sums_of(values) if self.facts.get("kind") == IMAGE_TOKENS else None

    def files_of(self, total: np.ndarray | None) -> dict[str, bytes]:
        """The files beside the records that are made of the sum."""
        if self.is_tokens:
            assert total is not None, "every batch has added its sum"
            return mean_token_file(total[:-1] / total[-1])
        if self.facts.get("kind") == IMAGE_TOKENS:
            assert total is not None, "every batch has added its sum"
            return statistics_file(total)
        return {}

    def key(self, sample: Sample) -> str:
        """The key of a sample's record on disk."""
        return f"{sample.sample_id}{key_suffix(self.facts)}"


def outputs_of(output: Output, flip: bool) -> list[Output]:
    """The store and, with `flip`, that of its mirror images; token stores with the entry of `token_key_facts`."""
    outputs = [output]
    if flip:
        folder, facts = mirrored_folder(output.folder), mirrored_facts(output.facts)
        outputs.append(Output(folder, facts, mirrored=True))
    return [replace(out, facts=out.facts | token_key_facts(out.folder)) if out.is_tokens else out for out in outputs]


def encode_part(
    output: Output, part: Part, samples: Sequence[Sample], read: Read, encode: Encode, remake: str, listed: str
) -> None:
    """Writes the missing records of the part's samples: `read` yields their images in batches, `encode` returns the
    records; `listed` is the digest of the whole list. Writing overlaps with encoding the next batch; a batch is written
    whole or not at all."""
    write_begun(output.folder, output.facts, remake)
    spent = BuildTime(part.folder(output.folder))
    with (
        StoreWriter(output.folder, output.facts["dtype"], part) as writer,
        ThreadPoolExecutor(1) as pool,
        progress.bar(total=sum(map(output.holds, samples)), desc=output.folder.name, unit=output.unit) as bar,
    ):

        def todo(batch: Sequence[Sample]) -> list[Sample]:
            own = [s for s in batch if output.holds(s)]
            missing = set(writer.missing(list(map(output.key, own))))
            progress.skip_done(bar, len(own) - len(missing))
            return [s for s in own if output.key(s) in missing]

        writing: Future[np.ndarray] | None = None
        for chosen, images in read(todo):
            values = encode(images.flip(-1) if output.mirrored else images)
            total = output.sum_of(values[[s.split == "train" for s in chosen]])
            records = [(output.key(s), value) for s, value in zip(chosen, values, strict=True)]
            if writing is not None:
                writing.result()
            writing = pool.submit(writer.put, records, total)
            bar.update(len(chosen))
            spent.note()
        if writing is not None:
            writing.result()
            spent.note(last=True)
    write_whole(part.folder(output.folder) / "done.json", json.dumps({"list": listed}))


def seal(output: Output, listed: str) -> bool:
    """Writes the manifest, which marks the store as finished, if every part has completed the list with the digest
    `listed`. Returns whether it did."""
    parts = output.facts.get("parts", 1)
    folders = [Part(i, parts).folder(output.folder) for i in range(parts)]
    done = [read_json(file) for folder in folders if (file := folder / "done.json").exists()]
    done = [d for d in done if d.get("list") == listed]  # the others belong to a smaller track in the same folder
    if len(done) < parts:
        print(f"{output.folder.name}: {len(done)} of {parts} parts are done")
        return False
    store = Store(output.folder, output.facts)
    total, files = store.token_sum(), digests_file(store)
    manifest = output.facts | {"count": store.count()}
    store.close()
    files |= output.files_of(total)
    for name, content in files.items():
        write_whole(output.folder / name, content)
    write_whole(output.folder / "manifest.json", json.dumps(manifest | manifest_entries(files), indent=1))
    return True


def _token_sum(tokens_BND: np.ndarray) -> np.ndarray:
    """The sum over all tokens, followed by their number: [D+1]."""
    flat = tokens_BND.reshape(-1, tokens_BND.shape[-1]).astype(np.float64)
    return np.append(flat.sum(0), len(flat))


def vae_encoder(weights: str, moments: bool) -> tuple[Encode, dict[str, Any]]:
    """A function from images to x0 (`LatentScaling`), and its entries in a manifest.

    x0 is the posterior's mode [B,C,H,W]; with `moments` its mean and standard deviation [B,2,C,H,W], for sampling.
    Raises UserError for moments of a VAE without a posterior.
    """
    device, dtype = device_and_dtype()
    vae = load_vae(weights)
    if moments and type(vae).__name__ == DC:
        raise UserError(f"data.vae={weights} is an {DC}, which has no posterior; give data.moments=false")
    scaling = scaling_of(vae, weights)
    torch.nn.Module.to(vae, device, dtype)  # diffusers' own `to` would warn needlessly

    @torch.inference_mode()
    def encode(images: Tensor) -> np.ndarray:
        pixels = images.to(device, dtype) / 127.5 - 1
        encoded = vae.encode(pixels)
        if moments:
            mean, std = encoded.latent_dist.mean.float(), encoded.latent_dist.std.float()
            return torch.stack([scaling.to_x0(mean), scaling.std_to_x0(std)], dim=1).cpu().numpy()
        return scaling.to_x0(mode_of(encoded).float()).cpu().numpy()

    return encode, {"vae": short_name(weights)} | scaling.facts() | {"moments": moments}


def token_encoder(teacher: Any, show: Callable[[Tensor], Tensor] | None = None) -> Encode:
    """A function from images to teacher tokens [B,N,D]. `show` maps the images to those that the teacher sees, in
    [0,1]; None: the images themselves."""

    device, _ = device_and_dtype()

    def encode(images: Tensor) -> np.ndarray:
        shown = images.to(device).float() / 255 if show is None else show(images)
        return teacher.tokens(shown).x_BND.cpu().numpy()

    return encode


def short_name(weights: str) -> str:
    """The name in manifests of a hub id or a folder: its last part."""
    return Path(resolve(weights)[0]).name


def prompt_facts(text: str, names: list[str]) -> dict[str, str]:
    """What prompt embeddings were made from: the text encoder and a digest of the class names."""
    return {"text": short_name(text), "class_names_sha256": hashlib.sha256("\n".join(names).encode()).hexdigest()}


def write_prompts(path: Path, weights: str, class_names: list[str], batch: int = 64) -> None:
    """Writes the embeddings of `a photo of a {name}` for every class, and of the empty prompt in the last row: [K,L,E]
    fp16."""
    from transformers import CLIPTextModel, CLIPTokenizer

    progress.hide_loading()
    name, revision = resolve(weights)
    try:
        tokenizer: Any = CLIPTokenizer.from_pretrained(name, subfolder="tokenizer", revision=revision)
        text: Any = CLIPTextModel.from_pretrained(
            name, subfolder="text_encoder", use_safetensors=True, revision=revision
        )
    except OSError as error:
        reason = download_failure(error, weights)
        raise UserError(
            f"data.text={weights} could not be loaded ({reason}); or give a local diffusers folder"
        ) from error
    text = text.eval()
    prompts = [f"a photo of a {c}" for c in class_names] + [""]
    rows = []
    for start in progress.bar(range(0, len(prompts), batch), desc="prompts", unit="batch"):
        ids = tokenizer(
            prompts[start : start + batch],
            padding="max_length",
            max_length=tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        with torch.inference_mode():
            rows.append(text(ids)[0].half())
    out = io.BytesIO()
    torch.save(torch.cat(rows).clone(), out)
    write_whole(path, out.getvalue())
