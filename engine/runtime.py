"""Processes and devices, through accelerate; the only reader of environment variables."""

import atexit
import configparser
import importlib.util
import logging
import netrc
import os
import sys
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Literal, NamedTuple, NoReturn
from urllib.parse import urlsplit

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DeepSpeedPlugin,
    DistributedDataParallelKwargs,
    InitProcessGroupKwargs,
    KwargsHandler,
)
from pydantic import BaseModel, ConfigDict, Field, field_validator

from engine.config import ConfigError

__all__ = [
    "LostProcessError",
    "ProcessEnvironment",
    "RuntimeConfig",
    "end_process",
    "first_line",
    "is_lost_process",
    "read_environment",
    "set_up_wandb",
    "start_processes",
    "wandb_mode",
]

logger = logging.getLogger(__name__)

_ZERO_STAGES = "0, 1 or 2: stage 3 shares out the weights too, which averaged copies read whole"


class RuntimeConfig(BaseModel):
    """Section ``runtime``."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    device: Literal["auto", "cpu"] = Field("auto", description="auto takes GPUs where there are.")
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="Of the networks' passes; losses and statistics stay float32."
    )
    deterministic: bool = Field(
        False,
        description="Take kernels that sum in the same order each time, so that a run repeats to "
        "the last bit on a GPU too, at a price in time. torch warns of a layer that has none.",
    )
    zero_stage: int | None = Field(
        None,
        ge=0,
        description="Stage of DeepSpeed's ZeRO: 1 shares out the optimiser's state among the "
        "processes, 2 the gradients too, 0 neither (DDP); null does as accelerate launch was told.",
    )
    timeout_seconds: float = Field(
        1800.0,
        gt=0,
        le=31_536_000,
        description="How long a process waits for the others before it gives up; at most a year.",
    )

    @field_validator("zero_stage")
    @classmethod
    def _known(cls, stage: int | None) -> int | None:
        if stage is not None and stage > 2:
            raise ValueError(f"found {stage}, expected {_ZERO_STAGES}")
        return stage


class ProcessEnvironment(NamedTuple):
    """What the launcher of the processes told this one.

    Attributes:
        rank: Number of this process, from 0.
        world_size: Number of processes.
        zero_stage: Stage of ZeRO that ``accelerate launch`` was configured with; 0 = DDP.
        deepspeed_file: File of DeepSpeed's settings that it was given; empty = none.
        local_world_size: Number of processes on this machine; 1 where the launcher does not tell.
    """

    rank: int
    world_size: int
    zero_stage: int
    deepspeed_file: str
    local_world_size: int


def read_environment() -> ProcessEnvironment:
    """What every launcher of torch processes sets, and accelerate's choice of DeepSpeed."""
    variables = os.environ
    uses_deepspeed = variables.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"
    stage = variables.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2") if uses_deepspeed else "0"
    return ProcessEnvironment(
        rank=int(variables.get("RANK", "0")),
        world_size=int(variables.get("WORLD_SIZE", "1")),
        zero_stage=int(stage),
        deepspeed_file=variables.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", ""),
        local_world_size=int(variables.get("LOCAL_WORLD_SIZE", "1")),
    )


def wandb_mode() -> Literal["online", "offline", "off"]:
    """How wandb would run: as WANDB_MODE says, else online where there is an API key."""
    variables = os.environ
    modes: dict[str, Literal["online", "offline", "off"]] = {
        "online": "online", "offline": "offline", "dryrun": "offline", "disabled": "off"
    }  # fmt: skip
    chosen = modes.get(variables.get("WANDB_MODE", ""))
    if chosen is not None:
        return chosen
    if variables.get("WANDB_API_KEY") or variables.get("WANDB_IDENTITY_TOKEN_FILE"):
        return "online"
    # Where `wandb login` writes it.
    server = urlsplit(_wandb_server()).netloc
    file = Path(variables.get("NETRC") or "~/.netrc").expanduser()
    try:
        return "online" if netrc.netrc(file).authenticators(server) else "offline"
    except (OSError, netrc.NetrcParseError):
        return "offline"


def _wandb_server() -> str:
    """The address that wandb would talk to; ``wandb login --host`` notes one of one's own."""
    own = Path(os.environ.get("WANDB_CONFIG_DIR") or "~/.config/wandb").expanduser()
    settings = configparser.ConfigParser(interpolation=None)
    try:  # The working folder's win.
        settings.read([own / "settings", Path("wandb", "settings")], encoding="utf-8")
    except (OSError, UnicodeDecodeError, configparser.Error) as error:
        logger.debug("settings of wandb: %s", error)
    noted = settings.get("default", "base_url", fallback="https://api.wandb.ai")
    return os.environ.get("WANDB_BASE_URL") or noted


def set_up_wandb(folder: Path) -> None:
    """Set, unless the user has, what wandb takes from the environment alone; before its import.

    Args:
        folder: Where wandb keeps what is yet to be sent: with the run, not in a home folder that
            another machine may not see.
    """
    os.environ.setdefault("WANDB_DATA_DIR", str(folder))
    # Its reports of its own errors go to its makers; without a network they hold up the exit.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")


class LostProcessError(RuntimeError):
    """Another process of the run has gone, or has not answered in time."""


# What torch's back ends say where a peer has gone or is silent; gloo has no exception for it. NCCL
# says more than that: what it was set up wrongly with, which is for the user to read in full.
_SIGNS_OF_LOSS = (
    "gloo", "ncclremoteerror", "remote process exited", "connection closed", "connection reset",
    "communicator was aborted", "timed out", "timeout",
)  # fmt: skip


