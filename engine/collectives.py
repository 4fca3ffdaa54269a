"""What ranks tell each other, in the few shapes this project needs.

Every function is the identity in a run of one process, so callers never ask how many there are.
All ranks must call each of them, in the same order and never on a branch that ranks could take
differently.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

__all__ = [
    "MainProcessError",
    "all_equal",
    "all_reduce_sum",
    "all_reduce_sum_with_grad",
    "average_batch_statistics",
    "begin_sum",
    "broadcast",
    "exchanges_queue_on_gpu",
    "gather_equal_rows",
    "gather_objects",
    "gather_rows",
    "gather_with_grad",
    "num_ranks",
    "on_main",
    "own_rows",
    "rank",
    "to_cpu_later",
]


# Whether this process does something while the others wait, see on_main.
_is_alone = False


def num_ranks() -> int:
    """Number of processes of this run; 1 within what :func:`on_main` does."""
    is_one = _is_alone or not dist.is_available() or not dist.is_initialized()
    return 1 if is_one else dist.get_world_size()


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def own_rows() -> slice:
    """This rank's share of a table that every rank holds: each row is one rank's.

    Rows of one rank are ``num_ranks`` apart, so that ranks share work evenly also where rows of a
    kind lie together.
    """
    return slice(rank(), None, num_ranks())


def _on_the_wire(tensor: Tensor) -> Tensor:
    """The tensor where the process group can take it: NCCL reads GPU memory alone."""
    if dist.get_backend() == "nccl" and not tensor.is_cuda:
        return tensor.cuda()
    return tensor


def _as_bytes(tensor: Tensor) -> Tensor:
    """(B, bytes of a row) uint8: gloo moves bytes of any type, but knows neither bool nor int16."""
    num_entries = math.prod(tensor.shape[1:])
    return tensor.detach().reshape(len(tensor), num_entries).contiguous().view(torch.uint8)


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Sum over ranks, without gradient.

    Args:
        tensor: Any shape, the same on every rank.

    Returns:
        A new tensor of the same shape, dtype and device, equal on every rank.
    """
    if num_ranks() == 1:
        return tensor.detach().clone()
    total = _on_the_wire(tensor.detach().clone())
    dist.all_reduce(total)
    return total.to(tensor.device)


