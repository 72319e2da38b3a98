"""The declaration of FID's Inception-v3, with weights from a local file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from urepa.core.declared_keys import setting

if TYPE_CHECKING:
    from urepa.evaluation.encoders.inception_net import InceptionNetwork


@dataclass
class Inception:
    """The pool features of FID's Inception-v3, and its class probabilities."""

    _target_: str = "urepa.evaluation.encoders.inception.Inception"
    weights: str = setting("pt_inception-2015-12-05-6726825d.pth, or the same as .safetensors")

    def build(self) -> InceptionNetwork:
        from urepa.evaluation.encoders.inception_net import InceptionNetwork

        return InceptionNetwork(self.weights)
