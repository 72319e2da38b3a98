"""The conditions of tracks whose samples have captions: `text`, tokens with a mask, and `text.pooled`, a vector, where
the text encoder gives one.

Shapes: B samples, K rows of whole numbers, L positions, D width of a token, P width of the pooled vector, V values of a
record.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from urepa.core.conditions import Condition, Part, without_never_given
from urepa.core.errors import UserError
from urepa.core.part_names import POOLED, TEXT
from urepa.core.text_protocols import NullText, TextEncoder, TextEncoderNetwork
from urepa.data.lists.captions import EMPTY, Captions, as_rows, caption_key
from urepa.data.lists.samples import Keys, Sample
from urepa.data.online_encoders import OnlineText, own_device
from urepa.data.stores.record_reading import Store
from urepa.data.stores.text_records import TextShape


@dataclass(frozen=True)
class TextConditions:
    """Of captions (`ConditionMaker` of urepa/core/track_protocols.py). Without `records` and `captions`, which a track
    that is open has, it answers for prompts alone. `records`: a store, or the encoder that is asked in its place."""

    dropout: Mapping[str, float]
    encoder: TextEncoder
    records: Store | OnlineText | None = None
    captions: Captions = field(default_factory=dict)
    weights_sha256: str | None = None  # of the encoder that made the records; None: not known
    networks: list[TextEncoderNetwork] = field(default_factory=list)  # the encoder's, once it was asked

    @staticmethod
    def withheld_with(probability: float, encoder: TextEncoder) -> TextConditions:
        """Those of a track that withholds the caption from a training sample with this probability."""
        return TextConditions({TEXT: probability}, encoder)

    def opened(self, records: Store, captions: Captions) -> TextConditions:
        """The same with the samples' captions and their records."""
        return replace(self.made_by(records.manifest), records=records, captions=captions)

    def asked(self, facts: dict[str, Any], captions: Captions) -> TextConditions:
        """The same with the samples' captions, about which the encoder is asked each time; `facts` are those of a
        store's manifest but for the weights. UserError where the encoder is not there or has other sizes."""
        network = self.encoder.build()
        known = facts["encoder"] | {"weights_sha256": network.weights_sha256()}
        records = OnlineText(partial(encode_on_device, network, self.shape), facts | {"encoder": known})
        records.of_texts([EMPTY])  # now, not when the first batch is read
        return replace(self.made_by(records.manifest), records=records, captions=captions, networks=[network])

    def made_by(self, manifest: Mapping[str, Any]) -> TextConditions:
        """The same, which encodes prompts with the weights alone that made the records with this manifest."""
        return replace(self, weights_sha256=manifest["encoder"]["weights_sha256"])

    @property
    def shape(self) -> TextShape:
        """Of a caption's record."""
        return TextShape(self.encoder.length, self.encoder.width, self.encoder.pooled_width)

    def of_samples(
        self, samples: Sequence[Sample], draw: Callable[[int], np.random.Generator] | None = None
    ) -> Condition:
        """Of one caption of each sample, all given: drawn by its generator, or the first one without."""
        texts = []
        for i, sample in enumerate(samples):
            own = self.captions[sample.sample_id]
            texts.append(own[0 if draw is None else int(draw(i).integers(len(own)))])
        return self._of_records(self._read(texts))

    def of_classes(self, class_ids: Sequence[int]) -> Condition:
        raise UserError("this run's conditions are captions, not classes: say what to make by prompts")

    def of_prompts(self, prompts: Sequence[str]) -> Condition:
        """Of these texts, from their records where there are some, else by the encoder, each by itself. The empty one
        is the null condition; so are all where no sample ever had a caption in training."""
        texts = [prompt.strip() for prompt in prompts]
        given = Condition.cat([self._of_text(text) for text in texts])
        is_empty_B = torch.tensor([text == EMPTY for text in texts])
        return without_never_given(given.drop({TEXT: is_empty_B}), self.dropout)

    def null(self, count: int) -> Condition:
        """Without a caption."""
        return self._of_records(torch.zeros(count, self.shape.values)).null()

    def example(self, count: int) -> Condition:
        """Of the right shapes, without a caption, whatever stands for that."""
        return self._parts(torch.zeros(count, self.shape.values), (None, None, None)).null()

    def _of_text(self, text: str) -> Condition:
        return self._of_records(self._record(text))

    def _read(self, texts: Sequence[str]) -> Tensor:
        """[B,V]: of captions that have records."""
        assert self.records is not None, "the track is open"
        if isinstance(self.records, OnlineText):
            return self.records.of_texts(texts)
        return self.records.tensor([caption_key(text) for text in texts])

    def _record(self, text: str) -> Tensor:
        """[1,V]: read where it is stored, else encoded by itself."""
        store = self.records
        if isinstance(store, OnlineText) or (store is not None and not store.missing(Keys([as_rows([text])]))):
            return self._read([text])
        return encode_texts(self._network(), self.shape, [text])

    @cached_property
    def _empty(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """What stands for no caption: tokens [L,D], their mask [L] and a vector [P]; None: zeros."""
        if str(self.encoder.null_text) == NullText.zeros.value:
            return None
        tokens_1LD, mask_1L, pooled_1P = self.shape.unpack(self._record(EMPTY))
        return tokens_1LD[0], mask_1L[0], pooled_1P[0]

    def _network(self) -> TextEncoderNetwork:
        if not self.networks:
            network = self.encoder.build()
            if self.weights_sha256 not in (None, network.weights_sha256()):
                raise UserError(
                    "the text encoder has other weights here than the one that encoded the captions of the training; "
                    "put that one back"
                )
            self.networks.append(network)
        return self.networks[0]

    def _of_records(self, records_BV: Tensor) -> Condition:
        return self._parts(records_BV, (None, None, None) if self._empty is None else self._empty)

    def _parts(self, records_BV: Tensor, null: tuple[Tensor | None, Tensor | None, Tensor | None]) -> Condition:
        tokens_BLD, mask_BL, pooled_BP = self.shape.unpack(records_BV)
        null_LD, null_mask_L, null_P = null
        parts = {TEXT: Part.of(tokens_BLD, mask_BL, null_LD, null_mask_L)}
        return Condition(parts | ({POOLED: Part.of(pooled_BP, None, null_P)} if self.shape.pooled_width else {}))


def encode_texts(network: TextEncoderNetwork, shape: TextShape, texts: Sequence[str]) -> Tensor:
    """Records [B,V] of texts as their store would hold them, fp16."""
    return encode_inputs(network, shape, network.tokenize(texts).inputs_BKL).half()


def encode_on_device(network: TextEncoderNetwork, shape: TextShape, texts: Sequence[str]) -> Tensor:
    """Records [B,V] of texts, float32, on this process's GPU where there is one."""
    return encode_inputs(network, shape, network.tokenize(texts).inputs_BKL.to(own_device()))


def encode_inputs(network: TextEncoderNetwork, shape: TextShape, inputs_BKL: Tensor) -> Tensor:
    """Records [B,V] of tokenized texts, float32."""
    found = network.encode(inputs_BKL)
    return shape.pack(found.tokens_BLD, found.mask_BL, found.pooled_BP)
