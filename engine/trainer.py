"""The loop: plan, survey, separate, step, exchange, evaluate, record, save."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from tqdm import tqdm

from engine import collectives
from engine.checkpoint import Snapshot
from engine.ledger import Column, Ledger
from engine.metrics import classification_metrics, separation_metrics
from engine.optim import OptimConfig, build_optimizer, learning_rate, set_learning_rate
from engine.plan import (
    global_batches,
    num_steps,
    rank_slice,
    repeat_numbers,
    whole_batches,
)
from engine.terms import TermMeans, global_loss
from methods.method import Batch, Method, View

__all__ = ["BASE_COLUMNS", "EvaluationConfig", "Task", "Trainer", "ViewMaker"]

logger = logging.getLogger(__name__)

IntArray = NDArray[np.int64]
Loader = Callable[[Iterable[IntArray]], Iterator[tuple[Tensor, Tensor]]]

BASE_COLUMNS = {"label": Column((), torch.int64, -1, "the given label")}


class EvaluationConfig(BaseModel):
    """Section ``evaluation``."""

    model_config = ConfigDict(frozen=True)

    batch_size: int = Field(
        128, ge=1, description="Images a process predicts at a time, in surveys and evaluation."
    )


class ViewMaker(Protocol):
    """Makes one view of each image of a batch."""

    def __call__(
        self,
        images: Tensor,
        sample_ids: Tensor,
        epoch: int,
        view: int,
        kind: Any,
        repeats: IntArray | None = None,
    ) -> Tensor:
        """(B, 3, S, S) uint8 on the device and (B,) int64 on the CPU -> (B, 3, S, S) float32.

        ``repeats`` (B,) says how often each sample has come up in the epoch before.
        """
        ...


@dataclass(frozen=True)
class Task:
    """What a run trains on and is judged by.

    Attributes:
        labels: (N,) int64 given labels of all samples of the manifest.
        train_ids: (n,) int64 ascending.
        evaluation_ids: Name of the metrics (``validation``, ``eval``) -> ids to predict.
        true_groups: (N,) uint8 true group of each training sample, where noise was injected.
        loader: Batches of ids -> (sample_ids on the CPU, uint8 images).
        views: Makes the views of a batch.
        seed: Seed of the run.
        num_epochs: Epochs of the whole run.
        num_classes: C.
        class_balanced: Whether each given class fills the same share of an epoch's batches.
    """

    labels: Tensor
    train_ids: IntArray
    evaluation_ids: Mapping[str, IntArray]
    true_groups: NDArray[np.uint8] | None
    loader: Loader
    views: ViewMaker
    seed: int
    num_epochs: int
    num_classes: int
    class_balanced: bool = False


class Trainer:
    """Trains a method on a task, the same on any number of processes.

    Args:
        accelerator: Processes, device, precision, wrapping.
        method: The method, on any device.
        task: What to train on.
        optim: Section ``optim``.
        evaluation: Section ``evaluation``.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        method: Method,
        task: Task,
        optim: OptimConfig,
        evaluation: EvaluationConfig,
    ) -> None:
        self.accelerator, self.method, self.task, self.optim = accelerator, method, task, optim
        self.evaluation_batch_size = evaluation.batch_size
        self.steps_per_epoch = num_steps(len(task.train_ids), optim.batch_size)
        self.ledger = Ledger(len(task.labels), BASE_COLUMNS | method.columns())
        self.ledger.fill("label", task.labels)
        # Convolutions run fastest on this layout, on GPUs and CPUs alike.
        method.to(memory_format=torch.channels_last)
        self.wrapped, self.optimizer = accelerator.prepare(method, build_optimizer(method, optim))
        self.epochs_done = 0

    # -- the loop --------------------------------------------------------------------------------

    def fit(self, finish_epoch: Callable[[int, Mapping[str, Any]], None]) -> None:
        """Train to the end.

        ::

            for each epoch not yet done:
                survey all training samples; separate them      where the method asks for it
                for each global batch of the plan:              the same on any number of ranks
                    terms = method(views of this rank's slice)
                    loss = local sums / global counts; backward; clip; step; averages
                exchange the ledger; evaluate; finish_epoch     record and save

        Args:
            finish_epoch: Called on every process with the epoch and its metrics.
        """
        while self.epochs_done < self.task.num_epochs:
            epoch, start = self.epochs_done, time.perf_counter()
            metrics: dict[str, Any] = {}
            if self.method.needs_survey(epoch):
                self.survey(epoch)
            if self.method.separates(epoch):
                metrics |= self.separate(epoch)
            metrics |= self.train_epoch(epoch)
            self.ledger.synchronise()
            self._require_equal_ledgers()
            metrics |= self.evaluate()
            metrics["time/epoch_seconds"] = time.perf_counter() - start
            self.epochs_done += 1
            logger.info("%s", describe_epoch(epoch, self.task.num_epochs, metrics))
            finish_epoch(epoch, metrics)

    def train_epoch(self, epoch: int) -> dict[str, float]:
        """Take the steps of an epoch; returns the means of the terms."""
        batches = self._global_batches(epoch)
        mine, repeats = (
            rank_slice(values, collectives.rank(), collectives.num_ranks())
            for values in (batches, repeat_numbers(batches))
        )
        means, views = TermMeans(), self.method.views(epoch)
        self.wrapped.train()
        loaded = self._progress(self.task.loader(mine), len(mine), f"epoch {epoch} train")
        for number, (sample_ids, images) in enumerate(loaded):
            images = images.to(self.accelerator.device, non_blocking=True)
            made = {
                name: self._view(images, sample_ids, epoch, view, repeats[number])
                for name, view in views.items()
            }
            step = epoch * self.steps_per_epoch + number
            means.add(self._step(sample_ids, made, epoch, step))
        return {f"train/{name}": value for name, value in means.reduce().items()}

    def _step(
        self, sample_ids: Tensor, views: Mapping[str, Tensor], epoch: int, step: int
    ) -> dict[str, Tensor]:
        """One optimiser step on a global batch, of which this rank holds a slice."""
        task, device = self.task, self.accelerator.device
        # Dropout is the one choice left to torch; with a seed a step nothing needs restoring.
        torch.manual_seed(hash((task.seed, step, collectives.rank())) & (2**63 - 1))
        rate = learning_rate(self.optim, step, task.num_epochs * self.steps_per_epoch)
        set_learning_rate(self.optimizer, rate)
        rows = self.ledger.rows(sample_ids, device)
        batch = Batch(sample_ids.to(device), views, rows, epoch, step)
        terms = self.wrapped(batch)
        loss, shares = global_loss(terms, sample_ids)
        self.optimizer.zero_grad()
        self.accelerator.backward(loss)
        if self.optim.clip_norm is not None:
            self.accelerator.clip_grad_norm_(self.method.parameters(), self.optim.clip_norm)
        self.optimizer.step()
        self.method.after_step()
        self.ledger.write(sample_ids, order=step, **batch.updates)
        return shares

    def _global_batches(self, epoch: int) -> IntArray:
        ids = self.task.train_ids
        labels = self.task.labels[ids].numpy() if self.task.class_balanced else None
        return global_batches(self.task.seed, epoch, ids, self.optim.batch_size, labels)

    # -- statistics over all samples -------------------------------------------------------------

    def survey(self, epoch: int) -> None:
        """Predict all training samples and exchange what the method notes of them."""
        for sample_ids, probabilities in self._predict(
            self.task.train_ids, f"epoch {epoch} survey"
        ):
            self.method.observe(self.ledger, sample_ids, probabilities)
        self.ledger.synchronise(expected_ids=torch.from_numpy(self.task.train_ids))

    def separate(self, epoch: int) -> dict[str, float]:
        """Let the method separate the training samples; metrics where the truth is known."""
        self.method.separate(self.ledger, epoch)
        if self.task.true_groups is None or "group" not in self.ledger.columns:
            return {}
        ids = self.task.train_ids
        found = separation_metrics(
            self.ledger["posterior"][ids].transpose(0, 1).numpy(),
            self.ledger["group"][ids].T.numpy(),
            self.task.true_groups[ids],
        )
        return {f"separation/{name}": value for name, value in found.items()}

    def evaluate(self) -> dict[str, float]:
        """Metrics of the mean prediction on each evaluation set."""
        metrics: dict[str, float] = {}
        for name, ids in self.task.evaluation_ids.items():
            found = classification_metrics(self.predict(ids), self.task.labels[ids].numpy())
            metrics |= {f"{name}/{metric}": value for metric, value in found.items()}
        return metrics

    def predict(self, ids: IntArray) -> NDArray[np.float32]:
        """Mean class probabilities (len(ids), C) float32 of the method, on every rank."""
        column = Column((self.task.num_classes,), torch.float32, float("nan"), "mean prediction")
        table = Ledger(len(self.task.labels), {"probability": column})
        for sample_ids, probabilities in self._predict(ids, "evaluation"):
            table.write(sample_ids, probability=probabilities.mean(0))
        table.synchronise(expected_ids=torch.from_numpy(ids))
        return table["probability"][ids].numpy()

    @torch.no_grad()
    def _predict(self, ids: IntArray, phase: str) -> Iterator[tuple[Tensor, Tensor]]:
        """This rank's (sample_ids, probabilities (M, B, C)), on the unwrapped method.

        No collective runs while predicting, so ranks may hold different numbers of batches.
        """
        collectives.average_batch_statistics(self.method)
        self.method.eval()
        batches = whole_batches(
            ids, self.evaluation_batch_size, collectives.rank(), collectives.num_ranks()
        )
        for sample_ids, images in self._progress(self.task.loader(batches), len(batches), phase):
            images = images.to(self.accelerator.device, non_blocking=True)
            yield sample_ids, self.method(self._view(images, sample_ids, 0, View("plain")))

    def _view(
        self,
        images: Tensor,
        sample_ids: Tensor,
        epoch: int,
        view: View,
        repeats: IntArray | None = None,
    ) -> Tensor:
        """One view of a batch (B, 3, S, S) float32, channels last."""
        made = self.task.views(images, sample_ids, epoch, view.number, view.kind, repeats)
        return made.contiguous(memory_format=torch.channels_last)

    def _progress(
        self, batches: Iterator[tuple[Tensor, Tensor]], total: int, phase: str
    ) -> Iterable[tuple[Tensor, Tensor]]:
        """A progress bar on the main process, where the output is a terminal."""
        hidden = None if self.accelerator.is_main_process else True
        return tqdm(batches, total=total, desc=phase, unit="batch", leave=False, disable=hidden)

    def _require_equal_ledgers(self) -> None:
        if not collectives.all_equal(self.ledger.digest()):
            raise RuntimeError("the ranks' ledgers differ after the exchange: this is a defect")

    # -- state -----------------------------------------------------------------------------------

    def snapshot(self, config: Mapping[str, Any], versions: Mapping[str, str]) -> Snapshot:
        """Everything needed to go on from here."""
        collectives.average_batch_statistics(self.method)
        scaler = self.accelerator.scaler
        return Snapshot(
            epochs_done=self.epochs_done,
            method=self.method.state_dict(),
            ledger=self.ledger.state_dict(),
            optimizer={
                "optimizer": self.optimizer.state_dict(),
                "scaler": {} if scaler is None else scaler.state_dict(),
            },
            config=config,
            versions=versions,
        )

    def restore(self, snapshot: Snapshot) -> None:
        """Go on from a snapshot."""
        self.method.load_state_dict(snapshot.method)
        self.ledger.load_state_dict(snapshot.ledger)
        self.optimizer.load_state_dict(snapshot.optimizer["optimizer"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(snapshot.optimizer["scaler"])
        self.epochs_done = snapshot.epochs_done


def describe_epoch(epoch: int, num_epochs: int, metrics: Mapping[str, float]) -> str:
    """One line about an epoch for the log."""
    shown = ("eval/kappa", "eval/accuracy", "validation/kappa", "separation/auc")
    parts = [f"{name} {metrics[name]:.3f}" for name in shown if name in metrics]
    return f"epoch {epoch + 1}/{num_epochs}: " + ", ".join(
        [*parts, f"{metrics['time/epoch_seconds']:.1f} s"]
    )