def to_cpu_later(tensor: Tensor) -> Callable[[], Tensor]:
    """A copy of a small tensor on the CPU that nobody waits for yet.

    Args:
        tensor: Any shape; it may change after this call.

    Returns:
        Gives the copy. What a GPU was asked to do before this call is waited for then; what it was
        asked later goes on meanwhile.
    """
    if not tensor.is_cuda:
        copy = tensor.detach().clone()
        return lambda: copy
    pinned = torch.empty_like(tensor, device="cpu", pin_memory=True)
    pinned.copy_(tensor.detach(), non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()

    def wait() -> Tensor:
        arrived.synchronize()
        return pinned

    return wait


def exchanges_queue_on_gpu() -> bool:
    """Whether exchanges stand in line with a GPU's other work; the same on all ranks."""
    if num_ranks() == 1:
        return False
    return bool(dist.get_backend() == "nccl")


def begin_sum(tensor: Tensor) -> Callable[[], Tensor]:
    """Sum over ranks of a small tensor on the CPU, given as by :func:`to_cpu_later`.

    Args:
        tensor: Any shape, the same on every rank.
    """
    if num_ranks() == 1:
        return to_cpu_later(tensor)
    total = tensor.detach().clone()
    if exchanges_queue_on_gpu():  # pinned: else its copy to the GPU would be waited for
        total = total.pin_memory().cuda(non_blocking=True)
    dist.all_reduce(total)
    return to_cpu_later(total)


class _SumOverRanks(torch.autograd.Function):
    """y = sum over ranks of x; so dL/dx on a rank is the sum over ranks of their dL/dy."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return all_reduce_sum(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return all_reduce_sum(gradients[0])


class _GatherOverRanks(torch.autograd.Function):
    """y = concatenation over ranks of x; each rank's slice gets its gradient from all ranks."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        ctx.num_rows = tensor.shape[0]
        parts = [torch.empty_like(tensor) for _ in range(num_ranks())]
        dist.all_gather(parts, tensor.detach().contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        start = rank() * ctx.num_rows
        return all_reduce_sum(gradients[0])[start : start + ctx.num_rows]


def all_reduce_sum_with_grad(tensor: Tensor) -> Tensor:
    """Sum over ranks through which gradients flow back to every rank.

    Each rank's loss may use the sum; the gradient that arrives here is then that of the ranks'
    *summed* losses.

    Args:
        tensor: Any shape, the same on every rank.

    Returns:
        Tensor of the same shape, equal on every rank.
    """
    if num_ranks() == 1:
        return tensor
    summed: Tensor = _SumOverRanks.apply(tensor)
    return summed


def gather_with_grad(tensor: Tensor) -> Tensor:
    """Rows of all ranks in rank order, with gradient to the rank that made them.

    Args:
        tensor: (B, ...), the same shape on every rank.

    Returns:
        (B * num_ranks, ...), equal on every rank. Row i of rank r is at r * B + i: the order of the
        global batch.
    """
    if num_ranks() == 1:
        return tensor
    gathered: Tensor = _GatherOverRanks.apply(tensor)
    return gathered


def _gather(mine: Tensor) -> Tensor:
    """(num_ranks, B, ...) of each rank's (B, ...), as the wire takes it, the same B on all."""
    everywhere = mine.new_empty(num_ranks(), *mine.shape)
    dist.all_gather(list(everywhere), mine)
    return everywhere


def gather_equal_rows(tensor: Tensor) -> Tensor:
    """Rows of all ranks in rank order, where all hold as many, such as slices of a global batch.

    Nobody asks how many there are, so a GPU is not waited for.

    Args:
        tensor: (B, ...), the same shape and dtype on every rank.

    Returns:
        (B * num_ranks, ...) on the device of ``tensor``, without gradient.
    """
    if num_ranks() == 1:
        return tensor.detach().clone()
    rows = _gather(_on_the_wire(_as_bytes(tensor))).view(tensor.dtype)
    return rows.reshape(-1, *tensor.shape[1:]).to(tensor.device)


def gather_rows(tensor: Tensor) -> Tensor:
    """Rows of all ranks in rank order, where ranks may hold different numbers of rows.

    Args:
        tensor: (B_r, ...) with B_r >= 0; the other dimensions and the dtype equal on all ranks.

    Returns:
        (sum of B_r, ...) on the device of ``tensor``, without gradient.
    """
    if num_ranks() == 1:
        return tensor.detach().clone()
    mine = _on_the_wire(_as_bytes(tensor))
    lengths = all_reduce_sum(
        torch.eye(num_ranks(), dtype=torch.int64, device=mine.device)[rank()] * mine.shape[0]
    ).tolist()
    longest = max(lengths)
    if len(mine) < longest:
        mine = torch.cat([mine, mine.new_zeros(longest - len(mine), *mine.shape[1:])])
    padded = _gather(mine)
    if min(lengths) == longest:
        rows = padded.flatten(0, 1)
    else:
        rows = torch.cat([part[:length] for part, length in zip(padded, lengths, strict=True)])
    return rows.view(tensor.dtype).reshape(-1, *tensor.shape[1:]).to(tensor.device)


def gather_objects(value: Any) -> list[Any]:
    """Small picklable values of all ranks in rank order (for messages, never per sample)."""
    if num_ranks() == 1:
        return [value]
    values: list[Any] = [None] * num_ranks()
    dist.all_gather_object(values, value)
    return values


def broadcast(tensor: Tensor) -> Tensor:
    """Rank 0's tensor on every rank.

    Used for results that each rank could compute itself, where different processors could round
    differently.

    Args:
        tensor: Any shape and dtype, the same on every rank.

    Returns:
        Tensor like ``tensor``.
    """
    if num_ranks() == 1:
        return tensor
    copy = _on_the_wire(_as_bytes(tensor[None]).clone())
    dist.broadcast(copy, src=0)
    return copy.view(tensor.dtype).reshape(tensor.shape).to(tensor.device)


class MainProcessError(OSError):
    """What stopped rank 0, on the others; rank 0 says it."""


@contextmanager
def _alone() -> Iterator[None]:
    """Let every function here be that of a run of one process."""
    global _is_alone
    before, _is_alone = _is_alone, True
    try:
        yield
    finally:
        _is_alone = before


def on_main(action: Callable[[], object]) -> None:
    """Do something on rank 0 while the others wait.

    To the action, rank 0 is the only process: what it computes from a table that every rank holds
    waits for nobody.

    Raises:
        Exception: What it failed with, on rank 0; :class:`MainProcessError` on the others.
    """
    failure: Exception | None = None
    if rank() == 0:
        try:
            with _alone():
                action()
        except Exception as error:  # raised below, when the others know
            failure = error
    message = gather_objects(None if failure is None else str(failure))[0]
    if failure is not None:
        raise failure
    if message is not None:
        raise MainProcessError(message)


def all_equal(value: str) -> bool:
    """Whether all ranks hold the same text, for instance a digest."""
    return len(set(gather_objects(value))) == 1


def average_batch_statistics(module: nn.Module) -> None:
    """Average BatchNorm's running statistics over ranks, in place.

    Plain BatchNorm sees its own rank's samples only. Statistics are sums over steps, so averaging
    them at each step gives what averaging them at the end would, and ranks never differ in
    between, whenever something is evaluated or saved. Layers in eval mode move nothing, and other
    normalisation layers have nothing that ranks could differ in.
    """
    if num_ranks() == 1:
        return
    kind, synchronised = nn.modules.batchnorm._BatchNorm, nn.SyncBatchNorm
    buffers = [
        buffer
        for layer in module.modules()
        if isinstance(layer, kind) and layer.training and not isinstance(layer, synchronised)
        for buffer in (layer.running_mean, layer.running_var)
        if buffer is not None
    ]
    if buffers:
        sizes = [len(buffer) for buffer in buffers]
        means = all_reduce_sum(torch.cat(buffers)) / num_ranks()
        torch._foreach_copy_(buffers, list(means.split(sizes)))
