"""What the engine itself remembers of each training sample, whatever the method.

A network that has learned a wrong label by heart no longer shows it; what it predicted earlier
does. So the ledger holds the mean of a sample's predictions over the epochs, each taken when the
sample was trained on, before that step. And where a method divides the samples into groups, it
holds since when a sample has been in its group.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from engine.ledger import Column, Ledger
from methods.method import Batch, Method

__all__ = ["NEVER", "ledger_columns", "note_group_changes", "running_prediction"]

# In group_since: the sample has not been separated yet.
NEVER = -1


def ledger_columns(method: Method) -> dict[str, Column]:
    """All columns of a run's ledger: those of every run, and the method's own."""
    own = method.columns()
    columns = {
        "label": Column((), torch.int16, -1, "the given label"),
        "running_prediction": Column(
            (method.problem.num_classes,), torch.float32, 0.0,
            "p when trained on, before the step; mean over epochs and networks",
        ),
        "num_predictions": Column((), torch.int16, 0, "epochs in that mean"),
    }  # fmt: skip
    if "group" in own:
        columns["group_since"] = Column(
            own["group"].shape, torch.int16, NEVER, "epoch of the separation that gave it its group"
        )
    return columns | own


def running_prediction(batch: Batch) -> dict[str, Tensor]:
    """Rows for the ledger from what a method has noted in a step; none where it notes nothing."""
    if not batch.noted:
        return {}
    rows: Mapping[str, Tensor] = batch.rows
    count = rows["num_predictions"] + 1
    old, new = rows["running_prediction"], torch.stack(batch.noted).mean(0)
    return {
        "running_prediction": old + (new - old) / count.unsqueeze(1),
        "num_predictions": count,
    }


def note_group_changes(ledger: Ledger, groups_before: Tensor, epoch: int) -> None:
    """Note the samples that a separation has put into another group, or into their first one.

    Args:
        ledger: With the new groups; the same on every rank.
        groups_before: (N, ...) column ``group`` before.
        epoch: Epoch of the separation.
    """
    since = ledger["group_since"]
    changed = (ledger["group"] != groups_before) | (since == NEVER)
    ledger.fill("group_since", torch.where(changed, epoch, since))
