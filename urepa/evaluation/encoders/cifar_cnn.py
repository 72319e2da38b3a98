"""The declaration of a classifier of the track's own classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from urepa.core.declared_keys import setting

if TYPE_CHECKING:
    from urepa.evaluation.encoders.cifar_cnn_net import CifarCNNNetwork


@dataclass
class CifarCNN:
    """The pool features of a small convolutional classifier."""

    _target_: str = "urepa.evaluation.encoders.cifar_cnn.CifarCNN"
    weights: str = setting("the file that `python -m urepa.train_classifier` wrote")

    def build(self) -> CifarCNNNetwork:
        from urepa.evaluation.encoders.cifar_cnn_net import CifarCNNNetwork

        return CifarCNNNetwork(self.weights)
