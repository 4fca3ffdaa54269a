"""From a loss to a step: one wrapped module, one optimiser, one backward pass.

Two ways to share the work take the same steps. Under DDP every rank holds the whole optimiser;
under DeepSpeed's ZeRO each holds a slice of its state and, in stage 2, of the gradients
(Rajbhandari et al., ZeRO, SC 2020). The state is saved as one process would hold it, so a run may
go on under the other, on any number of processes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn

from engine import collectives
from engine.optim import OptimConfig, build_optimizer, set_learning_rate
from engine.plan import per_rank_batch_size

__all__ = ["Stepper", "ZeroStepper", "build_stepper"]

# Gradients that ZeRO exchanges at once: 100 MB in float32, as much as most ResNets have.
LARGEST_BUCKET = 25_600_000


def build_stepper(accelerator: Accelerator, module: nn.Module, config: OptimConfig) -> "Stepper":
    """The stepper of the way in which the processes were started."""
    sharded = accelerator.distributed_type == DistributedType.DEEPSPEED
    return (ZeroStepper if sharded else Stepper)(accelerator, module, config)


class Stepper:
    """One process, or DDP.

    Args:
        accelerator: Processes, device, precision.
        module: What is trained.
        config: Section ``optim``.

    Attributes:
        wrapped: The module to call in training.
    """

    # Convolutions run fastest on this layout, on GPUs and CPUs alike.
    weight_layout = torch.channels_last
    may_fuse = True

    def __init__(self, accelerator: Accelerator, module: nn.Module, config: OptimConfig) -> None:
        self.accelerator, self.module, self.config = accelerator, module, config
        module.to(memory_format=self.weight_layout)
        fused = self.may_fuse and accelerator.device.type == "cuda"
        optimizer = build_optimizer(module, config, fused=fused)
        # Of each group, before ZeRO puts slices in their place.
        self.parameters = [list(group["params"]) for group in optimizer.param_groups]
        self.wrapped, self.optimizer = accelerator.prepare(module, optimizer)

    def step(
        self, loss: Tensor, rate: float, require_finite: Callable[[], None] = lambda: None
    ) -> None:
        """Differentiate the loss and take a step at this learning rate; a collective call.

        Args:
            loss: () float.
            rate: Learning rate.
            require_finite: Called before weights and the optimiser's state move, with the backward
                pass under way if that can be; may raise.
        """
        set_learning_rate(self.optimizer, rate)
        self.optimizer.zero_grad()
        self.accelerator.backward(loss)
        require_finite()
        if self.config.clip_norm is not None:
            self.accelerator.clip_grad_norm_(self.module.parameters(), self.config.clip_norm)
        self.optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """State of optimiser and, in fp16, loss scaler; equal on all ranks; a collective call."""
        scaler = self.accelerator.scaler
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": {} if scaler is None else scaler.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state, after the weights of the module."""
        # It may have been saved on another kind of device or by ZeRO: whether steps are fused, and
        # with it where their count lies, is decided here, and moments lie as the weights do.
        saved = state["optimizer"]
        groups = [
            {**group, "fused": own["fused"]}
            for group, own in zip(saved["param_groups"], self.optimizer.param_groups, strict=True)
        ]
        self.optimizer.load_state_dict({**saved, "param_groups": groups})
        for parameter, own in self.optimizer.state.items():
            for key, value in own.items():
                is_moment = isinstance(value, Tensor) and value.shape == parameter.shape
                if is_moment and value.stride() != parameter.stride():
                    own[key] = torch.empty_like(parameter).copy_(value)
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])


