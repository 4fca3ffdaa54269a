"""Where an epoch goes: decoding, views, each kind of pass, the ledger, separation, checkpoint.

``python benchmarks/profile_epoch.py`` trains an epoch of QMix and of SSCL past their warm-up on
drawn JPEG files, with watches around the parts, and prints a table of each. On a GPU each watch
waits for it, so parts that would overlap there do not. The last line is JSON.
"""

import argparse
import csv
import json
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn
from trainers import EPOCH, SETTINGS, build, train_epoch

from data.manifest import SPLIT_NAMES
from data.synthetic import SyntheticConfig, generate
from engine.checkpoint import Checkpoints
from engine.trainer import Trainer
from methods.networks import Network

__all__ = ["Watches", "main", "profile"]


class Watches:
    """Seconds of named parts; a part within another one is not counted to both."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._open: list[str] = []
        self._since = time.perf_counter()

    def start(self, name: str) -> None:
        """A part begins; the one that is under way stands still."""
        self._settle()
        self._open.append(name)

    def stop(self) -> None:
        """The part that began last ends."""
        self._settle()
        self._open.pop()

    def _settle(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now

    @contextmanager
    def watch(self, name: str) -> Iterator[None]:
        """Time what is inside."""
        self.start(name)
        try:
            yield
        finally:
            self.stop()

    def around(self, name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """A function that does the same and is timed."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.watch(name):
                return work(*args, **kwargs)

        return timed

    def wrap(self, owner: object, **names: str) -> None:
        """Time methods of an object: attribute -> name of the part."""
        for attribute, name in names.items():
            setattr(owner, attribute, self.around(name, getattr(owner, attribute)))

    def each(self, name: str, items: Iterator[Any]) -> Iterator[Any]:
        """The same items; the wait for each is timed."""
        while True:
            with self.watch(name):
                item = next(items, None)
            if item is None:
                return
            yield item


def watch_passes(watches: Watches, method: nn.Module) -> None:
    """Time the passes through networks by their kind."""

    def begin(module: nn.Module, inputs: object) -> None:
        kind = "with gradient" if torch.is_grad_enabled() else "without gradient"
        watches.start(f"forward {kind}" if method.training else "forward in eval mode")

    def end(module: nn.Module, inputs: object, output: object) -> None:
        watches.stop()

    for module in method.modules():
        if isinstance(module, Network):
            module.register_forward_pre_hook(begin)
            module.register_forward_hook(end)


def watch_trainer(watches: Watches, trainer: Trainer) -> None:
    """Time the parts of a trainer's epoch."""
    task, stepper = trainer.task, trainer.stepper
    watched = replace(
        task,
        loader=lambda batches: watches.each("read and decode", iter(task.loader(batches))),
        views=watches.around("views", task.views),
    )
    trainer.task = trainer.predictor.task = watched
    watch_passes(watches, trainer.method)
    watches.wrap(trainer.accelerator, backward="backward", clip_grad_norm_="clipping")
    watches.wrap(stepper.optimizer, step="optimiser")
    stepper.wrapped = watches.around("losses", stepper.wrapped)  # less the passes within
    stepper.wrapped.train = trainer.method.train
    watches.wrap(
        trainer.ledger, rows="ledger, rows", write="ledger, rows", synchronise="ledger, exchange",
        digest="ledger, exchange",
    )  # fmt: skip
    watches.wrap(trainer.method, separate="separation", after_step="moving averages")


def draw_files(folder: Path, num_train: int, side: int) -> None:
    """Drawn fundus images as JPEG files of a larger side, and their labels."""
    drawn = generate(SyntheticConfig(num_train=num_train, num_test=16), side, 0)
    rows = []
    for index, image in enumerate(drawn.images):
        name = f"{index:05}.jpg"
        Image.fromarray(image).save(folder / name, quality=90)
        rows.append([name, f"grade {drawn.grades[index]}", SPLIT_NAMES[int(drawn.split[index])]])
    with (folder / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["image", "label", "split"], *rows])


def profile(name: str, num_steps: int, side: int, settings: Sequence[str]) -> dict[str, float]:
    """Seconds of the parts of an epoch, ``other`` among them.

    Args:
        name: A method of ``SETTINGS``.
        num_steps: Steps of the epoch.
        side: Side of the files' images, in pixels.
        settings: ``section.key=value``.
    """
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)

        def draw(num_images: int) -> list[str]:
            draw_files(folder, num_images, side)
            return ["data.source=csv", f"data.root={folder}", "data.labels=labels.csv",
                    "data.cache=none", "noise={kind: none, mis_h: 0, mis_l: 0}"]  # fmt: skip

        trainer = build(name, num_steps, settings, draw)
        watches = Watches()
        watch_trainer(watches, trainer)
        with watches.watch("other"):
            trainer.prepare_epoch(EPOCH)
            train_epoch(trainer)
            trainer.ledger.synchronise()
            trainer.ledger.digest()
            with watches.watch("metrics"):
                trainer.predictor.evaluate()
            with watches.watch("checkpoint"):
                Checkpoints(folder / "checkpoints", 1).save(trainer.snapshot({}, {}, ""))
    return dict(watches.seconds)


def show(name: str, seconds: dict[str, float]) -> None:
    """Print a table, the dearest part first."""
    whole = sum(seconds.values())
    print(f"\n{name}: {whole:.2f} s")
    for part, taken in sorted(seconds.items(), key=lambda item: -item[1]):
        print(f"  {part:28} {taken:8.3f} s {taken / whole:7.1%}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--methods", nargs="+", choices=SETTINGS, default=["qmix", "sscl"])
    parser.add_argument("--steps", type=int, default=8, help="steps of the epoch")
    parser.add_argument("--side", type=int, default=512, help="side of the files' images")
    parser.add_argument("--threads", type=int, default=1, help="of torch, in this process")
    parser.add_argument(
        "--set", action="append", dest="settings", metavar="SECTION.KEY=VALUE",
        default=["data.image_size=128", "optim.batch_size=16", "model.backbone=resnet18"],
        help="a setting of every run, such as data.image_size=384; repeatable",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    figures = {}
    for name in options.methods:
        seconds = profile(name, options.steps, options.side, options.settings)
        show(name, seconds)
        whole = sum(seconds.values())
        figures[name] = {part: round(taken / whole, 4) for part, taken in seconds.items()}
        figures[name]["seconds"] = round(whole, 3)
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
