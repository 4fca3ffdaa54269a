"""Being asked to stop: a signal sets a flag, and all ranks look at it together between steps.

A cluster that takes its machines back sends SIGTERM, or a signal of one's choice some time before
(SLURM's ``--signal=USR1@120``). Ranks get it at different moments. Each only notes it; at the next
boundary all tell each other whether any was asked, so they stop at the same step, save, and exit
alike.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import torch

from engine import collectives

__all__ = ["EXIT_INTERRUPTED", "SIGNALS", "Interrupts", "RunInterruptedError"]

# EX_TEMPFAIL of sysexits.h: nothing is wrong, try again.
EXIT_INTERRUPTED = 75

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
# torchrun passes on the Ctrl-C that its processes had from the terminal already.
_SECONDS_OF_ONE_CTRL_C = 1.0


class RunInterruptedError(Exception):
    """The run was asked to stop, and all ranks stand at the same boundary."""


class Interrupts:
    """The signals that this process was sent."""

    def __init__(self) -> None:
        self._received = [0] * len(SIGNALS)
        self._ctrl_c_at: float | None = None
        # What ranks began to tell each other at the last boundary.
        self._begun: Callable[[], torch.Tensor] | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Inside, note signals instead of dying of them."""
        before = {number: signal.signal(number, self._note) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        # Little more than a note: a handler runs between any two instructions, in the midst of a
        # collective or of a compilation, which takes each call of torch for a part of the model.
        if number == signal.SIGINT:
            self._note_ctrl_c()
        self._received[SIGNALS.index(signal.Signals(number))] += 1

    def _note_ctrl_c(self) -> None:
        """Tell who sits there what happens; a second Ctrl-C is meant to end at once."""
        now = time.monotonic()
        if self._ctrl_c_at is None:
            self._ctrl_c_at = now
            if collectives.rank() == 0:
                # Unlike print, whole in the midst of another one.
                os.write(2, b"\nstopping as soon as all is saved; Ctrl-C again ends at once\n")
        elif now - self._ctrl_c_at > _SECONDS_OF_ONE_CTRL_C:
            raise KeyboardInterrupt

    def raise_if_asked(self) -> None:
        """A boundary, which all ranks reach together.

        Raises:
            RunInterruptedError: Some rank was asked to stop; on all ranks alike. Where the answer
                would have to wait for a GPU it is read at the next boundary.
        """
        before, self._begun = self._begun, collectives.begin_sum(torch.tensor(self._received))
        received = before if collectives.exchanges_queue_on_gpu() else self._begun
        if received is None:
            return
        names = [s.name for s, count in zip(SIGNALS, received().tolist(), strict=True) if count]
        if names:
            raise RunInterruptedError(" and ".join(names))
