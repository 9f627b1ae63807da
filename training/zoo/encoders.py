"""The EfficientNet encoders of timm under the names that the published code gives them."""

from __future__ import annotations

from typing import NamedTuple, cast

import timm
from timm.models.efficientnet import EfficientNet


class Encoder(NamedTuple):
    """A pretrained timm model.

    Attributes:
        timm_name: name of the model and its weights in timm.
        drop_path: stochastic depth rate in training.
    """

    timm_name: str
    drop_path: float = 0.2


ENCODERS = {
    "tf_efficientnet_lite0": Encoder("tf_efficientnet_lite0.in1k"),
    "tf_efficientnet_b0_ns": Encoder("tf_efficientnet_b0.ns_jft_in1k"),
    "tf_efficientnet_b2_ns": Encoder("tf_efficientnet_b2.ns_jft_in1k"),
    "tf_efficientnet_b3_ns": Encoder("tf_efficientnet_b3.ns_jft_in1k"),
    "tf_efficientnet_b4_ns": Encoder("tf_efficientnet_b4.ns_jft_in1k", 0.5),
    "tf_efficientnet_b4_ns_03d": Encoder("tf_efficientnet_b4.ns_jft_in1k", 0.3),
    "tf_efficientnet_b5_ns": Encoder("tf_efficientnet_b5.ns_jft_in1k"),
    "tf_efficientnet_b5_ns_03d": Encoder("tf_efficientnet_b5.ns_jft_in1k", 0.3),
    "tf_efficientnet_b5_ns_04d": Encoder("tf_efficientnet_b5.ns_jft_in1k", 0.4),
    "tf_efficientnet_b6_ns": Encoder("tf_efficientnet_b6.ns_jft_in1k"),
    "tf_efficientnet_b6_ns_04d": Encoder("tf_efficientnet_b6.ns_jft_in1k", 0.4),
    "tf_efficientnet_b7_ns": Encoder("tf_efficientnet_b7.ns_jft_in1k"),
}


def build_encoder(name: str, pretrained: bool = False, drop_path: float | None = None) -> EfficientNet:
    """Build an encoder with timm's 1000-class head, which is unused but part of the released checkpoints.

    Args:
        name: key of ENCODERS.
        pretrained: download the published weights.
        drop_path: stochastic depth rate; None for the encoder's default.
    """
    encoder = ENCODERS[name]
    rate = encoder.drop_path if drop_path is None else drop_path
    return cast(EfficientNet, timm.create_model(encoder.timm_name, pretrained=pretrained, drop_path_rate=rate))
