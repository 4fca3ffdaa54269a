import copy

import pytest
import torch
from small_networks import assert_same_tensors, images, layers, lived_in, small
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from methods.norms import convert_norm
from methods.weights import ModelError


@pytest.mark.parametrize("backbone", ["small_resnet", "resnet18"])
def test_frozen_layers_compute_what_batchnorm_does_in_eval_mode(backbone):
    batch = lived_in(small(backbone=backbone)).eval()
    frozen = copy.deepcopy(batch)
    convert_norm(frozen, "frozen", 8)
    assert not layers(frozen, nn.BatchNorm2d)
    assert len(layers(frozen, FrozenBatchNorm2d)) == len(layers(batch, nn.BatchNorm2d))
    with torch.no_grad():
        expected = batch(images()).logits
        torch.testing.assert_close(frozen(images()).logits, expected)
        # Nor do they move or look at the batch in training.
        torch.testing.assert_close(frozen.train()(images()).logits, expected)


def test_synchronised_layers_keep_weights_and_statistics():
    batch = lived_in(small())
    sync = copy.deepcopy(batch)
    convert_norm(sync, "sync", 8)
    assert len(layers(sync, nn.SyncBatchNorm)) == len(layers(batch, nn.BatchNorm2d))
    assert_same_tensors(sync, batch)


def test_group_layers_keep_the_weights():
    batch = lived_in(small())
    group = copy.deepcopy(batch)
    convert_norm(group, "group", 8)
    batch_layers, group_layers = layers(batch, nn.BatchNorm2d), layers(group, nn.GroupNorm)
    assert not layers(group, nn.BatchNorm2d)
    for ours, theirs in zip(group_layers, batch_layers, strict=True):
        assert torch.equal(ours.weight, theirs.weight)
        assert torch.equal(ours.bias, theirs.bias)
        assert (ours.num_channels, ours.eps) == (theirs.num_features, theirs.eps)
        assert ours.weight.requires_grad


@pytest.mark.parametrize(
    ("channels", "most", "groups"),
    [(16, 8, 8), (12, 8, 6), (7, 8, 7), (7, 4, 1), (3, 8, 3), (10, 1, 1), (20, 8, 5)],
)
def test_groups_are_the_largest_divisor_of_the_channels(channels, most, groups):
    module = nn.Sequential(nn.BatchNorm2d(channels))
    convert_norm(module, "group", most)
    assert module[0].num_groups == groups


def test_batch_leaves_everything_as_it_is():
    module = nn.Sequential(nn.BatchNorm2d(4))
    layer = module[0]
    convert_norm(module, "batch", 8)
    assert module[0] is layer


@pytest.mark.parametrize("norm", ["batch", "group", "frozen"])
def test_who_sees_the_other_samples_in_training(norm):
    network = small(norm=norm).train()
    with torch.no_grad():
        together, alone = network(images(6)).logits[:2], network(images(6)[:2]).logits
    assert torch.allclose(together, alone, atol=1e-5) is (norm != "batch")


@pytest.mark.parametrize("kind", ["sync", "group", "frozen"])
def test_a_layer_that_does_more_than_normalise_is_not_replaced(kind):
    class BatchNormAct2d(nn.BatchNorm2d):
        pass

    with pytest.raises(ModelError, match=rf"^model.norm: {kind} .* BatchNormAct2d"):
        convert_norm(nn.Sequential(nn.Sequential(BatchNormAct2d(4))), kind, 8)
