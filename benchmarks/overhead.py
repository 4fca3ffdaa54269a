"""What the engine adds to a training step: an epoch against a plain loop over the same work.

``python benchmarks/overhead.py``: cross-entropy with the same network, images, order and views, by
the engine and by a loop of a few lines, in turn. The last line is JSON.
"""

import argparse
import copy
import statistics
import sys
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from timing import Goal, interleaved, median_ratio, print_figures
from torch import Tensor
from trainers import EPOCH, build, make_views, train_epoch

from engine.optim import build_optimizer
from engine.plan import global_batches
from engine.trainer import Trainer
from methods.networks import Network

__all__ = ["main", "plain_epoch"]


def plain_epoch(
    trainer: Trainer, network: Network, optimizer: torch.optim.Optimizer, images: Tensor
) -> None:
    """The same samples, views and arithmetic without an engine."""
    task, batch_size = trainer.task, trainer.optim.batch_size
    network.train()
    for batch in global_batches(task.seed, EPOCH, task.train_ids, batch_size):
        ids = torch.from_numpy(batch)
        views = make_views(trainer, ids, images[ids])
        loss = F.cross_entropy(network(views["image"]).logits, task.labels[ids])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), trainer.optim.clip_norm or 0.0)
        optimizer.step()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=16, help="steps of an epoch")
    parser.add_argument(
        "--set", action="append", dest="settings", metavar="SECTION.KEY=VALUE",
        default=["data.image_size=64", "optim.batch_size=32", "model.backbone=resnet18",
                 "runtime.device=cpu", "model.norm=batch"],
        help="a setting of the run, such as data.image_size=128; repeatable",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    trainer = build("cross_entropy", options.steps, options.settings)
    images = next(trainer.task.loader([trainer.task.train_ids]))[1]
    network = copy.deepcopy(cast(Network, trainer.method.network))
    optimizer = build_optimizer(network, trainer.optim)
    timings = interleaved(
        {
            "engine": lambda: train_epoch(trainer),
            "plain": lambda: plain_epoch(trainer, network, optimizer, images),
        },
        options.rounds,
    )
    ratio = median_ratio(timings, "engine", "plain")
    step = 1e3 * statistics.median(timings["plain"]) / options.steps
    print_figures({"engine_over_plain_loop": Goal(ratio, 1.05), "ms_plain_step": step})
    return 0


if __name__ == "__main__":
    sys.exit(main())
