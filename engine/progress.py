"""What is going on: a bar for each phase on a terminal, and the phase in each line of the log."""

import logging
from collections.abc import Callable, Iterable, Iterator

from torch import Tensor
from tqdm import tqdm

from engine import collectives

__all__ = ["PhaseFormatter", "progress_bar"]


def progress_bar(
    batches: Iterable[tuple[Tensor, Tensor]], num_images: int, phase: str
) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of a phase, with a bar on the main process where the output is a terminal.

    The bar counts the images of all ranks, as far as this one can tell: they go through batches of
    one size side by side.

    Args:
        batches: This rank's (sample_ids, images).
        num_images: Images of the phase on all ranks.
        phase: What is going on, for the bar.
    """
    # tqdm's None hides the bar unless the output is a terminal.
    hidden = None if collectives.rank() == 0 else True
    num_ranks = collectives.num_ranks()
    with tqdm(total=num_images, desc=phase, unit=" images", leave=False, disable=hidden) as bar:
        for batch in batches:
            yield batch
            bar.update(min(len(batch[0]) * num_ranks, num_images - int(bar.n)))


class PhaseFormatter(logging.Formatter):
    """Time, rank and phase before each message.

    Args:
        rank: Number of this process.

    Attributes:
        phase: Says what is going on.
    """

    def __init__(self, rank: int) -> None:
        super().__init__(f"%(asctime)s [rank {rank}, %(phase)s] %(message)s", datefmt="%H:%M:%S")
        self.phase: Callable[[], str] = lambda: "the start"

    def format(self, record: logging.LogRecord) -> str:
        """A line of the log."""
        record.phase = self.phase()
        return super().format(record)
