"""The networks mean what those of 2020 meant: logits computed with the published code."""

from __future__ import annotations

import pytest
import torch

from tests.support import golden
from training.zoo import ENCODERS, build_network
from training.zoo.encoders import build_encoder

# Computed with the code published in 2020 and timm 0.4.12, in float32, for the state dicts and inputs of golden.py:
# keys of the state dict, a logit an input, and the means of the three masks.
PUBLISHED = {
    ("DeepFakeClassifier", "tf_efficientnet_b7_ns"): (
        1202,
        [-0.001398921012878418, -0.0428055003285408, -3.1218602657318115],
        None,
    ),
    ("DeepFakeClassifierSRM", "tf_efficientnet_b7_ns"): (
        1203,
        [0.018252167850732803, 0.01843399368226528, 0.01835680939257145],
        None,
    ),
    ("DeepFakeClassifierGWAP", "tf_efficientnet_b7_ns"): (
        1204,
        [-0.0021830983459949493, -0.044021621346473694, -3.2077267169952393],
        None,
    ),
    ("DeepFakeClassifier", "tf_efficientnet_b5_ns"): (
        856,
        [0.2309655249118805, 0.23084264993667603, 0.23085620999336243],
        None,
    ),
    ("DeepFakeClassifierSRM", "tf_efficientnet_b5_ns"): (
        857,
        [0.2308221161365509, 0.23078280687332153, 0.23081988096237183],
        None,
    ),
    ("DeepFakeClassifierGWAP", "tf_efficientnet_b5_ns"): (
        858,
        [0.23102924227714539, 0.2309073805809021, 0.23092184960842133],
        None,
    ),
    ("EfficientUnetClassifier", "tf_efficientnet_b3_ns"): (
        593,
        [-0.019084841012954712, -0.01909492164850235, -0.0191451795399189],
        [1.2207316160202026, 1.243760347366333, 1.3115078210830688],
    ),
    ("EfficientUnetClassifier", "tf_efficientnet_b5_ns"): (
        873,
        [0.23092761635780334, 0.2308555543422699, 0.23087219893932343],
        [1.3915152549743652, 1.461824893951416, 1.6244730949401855],
    ),
}


@pytest.mark.parametrize(("network", "encoder"), PUBLISHED)
def test_published_logits(network: str, encoder: str):
    keys, logits, masks = PUBLISHED[network, encoder]
    model = golden.fill(build_network(network, encoder))
    assert len(model.state_dict()) == keys
    with torch.inference_mode():
        output = model(golden.crops(padding=4 if masks else 0))
    if masks:
        output, mask = output
        assert mask.shape == (3, 1, 384, 384)
        torch.testing.assert_close(mask.mean((1, 2, 3)), torch.tensor(masks), rtol=1e-4, atol=2e-6)
    torch.testing.assert_close(output[:, 0], torch.tensor(logits), rtol=1e-4, atol=2e-6)


def test_encoders():
    features = {"b2": 1408, "b3": 1536, "b4": 1792, "b5": 2048, "b6": 2304, "b7": 2560}
    for size, count in features.items():
        with torch.device("meta"):
            assert build_encoder(f"tf_efficientnet_{size}_ns").num_features == count
    drop_paths = {name: encoder.drop_path for name, encoder in ENCODERS.items()}
    assert drop_paths["tf_efficientnet_b7_ns"] == 0.2
    assert drop_paths["tf_efficientnet_b4_ns"] == 0.5
    assert drop_paths["tf_efficientnet_b5_ns_04d"] == 0.4
    with torch.device("meta"):
        blocks = build_encoder("tf_efficientnet_b5_ns_04d").blocks
    # the rate rises linearly from block to block, up to the encoder's
    assert blocks[-1][-1].drop_path.drop_prob == pytest.approx(0.4 * 38 / 39, abs=1e-3)


@pytest.mark.parametrize("names", [("DeepFakeClassifier", "resnet50"), ("Net", "tf_efficientnet_b7_ns")])
def test_unknown_names(names: tuple[str, str]):
    with pytest.raises(ValueError, match=r"unknown name .*; known: "):
        build_network(*names)
