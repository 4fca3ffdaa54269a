"""What a training step of SSCL costs, against a step in the way of its authors' program.

``python benchmarks/step.py``: the same network, which is ResNet-18 with a stem that keeps the
images' resolution, on the same views, by ``methods.sscl`` with the engine's stepper and by
``published_sscl``, in turn and with the changes between the two added one by one. Two figures
stand by themselves: bf16, and ImageNet's stem, which makes another network. Then steps are
repeated to see whether they leave memory behind. The last line is JSON.

On a CPU glibc maps each tensor of more than 32 MB afresh and has its pages cleared. From some
105 pixels in a batch of 4 on that slows one pass of three views more than three of one view;
``GLIBC_TUNABLES=glibc.malloc.mmap_threshold=8589934592:glibc.malloc.trim_threshold=17179869184``
makes it keep them.
"""

import argparse
import ctypes
import gc
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Literal

import torch
from accelerate.state import AcceleratorState
from published_sscl import WAYS, PublishedStep, Way
from timing import Goal, interleaved, median_ratio, print_figures
from torch import Tensor, nn

from engine.optim import OptimConfig
from engine.runtime import RuntimeConfig, start_processes
from engine.stepper import build_stepper
from engine.terms import global_loss
from methods.method import Batch, Problem
from methods.networks import ModelConfig, Network, Projector, build_network
from methods.separation import CORRECT
from methods.sscl import SSCL, SSCLConfig

__all__ = ["OurStep", "count_forwards", "draw_batch", "growth", "main", "same_network"]

NUM_CLASSES = 8
# A step of memory's measurement: graphs are as large for small images as for large ones.
SMALL_IMAGE, SMALL_BATCH = 16, 4

Stem = Literal["full_resolution", "imagenet"]


def same_network(index: int, heads: Projector | None, stem: Stem = "full_resolution") -> Network:
    """ResNet-18 with batch norm; the program's stem has stride 1 and no pooling behind it.

    The program's blocks normalise before their convolutions, torchvision's after them; the
    convolutions themselves are the same.
    """
    config = ModelConfig(backbone="resnet18", norm="batch")
    network = build_network(config, NUM_CLASSES, seed=0, index=index, projector=heads)
    if stem == "full_resolution":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(index)
            network.encoder.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        network.encoder.maxpool = nn.Identity()
    return network


class OurStep:
    """A step of ``methods.sscl`` as the trainer takes it, on a batch that lies ready.

    Args:
        build: Makes the network.
        batch_size: B.
        device: ``cpu``, or ``auto`` for a GPU where there is one.
        precision: Of the networks' passes.
        settings: Of the method.
        optim: Of the optimiser; by default as published.
    """

    def __init__(
        self, build: Callable[[int, Projector | None], Network], batch_size: int,
        *, device: Literal["auto", "cpu"] = "cpu", precision: Literal["fp32", "bf16"] = "fp32",
        settings: SSCLConfig | None = None, optim: OptimConfig | None = None,
    ) -> None:  # fmt: skip
        # accelerate would keep the precision of the step that was built before.
        AcceleratorState._reset_state(reset_partial_state=True)
        accelerator = start_processes(RuntimeConfig(device=device, precision=precision))
        ids = torch.arange(batch_size)
        problem = Problem(NUM_CLASSES, ids % NUM_CLASSES, ids, 1, batch_size, 0, build)
        self.method = SSCL(settings or SSCLConfig(), problem)
        optim = optim or OptimConfig(name="sgd", lr=0.02, batch_size=batch_size)
        self.stepper = build_stepper(accelerator, self.method, optim)
        self.stepper.wrapped.train()
        self.device, self._ids = accelerator.device, ids

    def __call__(
        self, views: Mapping[str, Tensor], labels: Tensor, step: int, rate: float = 0.0
    ) -> Tensor:
        """Take a step at a learning rate; its loss before the step."""
        size = len(labels)
        rows = {
            "label": labels,
            "group": labels.new_full((size, 1), CORRECT, dtype=torch.uint8),
            "prediction": torch.full((size, NUM_CLASSES), float("nan"), device=labels.device),
        }
        terms = self.stepper.wrapped(Batch(self._ids, views, rows, 0, step))
        loss = global_loss(terms, self._ids)
        self.stepper.step(loss.value, rate, loss.require_finite)
        self.method.after_step()
        return loss.value.detach()

    @property
    def encoders(self) -> list[nn.Module]:
        """Query and key encoder."""
        return [self.method.network.encoder, self.method.key_encoder.copy.encoder]


def draw_batch(
    batch_size: int, image_size: int, device: torch.device
) -> tuple[dict[str, Tensor], Tensor]:
    """Views (B, 3, S, S) of noise by name, laid out as the trainer does, and labels (B,)."""
    generator = torch.Generator().manual_seed(0)
    views = {
        name: torch.randn(batch_size, 3, image_size, image_size, generator=generator)
        .to(device)
        .contiguous(memory_format=torch.channels_last)
        for name in ("strong0", "strong1", "weak")
    }
    labels = torch.randint(NUM_CLASSES, (batch_size,), generator=generator)
    return views, labels.to(device)


def count_forwards(
    step: Callable[[], object], encoders: Sequence[nn.Module], batch_size: int
) -> float:
    """Images that a step passes through some encoders, over those of its batch."""
    counts: list[int] = []
    hooks = [
        encoder.register_forward_pre_hook(lambda _, inputs: counts.append(len(inputs[0])))
        for encoder in encoders
    ]
    step()
    for hook in hooks:
        hook.remove()
    return sum(counts) / batch_size


