"""From sample ids to batches of decoded images, for batches that are decided elsewhere.

The data set never changes and yields (sample_id, image): labels, weights and groups live in tables
on the training side, so workers that live as long as the run can never go stale.
"""

import multiprocessing
import signal
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from multiprocessing.util import Finalize
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm import tqdm

from data.degrade import degrade
from data.errors import DataError
from data.images import ArrayImages, ImageReader
from data.threads import map_in_threads

__all__ = ["DegradedImages", "ImageDataset", "SampleLoader", "hold_in_memory"]


class DegradedImages:
    """A reader that spoils the quality of some of another reader's images.

    Args:
        reader: The original images.
        degraded: (N,) bool, which of them to spoil.
        severity: Smallest and largest severity.
        seed: Seed of the noise; an image is always spoiled in the same way.
    """

    def __init__(
        self,
        reader: ImageReader,
        degraded: NDArray[np.bool_],
        severity: tuple[float, float],
        seed: int,
    ) -> None:
        self.reader, self.degraded = reader, degraded
        self.severity, self.seed = severity, seed

    def __len__(self) -> int:
        return len(self.reader)

    def read(self, index: int) -> NDArray[np.uint8]:
        """Image (S, S, 3) uint8, spoiled or as it is."""
        image = self.reader.read(index)
        if self.degraded[index]:
            return degrade(image, self.severity, self.seed, index)
        return image


def hold_in_memory(reader: ImageReader, num_threads: int, *, show_progress: bool) -> ArrayImages:
    """Decode all images once; for sets that fit into the memory of each process.

    Args:
        reader: Images to hold.
        num_threads: Threads that decode (decoders release Python's lock).
        show_progress: Whether to draw a progress bar on a terminal.
    """
    first = reader.read(0)
    images = np.empty((len(reader), *first.shape), dtype=np.uint8)

    def decode(index: int) -> None:
        images[index] = reader.read(index)

    done = map_in_threads(decode, range(len(reader)), num_threads)
    hidden = None if show_progress else True
    for _ in tqdm(done, total=len(reader), desc="decoding", unit="image", disable=hidden):
        pass
    return ArrayImages(images)


class ImageDataset(Dataset[Any]):
    """All images of the manifest as (sample_id, (S, S, 3) uint8)."""

    def __init__(self, reader: ImageReader) -> None:
        self.reader = reader

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, index: int) -> tuple[int, Tensor]:
        # A copy: readers may hand out views of an array that they keep.
        return index, torch.from_numpy(np.array(self.reader.read(index), order="C"))


def _leave_signals_to_the_run(worker: int) -> None:
    """A signal to stop reaches workers too; the run ends them when it has saved."""
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


@cache
def _kill_workers_at_exit() -> None:
    """Have this process end workers that do not end when they are told to.

    Python asks its children to end by SIGTERM, which ours ignore, and then waits for as long as it
    takes: for good where an iterator is still referred to, by a traceback for example, or a worker
    is stuck on a file system that does not answer.
    """

    def kill() -> None:
        # torch would take a worker that is killed for an accident.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for child in multiprocessing.active_children():
            if child.daemon:
                child.kill()

    # Finalizers with a priority come before Python's asking.
    Finalize(None, kill, exitpriority=0)


class _GivenBatches(Sampler[list[int]]):
    """Yields the batches that were set last; DataLoader asks it anew at each iteration."""

    def __init__(self) -> None:
        self.batches: Sequence[NDArray[np.int64]] = ()

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.batches:
            yield batch.tolist()

    def __len__(self) -> int:
        return len(self.batches)


class SampleLoader:
    """One set of workers for the whole run, given its batches phase by phase.

    Args:
        dataset: Images by sample id.
        num_workers: Processes that decode; 0 = in this one. The batches do not depend on it.
        pin_memory: Whether to page-lock batches, for asynchronous copies to a GPU.
    """

    def __init__(self, dataset: ImageDataset, num_workers: int, *, pin_memory: bool) -> None:
        if num_workers > 0:
            _kill_workers_at_exit()
        self._sampler = _GivenBatches()
        self._loader: DataLoader[Any] = DataLoader(
            dataset,
            batch_sampler=self._sampler,
            num_workers=num_workers,
            pin_memory=pin_memory,
            persistent_workers=num_workers > 0,
            worker_init_fn=_leave_signals_to_the_run,
        )

    def __call__(self, batches: Iterable[NDArray[np.int64]]) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches in the given order: sample_ids (B,) int64 and images (B, 3, S, S) uint8.

        Images keep the memory format of decoders, channels last: who needs another one makes it on
        the device.

        Raises:
            DataError: An image cannot be read; the message names its file.
        """
        self._sampler.batches = list(batches)
        if not self._sampler.batches:
            return
        try:
            for sample_ids, images in self._loader:
                yield sample_ids, images.permute(0, 3, 1, 2)
        except DataError as error:
            # A worker's error arrives with the traceback in front of its message.
            name = f"{DataError.__module__}.{DataError.__qualname__}: "
            raise DataError(str(error).rpartition(name)[2].rstrip()) from error
