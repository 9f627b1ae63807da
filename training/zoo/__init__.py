"""The networks, by the names that configurations and checkpoints use."""

from torch import nn

from training.zoo.classifiers import DeepFakeClassifier, DeepFakeClassifierGWAP, DeepFakeClassifierSRM
from training.zoo.encoders import ENCODERS
from training.zoo.unet import EfficientUnetClassifier

NETWORKS = {
    network.__name__: network
    for network in (DeepFakeClassifier, DeepFakeClassifierSRM, DeepFakeClassifierGWAP, EfficientUnetClassifier)
}


def build_network(network: str, encoder: str, pretrained: bool = False) -> nn.Module:
    """A network by name. Nothing is downloaded unless `pretrained` asks for the encoder's published weights.

    Raises ValueError for an unknown name, with those that are known.
    """
    for name, known in ((network, NETWORKS), (encoder, ENCODERS)):
        if name not in known:
            raise ValueError(f"unknown name {name!r}; known: {', '.join(known)}")
    return NETWORKS[network](encoder, pretrained=pretrained)