# -- time ------------------------------------------------------------------------------------------


def time_steps(
    batch_size: int, image_size: int, rounds: int, device: Literal["auto", "cpu"]
) -> dict[str, float | Goal]:
    """Ratios of the steps' times, their medians in seconds, and the forward passes in each."""
    ours = OurStep(same_network, batch_size, device=device)
    bf16 = OurStep(same_network, batch_size, device=device, precision="bf16")
    stem = OurStep(
        lambda index, heads: same_network(index, heads, "imagenet"), batch_size, device=device
    )
    network, config = ours.method.network, ours.method.config
    reference = {
        name: PublishedStep(network, config, NUM_CLASSES, way, rate=0.0)
        for name, way in WAYS.items()
    }
    steps = reference | {"ours": ours, "ours_bf16": bf16, "ours_imagenet_stem": stem}
    views, labels = draw_batch(batch_size, image_size, ours.device)
    works = {name: partial(take, views, labels, 0) for name, take in steps.items()}
    on_cpu = ours.device.type == "cpu"
    # One thread's time at work is not touched by what else a machine does, as the wall's is.
    timings = interleaved(works, rounds, time.process_time if on_cpu else time.perf_counter)

    figures: dict[str, float | Goal] = {
        "float32_published_over_ours": Goal(
            median_ratio(timings, "published", "ours"), 1.25, at_most=False
        )
    }
    in_half = median_ratio(timings, "published", "ours_bf16")
    has_goal = on_cpu and torch.cpu._is_amx_tile_supported()
    figures["bf16_published_float32_over_ours"] = Goal(in_half, 4.5, False) if has_goal else in_half
    for before, after in pairwise([*WAYS, "ours"]):
        name = "engine" if after == "ours" else after
        figures[f"float32_gain_by_{name}"] = median_ratio(timings, before, after)
    figures["changed_network_published_over_ours"] = median_ratio(
        timings, "published", "ours_imagenet_stem"
    )
    figures |= {f"seconds_{name}": statistics.median(taken) for name, taken in timings.items()}
    for name, encoders in (
        ("published", reference["published"].encoders),
        ("ours", ours.encoders),
    ):
        figures[f"forwards_{name}"] = count_forwards(works[name], encoders, batch_size)
    return figures


# -- memory ----------------------------------------------------------------------------------------


class _Mallinfo2(ctypes.Structure):
    """What glibc knows of its heap; in use are the fields uordblks, and hblkhd of large blocks."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd",
                     "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    ]  # fmt: skip


def bytes_in_use() -> int:
    """Bytes that this process has asked for and not given back, on its heap and on a GPU.

    Unlike the size of the process they do not depend on what the allocator keeps for later.

    Raises:
        RuntimeError: The C library is not glibc, or older than 2.33.
    """
    gc.collect()
    try:
        mallinfo2 = ctypes.CDLL(None).mallinfo2
    except AttributeError as error:
        raise RuntimeError("the memory of a step is measured on glibc 2.33 or newer") from error
    mallinfo2.restype = _Mallinfo2
    heap = mallinfo2()
    on_gpu = torch.cuda.memory_allocated() if torch.cuda.is_available() else 0
    return int(heap.uordblks + heap.hblkhd + on_gpu)


def growth(step: Callable[[int], object], num_steps: int) -> float:
    """Kilobytes that each step leaves behind, over the second half of so many steps."""
    half = num_steps // 2
    for count in range(half):
        step(count)
    before = bytes_in_use()
    for count in range(half, num_steps):
        step(count)
    return (bytes_in_use() - before) / (num_steps - half) / 1e3


def measure_memory(num_steps: int, device: Literal["auto", "cpu"]) -> dict[str, float | Goal]:
    """What a step leaves behind: ours, the program's with a queue without graphs, and with."""
    ours = OurStep(same_network, SMALL_BATCH, device=device)
    views, labels = draw_batch(SMALL_BATCH, SMALL_IMAGE, ours.device)
    figures: dict[str, float | Goal] = {
        # The heap of Python itself moves by a few kilobytes in all.
        "kilobytes_a_step_ours": Goal(growth(partial(ours, views, labels), num_steps), 1.0)
    }
    for name, way in (("detached", Way()), ("published", Way(keeps_graphs=True))):
        reference = PublishedStep(
            ours.method.network, ours.method.config, NUM_CLASSES, way, rate=0.0
        )
        figures[f"kilobytes_a_step_{name}"] = growth(partial(reference, views, labels), num_steps)
    return figures


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--image-size", type=int, default=64, help="pixels of a view's side")
    parser.add_argument("--batch-size", type=int, default=8, help="even, and a divisor of 480")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=80, help="steps of memory's measurement")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    options = parser.parse_args(arguments)
    queue_size = SSCLConfig().queue_size
    if options.batch_size < 2 or options.batch_size % 2 or queue_size % options.batch_size:
        parser.error(f"--batch-size: {options.batch_size} is no even divisor of {queue_size}")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device: cuda, but torch finds no GPU")
    torch.set_num_threads(1)
    device: Literal["auto", "cpu"] = "cpu" if options.device == "cpu" else "auto"
    figures = time_steps(options.batch_size, options.image_size, options.rounds, device)
    if not isinstance(figures["bf16_published_float32_over_ours"], Goal):
        print("bf16 has no goal here: it is meant for a processor with AMX")
    figures |= measure_memory(options.steps, device)
    print_figures(figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
