"""The networks, by the names that configurations and checkpoints use."""

from torch import nn

from training.zoo.classifiers import DeepFakeClassifier, DeepFakeClassifierGWAP, DeepFakeClassifierSRM
from training.zoo.encoders import ENCODERS
from training.zoo.unet import EfficientUnetClassifier

NETWORKS = {
    network.__name__: network
    for network in (DeepFakeClassifier, DeepFakeClassifierSRM, DeepFakeClassifierGWAP, EfficientUnetClassifier)
}


def build_network(
    network: str,
    encoder: str,
    pretrained: bool = False,
    dropout: float | None = None,
    drop_path: float | None = None,
) -> nn.Module:
    """A network by name. Nothing is downloaded unless `pretrained` asks for the encoder's published weights.

    `dropout` (before the last layer) and `drop_path` (stochastic depth in the encoder): other rates than the names'.
    Raises ValueError for an unknown name, with those that are known.
    """
    for name, known in ((network, NETWORKS), (encoder, ENCODERS)):
        if name not in known:
            raise ValueError(f"unknown name {name!r}; known: {', '.join(known)}")
    rates = {} if dropout is None else {"dropout_rate": dropout}
    return NETWORKS[network](encoder, pretrained=pretrained, drop_path=drop_path, **rates)
