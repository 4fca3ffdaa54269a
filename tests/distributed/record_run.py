"""The launcher, noting on each process what is trained on and what the ledger holds.

Networks and losses are in float64. In float32, rounding that depends on how a batch is divided is
enough to switch a ReLU near zero or to turn a tiny gradient around, on which Adam takes a whole
step: such runs drift apart after some steps, and a small defect could hide in that. The views stay
in float32, as everybody uses them.

The arguments are folders, each with the ``config.yaml`` of a run; ``rank-0.jsonl`` and so on are
written beside it.
"""

import dataclasses
import hashlib
import json
import sys
from unittest.mock import patch

import torch
from many_runs import run_each
from torch import Tensor

from engine import collectives
from engine.runtime import end_process
from engine.trainer import Trainer
from methods.method import Method

forward, mean_terms, to_single = Method.forward, Trainer.mean_terms, Tensor.float


def unless_double(tensor):
    """In place of ``Tensor.float``, by which losses are in float32 where networks are in less."""
    return tensor if tensor.dtype == torch.float64 else to_single(tensor)


def sha256(tensor):
    return hashlib.sha256(tensor.detach().contiguous().numpy().tobytes()).hexdigest()


noted_in = None


def note_in(folder):
    global noted_in
    noted_in = folder


def note(**line):
    with (noted_in / f"rank-{collectives.rank()}.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


def note_step(batch):
    views = {name: [sha256(view) for view in images] for name, images in batch.views.items()}
    note(step=batch.step, sample_ids=batch.sample_ids.tolist(), views=views)


def forward_in_double(method, inputs):
    if method.training:
        note_step(inputs)
        views = {name: images.double() for name, images in inputs.views.items()}
        inputs = dataclasses.replace(inputs, views=views)
    else:
        inputs = inputs.double()
    with patch.object(Tensor, "float", unless_double):
        return forward(method, inputs)


def noted_means(trainer):
    """Called once an epoch, when the ranks have exchanged their rows."""
    columns = {name: trainer.ledger[name] for name in trainer.ledger}
    integers = {k: sha256(v) for k, v in columns.items() if not v.is_floating_point()}
    note(epoch=trainer.epochs_done, ledger=trainer.ledger.digest(), integers=integers)
    return mean_terms(trainer)


def in_double():
    torch.set_default_dtype(torch.float64)
    Method.forward, Trainer.mean_terms = forward_in_double, noted_means


def run():
    in_double()
    return run_each(sys.argv[1:], note_in)


if __name__ == "__main__":
    end_process(run())
