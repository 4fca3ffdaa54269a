import sys
from types import SimpleNamespace

import pytest
import torch
from pydantic import ValidationError
from small_networks import assert_same_tensors, images, layers, small
from torch import nn

from methods.networks import (
    TORCHVISION_BACKBONES,
    ModelConfig,
    Network,
    Projector,
    SmallResNet,
    build_network,
)
from methods.weights import ModelError

# -- backbones -------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [8, 32, 65])
@pytest.mark.parametrize("width", [4, 6])
def test_small_resnet_takes_any_size(size, width):
    encoder = SmallResNet(width, blocks=1)
    assert encoder(images(2, size)).shape == (2, encoder.num_features)
    assert encoder.num_features / width == SmallResNet(10, blocks=1).num_features / 10 > 1


def test_blocks_of_small_resnet_add_depth():
    one, two, three = (len(layers(SmallResNet(4, blocks), nn.Conv2d)) for blocks in (1, 2, 3))
    assert three - two == two - one > 0


@pytest.mark.parametrize("backbone", TORCHVISION_BACKBONES)
def test_torchvision_backbones_give_features(backbone):
    network = build_network(ModelConfig(backbone=backbone), 5, seed=0, index=0)
    with torch.no_grad():
        output = network.eval()(images(2))
    num_features = 512 if backbone in ("resnet18", "resnet34") else 2048
    assert output.logits.shape == (2, 5)
    assert output.features.shape == (2, num_features)


def test_an_unknown_backbone_is_refused_with_the_known_ones():
    with pytest.raises(ValidationError, match=r"allowed: small_resnet, resnet18, .*timm:NAME"):
        ModelConfig(backbone="resnet19")


def test_timm_absent_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ModelError, match=r"^model.backbone: .*pip install 'mednoise\[timm\]'"):
        small(backbone="timm:resnet18")


class FakeTimm(SimpleNamespace):
    """The three calls of timm that are made, for machines without it."""

    def is_model(self, name):
        return name == "resnet_x"

    def list_models(self, pattern):
        assert pattern == "*resnet*"
        return [f"resnet_{letter}" for letter in "uvwxyz"]

    def create_model(self, name, *, pretrained, num_classes):
        assert not pretrained, "a run must not need the internet"
        assert num_classes == 0
        model = SmallResNet(4, 1)
        model.num_features = 7  # inside; what comes out has the width that the head sees
        model.head_hidden_size = 32
        model.extra = nn.Sequential(nn.Dropout(0.2), DropPath())
        return model


class DropPath(nn.Identity):
    drop_prob = 0.1


def test_timm_models_are_encoders(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", FakeTimm())
    network = small(backbone="timm:resnet_x", norm="group")
    assert network(images(2)).logits.shape == (2, 3)
    assert not layers(network, nn.BatchNorm2d)
    # Each process would draw their masks for its own samples.
    assert [layer.p for layer in layers(network, nn.Dropout)] == [0]
    assert [layer.drop_prob for layer in layers(network, DropPath)] == [0]
    with pytest.raises(ModelError, match=r"no model 'resnet'; similar: resnet_u, .*resnet_y$"):
        small(backbone="timm:resnet")


# -- building --------------------------------------------------------------------------------------


def test_the_same_seed_and_index_give_the_same_weights():
    assert_same_tensors(small(seed=3, index=1), small(seed=3, index=1))


@pytest.mark.parametrize("other", [{"index": 1}, {"seed": 4}])
def test_another_seed_or_index_gives_other_weights(other):
    ours, theirs = small(seed=3).state_dict(), small(**{"seed": 3, **other}).state_dict()
    for name in ("encoder.0.0.weight", "classifier.weight"):
        assert not torch.equal(ours[name], theirs[name])


def test_networks_of_neighbouring_runs_are_not_shared():
    ours, theirs = small(seed=0, index=1).state_dict(), small(seed=1, index=0).state_dict()
    assert not torch.equal(ours["encoder.0.0.weight"], theirs["encoder.0.0.weight"])


def test_building_leaves_the_global_generator_alone():
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    small(seed=2, projector=Projector(6, 5))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("norm", ["group", "frozen"])
def test_the_normalisation_does_not_change_the_initial_weights(norm):
    batch, other = small().state_dict(), small(norm=norm).state_dict()
    shared = [name for name in other if name in batch]
    assert any("conv" in name for name in shared) and "classifier.weight" in shared
    for name in shared:
        assert torch.equal(other[name], batch[name])


def test_embeddings_have_length_one():
    network = small(projector=Projector(6, 5))
    embedding = network.project(network(images()).features)
    assert embedding.shape == (4, 5)
    torch.testing.assert_close(embedding.norm(dim=-1), torch.ones(4))
    # Nor does a projector that gives nothing break the run.
    for parameter in network.projector.parameters():
        nn.init.zeros_(parameter)
    network.project(network(images()).features).sum().backward()
    assert all(p.grad.isfinite().all() for p in network.projector.parameters())


def test_a_network_without_projector_says_so():
    with pytest.raises(RuntimeError, match="without a projector"):
        network = small()
        network.project(network(images()).features)


def test_a_network_holds_what_it_is_given():
    network = Network(nn.Flatten(), 12, 2, None)
    output = network(torch.ones(5, 3, 2, 2))
    assert output.logits.shape == (5, 2)
    assert torch.equal(output.features, torch.ones(5, 12))
