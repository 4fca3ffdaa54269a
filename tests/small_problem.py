"""A problem of twelve 8-pixel images in three classes, for tests of one method's arithmetic."""

import torch
from torch import nn

from engine.ledger import Column, Ledger
from methods import METHODS
from methods.method import Batch, Problem
from methods.networks import Network
from methods.separation import CORRECT

NUM_CLASSES = 3
# Samples 0 and 1 are not among those that are trained on.
LABELS = torch.tensor([0, 1, 2, 0, 1, 0, 0, 2, 0, 1, 2, 2])
TRAIN_IDS = torch.arange(2, 12)
NUM_EPOCHS = 6


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def build_network(index, projector):
    """A network without batch statistics, so that a pass can be repeated by a test."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(index)
        encoder = nn.Sequential(nn.Flatten(), nn.Linear(192, 5), nn.Tanh())
        if projector is None:
            return Network(encoder, 5, NUM_CLASSES)
        heads = [nn.Linear(5, projector.dim)]
        if projector.predictor_hidden:
            heads.append(nn.Linear(projector.dim, projector.dim))
        return Network(encoder, 5, NUM_CLASSES, *heads)


def build_method(name, *, batch_size=8, **settings):
    """The method on the small problem, in training mode."""
    problem = Problem(NUM_CLASSES, LABELS, TRAIN_IDS, NUM_EPOCHS, batch_size, 3, build_network)
    return METHODS[name](METHODS[name].Config(**settings), problem)


def build_ledger(method):
    columns = {"label": Column((), torch.int16, -1, "the given label")} | method.columns()
    ledger = Ledger(len(LABELS), columns)
    ledger.fill("label", LABELS)
    return ledger


def make_batch(method, ledger, epoch, sample_ids=None, step=0):
    """A batch with all views of the epoch; the same sample has the same views in any batch."""
    ids = torch.arange(8) if sample_ids is None else torch.as_tensor(sample_ids)
    views = {
        name: draw(len(LABELS), 3, 8, 8, seed=place)[ids]
        for place, name in enumerate(sorted(method.views(epoch)))
    }
    return Batch(ids, views, ledger.rows(ids, torch.device("cpu")), epoch, step)


def build_pair(name, **settings):
    """A method of two networks and its ledger, with averages that differ as they do in a run."""
    method = build_method(name, **settings)
    for number, average in enumerate(method.averages):
        for parameter in average.parameters():
            parameter += 0.3 * draw(*parameter.shape, seed=number)
    return method, build_ledger(method)


def judge(ledger, network, group, correct=0.5):
    """Write one network's division of all samples: one group or one for each, and w of Correct."""
    groups, posteriors = ledger["group"].clone(), ledger["posterior"].clone()
    groups[:, network] = torch.as_tensor(group, dtype=torch.uint8)
    posteriors[:, network, CORRECT] = correct
    ledger.fill("group", groups)
    ledger.fill("posterior", posteriors)


def mean_labels(method, batch):
    """Mean prediction (2, B, C) of each averaged network over the weak views."""
    weak = [images for name, images in batch.views.items() if name.startswith("weak")]
    return torch.stack([torch.stack([average(v) for v in weak]).mean(0)
                        for average in method.averages])  # fmt: skip
