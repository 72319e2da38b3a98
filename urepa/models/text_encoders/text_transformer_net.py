"""Text encoders of the transformers library: tokenizers and transformers, loaded on first use.

Shapes: B texts, K rows of integers, L positions, M positions of the longest tokenizer, D width of a token, P width of
the pooled vector, S stacked layers, E width of their tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from threading import Lock
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from urepa.core import progress
from urepa.core.errors import UserError
from urepa.core.text_protocols import EncodedText, TokenizedText
from urepa.models.text_encoders.pipeline_sizes import KEY, known_config, local_folder, places, variant_of

Loaded = tuple[Any, Any]  # a tokenizer and a transformer
# from the transformer, ids [B,L] and the tokenizer's mask [B,L] (both int64) to the encoded text
Encode = Callable[[Any, Tensor, Tensor], EncodedText]


# a tokenizer and texts to the texts that it tokenizes
Prepare = Callable[[Any, list[str]], list[str]]


@dataclass(frozen=True)
class Tower:
    """One tokenizer with its transformer. `empty` returns the transformer alone and reads no weights. `length` None:
    that of the text encoder; a function: the length by the tokenizer, of which costs count only the text encoder's.
    `prepare` None: unchanged texts. `adds_special`: whether the tokenizer adds its special tokens."""

    load: Callable[[], Loaded]
    encode: Encode
    empty: Callable[[], Any]
    length: int | Callable[[Any], int] | None = None
    prepare: Prepare | None = None
    adds_special: bool = True


Join = Callable[[list[EncodedText]], EncodedText]  # the towers' outputs, in their order, to the text encoder's


def join_widths(found: list[EncodedText]) -> EncodedText:
    """Tokens and pooled vectors, each concatenated along their width; the mask is that of the first."""
    tokens_BLD = torch.cat([one.tokens_BLD for one in found], dim=2)
    return EncodedText(tokens_BLD, found[0].mask_BL, join_vectors(found))


def join_vectors(found: list[EncodedText]) -> Tensor:
    """The pooled vectors of several towers, concatenated, [B,P]."""
    return torch.cat([one.pooled_BP for one in found], dim=1)


class TextTransformer:
    """Frozen text transformers (`urepa.core.text_protocols.TextEncoderNetwork`)."""

    def __init__(
        self,
        *,
        facts: dict[str, Any],
        length: int,
        towers: Sequence[Tower],
        check: Callable[[list[Any]], None],
        computed_in: str = "float32",
        lowercase: bool = False,
        join: Join = join_widths,
        counted: Sequence[int] | None = None,
    ) -> None:
        """`facts` are entries of the manifest; `check` is called with the transformers' configs when they are loaded.
        `computed_in` is the data type in which the towers load them. Only the tokenizers of the towers in `counted`
        count truncated captions; None: all."""
        self.length = length
        self._facts = facts | {"length": length, "computed_in": computed_in}
        self._towers, self._check, self._lowercase, self._join = towers, check, lowercase, join
        self._counted = range(len(towers)) if counted is None else counted
        self.lengths = [tower.length if isinstance(tower.length, int) else length for tower in towers]
        self._lock = Lock()  # a tokenizer of transformers holds the length of its last call: one thread at a time

    @cached_property
    def _loaded(self) -> list[Loaded]:
        progress.hide_loading()
        loaded = [tower.load() for tower in self._towers]
        self._check([network.config for _, network in loaded])
        return [(tokenizer, network.eval().requires_grad_(False)) for tokenizer, network in loaded]

    @cached_property
    def _positions(self) -> list[int]:
        """`lengths`, with those that depend on the tokenizers."""
        return [
            tower.length(tokenizer) if callable(tower.length) else length
            for tower, length, (tokenizer, _) in zip(self._towers, self.lengths, self._loaded, strict=True)
        ]

    def manifest(self) -> dict[str, Any]:
        return dict(self._facts)

    def weights_sha256(self) -> str:
        """The SHA-256 of the weights' names and values, independent of how they are stored."""
        digest = hashlib.sha256()
        for _, network in self._loaded:
            for name, value in sorted(network.state_dict().items()):
                digest.update(name.encode())
                digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def build_without_weights(self) -> nn.ModuleList:
        """The transformers alone, without values, on the meta device. No weights are read and nothing is fetched."""
        with torch.device("meta"):
            return nn.ModuleList(tower.empty() for tower in self._towers)

    def tokenize(self, texts: Sequence[str]) -> TokenizedText:
        """The ids and the mask [B,M] of each tokenizer, in the tokenizers' order; those with fewer positions are padded
        with zeros."""
        with self._lock:
            return self._tokenize(texts)

    def _tokenize(self, texts: Sequence[str]) -> TokenizedText:
        chosen = [text.lower().strip() for text in texts] if self._lowercase else list(texts)
        rows, cut = [], [0] * len(chosen)
        for i, ((tokenizer, _), tower, length) in enumerate(
            zip(self._loaded, self._towers, self._positions, strict=True)
        ):
            own = chosen if tower.prepare is None else tower.prepare(tokenizer, chosen)
            known: dict[str, Any] = {"add_special_tokens": tower.adds_special}
            whole = tokenizer(own, truncation=False, verbose=False, **known).input_ids
            known |= {"padding": "max_length", "max_length": length, "truncation": True, "return_tensors": "pt"}
            found, behind = tokenizer(own, **known), (0, max(self._positions) - length)
            rows += [F.pad(row_BL, behind) for row_BL in (found.input_ids, found.attention_mask)]
            if i in self._counted:
                cut = [max(most, len(ids) - length) for most, ids in zip(cut, whole, strict=True)]
        return TokenizedText(torch.stack(rows, dim=1), cut)

    @torch.no_grad()
    def encode(self, inputs_BKL: Tensor) -> EncodedText:
        device, found = inputs_BKL.device, []
        with torch.autocast(device.type, enabled=False):
            for i, (tower, length) in enumerate(zip(self._towers, self._positions, strict=True)):
                ids_BL, mask_BL = inputs_BKL[:, 2 * i, :length], inputs_BKL[:, 2 * i + 1, :length]
                found.append(_as_float32(tower.encode(self._loaded[i][1].to(device), ids_BL, mask_BL)))
        joined = self._join(found)
        mask_BL1 = joined.mask_BL.unsqueeze(2)
        layers_BSLE = None
        if joined.layers_BSLE is not None:
            layers_BSLE = torch.where(mask_BL1.unsqueeze(1), joined.layers_BSLE, 0)
        return EncodedText(torch.where(mask_BL1, joined.tokens_BLD, 0), joined.mask_BL, joined.pooled_BP, layers_BSLE)


