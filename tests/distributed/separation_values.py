"""Separates on each process from its share of one table and saves what came out, for the tests.

Every process makes the whole table, as it would hold the ledger, and passes its own rows.
"""

import sys
from pathlib import Path

import torch

from engine import collectives
from engine.ledger import Column, Ledger
from engine.runtime import RuntimeConfig, end_process, start_processes
from methods.qmix import relative_to_class
from methods.separation import (
    SeparationConfig,
    SeparationError,
    scale_to_unit,
    separate_loss,
    separate_quality,
)
from methods.separation.quantiles import segment_quantiles

# The last class is too small for a fit of its own.
NUM_CLASSES, NUM_SAMPLES, SMALL = 4, 1501, 12
CONFIG = SeparationConfig(pooling=0.5)


def table(num_samples=NUM_SAMPLES):
    """Losses, uncertainties (2, N), labels (N,), sorted by class as many data sets are."""
    generator = torch.Generator().manual_seed(3)
    kinds = torch.randint(0, 3, (num_samples,), generator=generator)
    spread = torch.randn(2, 2, num_samples, generator=generator)
    losses = torch.tensor([0.1, 2.5, 1.0])[kinds] + 0.5 * spread[0]
    uncertainties = torch.tensor([0.1, 0.2, 1.2])[kinds] + 0.3 * spread[1]
    labels = torch.arange(num_samples) * (NUM_CLASSES - 1) // num_samples
    labels[-SMALL:] = NUM_CLASSES - 1
    return losses, uncertainties, labels


def quality(num_samples=NUM_SAMPLES):
    """What QMix does: separate this process's rows, and exchange them through a ledger."""
    mine = collectives.own_rows()
    losses, uncertainties, labels = (value[..., mine] for value in table(num_samples))
    found = separate_quality(losses, uncertainties, labels, NUM_CLASSES, config=CONFIG)
    columns = {
        "posterior": Column((2, 3), torch.float64, 0.0, "posterior"),
        "group": Column((2,), torch.uint8, 0, "group"),
    }
    ledger, ids = Ledger(num_samples, columns), torch.arange(num_samples)
    ledger.write(ids[mine], posterior=found.posteriors.transpose(0, 1), group=found.groups.T)
    ledger.synchronise(expected_ids=ids)
    return {
        **ledger.state_dict(), "source": found.source, "digest": ledger.digest(),
        **vars(found.mixture), "num_own": losses.shape[1],
    }  # fmt: skip


def loss_alone():
    mine = collectives.own_rows()
    losses, _, labels = (value[..., mine] for value in table())
    found = [
        separate_loss(losses),
        separate_loss(losses, labels=labels, num_classes=NUM_CLASSES),
    ]
    return {name: collectives.gather_rows(x.T) for name, x in zip("pw", found, strict=True)}


def exact_statistics():
    """Quantiles and scaling, which no number of processes may change in a single bit."""
    mine = collectives.own_rows()
    losses, uncertainties, labels = (value[..., mine] for value in table())
    quantiles = segment_quantiles(losses.double(), labels, NUM_CLASSES + 1, (0.0, 0.2, 0.5, 1.0))
    relative = relative_to_class(uncertainties, labels.expand(2, -1), NUM_CLASSES)
    return {
        "quantiles": quantiles,
        "scaled": collectives.gather_rows(scale_to_unit(losses).T),
        "relative": collectives.gather_rows(relative.T),
    }


def refusals():
    """One process alone holds a broken row; all must say so, and the same."""
    messages = {}
    for name, broken in {"loss": [7], "uncertainty": list(range(20, 33))}.items():
        losses, uncertainties, labels = table()
        (losses if name == "loss" else uncertainties)[1, broken] = torch.nan
        mine, ids = collectives.own_rows(), torch.arange(NUM_SAMPLES) + 1000
        try:
            separate_quality(
                losses[:, mine], uncertainties[:, mine], labels[mine], NUM_CLASSES,
                sample_ids=ids[mine],
            )  # fmt: skip
        except SeparationError as error:
            messages[name] = str(error)
    try:
        quality(0)
    except ValueError as error:
        messages["nothing"] = str(error)
    return messages


def main():
    start_processes(RuntimeConfig(device="cpu"))
    found = {
        "quality": quality(), "few": quality(3), "loss_alone": loss_alone(),
        "exact_statistics": exact_statistics(), "refusals": refusals(),
    }  # fmt: skip
    torch.save(found, Path(sys.argv[1]) / f"rank-{collectives.rank()}.pt")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    end_process(0)


if __name__ == "__main__":
    main()
