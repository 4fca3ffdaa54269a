"""What a QMix and an SSCL epoch cost beyond the passes that they need.

``python benchmarks/epoch.py``: survey, separation and steps of an epoch, in turn with the forward
and backward passes alone that the method states for it (``forwards_per_image``), each on a batch
that lies ready. The last line is JSON.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence

import torch
from timing import Goal, interleaved, print_figures
from trainers import EPOCH, build, first_batch, make_views, train_epoch

from engine.trainer import Trainer

__all__ = ["main", "measure"]

SETTINGS = [
    "data.image_size=64", "optim.batch_size=32", "model.backbone=resnet18", "runtime.device=cpu",
]  # fmt: skip


def whole_epoch(trainer: Trainer) -> None:
    """Survey, separation and steps."""
    trainer.prepare_epoch(EPOCH)
    train_epoch(trainer)


def measure(name: str, num_steps: int, rounds: int, settings: Sequence[str]) -> dict[str, float]:
    """Seconds of the epoch and of its passes, medians, and the median of their ratios."""
    trainer = build(name, num_steps, settings)
    networks = getattr(trainer.method, "networks", None) or [trainer.method.network]
    network = networks[0]
    ids, images = first_batch(trainer)
    view = next(iter(make_views(trainer, ids, images).values()))

    def forward() -> None:
        with torch.no_grad():
            network(view)

    def both() -> None:
        network(view).logits.sum().backward()

    network.train()
    works = {"epoch": lambda: whole_epoch(trainer), "forward": forward, "both": both}
    timings = interleaved(works, rounds)
    counts = trainer.method.forwards_per_image(EPOCH)
    without = counts["without"] + counts["survey"]
    needed = [
        trainer.steps_per_epoch * (without * alone + counts["with_gradient"] * trained)
        for alone, trained in zip(timings["forward"], timings["both"], strict=True)
    ]
    ratios = [epoch / passes for epoch, passes in zip(timings["epoch"], needed, strict=True)]
    return {
        "over_passes": statistics.median(ratios),
        "seconds_epoch": statistics.median(timings["epoch"]),
        "seconds_passes": statistics.median(needed),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=8, help="steps of an epoch")
    parser.add_argument(
        "--set", action="append", dest="settings", metavar="SECTION.KEY=VALUE", default=[],
        help="a setting of both runs, such as data.image_size=128; repeatable",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    figures: dict[str, float | Goal] = {}
    for name in ("qmix", "sscl"):
        settings = [*SETTINGS, *options.settings]
        found = measure(name, options.steps, options.rounds, settings)
        figures[f"{name}_epoch_over_passes"] = Goal(found["over_passes"], 1.15)
        figures |= {f"{name}_{key}": found[key] for key in ("seconds_epoch", "seconds_passes")}
    print_figures(figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
