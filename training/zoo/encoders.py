"""The EfficientNet encoders of timm under the names that the published code gives them."""

from __future__ import annotations

from typing import NamedTuple, cast

from training.zoo.efficientnet import EfficientNet


class Encoder(NamedTuple):
    """A pretrained timm model.

    Attributes:
        timm_name: name of the model and its weights in timm.
        width: factor of the channels, relative to B0.
        depth: factor of the number of blocks, relative to B0.
        drop_path: stochastic depth rate in training.
    """

    timm_name: str
    width: float
    depth: float
    drop_path: float = 0.2

    @property
    def is_lite(self) -> bool:
        """Whether this is a variant without squeeze-and-excitation."""
        return "lite" in self.timm_name


ENCODERS = {
    "tf_efficientnet_lite0": Encoder("tf_efficientnet_lite0.in1k", 1.0, 1.0),
    "tf_efficientnet_b0_ns": Encoder("tf_efficientnet_b0.ns_jft_in1k", 1.0, 1.0),
    "tf_efficientnet_b2_ns": Encoder("tf_efficientnet_b2.ns_jft_in1k", 1.1, 1.2),
    "tf_efficientnet_b3_ns": Encoder("tf_efficientnet_b3.ns_jft_in1k", 1.2, 1.4),
    "tf_efficientnet_b4_ns": Encoder("tf_efficientnet_b4.ns_jft_in1k", 1.4, 1.8, 0.5),
    "tf_efficientnet_b4_ns_03d": Encoder("tf_efficientnet_b4.ns_jft_in1k", 1.4, 1.8, 0.3),
    "tf_efficientnet_b5_ns": Encoder("tf_efficientnet_b5.ns_jft_in1k", 1.6, 2.2),
    "tf_efficientnet_b5_ns_03d": Encoder("tf_efficientnet_b5.ns_jft_in1k", 1.6, 2.2, 0.3),
    "tf_efficientnet_b5_ns_04d": Encoder("tf_efficientnet_b5.ns_jft_in1k", 1.6, 2.2, 0.4),
    "tf_efficientnet_b6_ns": Encoder("tf_efficientnet_b6.ns_jft_in1k", 1.8, 2.6),
    "tf_efficientnet_b6_ns_04d": Encoder("tf_efficientnet_b6.ns_jft_in1k", 1.8, 2.6, 0.4),
    "tf_efficientnet_b7_ns": Encoder("tf_efficientnet_b7.ns_jft_in1k", 2.0, 3.1),
}


def build_encoder(
    name: str, pretrained: bool = False, drop_path: float | None = None, for_training: bool = True
) -> EfficientNet:
    """Build an encoder with timm's 1000-class head, which is unused but part of the released checkpoints.

    Args:
        name: key of ENCODERS.
        pretrained: download the published weights.
        drop_path: stochastic depth rate; None for the encoder's default.
        for_training: build timm's model; if False, build one for evaluation, without importing timm, that has the same
            state dict and the same outputs. The arguments above have no effect then.
    """
    encoder = ENCODERS[name]
    if not for_training:
        return EfficientNet(encoder.width, encoder.depth, encoder.is_lite)
    import timm

    rate = encoder.drop_path if drop_path is None else drop_path
    network = timm.create_model(encoder.timm_name, pretrained=pretrained, drop_path_rate=rate)
    return cast(EfficientNet, network)  # it has the same attributes
