"""Text encoders of the transformers library: tokenizers and transformers, loaded when they are first asked.

Shapes: B texts, K rows of whole numbers, L positions, D width of a token, P width of the pooled vector.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn

from urepa.core import progress
from urepa.core.errors import UserError
from urepa.core.text_protocols import EncodedText, TokenizedText
from urepa.models.text_encoders.pipeline_sizes import KEY, known_config, local_folder, places, variant_of

Loaded = tuple[Any, Any]  # a tokenizer and a transformer
# the transformer, ids [B,L] and the tokenizer's mask [B,L] (both int64) to what is taken of its output
Encode = Callable[[Any, Tensor, Tensor], EncodedText]


@dataclass(frozen=True)
class Tower:
    """One tokenizer with its transformer; `empty` gives the transformer alone, without reading its weights."""

    load: Callable[[], Loaded]
    encode: Encode
    empty: Callable[[], Any]


class TextTransformer:
    """Frozen text transformers (`urepa.core.text_protocols.TextEncoderNetwork`). The tokens of several are joined along
    their width, and so are their pooled vectors; the first one's mask is that of all."""

    def __init__(
        self,
        *,
        facts: dict[str, Any],
        length: int,
        towers: Sequence[Tower],
        check: Callable[[list[Any]], None],
        computed_in: str = "float32",
        lowercase: bool = False,
    ) -> None:
        """`facts` are the manifest's; `check` looks at the transformers' configs when they are read. `computed_in` is
        the type that the towers load them in."""
        self.length = length
        self._facts = facts | {"length": length, "computed_in": computed_in}
        self._towers, self._check, self._lowercase = towers, check, lowercase
        self._lock = Lock()  # a tokenizer of transformers holds the length of its last call: one thread at a time

    @cached_property
    def _loaded(self) -> list[Loaded]:
        progress.hide_loading()
        loaded = [tower.load() for tower in self._towers]
        self._check([network.config for _, network in loaded])
        return [(tokenizer, network.eval().requires_grad_(False)) for tokenizer, network in loaded]

    def manifest(self) -> dict[str, Any]:
        return dict(self._facts)

    def weights_sha256(self) -> str:
        """Of names and values, however they are stored."""
        digest = hashlib.sha256()
        for _, network in self._loaded:
            for name, value in sorted(network.state_dict().items()):
                digest.update(name.encode())
                digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def build_without_weights(self) -> nn.Module:
        """The transformers alone, without values, on the meta device. No weights are read and nothing is fetched."""
        with torch.device("meta"):
            return nn.ModuleList(tower.empty() for tower in self._towers)

    def tokenize(self, texts: Sequence[str]) -> TokenizedText:
        """Ids and mask of each tokenizer, one behind the other."""
        with self._lock:
            return self._tokenize(texts)

    def _tokenize(self, texts: Sequence[str]) -> TokenizedText:
        chosen = [text.lower().strip() for text in texts] if self._lowercase else list(texts)
        rows, cut = [], [0] * len(chosen)
        for tokenizer, _ in self._loaded:
            whole = tokenizer(chosen, truncation=False, verbose=False).input_ids
            found = tokenizer(
                chosen, padding="max_length", max_length=self.length, truncation=True, return_tensors="pt"
            )
            rows += [found.input_ids, found.attention_mask]
            cut = [max(most, len(ids) - self.length) for most, ids in zip(cut, whole, strict=True)]
        return TokenizedText(torch.stack(rows, dim=1), cut)

    @torch.no_grad()
    def encode(self, inputs_BKL: Tensor) -> EncodedText:
        device, found = inputs_BKL.device, []
        with torch.autocast(device.type, enabled=False):
            for i, tower in enumerate(self._towers):
                ids_BL, mask_BL = inputs_BKL[:, 2 * i], inputs_BKL[:, 2 * i + 1]
                found.append(tower.encode(self._loaded[i][1].to(device), ids_BL, mask_BL))
        tokens_BLD = torch.cat([one.tokens_BLD.float() for one in found], dim=2)
        pooled_BP = torch.cat([one.pooled_BP.float() for one in found], dim=1)
        mask_BL = found[0].mask_BL
        return EncodedText(torch.where(mask_BL.unsqueeze(2), tokens_BLD, 0), mask_BL, pooled_BP)


