"""The conditions of tracks whose samples have captions: `text`, tokens with a mask; and, if the text encoder has them,
`text.pooled`, a vector, and `text.layers`, tokens of several layers.

Shapes: B samples, K rows of integers, L positions, V values of a record.
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
from urepa.core.part_names import LAYERS, POOLED, TEXT
from urepa.core.text_protocols import EncodedText, NullText, TextEncoder, TextEncoderNetwork
from urepa.data.lists.captions import EMPTY, Captions, as_rows, caption_key
from urepa.data.lists.samples import Keys, Sample
from urepa.data.online_encoders import OnlineText, own_device
from urepa.data.stores.record_reading import Store
from urepa.data.stores.text_records import TextShape

CAPTION = "caption"  # the purpose of the draw of one of a sample's captions


@dataclass(frozen=True)
class TextConditions:
    """Conditions of captions (`ConditionMaker` of urepa/core/track_protocols.py). `records` and `captions` are set by
    an opened track; without them only prompts can be encoded. `records`: a store, or the encoder in its place."""

    dropout: Mapping[str, float]
    encoder: TextEncoder
    records: Store | OnlineText | None = None
    captions: Captions = field(default_factory=dict)
    weights_sha256: str | None = None  # of the encoder that made the records; None: unknown
    networks: list[TextEncoderNetwork] = field(default_factory=list)  # holds the encoder's network once it is built

    @staticmethod
    def withheld_with(probability: float, encoder: TextEncoder) -> TextConditions:
        """The conditions of a track that withholds the caption from a training sample with this probability."""
        return TextConditions({TEXT: probability}, encoder)

    def opened(self, records: Store, captions: Captions) -> TextConditions:
        """A copy with the samples' captions and their records."""
        return replace(self.made_by(records.manifest), records=records, captions=captions)

    def asked(self, facts: dict[str, Any], captions: Captions) -> TextConditions:
        """A copy with the samples' captions, which are encoded each time they are read. `facts` are the entries of the
        manifest that a store would have, without the weights' digest. Raises UserError if the encoder cannot be loaded
        or has other sizes."""
        network = self.encoder.build()
        known = facts["encoder"] | {"weights_sha256": network.weights_sha256()}
        records = OnlineText(partial(encode_on_device, network, self.shape), facts | {"encoder": known})
        records.of_texts([EMPTY])  # raises now rather than when the first batch is read
        return replace(self.made_by(records.manifest), records=records, captions=captions, networks=[network])

    def made_by(self, manifest: Mapping[str, Any]) -> TextConditions:
        """A copy that encodes prompts only with the encoder weights that this manifest names."""
        return replace(self, weights_sha256=manifest["encoder"]["weights_sha256"])

    @property
    def shape(self) -> TextShape:
        """The sizes of a caption's record."""
        return TextShape.of(self.encoder)

    def of_samples(
        self,
        samples: Sequence[Sample],
        draw: Callable[[str, int], np.random.Generator] | None = None,
        x0: Tensor | None = None,
    ) -> Condition:
        """The condition with one caption of each sample, all given: one drawn with the generator
        `draw(CAPTION, i)`, or the first caption if `draw` is None."""
        texts = []
        for i, sample in enumerate(samples):
            own = self.captions[sample.sample_id]
            texts.append(own[0 if draw is None else int(draw(CAPTION, i).integers(len(own)))])
        return self._of_records(self._read(texts))

    def of_classes(self, class_ids: Sequence[int]) -> Condition:
        raise UserError("this run's conditions are captions, not classes: give prompts")

    def of_prompts(self, prompts: Sequence[str]) -> Condition:
        """The condition with these texts. Texts with stored records are read, the others encoded one at a time. The
        empty text is the null condition; so is every text if training always withholds the caption."""
        texts = [prompt.strip() for prompt in prompts]
        given = Condition.cat([self._of_text(text) for text in texts])
        is_empty_B = torch.tensor([text == EMPTY for text in texts])
        return without_never_given(given.drop({TEXT: is_empty_B}), self.dropout)

    def null(self, count: int) -> Condition:
        """The condition of `count` samples without a caption."""
        return self._of_records(torch.zeros(count, self.shape.values)).null()

    def example(self, count: int) -> Condition:
        """A condition of the right shapes without a caption, with zeros as the null values; needs no encoder."""
        return self._parts(torch.zeros(count, self.shape.values), None).null()

    def _of_text(self, text: str) -> Condition:
        return self._of_records(self._record(text))

    def _read(self, texts: Sequence[str]) -> Tensor:
        """The records [B,V] of captions, read or computed."""
        assert self.records is not None, "the track is open"
        if isinstance(self.records, OnlineText):
            return self.records.of_texts(texts)
        return self.records.tensor([caption_key(text) for text in texts])

    def _record(self, text: str) -> Tensor:
        """The text's record [1,V], read if it is stored, else encoded."""
        store = self.records
        if isinstance(store, OnlineText) or (store is not None and not store.missing(Keys([as_rows([text])]))):
            return self._read([text])
        return encode_texts(self._network(), self.shape, [text])

    @cached_property
    def _empty(self) -> EncodedText | None:
        """The null condition's values, for one text; None: zeros."""
        if str(self.encoder.null_text) == NullText.zeros.value:
            return None
        return self.shape.unpack(self._record(EMPTY))

    def _network(self) -> TextEncoderNetwork:
        if not self.networks:
            network = self.encoder.build()
            if self.weights_sha256 not in (None, network.weights_sha256()):
                raise UserError(
                    "the text encoder has other weights here than the one that encoded the training captions; "
                    "restore those weights"
                )
            self.networks.append(network)
        return self.networks[0]

    def _of_records(self, records_BV: Tensor) -> Condition:
        return self._parts(records_BV, self._empty)

    def _parts(self, records_BV: Tensor, null: EncodedText | None) -> Condition:
        """The condition of records. `null`: the null values, for one text; None: zeros."""
        own, shape = self.shape.unpack(records_BV), self.shape
        mask_L = None if null is None else null.mask_BL[0]

        def tokens(name: str) -> Part:
            return Part.of(getattr(own, name), own.mask_BL, None if null is None else getattr(null, name)[0], mask_L)

        parts = {TEXT: tokens("tokens_BLD")}
        if shape.pooled_width:
            parts[POOLED] = Part.of(own.pooled_BP, None, None if null is None else null.pooled_BP[0])
        if shape.layers:
            parts[LAYERS] = tokens("layers_BSLE")
        return Condition(parts)


def encode_texts(network: TextEncoderNetwork, shape: TextShape, texts: Sequence[str]) -> Tensor:
    """Records [B,V] of texts in the format of a store, fp16."""
    return encode_inputs(network, shape, network.tokenize(texts).inputs_BKL).half()


def encode_on_device(network: TextEncoderNetwork, shape: TextShape, texts: Sequence[str]) -> Tensor:
    """Records [B,V] of texts, float32, computed on this process's GPU if there is one."""
    return encode_inputs(network, shape, network.tokenize(texts).inputs_BKL.to(own_device()))


def encode_inputs(network: TextEncoderNetwork, shape: TextShape, inputs_BKL: Tensor) -> Tensor:
    """Records [B,V] of tokenized texts, float32."""
    return shape.pack(network.encode(inputs_BKL))
