"""Start real processes, as a user would."""

import os
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]


def launch(
    script: Path, arguments: list[str], num_processes: int, cwd: Path, config_file=None, gpus=False
):
    """Run a script under ``accelerate launch`` on CPU processes of one thread each.

    With a configuration file of accelerate, such as ``ddp.yaml``, the kind of launch is as it says;
    with ``gpus`` there is a GPU for each process.
    """
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    if not gpus:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    if config_file is None:
        kind = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
        kind += ["--multi_gpu"] if num_processes > 1 else []
    else:
        kind = ["--config_file", str(ROOT / "configs" / "accelerate" / config_file)]
    command = [
        sys.executable, "-m", "accelerate.commands.launch", *kind,
        "--num_processes", str(num_processes), "--main_process_port", "0",
        str(script), *arguments,
    ]  # fmt: skip
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=900
    )


def collect(script: Path, folder: Path, num_processes: int):
    """What each process of a script has saved in the folder that it is given, in rank order."""
    result = launch(script, [str(folder)], num_processes, folder)
    assert result.returncode == 0, result.stderr[-3000:]
    return [torch.load(folder / f"rank-{rank}.pt") for rank in range(num_processes)]
