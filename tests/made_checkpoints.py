"""Checkpoints of no run."""

import torch

from engine.checkpoint import Snapshot


def make(epochs_done, steps_done=0):
    return Snapshot(
        epochs_done=epochs_done,
        steps_done=steps_done,
        pending={"group/ids": torch.tensor([3])},
        metrics={"separation/auc": 0.5},
        seconds=1.5,
        method={"weight": torch.full((3,), float(epochs_done))},
        ledger={"label": torch.arange(4)},
        optimizer={"optimizer": {"state": {0: {"step": torch.tensor(2.0)}}}, "scaler": {}},
        config={"run": {"seed": 1}},
        versions={"torch": "1"},
        facts={"class_names": ["a", "b"]},
        wandb_id="3f9c01ab",
    )
