"""The launcher on ``config.yaml`` of each folder, one after another in the same processes.

The runs go on where there is something to go on from, and may end because they were interrupted.
Starting processes takes longer than training a tiny setting, so they are started once for all.

Run as a program it has smooth rectifiers: rounding in float32 is enough to switch a ReLU near zero,
after which weights differ by up to 1e-4, with some labels on some processors.
"""

import sys
from pathlib import Path
from unittest.mock import patch

import torch
import torch.nn.functional as F
from accelerate.state import AcceleratorState

from engine.interrupts import EXIT_INTERRUPTED
from engine.runtime import end_process
from launcher.run import main


def smooth_rectifiers():
    """Have SiLU in place of ReLU, whose gradient jumps."""
    F.relu = F.silu


def run_each(folders, start=lambda folder: None):
    """Run the launcher in the folders, until one fails; returns the exit code."""
    # A process group that was destroyed could not be joined again at the same address.
    with patch("torch.distributed.destroy_process_group"):
        for folder in map(Path, folders):
            AcceleratorState._reset_state(reset_partial_state=True)
            start(folder)
            code = main(["--config", str(folder / "config.yaml"), "--resume", "auto"])
            if code not in (0, EXIT_INTERRUPTED):
                return code
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
    return 0


if __name__ == "__main__":
    smooth_rectifiers()
    end_process(run_each(sys.argv[1:]))
