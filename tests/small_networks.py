"""Small networks and images, for tests of what networks are made of."""

import torch
from torch import nn

from methods.networks import ModelConfig, build_network

SMALL = {"backbone": "small_resnet", "width": 4}


def small(num_classes=3, *, seed=0, index=0, projector=None, **model):
    config = ModelConfig(**SMALL | model)
    return build_network(config, num_classes, seed=seed, index=index, projector=projector)


def images(num_images=4, size=32, seed=0):
    return torch.randn(num_images, 3, size, size, generator=torch.Generator().manual_seed(seed))


def lived_in(module):
    """Give BatchNorm layers weights and statistics unlike those that they start with."""
    generator = torch.Generator().manual_seed(5)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for tensor in (layer.weight, layer.bias, layer.running_mean, layer.running_var):
                tensor.data = torch.rand(tensor.shape, generator=generator) + 0.5
    return module


def layers(module, kind):
    return [layer for layer in module.modules() if isinstance(layer, kind)]


def assert_same_tensors(ours, theirs):
    ours, theirs = ours.state_dict(), theirs.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
