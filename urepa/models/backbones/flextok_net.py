"""FlexTok: an encoder to ordered registers and a flow decoder of these, as one denoiser (Bachmann et al. 2025, arXiv
2502.13967). Written from the paper's description: the published code has another licence and was not used.

Shapes: B batch, R rows of it, CHW latent, K registers, d values of a code.

In training the condition is an image, `image` (its x0 as tokens) with `image.keep`, which the encoder maps to codes.
For decoding it is the codes, `codes`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from urepa.core.conditions import Condition, Part
from urepa.core.errors import UserError
from urepa.core.part_names import CODES, IMAGE, KEEP
from urepa.core.types import Denoised
from urepa.models.backbones.backbone_sizes import EXPORTED
from urepa.models.backbones.flextok_decoder_net import Decoder
from urepa.models.backbones.flextok_encoder_net import Encoder
from urepa.models.backbones.flextok_published_net import POSITIONS, check_positions, from_published, is_published
from urepa.models.backbones.flextok_sizes import NO_ADAPTERS, decoder_block
from urepa.models.register_layers import Sizes
from urepa.models.weight_files import read_safetensors, read_torch, save_tensors


def kept_counts(u_B: Tensor, registers: int, nested_dropout: str) -> Tensor:
    """How many registers [B] are kept, from 1 to `registers`, for uniform draws in [0,1): a uniform number ("uniform"),
    the same rounded up to a power of two ("powers_of_two"), or all ("none")."""
    if nested_dropout == "none":
        return torch.full_like(u_B, registers, dtype=torch.long)
    uniform_B = ((u_B.double() * registers).long() + 1).clamp(max=registers)  # a draw may round to 1 in fp32
    if nested_dropout == "uniform":
        return uniform_B
    powers = torch.tensor([2**i for i in range(registers.bit_length() + 1)], device=u_B.device)
    return powers[torch.searchsorted(powers, uniform_B)].clamp(max=registers)


class FlexTokNetwork(nn.Module):
    """Encoder and decoder. Taps: `decoder_block_k`, the patches' tokens in the output of the decoder's block k, counted
    from 0.

    Args:
        latent_shape: C, H, W.
        encoder, decoder: the sizes of each.
        mask_positions: whether registers that are not kept, or withheld, have a position too.
        nested_dropout: as in `kept_counts`.
        recompute: the blocks are computed again in the backward pass.
    """

    stages = ("encoder", "decoder", "output")
    regions = ("EncoderBlock", "DecoderBlock")

    def __init__(
        self,
        latent_shape: tuple[int, int, int],
        patch: int,
        registers: int,
        encoder: Sizes,
        decoder: Sizes,
        levels: Sequence[int],
        nested_dropout: str,
        mask_positions: bool,
        recompute: bool,
    ) -> None:
        super().__init__()
        self.latent_shape, self.registers, self.nested_dropout = tuple(latent_shape), registers, nested_dropout
        self.width, self.recompute = decoder.width, recompute
        self.encoder = Encoder(latent_shape, patch, registers, encoder, levels)
        self.decoder = Decoder(latent_shape, patch, registers, decoder, len(levels), mask_positions)

    # --- codes ------------------------------------------------------------------------------------------

    def encode(self, x0: Tensor) -> Tensor:
        """The codes [B,K] of x0 [B,C,H,W], int64, at least 0 and below the product of the levels."""
        return self.encoder.quantiser.indices(self.encoder(x0))

    def condition_of(self, codes_BK: Tensor, kept_B: Tensor) -> Condition:
        """The condition under which images are decoded from these codes, of which the first `kept_B` [B] are kept."""
        kept_BK = torch.arange(self.registers, device=codes_BK.device) < kept_B[:, None]
        return Condition({CODES: Part.of(self.encoder.quantiser.vectors(codes_BK), kept_BK)})

    # --- members of every backbone ---------------------------------------------------------------------

    def index_of(self, tap: str) -> int:
        """The index of a tap's block in the decoder. Raises UserError for a tap that does not exist."""
        return decoder_block(tap, len(self.decoder.blocks))

    def tap_width(self, tap: str) -> int:
        """The decoder's width, the same for every tap."""
        self.index_of(tap)
        return self.width

    def trains_before(self, tap: str) -> bool:
        """Whether something trainable precedes the tap. If not, the alignment term there trains only the head."""
        after = (*self.decoder.blocks[self.index_of(tap) + 1 :], self.decoder.final_layer)
        behind = {id(p) for part in after for p in part.parameters()}
        return any(p.requires_grad and id(p) not in behind for p in self.parameters())

    def freeze_after(self, taps: tuple[str, ...]) -> None:
        """Freezes the parameters that no tap depends on: without a diffusion term they would have no gradient."""
        deepest = max(self.index_of(tap) for tap in taps)
        for part in (*self.decoder.blocks[deepest + 1 :], self.decoder.final_layer):
            part.requires_grad_(False)

    def lora_modules(self, targets: str, blocks: str) -> str:
        raise UserError(NO_ADAPTERS)

    def add_adapter(self, config: Any) -> None:
        raise UserError(NO_ADAPTERS)

    def export(self, folder: Path) -> None:
        """Writes the weights under their own names."""
        save_tensors(self.state_dict(), folder / EXPORTED)

    def stage_of(self, name: str) -> str:
        """The part of the network that has a module or parameter of this name: one of `stages`."""
        if name.startswith("decoder.final_layer"):
            return "output"
        return "decoder" if name.startswith("decoder") else "encoder"

    def forward(
        self,
        x_t: Tensor,
        t_B: Tensor,
        condition: Condition,
        taps: tuple[str, ...] = (),
        rows_R: Tensor | None = None,
    ) -> Denoised:
        """x_t [B,C,H,W], t [B] in [0,1]. Taps have the whole batch, the prediction only the samples `rows_R` (None:
        all)."""
        assert tuple(x_t.shape[1:]) == self.latent_shape, f"x_t is {tuple(x_t.shape[1:])}, not {self.latent_shape}"
        registers_BKD = self.decoder.registers_of(*self._codes_of(condition))
        tap_of = {self.index_of(tap): tap for tap in taps}
        return self.decoder(x_t, t_B, registers_BKD, tap_of, rows_R, self.recompute)

    def _codes_of(self, condition: Condition) -> tuple[Tensor, Tensor, Part]:
        """The codes [B,K,d], which of them are kept [B,K], and the part that determines which samples have codes."""
        if CODES in condition.names:
            codes = condition[CODES]
            assert codes.mask_BL is not None, "tokens have a mask"
            return codes.tokens_BLD, codes.mask_BL, codes
        image = condition[IMAGE]
        x0 = image.tokens_BLD.transpose(1, 2).unflatten(2, self.latent_shape[1:])
        kept_B = kept_counts(condition[KEEP].vector_BD[:, 0], self.registers, self.nested_dropout)
        kept_BK = torch.arange(self.registers, device=x0.device) < kept_B[:, None]
        return self.encoder(x0, self.recompute), kept_BK, image


