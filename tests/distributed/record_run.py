"""The launcher, noting on each process what is trained on and what the ledger holds.

Networks and losses are in float64. In float32, rounding that depends on how a batch is divided is
enough to switch a ReLU near zero or to turn a tiny gradient around, on which Adam takes a whole
step: such runs drift apart after some steps, and a small defect could hide in that. The views stay
in float32, as everybody uses them.

The first argument is the folder for ``rank-0.jsonl`` and so on, the others are the launcher's.
"""

import dataclasses
import hashlib
import json
import sys
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor

from engine import collectives
from engine.trainer import Trainer
from launcher.run import main
from methods.method import Method

forward, evaluate, to_single = Method.forward, Trainer.evaluate, Tensor.float


def unless_double(tensor):
    """In place of ``Tensor.float``, by which losses are in float32 where networks are in less."""
    return tensor if tensor.dtype == torch.float64 else to_single(tensor)


def sha256(tensor):
    return hashlib.sha256(tensor.detach().contiguous().numpy().tobytes()).hexdigest()


def note(**line):
    with (Path(sys.argv[1]) / f"rank-{collectives.rank()}.jsonl").open("a") as file:
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


def noted_evaluate(trainer):
    """Called once an epoch, when the ranks have exchanged their rows."""
    columns = {name: trainer.ledger[name] for name in trainer.ledger}
    integers = {k: sha256(v) for k, v in columns.items() if not v.is_floating_point()}
    note(epoch=trainer.epochs_done, ledger=trainer.ledger.digest(), integers=integers)
    return evaluate(trainer)


def run():
    torch.set_default_dtype(torch.float64)
    Method.forward, Trainer.evaluate = forward_in_double, noted_evaluate
    return main(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(run())