# --- what is taken of an output ---------------------------------------------------------------------------------


def of_layer(out: Any, layer: int) -> Tensor:
    """Tokens [B,L,D] of a layer, counted from the end: -1 is the last one, after the final norm where there is one."""
    tokens_BLD: Tensor = out.last_hidden_state if layer == -1 else out.hidden_states[layer]
    return tokens_BLD


def without_vector(tokens_BLD: Tensor) -> Tensor:
    """The pooled vectors [B,0] of an encoder that has none."""
    return tokens_BLD.new_zeros(len(tokens_BLD), 0)


def masked_tokens(layer: int, is_masked: bool = True) -> Encode:
    """The tokens of a layer, those alone that the tokenizer's mask counts, and no vector. Otherwise the transformer is
    given no mask, and all count."""

    def encode(network: Any, ids_BL: Tensor, mask_BL: Tensor) -> EncodedText:
        out = network(input_ids=ids_BL, attention_mask=mask_BL if is_masked else None, output_hidden_states=layer != -1)
        tokens_BLD = of_layer(out, layer)
        counts_BL = mask_BL.bool() if is_masked else torch.ones_like(mask_BL, dtype=torch.bool)
        return EncodedText(tokens_BLD, counts_BL, without_vector(tokens_BLD))

    return encode


# --- reading ----------------------------------------------------------------------------------------------------


def load_pair(
    model: str, numbers: Sequence[int], number: int, tokenizer: Any, network: Any, dtype: str = "float32", **how: Any
) -> Loaded:
    """A tokenizer and a transformer of these classes of transformers, from a folder or the hub. No code of it runs.

    Args:
        numbers: which text encoders of a pipeline are read in all; `number` is this one's.
        how: further settings of the tokenizer.

    Raises UserError where they cannot be read, or the weights lack some of the transformer's.
    """
    from safetensors import SafetensorError

    there, weights = places(local_folder(model, numbers), number)
    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    known = {"use_safetensors": True, "variant": variant_of(weights), "dtype": getattr(torch, dtype)}
    try:
        made = tokenizer.from_pretrained(there, **local, **how)
        loaded, info = network.from_pretrained(weights, output_loading_info=True, **known, **local)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{KEY}={model} could not be loaded ({reason})") from error
    if lacking := sorted(info["missing_keys"]):
        raise UserError(
            f"{KEY}={model} has no weights of {lacking[0]} ({len(lacking)} are missing): it is no "
            f"{network.__name__}; give another one"
        )
    return made, loaded


def network_without_weights(
    model: str, number: int, network: Any, published: Mapping[str, Any], dtype: str = "float32", **how: Any
) -> Any:
    """A transformer of this class at random weights, also on the meta device. The architecture is that of the
    config.json in a local folder or the hub's cache, else the published one.

    Args:
        number: which text encoder of a pipeline it is.
        how: further arguments of the transformer.
    """
    known = known_config(model, number)
    config = network.config_class.from_dict(dict(published) if known is None else known)
    return network(config, **how).to(getattr(torch, dtype))


def check_width(model: str, width: int, asked: int, key: str = "width") -> None:
    """UserError where a network's width is another one than was asked for as `key`."""
    if width != asked:
        raise UserError(
            f"the text encoder {model} has {key.replace('_', ' ')} {width}, not {asked}; give "
            f"data.text_encoder.{key}={width}"
        )


def check_length(model: str, positions: int, asked: int) -> None:
    """UserError where more positions are asked for than there are."""
    if asked > positions:
        raise UserError(f"data.text_encoder.length={asked}: {model} has {positions} positions; give as many or fewer")


def check_layer(model: str, layers: int, asked: int) -> None:
    """UserError where a layer is asked for that there is not."""
    if -asked > layers:
        raise UserError(f"data.text_encoder.layer={asked}: {model} has {layers} layers; give -{layers} to -1")