def is_lost_process(error: RuntimeError) -> bool:
    """Whether an error of torch means that another process of the run does not answer."""
    if read_environment().world_size == 1:
        return False
    # Of the meeting point of all processes too, whose messages have none of the signs at times;
    # absent where torch was built without processes.
    kinds = tuple(
        getattr(torch.distributed, name)
        for name in ("DistNetworkError", "DistStoreError")
        if hasattr(torch.distributed, name)
    )
    text = str(error).lower()
    return isinstance(error, kinds) or any(sign in text for sign in _SIGNS_OF_LOSS)


def first_line(error: Exception) -> str:
    """The message of an error without what follows its first line."""
    return str(error).partition("\n")[0]


def start_processes(config: RuntimeConfig) -> Accelerator:
    """Join the process group and choose the device.

    Args:
        config: Section ``runtime``.

    Returns:
        An Accelerator, used for device, precision, wrapping and backward passes only: data, order,
        random state, schedules and tracking are this project's own.

    Raises:
        ConfigError: Half precision without a GPU, which accelerate would quietly leave out; more
            processes than GPUs, of which it would give one to several; gradients to be gathered
            over several steps, which it would scale; or ZeRO in a way that is not supported.
    """
    on_cpu = config.device == "cpu" or not torch.cuda.is_available()
    if on_cpu and config.precision == "fp16":
        raise ConfigError("runtime.precision: fp16 needs a GPU; use bf16 or fp32 here")
    steps = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    if steps not in ("1", "auto"):
        raise ConfigError(
            f"gradient_accumulation_steps of accelerate: found {steps}, expected 1: "
            "optim.batch_size is the whole batch of a step, and model.micro_batch_size saves memory"
        )
    environment = read_environment()
    if not on_cpu and environment.local_world_size > max(torch.cuda.device_count(), 1):
        raise ConfigError(
            f"{environment.local_world_size} processes were started on a machine with "
            f"{torch.cuda.device_count()} GPU(s); start at most one for each (--num_processes), or "
            "set runtime.device=cpu"
        )
    plugin = _zero_plugin(config, environment, on_cpu)
    _choose_kernels(config.deterministic)
    # Two passes of one BatchNorm before a backward pass fail if buffers are broadcast in between
    # (pytorch#22095); statistics are averaged after each step instead.
    handlers: list[KwargsHandler] = [
        DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
    ]
    # accelerate has no other word for it yet.
    warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
    # A backend that is named makes accelerate expect a process group, so a lone process names none.
    if environment.world_size > 1:
        timeout = timedelta(seconds=config.timeout_seconds)
        backend = "gloo" if on_cpu else "nccl"
        handlers.append(InitProcessGroupKwargs(backend=backend, timeout=timeout))
    return Accelerator(
        # accelerate knows DeepSpeed on GPUs alone; the plugin below brings it to the CPU.
        cpu=on_cpu and plugin is None,
        mixed_precision="no" if config.precision == "fp32" else config.precision,
        deepspeed_plugin=plugin,
        kwargs_handlers=handlers,
    )


def _choose_kernels(deterministic: bool) -> None:
    """Tell torch whether sums need one order."""
    if deterministic:  # cuBLAS reads it when it is first used
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    torch.backends.cudnn.deterministic = deterministic
    # What is allocated is written before it is read; filling it first would only take time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def end_process(code: int) -> NoReturn:
    """End a script that may be one of several processes, as its last line.

    Several processes end without tearing Python down: a thread of gloo that has yet to let go of a
    finished exchange would ask for Python's lock meanwhile, and abort the process (torch 2.14,
    pytorch/pytorch issue 190489; seen in one of ten runs of two). What is registered with atexit
    runs as ever.

    Args:
        code: The process's exit code.
    """
    if read_environment().world_size > 1:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _zero_plugin(
    config: RuntimeConfig, environment: ProcessEnvironment, on_cpu: bool
) -> DeepSpeedPlugin | None:
    """Settings of DeepSpeed for accelerate, and the environment that goes with them."""
    stage = environment.zero_stage if config.zero_stage is None else config.zero_stage
    if stage > 2:
        raise ConfigError(f"zero_stage of accelerate: found {stage}, expected {_ZERO_STAGES}")
    if environment.deepspeed_file:
        raise ConfigError(
            f"deepspeed_config_file of accelerate: found {environment.deepspeed_file}, expected "
            "none: sections optim and runtime hold all that is set of DeepSpeed"
        )
    if stage == 0 or environment.world_size == 1:
        # A lone process has nobody to share with.
        os.environ["ACCELERATE_USE_DEEPSPEED"] = "false"
        return None
    if config.precision == "fp16":
        raise ConfigError(
            "runtime.precision: fp16 needs scaled losses, which are not supported with ZeRO; use "
            "bf16 or fp32, or runtime.zero_stage 0"
        )
    if on_cpu:
        os.environ |= {"DS_ACCELERATOR": "cpu", "ACCELERATE_TORCH_DEVICE": "cpu"}
    if importlib.util.find_spec("deepspeed") is None:
        raise ConfigError(
            f"runtime.zero_stage: {stage} needs the extra: pip install 'mednoise[deepspeed]'"
        )
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    return DeepSpeedPlugin(
        zero_stage=stage,
        gradient_accumulation_steps=1,
        offload_optimizer_device="none",
        offload_param_device="none",
    )
