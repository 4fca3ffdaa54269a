"""The loop: plan, survey, separate, step, exchange, evaluate, record, save."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor

from engine import collectives
from engine.checkpoint import CheckpointError, Snapshot
from engine.history import ledger_columns, note_group_changes, running_prediction
from engine.ledger import Ledger
from engine.metrics import group_counts, separation_metrics
from engine.optim import OptimConfig, learning_rate
from engine.plan import global_batches, num_steps, rank_slice, repeat_numbers
from engine.predictor import EvaluationConfig, Predictor
from engine.progress import progress_bar
from engine.stepper import build_stepper
from engine.task import IntArray, Task
from engine.terms import TermMeans, global_loss
from engine.throughput import Meter, Throughput
from methods.method import Batch, Method

__all__ = ["Trainer"]

logger = logging.getLogger(__name__)


class Trainer:
    """Trains a method on a task, the same on any number of processes.

    Between any two steps the run can be saved with :meth:`snapshot` and gone on with by
    :meth:`restore`, on any number of processes.

    Args:
        accelerator: Processes, device, precision, wrapping.
        method: The method, on any device.
        task: What to train on.
        optim: Section ``optim``.
        evaluation: Section ``evaluation``.
        at_boundary: Called by all ranks together after each step and each predicted batch; may
            raise to end the run, which then stands where it can be saved.

    Attributes:
        epochs_done: Finished epochs.
        steps_done: Steps taken in the epoch under way.
        phase: What is going on, for messages.
        throughput: Times of the steps.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        method: Method,
        task: Task,
        optim: OptimConfig,
        evaluation: EvaluationConfig,
        at_boundary: Callable[[], None] = lambda: None,
    ) -> None:
        self.accelerator, self.method, self.task, self.optim = accelerator, method, task, optim
        self.at_boundary = at_boundary
        self.predictor = Predictor(accelerator, method, task, evaluation, at_boundary)
        self.steps_per_epoch = num_steps(len(task.train_ids), optim.batch_size)
        self.ledger = Ledger(len(task.labels), ledger_columns(method))
        self.ledger.fill("label", task.labels)
        self.stepper = build_stepper(accelerator, method, optim)
        self.epochs_done = self.steps_done = 0
        self.phase = "the start"
        # Of the epoch under way: means of the terms, other metrics, and when it began.
        self._means, self._metrics = TermMeans(), dict[str, float]()
        self._began = time.perf_counter()
        self.throughput = Throughput()
        self._window = TermMeans()

    @property
    def predictions(self) -> Mapping[str, NDArray[np.float32]]:
        """Name of an evaluation set -> (n, C) mean probabilities after the last epoch."""
        return self.predictor.predictions

    # -- the loop --------------------------------------------------------------------------------

    def fit(
        self,
        finish_epoch: Callable[[int, Mapping[str, Any]], None],
        finish_step: Callable[[int], None] = lambda step: None,
        note_step: Callable[[int], None] = lambda step: None,
    ) -> None:
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
            finish_step: Called on every process after each step but an epoch's last, with the
                number of steps taken in the whole run.
            note_step: The same, but after each step, before the run may be stopped there.
        """
        while self.epochs_done < self.task.num_epochs:
            epoch = self.epochs_done
            if self.steps_done == 0:
                self._began = time.perf_counter()
                self._metrics = self.prepare_epoch(epoch)
            self.train_epoch(epoch, finish_step, note_step)
            self.phase = f"evaluation after epoch {epoch + 1}"
            self.ledger.synchronise()
            self._require_equal_ledgers()
            metrics = self._metrics | self.mean_terms() | self.predictor.evaluate()
            metrics["time/epoch_seconds"] = time.perf_counter() - self._began
            metrics |= {f"time/{k}": v for k, v in self.throughput.epoch.rates().items()}
            self.throughput.epoch = Meter()
            self.epochs_done, self.steps_done = epoch + 1, 0
            self._means, self._metrics = TermMeans(), {}
            logger.info("%s", describe_epoch(epoch, self.task.num_epochs, metrics))
            finish_epoch(epoch, metrics)

    def prepare_epoch(self, epoch: int) -> dict[str, float]:
        """Survey and separate where the method asks for it; metrics of the separation."""
        if self.method.needs_survey(epoch):
            self.survey(epoch)
        return self.separate(epoch) if self.method.separates(epoch) else {}

    def train_epoch(
        self,
        epoch: int,
        finish_step: Callable[[int], None] = lambda step: None,
        note_step: Callable[[int], None] = lambda step: None,
    ) -> None:
        """Take the steps of an epoch that are not yet done."""
        for sample_ids, views in self._batches(epoch):
            step = epoch * self.steps_per_epoch + self.steps_done
            self.phase = f"epoch {epoch + 1}, step {self.steps_done + 1} of {self.steps_per_epoch}"
            shares = self._step(sample_ids, views, epoch, step)
            self._means.add(shares)
            self._window.add(shares)
            self.steps_done += 1
            self.throughput.end_step(self.optim.batch_size)
            note_step(step + 1)
            self.at_boundary()
            if self.steps_done < self.steps_per_epoch:
                finish_step(step + 1)

    def mean_terms(self) -> dict[str, float]:
        """Means of the terms over the steps of the epoch; a collective call."""
        return {f"train/{name}": value for name, value in self._means.reduce().items()}

    def take_window(self) -> dict[str, float]:
        """What the steps since the last call were like; a collective call.

        Returns:
            ``loss/<term>``, mean over the steps; ``learning_rate`` of the last one;
            ``images_per_second``; ``data_wait_share`` of this process; on a GPU
            ``gpu_memory_gib``, the most it has held.
        """
        taken = self.epochs_done * self.steps_per_epoch + self.steps_done
        found = {f"loss/{name}": value for name, value in self._window.reduce().items()}
        found["learning_rate"] = self._rate(taken - 1)
        found |= self.throughput.window.rates()
        self._window, self.throughput.window = TermMeans(), Meter()
        if self.accelerator.device.type == "cuda":
            # The allocator's own count: it does not wait for the GPU.
            most = torch.cuda.max_memory_allocated(self.accelerator.device)
            found["gpu_memory_gib"] = most / 2**30
        return found

    def _rate(self, step: int) -> float:
        """The learning rate of a step of the run, counted from 0."""
        return learning_rate(self.optim, step, self.task.num_epochs * self.steps_per_epoch)

    def _batches(self, epoch: int) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """This rank's slices of the epoch's remaining batches: sample_ids and named views."""
        task, views = self.task, self.method.views(epoch)
        labels = task.labels[task.train_ids].numpy() if task.class_balanced else None
        batches = global_batches(task.seed, epoch, task.train_ids, self.optim.batch_size, labels)
        mine, repeats = (
            rank_slice(values, collectives.rank(), collectives.num_ranks())[self.steps_done :]
            for values in (batches, repeat_numbers(batches))
        )
        self.stepper.wrapped.train()
        num_images = len(mine) * self.optim.batch_size
        loaded = progress_bar(task.loader(mine), num_images, f"epoch {epoch + 1}, training")
        waited = self.throughput.time_waits(loaded)
        for numbers, (sample_ids, images) in zip(repeats, waited, strict=True):
            # Views sample each channel by itself.
            images = images.to(self.accelerator.device, non_blocking=True).contiguous()
            yield (
                sample_ids,
                {
                    name: task.views(images, sample_ids, epoch, view.number, view.kind, numbers)
                    for name, view in views.items()
                },
            )

    def _step(
        self, sample_ids: Tensor, views: Mapping[str, Tensor], epoch: int, step: int
    ) -> dict[str, Tensor]:
        """One optimiser step on a global batch, of which this rank holds a slice."""
        task, device = self.task, self.accelerator.device
        # Dropout is the one choice left to torch; with a seed a step nothing needs restoring.
        torch.manual_seed(hash((task.seed, step, collectives.rank())) & (2**63 - 1))
        rate = self._rate(step)
        rows = self.ledger.rows(sample_ids, device)
        batch = Batch(sample_ids.to(device, non_blocking=True), views, rows, epoch, step)
        terms = self.stepper.wrapped(batch)
        loss = global_loss(terms, sample_ids)
        self.stepper.step(loss.value, rate, loss.require_finite)
        collectives.average_batch_statistics(self.method)
        self.method.after_step()
        self.ledger.write(sample_ids, order=step, **batch.updates, **running_prediction(batch))
        return loss.shares

    # -- statistics over all samples -------------------------------------------------------------

    def survey(self, epoch: int) -> None:
        """Predict all training samples and exchange what the method notes of them."""
        self.phase = f"survey before epoch {epoch + 1}"
        ids = self.task.train_ids
        with self.ledger.all_or_nothing():
            for sample_ids, probabilities in self.predictor.batches(ids, self.phase):
                self.method.observe(self.ledger, sample_ids, probabilities)
            self.ledger.synchronise(expected_ids=torch.from_numpy(ids))

    def separate(self, epoch: int) -> dict[str, float]:
        """Let the method separate the training samples; more metrics where the truth is known."""
        self.phase = f"separation before epoch {epoch + 1}"
        if "group" not in self.ledger.columns:
            self.method.separate(self.ledger, epoch)
            return {}
        groups_before = self.ledger["group"].clone()
        self.method.separate(self.ledger, epoch)
        note_group_changes(self.ledger, groups_before, epoch)
        ids = self.task.train_ids
        groups = self.ledger["group"][ids].T.numpy()
        found = group_counts(groups, self.task.labels[ids].numpy(), self.task.num_classes)
        if self.task.true_groups is not None:
            posteriors = self.ledger["posterior"][ids].transpose(0, 1).numpy()
            found |= separation_metrics(posteriors, groups, self.task.true_groups[ids])
        return {f"separation/{name}": value for name, value in found.items()}

    def predict(self, ids: IntArray) -> NDArray[np.float32]:
        """Mean class probabilities (len(ids), C) float32 of the method, on every rank."""
        return self.predictor.mean(ids)

    def _require_equal_ledgers(self) -> None:
        if not collectives.all_equal(self.ledger.digest()):
            raise RuntimeError("the ranks' ledgers differ after the exchange: this is a defect")

    # -- state -----------------------------------------------------------------------------------

    def snapshot(
        self, config: Mapping[str, Any], versions: Mapping[str, str], wandb_id: str
    ) -> Snapshot:
        """Everything needed to go on from here; a collective call."""
        return Snapshot(
            epochs_done=self.epochs_done,
            steps_done=self.steps_done,
            method=self.method.state_dict(),
            ledger=self.ledger.state_dict(),
            pending=self.ledger.gather_pending() | self._means.gather(),
            metrics=self._metrics,
            seconds=time.perf_counter() - self._began,
            optimizer=self.stepper.state_dict(),
            config=config,
            versions=versions,
            wandb_id=wandb_id,
        )

    def require_same_labels(self, snapshot: Snapshot) -> None:
        """Refuse a snapshot of other samples, classes or labels, where files have changed.

        Raises:
            CheckpointError: The message says how they differ.
        """
        before, now = snapshot.ledger["label"].long(), self.task.labels
        num_before, num_now = snapshot.ledger["running_prediction"].shape[1], self.task.num_classes
        for what, had, has in (
            ("samples", len(before), len(now)), ("classes", num_before, num_now)
        ):  # fmt: skip
            if had != has:
                raise CheckpointError(
                    f"the checkpoint was made with {had} {what}, the data now have {has}; put back "
                    "the files, or begin another run in another folder"
                )
        if not torch.equal(before, now):
            differ = torch.where(before != now)[0]
            raise CheckpointError(
                f"the checkpoint was made with other labels: {len(differ)} samples differ, "
                f"first sample_id {int(differ[0])}; put back the files of labels and corrections"
            )

    def restore(self, snapshot: Snapshot) -> None:
        """Go on from a snapshot of the same data."""
        self.method.load_state_dict(snapshot.method)
        self.ledger.load_state_dict(snapshot.ledger)
        self.ledger.load_pending(snapshot.pending)
        self._means = TermMeans.scattered(snapshot.pending, self.accelerator.device)
        self.stepper.load_state_dict(snapshot.optimizer)
        self.epochs_done, self.steps_done = snapshot.epochs_done, snapshot.steps_done
        self._metrics = dict(snapshot.metrics)
        self._began = time.perf_counter() - snapshot.seconds


def describe_epoch(epoch: int, num_epochs: int, metrics: Mapping[str, float]) -> str:
    """One line about an epoch for the log."""
    shown = ("eval/kappa", "eval/accuracy", "validation/kappa", "separation/auc")
    parts = [f"{name} {metrics[name]:.3f}" for name in shown if name in metrics]
    return f"epoch {epoch + 1}/{num_epochs}: " + ", ".join(
        [*parts, f"{metrics['time/epoch_seconds']:.1f} s"]
    )
