import copy

import pytest
import torch
from pydantic import ValidationError
from small_networks import assert_same_tensors, images, lived_in, small
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from methods.averages import MomentumCopy
from methods.passes import recompute_blocks
from methods.weights import ModelError

SAVERS = [{"micro_batch_size": 2}, {"micro_batch_size": 3}, {"recompute": True}]


def passed(network, batch):
    """Logits, gradients by name and bytes held for them, of one pass in training."""
    held = 0

    def hold(tensor):
        nonlocal held
        held += tensor.numel() * tensor.element_size()
        return tensor

    with saved_tensors_hooks(hold, lambda tensor: tensor):
        logits = network.train()(batch).logits
    logits.square().sum().backward()
    return logits, {name: p.grad for name, p in network.named_parameters()}, held


def larger(**model):
    """A network and images of which most memory is activations."""
    return small(blocks=2, norm="group", **model), images(6, size=48)


@pytest.mark.parametrize("saver", SAVERS, ids=str)
def test_logits_and_gradients_are_those_of_one_pass(saver):
    network, batch = larger()
    logits, gradients, held = passed(network, batch)
    saving, _ = larger(**saver)
    own_logits, own_gradients, held_by_saving = passed(saving, batch)
    torch.testing.assert_close(own_logits, logits)
    torch.testing.assert_close(own_gradients, gradients)
    # What is held instead are the images, or the images between blocks.
    assert held_by_saving < held / 3


def test_no_piece_is_larger_than_asked_for():
    network, sizes = small(micro_batch_size=4), []
    network.encoder.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    with torch.no_grad():
        assert network(images(10)).features.shape == (10, 32)
    assert sizes == [4, 3, 3]
    sizes.clear()
    network(images(10)).logits.sum().backward()
    assert sorted(sizes) == [3, 3, 3, 3, 4, 4]  # each once more for its gradient


def test_repeated_passes_leave_no_trace_in_statistics():
    """BatchNorm's averages move once a pass, though recomputing makes two."""
    plain, saving = lived_in(small()), lived_in(small(recompute=True))
    for network in (plain, saving):
        passed(network, images())
    assert_same_tensors(saving, plain)
    assert all(
        layer.track_running_stats for layer in saving.modules() if isinstance(layer, nn.BatchNorm2d)
    )


def test_pieces_are_not_synchronised_one_by_one():
    with pytest.raises(ValidationError, match="micro_batch_size and norm: sync"):
        small(micro_batch_size=4, norm="sync")


def test_compiled_passes_are_not_cut_at_synchronised_layers():
    with pytest.raises(ValidationError, match="compile and norm: sync: both set"):
        small(compile=True, norm="sync")


@pytest.mark.parametrize("saver", SAVERS, ids=str)
def test_weights_keep_their_names_and_a_copy_follows_its_own(saver):
    network = small(**saver)
    assert network.state_dict().keys() == small().state_dict().keys()
    copied = copy.deepcopy(network)
    for parameter in copied.parameters():
        nn.init.constant_(parameter, 0.01)
    with torch.no_grad():
        assert not torch.equal(copied(images()).logits, network(images()).logits)
    passed(copied, images())
    assert all(p.grad is None for p in network.parameters())
    average = MomentumCopy(network, decay=0.5)
    assert_same_tensors(average.copy, network)


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50"])
def test_blocks_of_torchvision_are_found(backbone):
    network, batch = small(backbone=backbone, norm="frozen"), images(2)
    plain = passed(network, batch)
    recompute_blocks(network.encoder)
    network.zero_grad()
    saving = passed(network, batch)
    torch.testing.assert_close(saving[1], plain[1])
    assert saving[2] < plain[2]


def test_a_backbone_without_blocks_is_refused():
    with pytest.raises(ModelError, match=r"^model.recompute: .* no blocks"):
        recompute_blocks(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))