def _as_float32(found: EncodedText) -> EncodedText:
    layers_BSLE = None if found.layers_BSLE is None else found.layers_BSLE.float()
    return EncodedText(found.tokens_BLD.float(), found.mask_BL, found.pooled_BP.float(), layers_BSLE)


# --- parts of an output ---------------------------------------------------------------------------------


def all_count(mask_BL: Tensor) -> Tensor:
    """A mask [B,L] that includes all positions."""
    return torch.ones_like(mask_BL, dtype=torch.bool)


def vector_alone(pooled_BP: Tensor, mask_BL: Tensor) -> EncodedText:
    """The output of a tower whose tokens are not used: their width is 0."""
    return EncodedText(pooled_BP.new_zeros(*mask_BL.shape, 0), all_count(mask_BL), pooled_BP)


def of_layer(out: Any, layer: int) -> Tensor:
    """The tokens [B,L,D] of a layer, counted from the end: -1 is the last, after the final norm if there is one."""
    tokens_BLD: Tensor = out.last_hidden_state if layer == -1 else out.hidden_states[layer]
    return tokens_BLD


def without_vector(tokens_BLD: Tensor) -> Tensor:
    """Pooled vectors [B,0], for an encoder that has none."""
    return tokens_BLD.new_zeros(len(tokens_BLD), 0)


