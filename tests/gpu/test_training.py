"""What only a GPU shows; ``make test-gpu`` runs these."""

import os
import signal
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.distributed as dist
import torch.nn.functional as F
from exactness_cases import CASES, relative_difference, write_cases
from processes import ROOT, launch
from tiny_runs import make_config, make_trainer, train

from engine import collectives
from engine.interrupts import Interrupts, RunInterruptedError
from engine.trainer import Trainer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU and "-m gpu"'),
]
MANY_RUNS = ROOT / "tests" / "distributed" / "many_runs.py"
GPU = {"device": "auto"}
# Plain SGD, as test_single_precision.py says; without TF32, whose rounding would hide errors.
SGD = {"name": "sgd", "lr": 0.002, "batch_size": 16}


@pytest.fixture(autouse=True)
def _little_rounding(monkeypatch):
    """No TF32, and smooth rectifiers: rounding in float32 switches a ReLU near zero."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(F, "relu", F.silu)


def config_of(case, /, **sections):
    method, changed = CASES[case]
    return make_config(method, **{"runtime": GPU, "optim": SGD, **changed, **sections})


def weights(config):
    """Of the method after three epochs, on the CPU."""
    trainer, _ = train(config)
    return {name: tensor.cpu() for name, tensor in trainer.method.state_dict().items()}


@pytest.mark.parametrize("case", CASES)
def test_a_gpu_ends_where_a_cpu_does(case, fresh_processes):
    on_gpu = weights(config_of(case))
    fresh_processes()
    assert relative_difference(on_gpu, weights(config_of(case, runtime={"device": "cpu"}))) < 1e-5


@pytest.fixture
def waiting_refused(monkeypatch):
    """Steps after the first epoch may not wait, but for events, which torch does not count."""
    steps = Trainer.train_epoch

    def steps_without_waiting(self, epoch, *arguments):
        torch.cuda.set_sync_debug_mode("error" if epoch > 0 else "default")
        try:
            steps(self, epoch, *arguments)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(Trainer, "train_epoch", steps_without_waiting)


@pytest.mark.parametrize("case", CASES)
def test_no_step_waits_for_the_gpu(case, waiting_refused, fresh_processes):
    trainer, _ = train(config_of(case))
    assert trainer.epochs_done == 3


@pytest.mark.parametrize("case", CASES)
def test_a_deterministic_run_repeats_to_the_last_bit(case, fresh_processes):
    config = config_of(case, runtime=GPU | {"deterministic": True}, model={"norm": "batch"})
    first = weights(config)
    fresh_processes()
    again = weights(config)
    assert all(torch.equal(again[name], tensor) for name, tensor in first.items())


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_takes_nearly_the_same_steps(precision, fresh_processes):
    in_half = weights(config_of("qmix", runtime=GPU | {"precision": precision}))
    fresh_processes()
    start = make_trainer(config_of("qmix")).method.state_dict()
    fresh_processes()
    in_full = weights(config_of("qmix"))
    moved = relative_difference(in_full, {name: tensor.cpu() for name, tensor in start.items()})
    assert 0 < relative_difference(in_half, in_full) < moved / 3


class One(int):
    """A number of processes that is one and does not say so: nothing is left out."""

    def __eq__(self, other):
        return False

    __hash__ = int.__hash__


@pytest.fixture
def through_nccl(monkeypatch, fresh_processes):
    """Makes the next trainer one process of a group by NCCL, which exchanges all that ranks do."""
    place = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}

    def start():
        fresh_processes()
        for name, value in {**place, "MASTER_PORT": str(29500 + os.getpid() % 1000)}.items():
            monkeypatch.setenv(name, value)
        number = collectives.num_ranks
        monkeypatch.setattr(collectives, "num_ranks", lambda: One(number()))

    yield start
    if dist.is_initialized():
        dist.destroy_process_group()


def fit(config, at_step=lambda step: None):
    """The trained method's weights, with a look for signals at each boundary, as in a run."""
    trainer, interrupts = make_trainer(config), Interrupts()
    trainer.at_boundary = trainer.predictor.at_boundary = interrupts.raise_if_asked
    with interrupts.listening():
        trainer.fit(lambda epoch, metrics: None, note_step=at_step)
    return {name: tensor.cpu() for name, tensor in trainer.method.state_dict().items()}


@pytest.mark.parametrize("case", CASES)
def test_exchanges_over_nccl_change_nothing_and_wait_for_nothing(
    case, through_nccl, waiting_refused
):
    alone = fit(config_of(case))
    through_nccl()
    together = fit(config_of(case))
    assert dist.get_backend() == "nccl" and collectives.exchanges_queue_on_gpu()
    assert relative_difference(together, alone) < 1e-5


def test_a_signal_over_nccl_stops_the_run_a_step_later(through_nccl):
    steps = []

    def ask(step):
        steps.append(step)
        if step == 2:
            signal.raise_signal(signal.SIGTERM)

    through_nccl()
    with pytest.raises(RunInterruptedError, match=r"^SIGTERM$"):
        fit(config_of("cross_entropy"), ask)
    assert steps == [1, 2, 3]


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_end_where_one_does(tmp_path, monkeypatch):
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    found = []
    for num_gpus in (1, 2):
        folder = tmp_path / str(num_gpus)
        folder.mkdir()
        folders = write_cases(folder, optim=SGD, runtime={"deterministic": True})
        result = launch(MANY_RUNS, [str(f) for f in folders], num_gpus, folder, gpus=True)
        assert result.returncode == 0, result.stderr[-3000:]
        newest = Path("run", "checkpoints", "epoch-0003", "method.safetensors")
        found.append({f.name: safetensors.torch.load_file(f / newest) for f in folders})
    far = {case: relative_difference(found[1][case], alone) for case, alone in found[0].items()}
    assert max(far.values()) < 1e-4, far


@pytest.mark.parametrize("method", ["cross_entropy", "qmix", "sscl", "dividemix"])
def test_a_run_with_graphs_takes_the_same_steps(method, fresh_processes):
    found = []
    for keys in ({}, {"compile": True}, {"compile": True, "cuda_graphs": True}):
        fresh_processes()
        found.append(weights(config_of(method, model=keys)))
    assert max(relative_difference(other, found[0]) for other in found[1:]) < 1e-4


def assert_same_moments(ours, theirs):
    ours, theirs = ours["optimizer"]["state"], theirs["optimizer"]["state"]
    assert ours.keys() == theirs.keys() and ours
    for number, moments in theirs.items():
        for name, moment in moments.items():
            assert torch.equal(ours[number][name].cpu().float(), moment.cpu().float())


def test_a_run_begun_on_a_gpu_goes_on_on_a_cpu_and_back(fresh_processes):
    """Fused steps find their moments where they need them."""
    adamw, found = SGD | {"name": "adamw", "lr": 1e-4}, []
    for devices in (("auto", "cpu", "auto"), ("auto", "auto", "auto")):
        snapshot = None
        for epoch, device in enumerate(devices):
            fresh_processes()
            config = config_of("qmix", runtime={"device": device}, optim=adamw)
            trainer = make_trainer(config)
            if snapshot is not None:
                trainer.restore(snapshot)
                assert_same_moments(trainer.stepper.state_dict(), snapshot.optimizer)
            trainer.prepare_epoch(epoch)
            trainer.train_epoch(epoch)
            trainer.ledger.synchronise()
            trainer.epochs_done, trainer.steps_done = epoch + 1, 0
            snapshot = trainer.snapshot({}, {}, "")
        found.append({k: v.cpu() for k, v in snapshot.method.items()})
    assert relative_difference(*found) < 1e-3
