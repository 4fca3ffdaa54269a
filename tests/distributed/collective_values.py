"""Calls every collective on each process and saves what came out, for the tests to look at.

The input is one global table, of which each process takes its rows: the results of any number of
processes can then be compared with those of one.
"""

import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from engine import collectives
from engine.ledger import Column, Ledger, LedgerError
from engine.runtime import RuntimeConfig, end_process, start_processes
from engine.terms import NonFiniteLossError, TermMeans, global_loss
from methods.method import Term

NUM_ROWS = 12
COLUMNS = {
    "loss": Column((2,), torch.float32, float("nan"), "loss"),
    "group": Column((), torch.uint8, 0, "group"),
}


def table():
    """(12, 3) float32 of no special structure."""
    return torch.randn(NUM_ROWS, 3, generator=torch.Generator().manual_seed(5))


def mine(rows):
    """This process's part of a global batch."""
    return rows.chunk(collectives.num_ranks())[collectives.rank()]


def sums():
    value = torch.tensor([1.0, 10.0]) * (collectives.rank() + 1)
    kept, whole = value.clone(), torch.tensor(2**53 + collectives.rank())
    return {
        "float": collectives.all_reduce_sum(value),
        "int64": collectives.all_reduce_sum(whole),
        "argument_kept": torch.equal(value, kept),
    }


def uneven_rows():
    """Processes hold 3, 0 and 2 rows; then 0, 2 and 1; then none at all."""
    rank, results = collectives.rank(), {}
    for name, lengths in {"hole": (3, 0, 2), "starts_empty": (0, 2, 1), "none": (0, 0, 0)}.items():
        rows = 10 * rank + torch.arange(lengths[rank])
        results[name] = collectives.gather_rows(rows)
        results[f"{name}_pairs"] = collectives.gather_rows(torch.stack([rows, -rows], 1).float())
        for dtype in (torch.uint8, torch.int16, torch.bool):
            results[f"{name}_{dtype}"] = collectives.gather_rows(rows.to(dtype))
    return results


def equal_rows():
    """Processes hold two rows each."""
    rows = 10 * collectives.rank() + torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    results = {"column": collectives.gather_equal_rows(rows[:, 1].requires_grad_())}
    for dtype in (torch.float32, torch.int64, torch.bool):
        results[str(dtype)] = collectives.gather_equal_rows(rows.to(dtype))
    return results


def pairwise_loss(rows, others, weights):
    """sum over i of rows, j of others of w_i (x_i . x_j)^2: like a contrastive term."""
    return (weights[:, :1] * (rows @ others.T).square()).sum()


def shared_sum_loss(summed, weights):
    """sum over rows i of |w_i s|^2, where s is a sum over the rows of all processes."""
    return (weights * summed).square().sum()


def gradients():
    """Each process differentiates its own part of a loss that needs everybody's rows."""
    weights = table().flip(0)
    gathering, summing = (mine(table()).clone().requires_grad_() for _ in range(2))
    gathered = collectives.gather_with_grad(gathering)
    pairwise_loss(gathering, gathered, mine(weights)).backward()
    summed = collectives.all_reduce_sum_with_grad(summing.sum(0))
    shared_sum_loss(summed, mine(weights)).backward()
    return {"gathered": gathered.detach(), "of_gathered": gathering.grad, "of_sum": summing.grad}


def agreement():
    rank = collectives.rank()
    value = torch.tensor([rank + 1, 7])
    return {
        "broadcast": collectives.broadcast(value),
        "broadcast_bool": collectives.broadcast(value == 1),
        "broadcast_scalar": collectives.broadcast(value[0].to(torch.int16)),
        "broadcast_float": collectives.broadcast(value.double() / 3),
        "argument_kept": value.tolist() == [rank + 1, 7],
        "objects": collectives.gather_objects({"rank": rank}),
        "equal": collectives.all_equal("same"),
        "different": collectives.all_equal(f"rank {rank}"),
    }


def on_main_alone():
    """Something that asks all processes, done by the first while the others wait."""
    found = {}
    value = torch.tensor([3.0])

    def action():
        found.update(num_ranks=collectives.num_ranks(), sum=collectives.all_reduce_sum(value))

    collectives.on_main(action)
    return found | {"afterwards": collectives.all_reduce_sum(value)}