class ZeroStepper(Stepper):
    """DeepSpeed's ZeRO, stages 1 and 2; arguments as above.

    ZeRO lays the parameters of a group end to end in one vector. Each rank's optimiser has one
    slice of it as its only parameter of the group. DeepSpeed's own translation of an optimiser's
    state (``safe_get_full_optimizer_state``, as of 0.19) knows the first group alone: it is linked
    during the first step, when the others have no state yet.
    """

    # DeepSpeed lays weights end to end as they are numbered; it fails on any other layout.
    weight_layout = torch.contiguous_format
    # Its steps are taken on slices, and were seen to differ with fused kernels.
    may_fuse = False

    def __init__(self, accelerator: Accelerator, module: nn.Module, config: OptimConfig) -> None:
        settings = accelerator.state.deepspeed_plugin.deepspeed_config
        settings["train_micro_batch_size_per_gpu"] = per_rank_batch_size(
            config.batch_size, accelerator.num_processes
        )
        settings["gradient_clipping"] = config.clip_norm or 0.0
        sizes = [p.numel() for p in module.parameters() if p.requires_grad]
        # Left to itself it takes buffers for 500 million gradients, however few there are.
        bucket = max(*sizes, min(sum(sizes), LARGEST_BUCKET))
        bucket += -bucket % 128  # it asks for a multiple of 2 for the sake of NCCL
        for kind in ("reduce", "allgather"):
            settings["zero_optimization"][f"{kind}_bucket_size"] = bucket
        if accelerator.mixed_precision == "bf16":
            # What accelerate does under DDP; DeepSpeed would round the weights themselves. From
            # here on accelerate, which reads the precision from its settings, knows of none.
            autocast = torch.autocast(accelerator.device.type, torch.bfloat16)
            module.forward = autocast(module.forward)
            settings["bf16"] = {"enabled": False}
        super().__init__(accelerator, module, config)
        self._zero = self.optimizer.optimizer

    def step(
        self, loss: Tensor, rate: float, require_finite: Callable[[], None] = lambda: None
    ) -> None:
        """As above; here the backward call clips, steps and clears the gradients too."""
        require_finite()
        set_learning_rate(self._zero, rate)
        self.accelerator.backward(loss)

    def state_dict(self) -> dict[str, Any]:
        """As above, put together from the slices of all ranks."""
        state: dict[int, dict[str, Tensor]] = {}
        groups: list[dict[str, Any]] = []
        first = 0
        for group, parameters in zip(self._zero.param_groups, self.parameters, strict=True):
            numbers = list(range(first, first + len(parameters)))
            own = group["params"][0]
            for key, value in self._zero.state.get(own, {}).items():
                if value.shape == own.shape:
                    whole = _gather(parameters, value)
                else:  # a count of steps, of which every parameter has its own
                    whole = [value.to("cpu", copy=True) for _ in numbers]
                for number, tensor in zip(numbers, whole, strict=True):
                    state.setdefault(number, {})[key] = tensor
            groups.append({**group, "params": numbers})
            first += len(parameters)
        return {"optimizer": {"state": state, "param_groups": groups}, "scaler": {}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """As above; of the state this rank keeps its slices."""
        self._zero.refresh_fp32_params()
        whole = state["optimizer"]["state"]
        first = 0
        for group, parameters in zip(self._zero.param_groups, self.parameters, strict=True):
            own = group["params"][0]
            for key, value in whole.get(first, {}).items():
                if value.shape == parameters[0].shape:
                    tensors = [whole[first + i][key] for i in range(len(parameters))]
                    value = _slice(parameters, tensors, own)
                self._zero.state[own][key] = value.clone()
            first += len(parameters)


def _fragments(parameters: Sequence[nn.Parameter]) -> Iterator[tuple[slice, slice]]:
    """Where this rank's part of each parameter is: among all end to end, and in its slice."""
    start = 0
    for parameter in parameters:
        if parameter._hp_mapping is not None:  # type: ignore[attr-defined]
            within, own = (
                parameter._hp_mapping.lp_fragment_address,  # type: ignore[attr-defined]
                parameter._hp_mapping.hp_fragment_address,  # type: ignore[attr-defined]
            )
            begin = start + within.start
            yield slice(begin, begin + within.numel), slice(own.start, own.start + own.numel)
        start += parameter.numel()


def _gather(parameters: Sequence[nn.Parameter], own: Tensor) -> list[Tensor]:
    """A tensor for each parameter, from what each rank's slice holds of them."""
    sizes = [parameter.numel() for parameter in parameters]
    whole = own.new_zeros(sum(sizes))
    for among_all, in_slice in _fragments(parameters):
        whole[among_all] = own[in_slice]
    # To the CPU one after the other: on a GPU the whole state would take what ZeRO saves.
    parts = collectives.all_reduce_sum(whole).cpu().split(sizes)
    return [part.view(p.shape).clone() for part, p in zip(parts, parameters, strict=True)]


def _slice(parameters: Sequence[nn.Parameter], tensors: Sequence[Tensor], own: Tensor) -> Tensor:
    """This rank's slice of a tensor for each parameter; the inverse of :func:`_gather`."""
    whole = torch.cat([tensor.flatten() for tensor in tensors]).to(own.device)
    part = torch.zeros_like(own)
    for among_all, in_slice in _fragments(parameters):
        part[in_slice] = whole[among_all]
    return part
