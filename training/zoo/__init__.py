"""The networks, by the names that configurations and checkpoints use."""

from __future__ import annotations

from training.zoo.classifiers import DeepFakeClassifier, DeepFakeClassifierGWAP, DeepFakeClassifierSRM
from training.zoo.encoders import ENCODERS
from training.zoo.unet import EfficientUnetClassifier

NETWORKS: dict[str, type[DeepFakeClassifier]] = {
    network.__name__: network
    for network in (DeepFakeClassifier, DeepFakeClassifierSRM, DeepFakeClassifierGWAP, EfficientUnetClassifier)
}


def build_network(
    network: str,
    encoder: str,
    pretrained: bool = False,
    dropout: float | None = None,
    drop_path: float | None = None,
    for_training: bool = True,
) -> DeepFakeClassifier:
    """Build a network by name.

    Args:
        network: key of NETWORKS.
        encoder: key of ENCODERS.
        pretrained: download the encoder's published weights.
        dropout: dropout rate before the last layer; None for the network's default.
        drop_path: stochastic depth rate of the encoder; None for the encoder's default.
        for_training: if False, the encoder is for evaluation only and loads faster, see `build_encoder`.

    Raises:
        ValueError: unknown name. The message lists the known ones.
    """
    for name, known in ((network, list(NETWORKS)), (encoder, list(ENCODERS))):
        if name not in known:
            raise ValueError(f"unknown name {name!r}. Known: {', '.join(known)}")
    rates = {} if dropout is None else {"dropout_rate": dropout}
    return NETWORKS[network](encoder, **rates, pretrained=pretrained, drop_path=drop_path, for_training=for_training)
