"""Recorded runs of which the last rank is sent a signal in a step, whose number comes first.

Runs that have no such step end by themselves. With ``--smooth`` before it, rectifiers are smooth,
as in many_runs.py.
"""

import os
import signal
import sys

import record_run
from many_runs import run_each, smooth_rectifiers

from engine import collectives
from engine.runtime import end_process
from engine.trainer import Trainer

if __name__ == "__main__":
    if sys.argv[1] == "--smooth":
        smooth_rectifiers()
        sys.argv.pop(1)
    asked_in, take_step = sys.argv.pop(1), Trainer._step

    def step_with_signal(trainer, sample_ids, views, epoch, step):
        if str(step) == asked_in and collectives.rank() == collectives.num_ranks() - 1:
            os.kill(os.getpid(), signal.SIGUSR1)
        return take_step(trainer, sample_ids, views, epoch, step)

    Trainer._step = step_with_signal
    record_run.in_double()
    end_process(run_each(sys.argv[1:], record_run.note_in))
