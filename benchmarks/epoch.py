"""What a QMix and an SSCL epoch cost beyond the passes that they need.

``python benchmarks/epoch.py``: survey, separation and steps of an epoch, in turn with the forward
and backward passes alone that the method states for it (``forwards_per_image``), each on a batch
that lies ready; beside it QMix's epoch without its survey (``method.statistics: steps``) and the
passes of a co-training taken literally. The last line is JSON.
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence

import torch
from timing import Goal, interleaved, median_ratio, print_figures
from trainers import EPOCH, build, first_batch, make_views, train_epoch

from methods.qmix import QMix

__all__ = ["main", "measure"]

SETTINGS = [
    "data.image_size=64", "optim.batch_size=32", "model.backbone=resnet18", "runtime.device=cpu",
]  # fmt: skip


# Passes an image when each network of two is trained by itself: the survey, four passes over weak
# views for each network's labels, and one with gradient for each.
LITERAL = {"without": 2 + 2 * 4, "with_gradient": 2}


def measure(name: str, num_steps: int, rounds: int, settings: Sequence[str]) -> dict[str, float]:
    """Figures of an epoch, medians.

    Returns:
        ``seconds`` of the epoch and ``over_passes``, its time over that of its passes alone; of
        QMix also ``without_survey`` and ``literal_passes``, over the epoch's time.
    """
    trainer = build(name, num_steps, settings)
    networks = getattr(trainer.method, "networks", None) or [trainer.method.network]
    network = networks[0]
    ids, images = first_batch(trainer)
    view = next(iter(make_views(trainer, ids, images).values()))

    def without_survey() -> None:
        trainer.separate(EPOCH)
        train_epoch(trainer)

    def epoch() -> None:
        trainer.prepare_epoch(EPOCH)
        train_epoch(trainer)

    def forward() -> None:
        with torch.no_grad():
            network(view)

    def both() -> None:
        network(view).logits.sum().backward()

    network.train()
    works: dict[str, Callable[[], object]] = {"epoch": epoch, "forward": forward, "both": both}
    if isinstance(trainer.method, QMix):
        works["without_survey"] = without_survey
    timings = interleaved(works, rounds)

    def passes(without: int, with_gradient: int) -> list[float]:
        return [
            trainer.steps_per_epoch * (without * alone + with_gradient * trained)
            for alone, trained in zip(timings["forward"], timings["both"], strict=True)
        ]

    counts = trainer.method.forwards_per_image(EPOCH)
    timings["passes"] = passes(counts["without"] + counts["survey"], counts["with_gradient"])
    timings["literal"] = passes(**LITERAL)
    found = {
        "seconds": statistics.median(timings["epoch"]),
        "over_passes": median_ratio(timings, "epoch", "passes"),
    }
    if isinstance(trainer.method, QMix):
        found["without_survey"] = median_ratio(timings, "without_survey", "epoch")
        found["literal_passes"] = median_ratio(timings, "literal", "epoch")
    return found


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
        figures |= {f"{name}_epoch_{key}": figure for key, figure in found.items()}
        figures[f"{name}_epoch_over_passes"] = Goal(found["over_passes"], 1.15)
    print_figures(figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
