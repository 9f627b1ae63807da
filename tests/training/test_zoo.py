"""Networks: logits equal those of the published code."""

from __future__ import annotations

import pytest
import torch

from tests.support import golden
from training.zoo import ENCODERS, build_network
from training.zoo.encoders import build_encoder

# Computed with the code published in 2020 and timm 0.4.12, in float32, for the weights and crops of golden.py:
# number of keys of the state dict, logit of each crop, mean of each crop's mask logits.
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


FAST = ("DeepFakeClassifier", "tf_efficientnet_b5_ns")


@pytest.mark.parametrize(
    ("network", "encoder"),
    [pytest.param(*names, marks=() if names == FAST else pytest.mark.slow) for names in PUBLISHED],
)
def test_logits_equal_published_code(network: str, encoder: str) -> None:
    keys, logits, masks = PUBLISHED[network, encoder]
    model = golden.fill(build_network(network, encoder))
    assert len(model.state_dict()) == keys
    with torch.inference_mode():
        output = model(golden.crops(padding=4 if masks else 0))
    if masks:
        output, mask = output
        assert mask.shape == (3, 1, 384, 384)
        torch.testing.assert_close(mask.mean((1, 2, 3)), torch.tensor(masks), rtol=1e-4, atol=2e-6)
    # CPUs add in different orders: AVX2, SSE and channels-last deviate by up to 4 % of this tolerance.
    torch.testing.assert_close(output[:, 0], torch.tensor(logits), rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_encoders_for_evaluation_have_timms_state_dict(encoder: str) -> None:
    """Names, shapes and order."""
    with torch.device("meta"):
        ours, timms = (build_encoder(encoder, for_training=which) for which in (False, True))
    assert ours.num_features == timms.num_features
    states = ([(key, value.shape) for key, value in network.state_dict().items()] for network in (ours, timms))
    assert next(states) == next(states)


@pytest.mark.parametrize("side", [64, 95])  # without and with a remainder at strides
@pytest.mark.parametrize("encoder", ["tf_efficientnet_lite0", "tf_efficientnet_b0_ns"])
def test_encoders_for_evaluation_compute_what_timms_do(encoder: str, side: int) -> None:
    timms = golden.fill(build_encoder(encoder)).eval()
    ours = build_encoder(encoder, for_training=False).eval()
    ours.load_state_dict(timms.state_dict())
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(ours.forward_features(images), timms.forward_features(images))


def test_unet_for_evaluation_computes_what_the_trained_one_does() -> None:
    names = "EfficientUnetClassifier", "tf_efficientnet_b0_ns"
    trained = golden.fill(build_network(*names)).eval()
    network = build_network(*names, for_training=False).eval()
    network.load_state_dict(trained.state_dict())
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert all(map(torch.equal, network(images), trained(images)))


def test_unet_starts_from_kaiming_weights_and_zero_biases() -> None:
    """The decoder and both heads. The default of PyTorch's nn.Linear has a standard deviation of 0.016 here."""
    torch.manual_seed(0)
    network = build_network("EfficientUnetClassifier", "tf_efficientnet_b0_ns")
    parameters = dict(network.named_parameters())
    for name in ("fc.weight", "final.weight", "decoder.bottlenecks.0.seq.0.weight"):
        weight = parameters[name]
        expected = (2 / weight[0].numel()) ** 0.5
        assert weight.std().item() == pytest.approx(expected, rel=5 * (2 * weight.numel()) ** -0.5), name
    assert all(not value.any() for name, value in parameters.items() if "encoder" not in name and "bias" in name)


def test_encoders_have_published_shapes_and_drop_path() -> None:
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
    # The rate rises linearly from block to block, up to the encoder's.
    assert blocks[-1][-1].drop_path.drop_prob == pytest.approx(0.4 * 38 / 39, abs=1e-3)


@pytest.mark.parametrize(
    ("names", "unknown", "known"),
    [
        (("DeepFakeClassifier", "resnet50"), "resnet50", "tf_efficientnet_b7_ns"),
        (("Net", "tf_efficientnet_b7_ns"), "Net", "EfficientUnetClassifier"),
    ],
)
def test_unknown_names_list_the_known_ones(names: tuple[str, str], unknown: str, known: str) -> None:
    with pytest.raises(ValueError, match=f"{unknown}.*{known}"):
        build_network(*names)


@pytest.mark.parametrize("network", ["DeepFakeClassifier", "DeepFakeClassifierGWAP"])
def test_rates_override_defaults(network: str) -> None:
    with torch.device("meta"):
        default = build_network(network, "tf_efficientnet_b0_ns")
        changed = build_network(network, "tf_efficientnet_b0_ns", dropout=0.3, drop_path=0.0)
    assert default.dropout.p == (0.0 if network == "DeepFakeClassifier" else 0.5)
    assert changed.dropout.p == 0.3
    assert isinstance(changed.encoder.blocks[-1][-1].drop_path, torch.nn.Identity)
