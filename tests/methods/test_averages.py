import copy

import pytest
import torch
from small_networks import assert_same_tensors, images, lived_in, small
from torch import nn

from methods.averages import MomentumCopy


class Counter(nn.Module):
    """A network with a parameter, a float buffer and an integer buffer."""

    compile_mode = None

    def __init__(self, value):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([value]))
        self.register_buffer("mean", torch.tensor([10 * value]))
        self.register_buffer("num_batches", torch.tensor(int(value)))


def test_averages_by_hand():
    average = MomentumCopy(Counter(1.0), decay=0.75)
    average.update(Counter(3.0))
    # 0.75 * 1 + 0.25 * 3; integers are copied.
    assert average.copy.weight.tolist() == [1.5]
    assert average.copy.mean.tolist() == [15]
    assert average.copy.num_batches.item() == 3
    average.update(Counter(3.0))
    assert average.copy.weight.tolist() == [1.875]


def test_a_warm_start_is_the_mean_of_all_networks_while_those_are_few():
    average = MomentumCopy(Counter(3.0), decay=0.75, warm_start=True)
    for value, expected in [(5.0, 4.0), (7.0, 5.0), (9.0, 6.0), (10.0, 7.0)]:
        average.update(Counter(value))
        assert average.copy.weight.item() == pytest.approx(expected)
    average.update(Counter(11.0))  # a fifth would be less than the quarter that decay leaves
    assert average.copy.weight.item() == pytest.approx(8.0)
    restored = MomentumCopy(Counter(0.0), decay=0.75, warm_start=True)
    restored.update(Counter(1.0))
    restored.load_state_dict(average.state_dict())
    assert restored.num_updates == 5
    restored.update(Counter(4.0))
    assert restored.copy.weight.item() == pytest.approx(7.0)


def test_an_average_starts_equal_and_apart():
    network = small()
    average = MomentumCopy(network, decay=0.9)
    assert_same_tensors(average.copy, network)
    nn.init.zeros_(network.classifier.weight)
    assert average.copy.classifier.weight.abs().sum() > 0


def test_without_decay_the_average_is_the_network_to_the_last_bit():
    average, network = MomentumCopy(small(), decay=0.0), lived_in(small(seed=9))
    average.update(network)
    assert_same_tensors(average.copy, network)


def test_an_average_stays_in_eval_mode_and_without_gradient():
    owner = nn.ModuleList([MomentumCopy(lived_in(small()), decay=0.9)])
    average = owner.train()[0]
    assert not any(module.training for module in average.modules())
    assert not any(p.requires_grad for p in average.parameters())
    before = copy.deepcopy(average)
    probabilities = average(images().requires_grad_())
    assert not probabilities.requires_grad
    # Predicting moves no statistics.
    assert_same_tensors(average, before)


def test_an_average_predicts_probabilities_of_its_own_network():
    average, network = MomentumCopy(lived_in(small()), decay=0.5), lived_in(small(seed=1))
    average.update(network)
    probabilities = average(images())
    assert probabilities.dtype == torch.float32
    with torch.no_grad():
        expected = average.copy(images()).logits.softmax(-1)
        others = network.eval()(images()).logits.softmax(-1)
    torch.testing.assert_close(probabilities, expected)
    assert (probabilities - others).abs().max() > 1e-3


def test_a_tensor_of_two_names_moves_once():
    def tied(value):
        network = Counter(value)
        network.same = network.weight
        return network

    average = MomentumCopy(tied(1.0), decay=0.75)
    average.update(tied(3.0))
    assert average.copy.weight is average.copy.same
    assert average.copy.weight.tolist() == [1.5]


class Caching(nn.Module):
    """Makes a buffer that is no state in its passes, and keeps a product in eval mode."""

    compile_mode = None

    def __init__(self, value):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(value))
        self.register_buffer("grid", torch.zeros(1), persistent=False)
        self.kept = None

    def train(self, mode=True):
        self.kept = None if mode else self.kept
        return super().train(mode)

    def forward(self, images):
        self.grid = torch.arange(float(len(images)))
        if self.training:
            return 2 * self.weight
        self.kept = 2 * self.weight if self.kept is None else self.kept
        return self.kept


def test_an_average_follows_layers_that_keep_what_they_have_made():
    """As timm's convit does the one and its levit the other."""
    network = Caching(1.0)
    average = MomentumCopy(network, decay=0.5)
    network(images())
    network.weight.data.fill_(3.0)
    average.update(network)  # before its first pass
    assert average.copy(images()).item() == 4
    average.update(network)
    assert average.copy(images()).item() == 5
    assert not average.copy.training
