"""Processes and devices, through accelerate; the only reader of environment variables."""

import logging
import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    InitProcessGroupKwargs,
    KwargsHandler,
)
from pydantic import BaseModel, ConfigDict, Field

from engine.config import ConfigError

__all__ = [
    "LostProcessError",
    "ProcessEnvironment",
    "RuntimeConfig",
    "is_lost_process",
    "read_environment",
    "start_processes",
]

logger = logging.getLogger(__name__)


class RuntimeConfig(BaseModel):
    """Section ``runtime``."""

    model_config = ConfigDict(frozen=True)

    device: Literal["auto", "cpu"] = Field("auto", description="auto takes GPUs where there are.")
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="Of the networks' passes; losses and statistics stay float32."
    )
    timeout_seconds: float = Field(
        1800.0, gt=0, description="How long a process waits for the others before it gives up."
    )


@dataclass(frozen=True)
class ProcessEnvironment:
    """What the launcher of the processes told this one.

    Attributes:
        rank: Number of this process, from 0.
        world_size: Number of processes.
    """

    rank: int
    world_size: int


def read_environment() -> ProcessEnvironment:
    """Rank and number of processes, as every launcher of torch processes sets them."""
    return ProcessEnvironment(
        rank=int(os.environ.get("RANK", "0")), world_size=int(os.environ.get("WORLD_SIZE", "1"))
    )


class LostProcessError(RuntimeError):
    """Another process of the run has gone, or has not answered in time."""


# What torch's back ends say where a peer has gone or is silent; gloo has no exception for it.
_SIGNS_OF_LOSS = ("gloo", "nccl", "connection closed", "connection reset", "timed out", "timeout")


def is_lost_process(error: RuntimeError) -> bool:
    """Whether an error of a collective call means that another process does not answer."""
    text = str(error).lower()
    return read_environment().world_size > 1 and any(sign in text for sign in _SIGNS_OF_LOSS)


def start_processes(config: RuntimeConfig) -> Accelerator:
    """Join the process group and choose the device.

    Args:
        config: Section ``runtime``.

    Returns:
        An Accelerator, used for device, precision, wrapping and backward passes only: data, order,
        random state, schedules and tracking are this project's own.

    Raises:
        ConfigError: Half precision without a GPU, which accelerate would quietly leave out.
    """
    on_cpu = config.device == "cpu" or not torch.cuda.is_available()
    if on_cpu and config.precision == "fp16":
        raise ConfigError("runtime.precision: fp16 needs a GPU; use bf16 or fp32 here")
    # Two passes of one BatchNorm before a backward pass fail if buffers are broadcast in between
    # (pytorch#22095); statistics are averaged before anything is evaluated instead.
    handlers: list[KwargsHandler] = [
        DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
    ]
    # A backend that is named makes accelerate expect a process group, so a lone process names none.
    if read_environment().world_size > 1:
        timeout = timedelta(seconds=config.timeout_seconds)
        backend = "gloo" if on_cpu else "nccl"
        handlers.append(InitProcessGroupKwargs(backend=backend, timeout=timeout))
    return Accelerator(
        cpu=on_cpu,
        mixed_precision="no" if config.precision == "fp32" else config.precision,
        kwargs_handlers=handlers,
    )