def ledger_after_exchange():
    """Each process writes some rows in two goes; only the last one writes groups."""
    rank, num_ranks = collectives.rank(), collectives.num_ranks()
    ledger = Ledger(NUM_ROWS, COLUMNS)
    order = torch.randperm(NUM_ROWS, generator=torch.Generator().manual_seed(1))
    for ids in order[rank::num_ranks].split(3):
        ledger.write(ids, loss=table()[ids, :2])
    ledger.synchronise(expected_ids=torch.arange(NUM_ROWS))
    if rank == num_ranks - 1:
        ledger.write(torch.tensor([8, 2]), group=torch.tensor([2, 1]))
    ledger.synchronise()
    ledger.fill("loss", ledger["loss"] + rank)  # rank 0's counts
    return {"digest": ledger.digest(), **ledger.state_dict()}


def ledger_errors():
    """An id that two processes write, and one that none writes."""
    errors = {}
    for name, ids in {"twice": mine(torch.arange(NUM_ROWS)), "missing": torch.arange(0)}.items():
        ledger = Ledger(NUM_ROWS, COLUMNS)
        ledger.write(ids, group=torch.zeros(len(ids)))
        if collectives.rank() == 0:
            ledger.write(torch.tensor([NUM_ROWS - 1]), group=torch.tensor([1]))
        try:
            ledger.synchronise(expected_ids=torch.arange(NUM_ROWS))
        except LedgerError as error:
            errors[name] = str(error)
    return errors


def batch_statistics():
    rank = collectives.rank()
    norm = nn.BatchNorm1d(2)
    norm.running_mean += torch.tensor([1.0, 2.0]) * rank
    norm.running_var += rank
    norm.weight.data += rank
    collectives.average_batch_statistics(nn.Sequential(nn.GroupNorm(1, 2), nn.Sequential(norm)))
    return {
        "mean": norm.running_mean, "var": norm.running_var,
        "untouched": norm.weight.detach(), "num_batches": norm.num_batches_tracked,
    }  # fmt: skip


class Masked(nn.Module):
    """A regression whose terms count different samples, so that processes' counts differ."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.5, -1.0, 2.0]))

    def forward(self, rows, ids):
        errors = (rows @ self.weight - 1).square()
        masks = {"early": ids < 5, "single": ids == 7, "nobody": ids < 0}
        weights = {"early": 1.0, "single": 0.5, "nobody": 3.0}
        return {
            name: Term((errors * mask).sum(), mask.sum(), weights[name])
            for name, mask in masks.items()
        }


def loss_of_uneven_counts():
    model = Masked()
    wrapped = DistributedDataParallel(model) if collectives.num_ranks() > 1 else model
    ids = mine(torch.arange(NUM_ROWS))
    means = TermMeans()
    for _ in range(2):
        loss = global_loss(wrapped(mine(table()), ids), ids)
        means.add(loss.shares)
    loss.value.backward()
    return {"loss": loss.value.detach(), "gradient": model.weight.grad, "means": means.reduce()}


def loss_that_is_not_finite():
    """One sample of the last process is broken."""
    ids = mine(torch.arange(NUM_ROWS))
    good = torch.ones(())
    bad = torch.where(ids == NUM_ROWS - 1, torch.nan, 1.0).sum()
    try:
        global_loss({"good": Term(good, good), "bad": Term(bad, good)}, ids).require_finite()
    except NonFiniteLossError as error:
        return {"message": str(error)}
    return {}


VALUES = (
    sums,
    uneven_rows,
    equal_rows,
    gradients,
    agreement,
    on_main_alone,
    ledger_after_exchange,
    ledger_errors,
    batch_statistics,
    loss_of_uneven_counts,
    loss_that_is_not_finite,
)

if __name__ == "__main__":
    start_processes(RuntimeConfig(device="cpu"))
    found = {values.__name__: values() for values in VALUES}
    torch.save(found, Path(sys.argv[1]) / f"rank-{collectives.rank()}.pt")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    end_process(0)
