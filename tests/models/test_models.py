"""Encoders and heads: shapes for every name, the stem by image size, one clear line for a bad name."""

from __future__ import annotations

import pytest
import torch

from tune_ssl.base.errors import UserError
from tune_ssl.base.spec import ModelSpec
from tune_ssl.data.batch import Task
from tune_ssl.models import (
    ENCODERS,
    Classifier,
    ClusterClassifier,
    ConditionalVAE,
    PerturbedClassifier,
    PredictorNetwork,
    ProbeNetwork,
    ProjectorNetwork,
    QueueNetwork,
    TransferClassifier,
    check_encoder,
    encoder_for,
    stem,
)
from tune_ssl.models.encoders import build_encoder, layer_groups

DIGITS = Task(10, 1, 8)


@pytest.mark.parametrize(
    "channels, kind", [(1, "small"), (3, "large"), (2, "small"), (5, "large"), (5, "small")]
)
@pytest.mark.parametrize("name", ENCODERS)
def test_every_encoder_takes_images_of_any_channels_and_any_size(name, channels, kind):
    for side in (16, 33):
        encoder = build_encoder(name, channels, kind, (side, side)).eval()
        features = encoder(torch.randn(2, channels, side, side))
        assert features.shape == (2, encoder.out_dim)
        assert torch.isfinite(features).all()


@pytest.mark.parametrize("name", ENCODERS)
def test_a_small_stem_keeps_digits_of_eight_pixels_alive(name):
    encoder = build_encoder(name, 1, "small", (8, 8)).eval()
    first, second = encoder(torch.zeros(1, 1, 8, 8)), encoder(torch.randn(1, 1, 8, 8))
    assert first.shape == (1, encoder.out_dim) and not torch.equal(first, second)


@pytest.mark.parametrize("name", ["resnet18", "wrn_28_2", "small_cnn"])
def test_a_large_stem_looks_at_fewer_positions_than_a_small_one(name):
    images = torch.randn(1, 3, 64, 64)
    seen = {}
    for kind in ("small", "large"):
        encoder = build_encoder(name, 3, kind, (64, 64)).eval()
        sizes = []
        for module in encoder.modules():
            if isinstance(module, torch.nn.Conv2d):
                module.register_forward_hook(lambda m, i, o, sizes=sizes: sizes.append(o.shape[-1]))
        encoder(images)
        seen[kind] = sum(size**2 for size in sizes)
    assert seen["large"] < seen["small"] / 3


def test_the_stem_follows_the_image_size_unless_it_is_chosen():
    assert [stem("auto", side) for side in (8, 40, 41, 224)] == ["small", "small", "large", "large"]
    assert stem("large", 8) == "large"


def test_wrn_28_2_has_the_size_of_the_paper():
    encoder = build_encoder("wrn_28_2", 3, "small", (32, 32))
    count = sum(p.numel() for p in encoder.parameters()) + 128 * 10 + 10
    assert count == pytest.approx(1.47e6, rel=0.01)  # 1.5 M with its 10-class head


def test_wrn_28_2_starts_as_the_papers_code_has_it():
    torch.manual_seed(0)
    encoder = build_encoder("wrn_28_2", 3, "small", (32, 32))
    for module in encoder.modules():
        if isinstance(module, torch.nn.Conv2d):
            size = module.kernel_size[0] ** 2 * module.out_channels
            found, count = module.weight.std().item(), module.weight.numel()
            assert found == pytest.approx((2 / size) ** 0.5, rel=4 / (2 * count) ** 0.5)


@pytest.mark.parametrize("kind", ["small", "large"])
def test_only_the_first_shortcut_of_wrn_28_2_reads_activated_maps(kind):
    encoder = build_encoder("wrn_28_2", 3, kind, (32, 32)).eval()
    maps: dict[str, list[torch.Tensor]] = {"block": [], "conv1": [], "shortcut": []}
    for block in encoder.groups:
        if block.shortcut is None:
            continue
        for name, module in (
            ("block", block),
            ("conv1", block.conv1),
            ("shortcut", block.shortcut),
        ):
            module.register_forward_pre_hook(lambda m, i, seen=maps[name]: seen.append(i[0]))
    encoder(torch.randn(2, 3, 32, 32))
    assert len(maps["block"]) == 3
    for group in range(3):
        reads = "conv1" if group == 0 else "block"
        assert torch.equal(maps["shortcut"][group], maps[reads][group])
        assert not torch.equal(maps["block"][group], maps["conv1"][group])


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_a_timm_model_is_found_by_name(channels):
    encoder = build_encoder("timm:mobilenetv3_small_050", channels, "small", (32, 32)).eval()
    assert encoder(torch.randn(2, channels, 32, 32)).shape == (2, encoder.out_dim)


@pytest.mark.parametrize(
    "name, message",
    [
        (
            "resnet81",
            "model.encoder is 'resnet81', but must be a known encoder; did you mean 'resnet18'?",
        ),
        (
            "timm:efficientnet_bO",
            "model.encoder is 'timm:efficientnet_bO', but must be a known timm",
        ),
    ],
)
def test_an_unknown_encoder_is_one_line_with_the_nearest_name(name, message):
    with pytest.raises(UserError) as caught:
        check_encoder(name)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)
    assert "did you mean" in str(caught.value)


def test_the_classifier_gives_unnormalised_features_and_logits():
    network = Classifier(Task(7, 1, 8), ModelSpec(head="mlp", feature_dim=32, hidden_dim=16)).eval()
    features, logits = network(torch.randn(5, 1, 8, 8))
    assert features.shape == (5, 32) and logits.shape == (5, 7)
    assert not torch.allclose(features.norm(dim=1), torch.ones(5))


