"""What a user runs, float32: any number of processes ends within 1e-5 of one.

Plain SGD, since Adam divides by the size of gradients: where one is nearly zero, it makes steps of
rounding errors. test_exactness.py shows in float64 that rounding is all that differs.
"""

import pytest
import safetensors.torch
import torch
from method_settings import METHOD_SETTINGS, write_config
from processes import ROOT, launch

OPTIM = {"name": "sgd", "lr": 0.02, "batch_size": 16}


def train(folder, method, num_processes):
    folder.mkdir()
    config = write_config(folder, method, optim=OPTIM)
    run = ROOT / "launcher" / "run.py"
    result = launch(run, ["--config", str(config)], num_processes, folder)
    assert result.returncode == 0, result.stderr[-3000:]
    newest = folder / "run" / "checkpoints" / "epoch-0003" / "method.safetensors"
    return safetensors.torch.load_file(newest)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHOD_SETTINGS)
def test_weights_after_three_epochs_are_within_1e_5(tmp_path, method):
    alone = train(tmp_path / "1", method, 1)
    for num_processes in (2, 4):
        weights = train(tmp_path / str(num_processes), method, num_processes)
        assert weights.keys() == alone.keys()
        difference = torch.stack([(weights[n] - w).double().norm() for n, w in alone.items()])
        size = torch.stack([w.double().norm() for w in alone.values()])
        assert difference.norm() <= 1e-5 * size.norm()
