"""How the processes were started, and what is refused before they join."""

import os
import subprocess
import sys

import pytest
import torch
from accelerate.utils import DistributedType
from processes import ROOT
from pydantic import ValidationError

from engine.config import ConfigError
from engine.runtime import RuntimeConfig, is_lost_process, read_environment, start_processes

CPU = {"device": "cpu"}
# As torch and NCCL word them.
NCCL = "NCCL error in: ProcessGroupNCCL.cpp:94, unhandled error, NCCL version 2.28\n{}"
REMOTE = "A call failed possibly due to a network error or a remote process exiting prematurely."
DUPLICATE = "This usually reflects invalid usage.\nLast error:\nDuplicate GPU detected : rank 1"


@pytest.fixture
def environment(monkeypatch, fresh_processes):
    """Sets the variables that a launcher would; none is left by the test's own process."""
    names = (
        "RANK",
        "WORLD_SIZE",
        "LOCAL_WORLD_SIZE",
        "ACCELERATE_USE_DEEPSPEED",
        "ACCELERATE_DEEPSPEED_ZERO_STAGE",
        "ACCELERATE_DEEPSPEED_CONFIG_FILE",
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS",
        "DS_ACCELERATOR",
        "ACCELERATE_TORCH_DEVICE",
    )
    for name in names:
        # Set before it is removed, so that what a test leaves behind is removed too.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return lambda **variables: [monkeypatch.setenv(k, v) for k, v in variables.items()]


def test_a_plain_process_is_alone_and_shares_nothing(environment):
    assert read_environment() == (0, 1, 0, "", 1)


@pytest.mark.parametrize("stage", [1, 2])
def test_the_stage_is_the_launchers(environment, stage):
    environment(
        RANK="1", WORLD_SIZE="2", ACCELERATE_USE_DEEPSPEED="true",
        ACCELERATE_DEEPSPEED_ZERO_STAGE=str(stage),
    )  # fmt: skip
    assert read_environment()[:3] == (1, 2, stage)
    environment(ACCELERATE_USE_DEEPSPEED="false")
    assert read_environment()[:3] == (1, 2, 0)


@pytest.mark.parametrize("stage", [1, 2])
def test_a_lone_process_has_nobody_to_share_with(environment, stage):
    accelerator = start_processes(RuntimeConfig(zero_stage=stage, **CPU))
    assert accelerator.distributed_type == DistributedType.NO


def test_stage_3_is_refused_with_the_reason(environment):
    reason = "found 3, expected 0, 1 or 2: stage 3 shares out the weights too, which averaged"
    with pytest.raises(ValidationError, match=reason):
        RuntimeConfig(zero_stage=3)
    environment(
        WORLD_SIZE="2", ACCELERATE_USE_DEEPSPEED="true", ACCELERATE_DEEPSPEED_ZERO_STAGE="3"
    )
    with pytest.raises(ConfigError, match=f"^zero_stage of accelerate: {reason}"):
        start_processes(RuntimeConfig(**CPU))


def test_settings_of_deepspeed_in_a_file_are_refused(environment, monkeypatch):
    """They would be read by nobody, and the user would never know."""
    environment(WORLD_SIZE="2", ACCELERATE_USE_DEEPSPEED="true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", "ds.json")
    with pytest.raises(ConfigError, match=r"^deepspeed_config_file of accelerate: found ds.json"):
        start_processes(RuntimeConfig(**CPU))


def test_gradients_over_several_steps_are_refused(environment):
    """accelerate would divide each step's loss by their number."""
    environment(ACCELERATE_GRADIENT_ACCUMULATION_STEPS="4")
    with pytest.raises(ConfigError, match=r"^gradient_accumulation_steps of .*: found 4, "):
        start_processes(RuntimeConfig(**CPU))
    environment(ACCELERATE_GRADIENT_ACCUMULATION_STEPS="1")
    assert start_processes(RuntimeConfig(**CPU)).gradient_accumulation_steps == 1


def test_kernels_with_one_order_are_asked_for_and_no_longer(environment, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    for deterministic in (True, False):
        start_processes(RuntimeConfig(device="cpu", deterministic=deterministic))
        assert torch.are_deterministic_algorithms_enabled() == deterministic
        assert torch.backends.cudnn.deterministic == deterministic
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_fp16_is_refused_where_losses_cannot_be_scaled(environment, monkeypatch):
    with pytest.raises(ConfigError, match=r"^runtime.precision: fp16 needs a GPU"):
        start_processes(RuntimeConfig(precision="fp16", **CPU))
    environment(WORLD_SIZE="2")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    with pytest.raises(ConfigError, match=r"^runtime.precision: fp16 needs scaled losses"):
        start_processes(RuntimeConfig(precision="fp16", zero_stage=1))


def test_more_processes_than_gpus_are_refused(environment, monkeypatch):
    """accelerate would give one GPU to several, of which NCCL says nothing a user understands."""
    environment(WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(ConfigError, match=r"^2 processes .* with 1 GPU\(s\); start at most one"):
        start_processes(RuntimeConfig())


def test_deepspeed_absent_names_the_extra(environment, monkeypatch):
    environment(WORLD_SIZE="2")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'mednoise\[deepspeed\]'"):
        start_processes(RuntimeConfig(zero_stage=1, **CPU))


@pytest.mark.parametrize(
    ("error", "is_lost"),
    [
        (RuntimeError("[gloo/transport/tcp/pair.cc] Connection closed by peer"), True),
        (torch.distributed.DistNetworkError("failed to recv, got 0 bytes"), True),
        (RuntimeError("shapes differ"), False),
        (torch.distributed.DistBackendError(NCCL.format("ncclRemoteError: " + REMOTE)), True),
        (torch.distributed.DistBackendError(NCCL.format("ncclInvalidUsage: " + DUPLICATE)), False),
    ],
)
def test_a_lost_process_is_told_from_a_defect(environment, error, is_lost):
    assert not is_lost_process(error)  # of a lone process
    environment(WORLD_SIZE="2")
    assert is_lost_process(error) == is_lost


ENDING = """
import atexit
from engine.runtime import end_process

class Torn:
    def __del__(self):
        print("torn down")

left = Torn()
atexit.register(lambda: print("said at exit"))
print("not yet written", end=" ")
end_process(5)
"""


@pytest.mark.parametrize(("world_size", "is_torn_down"), [("1", True), ("2", False)])
def test_several_processes_end_without_tearing_python_down(world_size, is_torn_down):
    ended = subprocess.run(
        [sys.executable, "-c", ENDING], cwd=ROOT, capture_output=True, text=True, timeout=120,
        env=os.environ | {"WORLD_SIZE": world_size},
    )  # fmt: skip
    assert (ended.returncode, ended.stderr) == (5, "")
    assert "not yet written said at exit" in ended.stdout
    assert ("torn down" in ended.stdout) == is_torn_down
