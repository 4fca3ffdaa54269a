"""Kill a run of two processes with SIGKILL at random moments, again and again, and go on with it.

``python tests/kills.py --kills 30`` prints where each kill struck, and fails unless
every run ended with the weights of one that was left alone, to the last bit.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import safetensors.torch
import torch
from method_settings import write_config

ROOT = Path(__file__).parents[1]
NUM_EPOCHS = 6
LAST = f"epoch-{NUM_EPOCHS:04d}"
# How long the others may take to notice that one has gone.
PATIENCE = 60.0


def start(folder):
    """The run of a folder's configuration on two processes, begun or gone on with."""
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
        "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
        "--main_process_port", "0", str(ROOT / "launcher" / "run.py"),
        "--config", str(folder / "config.yaml"), "--resume", "auto",
    ]  # fmt: skip
    environment = os.environ | {
        "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    with (folder / "log").open("a") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=folder)


def ranks_of(launcher):
    """Process ids of the ranks that a launcher has started."""
    listed = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True).stdout
    rows = [line.split(None, 2) for line in listed.splitlines()[1:]]
    return [int(pid) for pid, parent, _ in rows if int(parent) == launcher.pid]


def wait_until_begun(launcher, folder):
    """Until the ranks are about to train: then the configuration is written anew."""
    written, before = folder / "run" / "config.yaml", time.time()
    while launcher.poll() is None and not (written.exists() and written.stat().st_mtime >= before):
        time.sleep(0.02)


def weights(folder):
    return safetensors.torch.load_file(folder / "run" / "checkpoints" / LAST / "method.safetensors")


def newest(folder):
    """Name of the newest checkpoint, empty where there is none."""
    return max((p.name for p in (folder / "run" / "checkpoints").glob("epoch-*")), default="")


def epochs_done(folder):
    return int(newest(folder)[6:10] or 0)


def begin(folder):
    folder.mkdir()
    run = {"dir": str(folder / "run"), "epochs": NUM_EPOCHS, "save_every_steps": 3}
    write_config(folder, "qmix", run=run)
    return folder


def kill_again_and_again(folder, num_kills, seed):
    """Kill so many times, over as many runs as it takes; returns a line about each kill.

    Raises:
        AssertionError: A run did not end as the one that was left alone.
    """
    chance, lines = random.Random(seed), []
    alone = begin(folder / "alone")
    launcher = start(alone)
    wait_until_begun(launcher, alone)
    began = time.time()
    assert launcher.wait() == 0, (alone / "log").read_text()[-2000:]
    # Until the last checkpoint; what follows has nothing more to lose.
    duration = (alone / "run" / "checkpoints" / LAST).stat().st_mtime - began
    expected = weights(alone)
    number = 0
    while len(lines) < num_kills:
        number += 1
        cut = begin(folder / f"run-{number}")
        while True:
            launcher = start(cut)
            wait_until_begun(launcher, cut)
            if len(lines) < num_kills and newest(cut) != LAST:
                left = 1 - epochs_done(cut) / NUM_EPOCHS
                time.sleep(chance.uniform(0, left * duration))
                lines += kill_one(launcher, chance, cut)
            if launcher.wait() == 0:
                break
        for name, tensor in weights(cut).items():
            assert torch.equal(tensor, expected[name]), (number, name)
    return lines


def kill_one(launcher, chance, folder):
    """Kill a rank and wait for the others to end; nothing, where the run was over."""
    ranks = ranks_of(launcher)
    if launcher.poll() is not None or len(ranks) < 2:
        return []
    rank = chance.choice([0, 1])
    try:
        os.kill(ranks[rank], signal.SIGKILL)
    except ProcessLookupError:
        return []
    struck = time.monotonic()
    code = launcher.wait(timeout=PATIENCE)
    if newest(folder) == LAST:
        return []
    return [
        f"rank {rank} killed; all ended after {time.monotonic() - struck:.1f} s with code {code}; "
        f"newest checkpoint {newest(folder)}"
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        for line in kill_again_and_again(Path(place), options.kills, options.seed):
            print(line)
    print("every run ended with the weights of the one that was left alone")
