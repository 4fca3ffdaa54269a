"""Separation and the ledger's exchange at scale, against scikit-learn and against an epoch.

``python benchmarks/separation.py`` separates a million samples of two networks and five classes as
QMix does, in turn with one scikit-learn fit of one network, on one thread each. Then processes of
their own exchange and separate ten million rows: one alone, which needs 5 GB, and two together.
``docs/scale.md`` says what follows for more. The last line is JSON.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from sklearn.mixture import GaussianMixture
from threadpoolctl import threadpool_limits
from timing import Goal, interleaved, median_ratio, print_figures
from torch import Tensor, nn

from engine import collectives
from engine.history import ledger_columns
from engine.ledger import Ledger
from engine.runtime import RuntimeConfig, end_process, start_processes
from methods.method import Problem
from methods.networks import Network
from methods.qmix import QMix, QMixConfig
from methods.separation import SeparationConfig, scale_to_unit, separate_quality

__all__ = ["draw_statistics", "main", "measure_worker"]

ROOT = Path(__file__).resolve().parents[1]
NUM_NETWORKS, NUM_CLASSES = 2, 5
# Shares of Correct, Mis-H and Mis-L, and how strongly a network favours what it takes for true.
SHARES, CONFIDENCE = (0.45, 0.40, 0.15), (6.0, 6.0, 1.2)


def draw_statistics(labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Loss and uncertainty of each sample under two simulated networks.

    Args:
        labels: (n,) int64 in 0..4, the given labels.
        seed: Of the draws.

    Returns:
        Losses and uncertainties, (2, n) float32 each.
    """
    generator, size = torch.Generator().manual_seed(seed), len(labels)
    groups = torch.multinomial(torch.tensor(SHARES), size, replacement=True, generator=generator)
    shift = torch.randint(1, NUM_CLASSES, (size,), generator=generator)
    favoured = torch.where(groups == 1, (labels + shift) % NUM_CLASSES, labels)
    losses, uncertainties = torch.empty(2, NUM_NETWORKS, size)
    for network in range(NUM_NETWORKS):
        logits = torch.randn(size, NUM_CLASSES, generator=generator)
        favour = torch.tensor(CONFIDENCE)[groups] * (0.5 + torch.rand(size, generator=generator))
        logits.scatter_add_(1, favoured[:, None], favour[:, None])
        log_probabilities = logits.log_softmax(1)
        losses[network] = -log_probabilities.gather(1, labels[:, None]).squeeze(1)
        uncertainties[network] = -(log_probabilities.exp() * log_probabilities).sum(1)
    return losses, uncertainties


def compare_with_scikit_learn(num_samples: int, rounds: int) -> float:
    """Median ratio of the separation of two networks to one fit of one network."""
    labels = torch.arange(num_samples) % NUM_CLASSES
    losses, uncertainties = draw_statistics(labels, seed=0)
    features = torch.stack([scale_to_unit(losses[:1]), scale_to_unit(uncertainties[:1])], dim=-1)
    config = SeparationConfig(pooling=QMixConfig().pooling)
    works: dict[str, Callable[[], object]] = {
        "ours": lambda: separate_quality(losses, uncertainties, labels, NUM_CLASSES, config=config),
        "scikit-learn": lambda: GaussianMixture(3).fit(features[0].numpy()),
    }
    with threadpool_limits(1):
        timings = interleaved(works, rounds)
    for name, seconds in timings.items():
        print(f"{name}: {', '.join(f'{s:.2f}' for s in seconds)} s")
    return median_ratio(timings, "ours", "scikit-learn")


def measure_worker(num_samples: int) -> dict[str, float]:
    """Seconds of an exchange and of a separation in QMix, and peak memory; a collective call.

    Returns:
        ``exchange`` of a survey's rows, ``separate`` with the exchange of what it found, the
        processor's seconds of each under ``.._cpu``, and ``peak_gb`` of this process.
    """

    def build_network(index: int, heads: object) -> Network:
        return Network(nn.Identity(), 2, NUM_CLASSES, nn.Linear(2, 2))

    ids = torch.arange(num_samples)
    labels, num_epochs = ids % NUM_CLASSES, 12
    problem = Problem(NUM_CLASSES, labels, ids, num_epochs, 256, 0, build_network)
    method = QMix(QMixConfig(warmup_epochs=1), problem)
    ledger = Ledger(num_samples, ledger_columns(method))
    ledger.fill("label", labels)
    mine = ids[collectives.own_rows()]
    for batch in mine.split(2**16):  # as a survey does
        losses, uncertainties = draw_statistics(labels[batch], seed=int(batch[0]))
        guessed = torch.where(losses < 1, labels[batch], 0)
        ledger.write(batch, loss=losses.T, uncertainty=uncertainties.T, predicted=guessed.T)
    found: dict[str, float] = {}

    def timed(name: str, work: Callable[[], object]) -> None:
        collectives.gather_objects("ready")
        began, of_processor = time.perf_counter(), time.process_time()
        work()
        found[name] = time.perf_counter() - began
        found[f"{name}_cpu"] = time.process_time() - of_processor

    timed("exchange", lambda: ledger.synchronise(expected_ids=ids))
    timed("separate", lambda: method.separate(ledger, epoch=1))
    if not collectives.all_equal(ledger.digest()):
        raise RuntimeError("the processes' ledgers differ")
    found["peak_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    return found


def run_workers(num_processes: int, num_samples: int) -> dict[str, float]:
    """What `measure_worker` finds on the first of some processes."""
    kind = ["--multi_gpu"] if num_processes > 1 else []
    command = [
        sys.executable, "-m", "accelerate.commands.launch", *kind, "--num_processes",
        str(num_processes), "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend",
        "no", "--main_process_port", "0", __file__, "--worker", "--large", str(num_samples),
    ]  # fmt: skip
    environment = os.environ | {
        "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "benchmarks")]),
    }  # fmt: skip
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(f"{num_processes} processes, {num_samples:,} samples: {found}")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--samples", type=int, default=1_000_000, help="against scikit-learn")
    parser.add_argument("--large", type=int, default=10_000_000, help="rows that are exchanged")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--images-per-second", type=float, default=3000.0,
        help="what a process trains on, for the share of an epoch; a fast GPU's",
    )  # fmt: skip
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.worker:
        start_processes(RuntimeConfig(device="cpu"))
        found = measure_worker(options.large)
        collectives.on_main(lambda: print(json.dumps(found), flush=True))
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        end_process(0)
    ratio = compare_with_scikit_learn(options.samples, options.rounds)
    rounds = [[run_workers(n, options.large) for n in (1, 2)] for _ in range(options.rounds)]

    def median(name: str, place: int) -> float:
        return statistics.median(of_round[place][name] for of_round in rounds)

    epoch = options.large / (2 * options.images_per_second)
    print_figures(
        {
            "separation_over_one_scikit_learn_fit": Goal(ratio, 1.0),
            "exchange_on_two_share_of_epoch": Goal(median("exchange", 1) / epoch, 0.01),
            "exchange_on_two_seconds": median("exchange", 1),
            "separation_on_two_share_of_epoch": median("separate", 1) / epoch,
            "separation_on_one_seconds": median("separate", 0),
            # Per process, so free of what else the machine does.
            "separation_cpu_one_over_two": statistics.median(
                one["separate_cpu"] / two["separate_cpu"] for one, two in rounds
            ),
            "peak_gb_on_one": median("peak_gb", 0),
            "peak_gb_on_two": median("peak_gb", 1),
        }
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