Counts = Callable[[Tensor], Tensor]  # the tokenizer's mask [B,L] (int64) to the mask that is returned, [B,L] (bool)


def own_count(mask_BL: Tensor) -> Tensor:
    """A mask that includes a caption's own positions."""
    return mask_BL.bool()


def one_more_counts(mask_BL: Tensor) -> Tensor:
    """A mask that includes a caption's own positions and the first position after them."""
    return torch.arange(mask_BL.shape[1], device=mask_BL.device) <= mask_BL.sum(1, keepdim=True)


def layer_tokens(layer: int, counts: Counts = own_count, is_masked: bool = True) -> Encode:
    """A function that returns a layer's tokens with the mask `counts`, and no vector. If `is_masked` is false, the
    transformer gets no mask."""

    def encode(network: Any, ids_BL: Tensor, mask_BL: Tensor) -> EncodedText:
        out = network(input_ids=ids_BL, attention_mask=mask_BL if is_masked else None, output_hidden_states=layer != -1)
        tokens_BLD = of_layer(out, layer)
        return EncodedText(tokens_BLD, counts(mask_BL), without_vector(tokens_BLD))

    return encode


# --- loading ----------------------------------------------------------------------------------------------------


def load_pair(
    model: str,
    numbers: Sequence[int],
    number: int,
    tokenizer: Any,
    network: Any,
    dtype: str = "float32",
    key: str = KEY,
    **how: Any,
) -> Loaded:
    """Loads a tokenizer and a transformer of these classes from a folder or the hub. Code in the folder is never run.

    Args:
        numbers: the numbers of all text encoders that are read from the pipeline; `number` is that of this one.
        key: the setting whose value `model` is.
        how: further settings of the tokenizer.

    Raises UserError if they cannot be loaded, or if weights of the transformer are missing.
    """
    from safetensors import SafetensorError

    there, weights = places(local_folder(model, numbers, key), number, key)
    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    known = {"use_safetensors": True, "variant": variant_of(weights), "dtype": getattr(torch, dtype)}
    try:
        made = tokenizer.from_pretrained(there, **local, **how)
        loaded, info = network.from_pretrained(weights, output_loading_info=True, **known, **local)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{key}={model} could not be loaded ({reason})") from error
    if lacking := sorted(info["missing_keys"]):
        raise UserError(
            f"{key}={model} has no weights of {lacking[0]} ({len(lacking)} are missing): it is not a "
            f"{network.__name__}; give another one"
        )
    return made, loaded


def network_without_weights(
    model: str, number: int, network: Any, published: Mapping[str, Any], dtype: str = "float32", **how: Any
) -> Any:
    """A transformer of this class with random weights, also on the meta device. The architecture is that of the
    config.json in a local folder or the hub's cache, else `published`.

    Args:
        number: the number of the text encoder in the pipeline.
        how: further arguments of the transformer.
    """
    known = known_config(model, number)
    config = network.config_class.from_dict(dict(published) if known is None else known)
    return network(config, **how).to(getattr(torch, dtype))


def check_width(model: str, width: int, asked: int, key: str = "width") -> None:
    """Raises UserError if a network's width differs from the setting `key`."""
    if width != asked:
        raise UserError(
            f"the text encoder {model} has {key.replace('_', ' ')} {width}, not {asked}; give "
            f"data.text_encoder.{key}={width}"
        )


def check_length(model: str, positions: int, asked: int, key: str = "length") -> None:
    """Raises UserError if the setting `key` exceeds the network's positions."""
    if asked > positions:
        raise UserError(f"data.text_encoder.{key}={asked}: {model} has {positions} positions; give as many or fewer")


def check_layer(model: str, layers: int, asked: int) -> None:
    """Raises UserError if the network does not have the layer in the setting `layer`."""
    if -asked > layers:
        raise UserError(f"data.text_encoder.layer={asked}: {model} has {layers} layers; give -{layers} to -1")
