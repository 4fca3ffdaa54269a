"""Training on a GPU at the published settings: images a second, and the share of its peak.

``python benchmarks/gpu.py`` trains QMix and SSCL on drawn images of the published size, past
warm-up, in each precision and each way to launch kernels that is asked for. The peak is what a
bf16 product of two matrices of 8,192 rows reaches on the same card in the same run, so it depends
on no data sheet. The last line is JSON.
"""

import argparse
import gc
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import torch
from timing import interleaved
from torch.utils.flop_counter import FlopCounterMode
from trainers import SETTINGS, build, first_batch, make_views, take_step, train_epoch

__all__ = ["main", "measure"]

WAYS = {
    "eager": [],
    "compiled": ["model.compile=true"],
    "graphs": ["model.compile=true", "model.cuda_graphs=true"],
}


def measure(name: str, num_steps: int, settings: Sequence[str]) -> dict[str, float]:
    """Figures of an epoch, and of its parts by themselves.

    Returns:
        ``images_per_second`` of the epoch's steps, ``ms_step``, ``ms_views`` and ``ms_passes``
        (forward, backward, optimiser) for a batch, ``teraflops`` of the passes at the epoch's pace
        and ``peak_gib`` of the card's memory that was taken, with what graphs keep for themselves.
    """
    torch.cuda.empty_cache()
    trainer = build(name, num_steps, settings)
    on_gpu = trainer.accelerator.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    step = median_time(lambda: train_epoch(trainer), rounds=3) / trainer.steps_per_epoch
    peak = torch.cuda.max_memory_reserved() / 2**30 if on_gpu else 0.0
    ids, images = first_batch(trainer)
    views = make_views(trainer, ids, images)
    # Compiled passes would hide their products from the counter.
    with torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False) as counter:
        take_step(trainer, ids, views)
    return {
        "images_per_second": len(ids) / step,
        "ms_step": 1e3 * step,
        "ms_views": 1e3 * median_time(lambda: make_views(trainer, ids, images)),
        "ms_passes": 1e3 * median_time(lambda: take_step(trainer, ids, views)),
        "teraflops": counter.get_total_flops() / step / 1e12,
        "peak_gib": peak,
    }


def median_time(work: Callable[[], Any], rounds: int = 7) -> float:
    """Median seconds of some work."""
    return statistics.median(interleaved({"work": work}, rounds)["work"])


def peak_teraflops(size: int) -> float:
    """What a bf16 product of two square matrices reaches, median of seven."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    left, right = torch.randn(2, size, size, device=device).bfloat16()
    return 2 * size**3 / median_time(lambda: left @ right) / 1e12


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--methods", nargs="+", choices=SETTINGS, default=["qmix", "sscl"])
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=["eager"])
    parser.add_argument("--steps", type=int, default=12, help="steps of a timed epoch")
    parser.add_argument("--matrix", type=int, default=8192, help="rows of the peak's matrices")
    parser.add_argument(
        "--set", action="append", default=[], dest="settings", metavar="SECTION.KEY=VALUE",
        help="a setting of every run, such as optim.batch_size=64; repeatable",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    peak = peak_teraflops(options.matrix)
    figures: dict[str, dict[str, float]] = {}
    for name, precision, way in product(options.methods, options.precisions, options.ways):
        settings = [*options.settings, f"runtime.precision={precision}", *WAYS[way]]
        found = measure(name, options.steps, settings)
        found["share_of_peak"] = found["teraflops"] / peak
        case = f"{name} {precision} {way}"
        figures[case] = {key: round(v, 4) for key, v in found.items()}
        print(case, figures[case], flush=True)
        # The next case compiles its own passes; past a number of versions they stay uncompiled.
        torch.compiler.reset()
        gc.collect()
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    print(json.dumps({"card": card, "peak_teraflops": round(peak, 3), "figures": figures}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
