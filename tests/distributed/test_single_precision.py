"""What a user runs, float32: any number of processes ends within 1e-5 of one.

Plain SGD, since Adam divides by the size of gradients: where one is nearly zero, it makes steps of
rounding errors; and smooth rectifiers, since rounding switches some ReLU off and on.
test_exactness.py shows in float64 that rounding is all that differs.
"""

from pathlib import Path

import pytest
import safetensors.torch
from exactness_cases import CASES, relative_difference, write_cases
from processes import launch

MANY_RUNS = Path(__file__).with_name("many_runs.py")
OPTIM = {"name": "sgd", "lr": 0.002, "batch_size": 16}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Weights after three epochs: number of processes -> case -> name -> tensor."""
    found = {}
    for num_processes in (1, 2, 4):
        folder = tmp_path_factory.mktemp(f"on-{num_processes}")
        folders = write_cases(folder, optim=OPTIM)
        result = launch(MANY_RUNS, [str(f) for f in folders], num_processes, folder)
        assert result.returncode == 0, result.stderr[-3000:]
        newest = Path("run", "checkpoints", "epoch-0003", "method.safetensors")
        found[num_processes] = {f.name: safetensors.torch.load_file(f / newest) for f in folders}
    return found


@pytest.mark.slow
@pytest.mark.parametrize("num_processes", [2, 4])
@pytest.mark.parametrize("case", CASES)
def test_weights_after_three_epochs_are_within_1e_5(weights, case, num_processes):
    alone, together = weights[1][case], weights[num_processes][case]
    assert relative_difference(together, alone) <= 1e-5