def load_weights(network: FlexTokNetwork, place: Path) -> None:
    """Copies weights into the network from a file in the layout of its exports or in that of apple/ml-flextok, or from
    the folder of an export. Raises UserError if weights are missing, superfluous or of another shape."""
    file = place / EXPORTED if place.is_dir() else place
    if not file.is_file():
        raise UserError(
            f"backbone.weights={place} does not exist; give a .safetensors file, or the folder of an export"
        )
    stored = read_safetensors(file) if file.suffix == ".safetensors" else read_torch(file)
    if not isinstance(stored, dict) or not all(isinstance(value, Tensor) for value in stored.values()):
        raise UserError(f"{file} contains no named weights; give an export of a FlexTok run")
    if is_published(stored):
        places = (network.encoder.pos_embed, network.decoder.pos_embed)
        published, stored = stored, from_published(stored, network.decoder.patch)
        check_sizes(network, stored, file)
        check_positions(published, dict(zip(POSITIONS, places, strict=True)))
    else:
        check_sizes(network, stored, file)
    network.load_state_dict(stored)


def check_sizes(network: FlexTokNetwork, stored: dict[str, Tensor], file: Path) -> None:
    """Raises UserError if weights do not have the network's names and shapes; it names the sizes that differ."""
    own = network.state_dict()
    odd = sorted(own.keys() ^ stored.keys())
    odd += [name for name in own if name in stored and own[name].shape != stored[name].shape]
    if not odd:
        return
    here, there = sizes_of(own), sizes_of(stored)
    differ = [
        f"backbone.{key}={there[key]} (here {here[key]})" for key in here if key in there and here[key] != there[key]
    ]
    advice = (
        f"give {', '.join(differ)}"
        if differ
        else "choose the sizes (backbone.*) and the data with which it was trained"
    )
    raise UserError(
        f"{file} does not fit this backbone: {len(odd)} of its weights differ by name or shape ({odd[0]}); {advice}"
    )


def sizes_of(weights: Mapping[str, Tensor]) -> dict[str, int]:
    """The sizes that names and shapes of weights tell, by their keys in conf/backbone."""
    sizes: dict[str, int] = {}
    for part in ("encoder", "decoder"):
        begin = f"{part}.blocks."
        sizes[f"{part}_depth"] = len({name.split(".")[2] for name in weights if name.startswith(begin)})
        if f"{part}.x_embedder.proj.bias" in weights:
            sizes[f"{part}_width"] = len(weights[f"{part}.x_embedder.proj.bias"])
    if "encoder.registers" in weights:
        sizes["registers"] = len(weights["encoder.registers"])
    return sizes
