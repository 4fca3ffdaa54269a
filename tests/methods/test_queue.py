import pytest
import torch
from small_problem import draw

from engine import collectives
from methods.queue import KeyQueue

NUM_VIEWS, DIM, NUM_CLASSES = 2, 3, 4


def make_queue(size):
    return KeyQueue(size, NUM_VIEWS, DIM, NUM_CLASSES)


def entries(first, num_samples):
    """Keys (V, B, D) and probabilities (B, C) that tell which sample, view and entry they are."""
    samples = torch.arange(first, first + num_samples, dtype=torch.float32)
    views = torch.arange(NUM_VIEWS) / 10
    keys = samples.view(1, -1, 1) + views.view(-1, 1, 1) + torch.arange(DIM) / 100
    return keys, samples.view(-1, 1) + torch.arange(NUM_CLASSES) / 1000


def test_the_second_batch_wraps_by_hand():
    queue = make_queue(5)
    assert queue.filled.tolist() == [False] * 5
    assert queue.enter(*entries(0, 3)).tolist() == [0, 1, 2]
    assert queue.filled.tolist() == [True, True, True, False, False]
    assert queue.enter(*entries(3, 3)).tolist() == [3, 4, 0]
    assert queue.filled.tolist() == [True] * 5
    assert queue.probabilities[:, 0].tolist() == [5, 1, 2, 3, 4]
    assert queue.keys[0, :, 0].tolist() == [5, 1, 2, 3, 4]


@pytest.mark.parametrize("size", [3, 4, 7, 8, 11])
@pytest.mark.parametrize("num_new", [1, 2, 3])
def test_the_queue_holds_the_newest_samples_at_any_size(size, num_new):
    queue = make_queue(size)
    for step in range(12):
        first = step * num_new
        keys, probabilities = entries(first, num_new)
        own = queue.enter(keys, probabilities)
        # The own places hold the batch, each view and entry of it.
        assert torch.equal(queue.keys[:, own], keys)
        assert torch.equal(queue.probabilities[own], probabilities)
        newest = list(range(max(first + num_new - size, 0), first + num_new))
        assert queue.filled.sum() == len(newest)
        held = queue.probabilities[queue.filled]
        order = held[:, 0].argsort()
        assert held[order, 0].tolist() == newest
        keys, probabilities = entries(newest[0], len(newest))
        assert torch.equal(held[order], probabilities)
        assert torch.equal(queue.keys[:, queue.filled][:, order], keys)


def test_a_batch_as_long_as_the_queue_replaces_it():
    queue = make_queue(4)
    queue.enter(*entries(0, 3))
    assert queue.enter(*entries(3, 4)).tolist() == [3, 0, 1, 2]
    assert queue.probabilities[:, 0].tolist() == [4, 5, 6, 3]


def test_ranks_hold_the_same_queue_and_know_their_own_places(monkeypatch):
    """The second of two ranks, whose batches are 0, 1 and 2, 3, then 4, 5 and 6, 7."""
    queue = make_queue(6)
    monkeypatch.setattr(collectives, "num_ranks", lambda: 2)
    monkeypatch.setattr(collectives, "rank", lambda: 1)
    places = []
    for first in (0, 4):
        keys, probabilities = entries(first, 4)
        gathered = iter([keys.transpose(0, 1), probabilities])
        monkeypatch.setattr(collectives, "gather_equal_rows", lambda mine, it=gathered: next(it))
        places.append(queue.enter(keys[:, 2:], probabilities[2:]).tolist())
    assert places == [[2, 3], [0, 1]]
    assert queue.probabilities[:, 0].tolist() == [6, 7, 2, 3, 4, 5]


def test_what_enters_has_no_gradient():
    queue = make_queue(5)
    keys = draw(NUM_VIEWS, 3, DIM).requires_grad_() * 2
    probabilities = draw(3, NUM_CLASSES, seed=1).requires_grad_() * 2
    queue.enter(keys, probabilities)
    assert queue.keys[:, :3].equal(keys) and queue.probabilities[:3].equal(probabilities)
    assert queue.keys.grad_fn is None and not queue.keys.requires_grad
    assert queue.probabilities.grad_fn is None and not queue.probabilities.requires_grad
    assert list(queue.parameters()) == []


def test_half_precision_is_stored_in_the_queues_own():
    queue = make_queue(5)
    keys, probabilities = entries(0, 3)
    queue.enter(keys.bfloat16(), probabilities.bfloat16())
    assert queue.keys.dtype == queue.probabilities.dtype == torch.float32
    assert torch.equal(queue.keys[:, :3], keys.bfloat16().float())


def test_a_checkpoint_carries_the_queue():
    queue, other = make_queue(5), make_queue(5)
    queue.enter(*entries(0, 4))
    other.load_state_dict({name: value.clone() for name, value in queue.state_dict().items()})
    assert torch.equal(other.filled, queue.filled)
    assert other.enter(*entries(4, 2)).tolist() == queue.enter(*entries(4, 2)).tolist() == [4, 0]
    for name, value in queue.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name