def test_centroids_are_buffers_that_no_optimizer_moves():
    network = ClusterClassifier(Task(3, 1, 8), ModelSpec(feature_dim=8))
    names = {name for name, _ in network.named_parameters()}
    assert not any("centroids" in name for name in names)
    assert "centroids.centers_KD" in network.state_dict()
    assert torch.allclose(network.centroids.centers_KD.norm(dim=1), torch.ones(3))


@pytest.mark.parametrize("classifier", [Classifier, ClusterClassifier])
def test_a_linear_head_reads_the_encoders_own_output(classifier):
    network = classifier(DIGITS, ModelSpec(head="linear", feature_dim=7)).eval()
    images = torch.randn(3, 1, 8, 8)
    features, logits = network(images)
    assert torch.equal(features, network.encoder(images)) and features.shape == (3, 128)
    assert torch.equal(logits, network.classifier(features)) and logits.shape == (3, 10)
    assert isinstance(network.classifier, torch.nn.Linear)


@pytest.mark.parametrize(
    "name, count",
    [("small_cnn", 3), ("keras_cnn", 4), ("resnet18", 5), ("resnet50", 5), ("wrn_28_2", 4)],
)
def test_the_layer_groups_of_an_encoder_hold_each_of_its_weights_once_and_in_order(name, count):
    encoder = build_encoder(name, 3, "small", (32, 32))
    found = layer_groups(encoder)
    assert len(found) == count
    assert [n for group in found for n in group] == [n for n, _ in encoder.named_parameters()]
    weights = dict(encoder.named_parameters())
    assert all(any(weights[n].ndim > 1 for n in group) for group in found), "no normalisation alone"


def test_simclrs_projector_is_two_layers_with_batchnorm_and_relu_between():
    network = ProjectorNetwork(encoder_for(DIGITS, ModelSpec()), (32, 16))
    kinds = [type(layer).__name__ for layer in network.projector]
    assert kinds == ["Linear", "BatchNorm1d", "ReLU", "Linear"]
    assert network(torch.randn(5, 1, 8, 8)).shape == (5, 16)


def test_a_projector_has_batchnorm_and_relu_after_each_layer_but_the_last_and_mocos_no_batchnorm():
    network = ProjectorNetwork(encoder_for(DIGITS, ModelSpec()), (32, 24, 16))
    kinds = [type(layer).__name__ for layer in network.projector]
    assert kinds == [*["Linear", "BatchNorm1d", "ReLU"] * 2, "Linear"]
    widths = [layer.out_features for layer in network.projector if hasattr(layer, "out_features")]
    assert widths == [32, 24, 16]
    network = QueueNetwork(encoder_for(DIGITS, ModelSpec()), (32, 16), 8)
    heads = [network.projector, network.teacher.network[1]]
    assert not any(isinstance(m, torch.nn.BatchNorm1d) for head in heads for m in head.modules())


def test_simsiams_projection_is_normalised_over_the_batch_without_scale_or_shift():
    network = PredictorNetwork(encoder_for(DIGITS, ModelSpec()), (32, 16), 4)
    projected = network(torch.randn(64, 1, 8, 8))
    assert projected.shape == (64, 16)
    assert torch.allclose(projected.mean(dim=0), torch.zeros(16), atol=1e-5)
    assert torch.allclose(projected.std(dim=0, correction=0), torch.ones(16), atol=0.05)
    assert list(network.projector[-1].parameters()) == []


def test_simsiams_predictor_is_a_bottleneck_or_nothing():
    encoder = encoder_for(DIGITS, ModelSpec())
    network = PredictorNetwork(encoder, (32, 16), 4)
    kinds = [type(layer).__name__ for layer in network.predictor]
    assert kinds == ["Linear", "BatchNorm1d", "ReLU", "Linear"]
    assert network.predictor[0].out_features == 4
    assert network.predictor(torch.randn(5, 16)).shape == (5, 16)
    rows = torch.randn(5, 16)
    assert torch.equal(PredictorNetwork(encoder, (32, 16), None).predictor(rows), rows)


def test_the_joint_network_has_a_linear_probe_and_no_batchnorm_in_its_projector():
    network = ProbeNetwork(encoder_for(DIGITS, ModelSpec()), (32, 16), 10)
    assert not any(isinstance(m, torch.nn.BatchNorm1d) for m in network.modules())
    images = torch.randn(5, 1, 8, 8)
    assert network(images).shape == (5, 16)
    assert network.probe(network.encoder(images)).shape == (5, 10)


def test_a_transfer_copies_the_pretrained_encoder_and_leaves_it_alone():
    pretrained = encoder_for(DIGITS, ModelSpec())
    network = TransferClassifier(DIGITS, ModelSpec(), pretrained)
    theirs = pretrained.state_dict()
    for key, weight in network.encoder.state_dict().items():
        assert torch.equal(weight, theirs[key]) and weight.data_ptr() != theirs[key].data_ptr()


def test_a_classifier_carries_the_network_that_perturbs_its_images_frozen():
    network = PerturbedClassifier(DIGITS, ModelSpec(), ConditionalVAE(DIGITS, 4, 8))
    learning = {key for key, p in network.named_parameters() if p.requires_grad}
    assert learning == {key for key, _ in Classifier(DIGITS, ModelSpec()).named_parameters()}
    assert any(key.startswith("perturbation.") for key in network.state_dict())
