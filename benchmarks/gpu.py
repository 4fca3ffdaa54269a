"""Training on a GPU at the published settings: images a second, and the share of its peak.

``python benchmarks/gpu.py`` trains QMix and SSCL on drawn images of the published size, past
warm-up, in each precision that is asked for. The peak is what a bf16 product of two matrices of
8,192 rows reaches on the same card in the same run, so it depends on no data sheet. The last line
is JSON.
"""

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from engine.config import load_config
from engine.plan import global_batches
from engine.runtime import start_processes
from engine.terms import global_loss
from engine.trainer import Trainer
from launcher.assemble import build_method, build_task, load_noisy_data
from launcher.settings import Config
from methods.method import Batch

ROOT = Path(__file__).resolve().parents[1]

# The published setting of each method, and what is past its warm-up from the second epoch on.
SETTINGS = {
    "qmix": ("qmix_eyepacs.yaml", ["method.warmup_epochs=1"]),
    "sscl": ("sscl_isic2019.yaml", ["method.promotion_epoch=1", "data.sampler=shuffled"]),
}
EPOCH = 1


def build(name: str, num_steps: int, settings: Sequence[str]) -> Trainer:
    """A trainer at the start of its second epoch, of so many steps."""
    file, past_warmup = SETTINGS[name]
    drawn = [
        "data.source=synthetic", "data.root=null", "data.cache=memory", "data.num_workers=0",
        "data.validation_fraction=0", "model.norm=batch", "run.epochs=3",
    ]  # fmt: skip
    path = ROOT / "configs" / file
    overrides = [*drawn, *past_warmup, *settings]
    batch_size = load_config(Config, path, overrides).optim.batch_size
    images = f"data.synthetic={{num_train: {batch_size * num_steps}, num_test: 2}}"
    config = load_config(Config, path, [*overrides, images])
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator, data = start_processes(config.runtime), load_noisy_data(config)
    task = build_task(config, data, pin_memory=accelerator.device.type == "cuda")
    method = build_method(config, data)
    trainer = Trainer(accelerator, method, task, config.optim, config.evaluation)
    trainer.prepare_epoch(0)
    trainer.train_epoch(0)
    trainer.ledger.synchronise()
    trainer.epochs_done, trainer.steps_done = EPOCH, 0
    trainer.prepare_epoch(EPOCH)
    return trainer


def measure(name: str, num_steps: int, settings: Sequence[str]) -> dict[str, float]:
    """Figures of an epoch, and of its parts by themselves.

    Returns:
        ``images_per_second`` of the epoch's steps, ``ms_step``, ``ms_views`` and ``ms_passes``
        (forward, backward, optimiser) for a batch, ``teraflops`` of the passes at the epoch's pace
        and ``peak_gib`` of the card's memory.
    """
    trainer = build(name, num_steps, settings)
    on_gpu = trainer.accelerator.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    seconds = timed(lambda: trainer.train_epoch(EPOCH)) / trainer.steps_per_epoch
    peak = torch.cuda.max_memory_allocated() / 2**30 if on_gpu else 0.0
    ids, images = first_batch(trainer)
    views = make_views(trainer, ids, images)
    with FlopCounterMode(display=False) as counter:
        take_step(trainer, ids, views)
    return {
        "images_per_second": len(ids) / seconds,
        "ms_step": 1e3 * seconds,
        "ms_views": 1e3 * median_time(lambda: make_views(trainer, ids, images)),
        "ms_passes": 1e3 * median_time(lambda: take_step(trainer, ids, views)),
        "teraflops": counter.get_total_flops() / seconds / 1e12,
        "peak_gib": peak,
    }


def first_batch(trainer: Trainer) -> tuple[Tensor, Tensor]:
    """Ids (B,) and uint8 images on the device of the epoch's first batch."""
    task = trainer.task
    batches = global_batches(task.seed, EPOCH, task.train_ids, trainer.optim.batch_size)
    ids, images = next(iter(task.loader(batches[:1])))
    return ids, images.to(trainer.accelerator.device)


def make_views(trainer: Trainer, ids: Tensor, images: Tensor) -> dict[str, Tensor]:
    """All views of a batch that a step of the method needs."""
    return {
        name: trainer.task.views(images, ids, EPOCH, view.number, view.kind).contiguous(
            memory_format=torch.channels_last
        )
        for name, view in trainer.method.views(EPOCH).items()
    }


def take_step(trainer: Trainer, ids: Tensor, views: Mapping[str, Tensor]) -> None:
    """Forward, backward and a step of the optimiser that moves nothing."""
    rows = trainer.ledger.rows(ids, trainer.accelerator.device)
    step = EPOCH * trainer.steps_per_epoch
    trainer.stepper.wrapped.train()
    terms = trainer.stepper.wrapped(Batch(ids.to(rows["label"].device), views, rows, EPOCH, step))
    trainer.stepper.step(global_loss(terms, ids)[0], rate=0.0)


def timed(work: Callable[[], Any]) -> float:
    """Seconds of some work, on the GPU too."""
    wait()
    began = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - began


def median_time(work: Callable[[], Any], times: int = 7) -> float:
    """Median of some timings after one that does not count."""
    work()
    return float(torch.tensor([timed(work) for _ in range(times)]).median())


def wait() -> None:
    """Until the GPU has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_teraflops(size: int) -> float:
    """What a bf16 product of two square matrices reaches, median of seven."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    left, right = torch.randn(2, size, size, device=device).bfloat16()
    return 2 * size**3 / median_time(lambda: left @ right) / 1e12


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--methods", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--steps", type=int, default=12, help="steps of the timed epoch")
    parser.add_argument("--matrix", type=int, default=8192, help="rows of the peak's matrices")
    parser.add_argument(
        "--set", action="append", default=[], dest="settings", metavar="SECTION.KEY=VALUE",
        help="a setting of every run, such as optim.batch_size=64; repeatable",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    peak = peak_teraflops(options.matrix)
    figures: dict[str, dict[str, float]] = {}
    for name in options.methods:
        for precision in options.precisions:
            settings = [*options.settings, f"runtime.precision={precision}"]
            found = measure(name, options.steps, settings)
            found["share_of_peak"] = found["teraflops"] / peak
            figures[f"{name} {precision}"] = {key: round(v, 4) for key, v in found.items()}
            print(name, precision, figures[f"{name} {precision}"], flush=True)
            gc.collect()
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    print(json.dumps({"card": card, "peak_teraflops": round(peak, 3), "figures": figures}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
