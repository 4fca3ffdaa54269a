"""Predictions of many samples, for surveys and evaluation."""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from engine import collectives
from engine.ledger import Column, Ledger
from engine.metrics import classification_metrics
from engine.plan import whole_batches
from engine.progress import progress_bar
from engine.task import IntArray, Task
from methods.method import Method, View

__all__ = ["EvaluationConfig", "Predictor"]


class EvaluationConfig(BaseModel):
    """Section ``evaluation``."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    batch_size: int = Field(
        128, ge=1, description="Images a process predicts at a time, in surveys and evaluation."
    )


class Predictor:
    """Predicts with the unwrapped method, every sample on one rank.

    Args:
        accelerator: Device and processes.
        method: The method.
        task: Images and views.
        config: Section ``evaluation``.
        at_boundary: Called by all ranks together after each batch; may raise to end the run.

    Attributes:
        predictions: Name of an evaluation set -> (n, C) float32 mean probabilities when it was
            last evaluated, on every rank.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        method: Method,
        task: Task,
        config: EvaluationConfig,
        at_boundary: Callable[[], None],
    ) -> None:
        self.accelerator, self.method, self.task = accelerator, method, task
        self.batch_size, self.at_boundary = config.batch_size, at_boundary
        self.predictions: dict[str, NDArray[np.float32]] = {}

    @torch.no_grad()
    def batches(self, ids: IntArray, phase: str) -> Iterator[tuple[Tensor, Tensor]]:
        """This rank's (sample_ids (B,), probabilities (M, B, C)).

        Ranks may hold different numbers of batches; all go through as many boundaries.
        """
        self.method.eval()
        rank, num_ranks = collectives.rank(), collectives.num_ranks()
        mine = whole_batches(ids, self.batch_size, rank, num_ranks)
        loaded = progress_bar(self.task.loader(mine), len(ids), phase)
        for sample_ids, images in loaded:
            images = images.to(self.accelerator.device, non_blocking=True)
            plain = self.task.views(images, sample_ids, 0, 0, View("plain").kind)
            yield sample_ids, self.method(plain)
            self.at_boundary()
        most = len(whole_batches(ids, self.batch_size, 0, num_ranks))
        for _ in range(most - len(mine)):
            self.at_boundary()

    def mean(self, ids: IntArray) -> NDArray[np.float32]:
        """Mean class probabilities (len(ids), C) float32 of the method, on every rank."""
        batches = self.batches(ids, "evaluation")
        return self._table(ids, 1, ((i, p.mean(0, keepdim=True)) for i, p in batches))[:, 0]

    def each(self, ids: IntArray, phase: str) -> NDArray[np.float32]:
        """Class probabilities (M, len(ids), C) float32 of each predictor, on every rank."""
        batches = list(self.batches(ids, phase))
        # A rank without a batch has not seen how many predictors there are.
        num = max(collectives.gather_objects(len(batches[0][1]) if batches else 0))
        return self._table(ids, num, batches).transpose(1, 0, 2)

    def _table(
        self, ids: IntArray, num: int, batches: Iterable[tuple[Tensor, Tensor]]
    ) -> NDArray[np.float32]:
        """What all ranks' (sample_ids (B,), probabilities (num, B, C)) say: (len(ids), num, C).

        It is as large as what is predicted, however many samples the data set has. ``ids`` ascend.
        """
        column = Column((num, self.task.num_classes), torch.float32, float("nan"), "prediction")
        table, places = Ledger(len(ids), {"probability": column}), torch.from_numpy(ids)
        for sample_ids, probabilities in batches:
            rows = torch.searchsorted(places, sample_ids)
            table.write(rows, probability=probabilities.transpose(0, 1))
        table.synchronise(expected_ids=torch.arange(len(ids)))
        return table["probability"].numpy()

    def evaluate(self) -> dict[str, float]:
        """Metrics of the mean prediction on each evaluation set."""
        metrics: dict[str, float] = {}
        for name, ids in self.task.evaluation_ids.items():
            self.predictions[name] = self.mean(ids)
            labels = self.task.labels[ids].numpy()
            found = classification_metrics(self.predictions[name], labels)
            metrics |= {f"{name}/{metric}": value for metric, value in found.items()}
        return metrics
