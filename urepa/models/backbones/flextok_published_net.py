"""The names of apple/ml-flextok's published weights, and their tensors in the layout of `FlexTokNetwork`.

Names, shapes and the order of values were read in the published modules (tests/models/backbones/flextok_published.txt
says where); no code is taken from there. Differences from the layout here:

- Queries, keys and values have a matrix each; patches are embedded by a matrix over (row, column, channel).
- One matrix gives both modulations of a block, patches first, each as the gates, then shift and scale of both parts.
- The sine-cosine positions have the row's values first, here the column's are first. They are fixed, so the two halves
  of the residual stream are exchanged instead, in all weights.

Shapes: D width, C channels, p patch, K registers, H inner width of an MLP.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from urepa.core.errors import UserError

ENCODER, DECODER, VAE = "encoder.module_dict.", "decoder.module_dict.", "vae."
POSITIONS = (f"{ENCODER}enc_posemb_module.posembs", f"{DECODER}dec_patches_posemb_module.posembs")  # [1,D,h,w]
# the published parts of a modulation: gate of attention, of the MLP, shift and scale of attention, of the MLP
PARTS = (2, 3, 0, 4, 5, 1)  # the place there of shift, scale and gate of attention, then of the MLP
NEAR = 0.02  # of positions, which may be stored in bf16

Weights = Mapping[str, Tensor]


def is_published(names: Any) -> bool:
    """Whether names of weights are those of the published layout."""
    return any(name.startswith((ENCODER, DECODER)) for name in names)


def from_published(weights: Weights, patch: int) -> dict[str, Tensor]:
    """Weights of the published layout under the names here. Weights of a VAE are left out, and positions, which
    `check_positions` compares; other names that the layout does not have are kept. Raises UserError if a weight is
    missing."""
    left = {name: value for name, value in weights.items() if not name.startswith(VAE) and name not in POSITIONS}
    try:
        found = dict(_encoder(left, patch)) | dict(_decoder(left, patch))
    except KeyError as error:
        raise UserError(
            f"the weights are in the layout of apple/ml-flextok but lack {error}; give the whole file"
        ) from None
    return found | left


def check_positions(weights: Weights, own: Mapping[str, Tensor]) -> None:
    """Raises UserError if stored positions are not the fixed ones. `own`: the positions here [1,N,D] by stored name."""
    for name in POSITIONS:
        if name not in weights:
            continue
        stored_ND = swap_halves(weights[name][0].flatten(1).T.float(), 1)
        if stored_ND.shape != own[name][0].shape or (stored_ND - own[name][0].cpu()).abs().max() > NEAR:
            raise UserError(
                f"{name} {tuple(weights[name].shape)} are not the sine-cosine positions of this backbone; give weights "
                "for this data.image_size and backbone.patch"
            )


def swap_halves(x: Tensor, dim: int) -> Tensor:
    """The two halves of a dimension exchanged; the exchange is its own inverse."""
    first, second = x.chunk(2, dim)
    return torch.cat([second, first], dim)


def _encoder(weights: dict[str, Tensor], patch: int) -> Iterator[tuple[str, Tensor]]:
    yield from _embedding(weights, f"{ENCODER}enc_patch_emb.patch_proj", "encoder.x_embedder.proj", patch)
    yield "encoder.registers", swap_halves(weights.pop(f"{ENCODER}enc_register_module.registers"), 1)
    place = f"{ENCODER}enc_transformer.blocks."
    for i in range(_depth(weights, place)):
        yield from _block(weights, f"{place}{i}.", f"encoder.blocks.{i}.")
    yield "encoder.to_codes.weight", swap_halves(weights.pop(f"{ENCODER}enc_to_latents.proj.weight"), 1)
    yield "encoder.to_codes.bias", weights.pop(f"{ENCODER}enc_to_latents.proj.bias")


def _decoder(weights: dict[str, Tensor], patch: int) -> Iterator[tuple[str, Tensor]]:
    yield from _embedding(weights, f"{DECODER}dec_noise_patch_emb.patch_proj", "decoder.x_embedder.proj", patch)
    for kind in ("weight", "bias"):
        for layer in (0, 2):  # the embedded time is not part of the residual stream
            name = f"mlp.{layer}.{kind}"
            yield f"decoder.t_embedder.{name}", weights.pop(f"{DECODER}dec_time_embedder.{name}")
        yield f"decoder.from_codes.{kind}", swap_halves(weights.pop(f"{DECODER}dec_from_latents.proj.{kind}"), 0)
    yield "decoder.mask_token", swap_halves(weights.pop(f"{DECODER}dec_nested_dropout.dropout_mask_token"), 0)
    yield "decoder.null_token", swap_halves(weights.pop(f"{DECODER}dec_latent_dropout.nullcond"), 0)
    places_DK = weights.pop(f"{DECODER}dec_registers_posemb_module.posembs")[0, 0]
    yield "decoder.register_embed", swap_halves(places_DK, 0).T
    place = f"{DECODER}dec_transformer.blocks."
    for i in range(_depth(weights, place)):
        yield from _block(weights, f"{place}{i}.", f"decoder.blocks.{i}.")
        yield from _modulations(weights, f"{place}{i}.adaLN_modulation.1.", f"decoder.blocks.{i}.")
    for kind in ("weight", "bias"):
        shift, scale = weights.pop(f"{DECODER}dec_to_patches.adaLN_modulation.1.{kind}").chunk(2)
        both = torch.cat([swap_halves(shift, 0), swap_halves(scale, 0)])
        yield f"decoder.final_layer.adaLN_modulation.1.{kind}", both
    yield "decoder.final_layer.linear.weight", swap_halves(weights.pop(f"{DECODER}dec_to_patches.proj.weight"), 1)
    yield "decoder.final_layer.linear.bias", weights.pop(f"{DECODER}dec_to_patches.proj.bias")


def _depth(weights: Weights, place: str) -> int:
    """The number of blocks whose names begin with `place`."""
    return len({name.removeprefix(place).partition(".")[0] for name in weights if name.startswith(place)})


def _embedding(weights: dict[str, Tensor], there: str, here: str, patch: int) -> Iterator[tuple[str, Tensor]]:
    """A matrix [D,p·p·C] as a convolution [D,C,p,p]."""
    matrix = swap_halves(weights.pop(f"{there}.weight"), 0)
    if matrix.shape[1] % patch**2:
        raise UserError(
            f"{there}.weight {tuple(matrix.shape)} is not of patches of {patch}: give another backbone.patch"
        )
    yield f"{here}.weight", matrix.unflatten(1, (patch, patch, -1)).permute(0, 3, 1, 2)
    yield f"{here}.bias", swap_halves(weights.pop(f"{there}.bias"), 0)


def _block(weights: dict[str, Tensor], there: str, here: str) -> Iterator[tuple[str, Tensor]]:
    """Attention and MLP of a block."""
    into = [weights.pop(f"{there}attn.w{name}.weight") for name in "qkv"]
    yield f"{here}attn.qkv.weight", swap_halves(torch.cat(into), 1)
    yield f"{here}attn.proj.weight", swap_halves(weights.pop(f"{there}attn.proj.weight"), 0)
    for name, layer in (("gate", "fc1"), ("up", "fc3")):
        yield f"{here}mlp.{name}.weight", swap_halves(weights.pop(f"{there}mlp.{layer}.weight"), 1)
    yield f"{here}mlp.down.weight", swap_halves(weights.pop(f"{there}mlp.fc2.weight"), 0)


def _modulations(weights: dict[str, Tensor], there: str, here: str) -> Iterator[tuple[str, Tensor]]:
    """The modulations of patches and of registers, each of six vectors."""
    for kind in ("weight", "bias"):
        for name, both in zip(("patch", "register"), weights.pop(there + kind).chunk(2), strict=True):
            parts = [swap_halves(part, 0) for part in both.chunk(6)]
            yield f"{here}{name}_modulation.1.{kind}", torch.cat([parts[place] for place in PARTS])
