"""How fast a run trains, and how long it waits for images; by this process's clock alone.

Nothing here asks a GPU for anything. A step ends with a look at its loss and at the signals, for
which the processor waits anyway, so its clock tells what the GPU took too.
"""

import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

__all__ = ["Meter", "Throughput"]

Item = TypeVar("Item")


@dataclass
class Meter:
    """Sums over steps.

    Attributes:
        num_images: Images trained on, on all ranks.
        seconds: Time of the steps, the wait for their images included.
        waited: That wait.
    """

    num_images: int = 0
    seconds: float = 0.0
    waited: float = 0.0

    def rates(self) -> dict[str, float]:
        """``images_per_second`` and ``data_wait_share`` in [0, 1]; NaN without any step."""
        if not self.num_images:
            return {"images_per_second": math.nan, "data_wait_share": math.nan}
        return {
            "images_per_second": self.num_images / self.seconds,
            "data_wait_share": self.waited / self.seconds,
        }


class Throughput:
    """Times the steps of a run.

    Attributes:
        epoch: Since the epoch began or was gone on with; whoever ends it puts a new one in place.
        window: Since whoever looked last.
    """

    def __init__(self) -> None:
        self.epoch, self.window = Meter(), Meter()
        self._began = self._ready = time.perf_counter()

    def time_waits(self, batches: Iterable[Item]) -> Iterator[Item]:
        """The same batches; asking for one begins a step."""
        iterator = iter(batches)
        while True:
            self._began = time.perf_counter()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self._ready = time.perf_counter()
            yield batch

    def end_step(self, num_images: int) -> None:
        """Note that the step is done, on so many images over all ranks."""
        now = time.perf_counter()
        for meter in (self.epoch, self.window):
            meter.num_images += num_images
            meter.seconds += now - self._began
            meter.waited += self._ready - self._began
