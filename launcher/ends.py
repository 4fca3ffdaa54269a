"""How commands end: what they tell, errors in one line, exit codes that scripts tell apart."""

import os
import sys
import time
from collections.abc import Callable

import torch

from data.errors import DataError
from engine.checkpoint import CheckpointError
from engine.collectives import MainProcessError
from engine.config import ConfigError
from engine.record import RecordError
from engine.runtime import LostProcessError, read_environment
from engine.terms import NonFiniteLossError
from launcher import EXIT_USER_ERROR
from methods.method import MethodError
from methods.separation import SeparationError
from methods.weights import ModelError

__all__ = ["EXIT_KEYBOARD", "EXIT_LOST_PROCESS", "USER_ERRORS", "carry_out", "tell"]

# What a user can mend is shown as its message alone; anything else keeps its traceback.
USER_ERRORS = (
    ConfigError, DataError, CheckpointError, NonFiniteLossError, ModelError, MethodError,
    RecordError, SeparationError, OSError,
)  # fmt: skip
EXIT_LOST_PROCESS = 3
# As shells have it: 128 and the number of SIGINT.
EXIT_KEYBOARD = 130
# torchrun and srun end the other processes when one has failed, so one that leaves before rank 0
# has spoken would leave nothing said. Rank 0 may be gone, or slow beyond that; then they all speak.
SECONDS_FOR_RANK_0 = 30.0


def carry_out(work: Callable[[], int], met_alone: tuple[type[Exception], ...] = (OSError,)) -> int:
    """Do what a command is for, in one of the processes that do it together.

    Args:
        work: Does it; returns the exit code, with which all processes are still there.
        met_alone: Errors that one process may meet and the others not, such as those of files.

    Returns:
        The exit code: the work's, 2 for what the user can mend, 3 for another process that has
        gone, 130 for Ctrl-C. Errors have been said.
    """
    rank = read_environment().rank
    try:
        code = work()
    except USER_ERRORS as error:
        # Else every process meets the same error, and rank 0 says it, before the others leave.
        is_own = isinstance(error, met_alone) and not isinstance(error, MainProcessError)
        if rank > 0 and not is_own:
            time.sleep(SECONDS_FOR_RANK_0)
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        if rank == 0:
            print("stopped by the keyboard", file=sys.stderr)
        return EXIT_KEYBOARD
    except LostProcessError as error:
        # The one that has gone cannot say it.
        print(f"error: [rank {rank}] {error}", file=sys.stderr)
        return EXIT_LOST_PROCESS
    # One that left the others without a word might make them abort.
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return code


def tell(text: object) -> None:
    """Print to whoever reads along: ``head`` or a pager that has seen enough is no failure."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # Python would fail once more at exit, with what is left to write.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
