"""The ledger: what the run knows about each training sample.

Columns are index-aligned tensors with one row per sample of the manifest. A rank writes the rows of
the samples that it handled; :meth:`Ledger.synchronise` exchanges them, after which every rank holds
the same table. Separation reads it, training reads its masks from it, checkpoints carry it.
"""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from engine import collectives

__all__ = ["Column", "Ledger", "LedgerError"]


_PENDING_PARTS = ("ids", "steps", "rows")


class LedgerError(RuntimeError):
    """The ranks' writes to the ledger contradict each other or leave rows out."""


@dataclass(frozen=True)
class Column:
    """A declared column.

    Attributes:
        shape: Shape of one sample's entry; () for a scalar.
        dtype: Its type.
        fill: Value before anything was written.
        meaning: What it holds, for people who read a checkpoint.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    fill: float
    meaning: str


class Ledger:
    """A table of per-sample state on the CPU, the same on every rank after each synchronisation.

    Args:
        num_samples: Number of rows N; row i belongs to sample_id i.
        columns: Declared columns by name.
    """

    def __init__(self, num_samples: int, columns: Mapping[str, Column]) -> None:
        self.num_samples = num_samples
        self.columns = dict(columns)
        self._values = {
            name: torch.full((num_samples, *column.shape), column.fill, dtype=column.dtype)
            for name, column in columns.items()
        }
        self._pending: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {}

    def __getitem__(self, name: str) -> Tensor:
        """The column (N, ...); treat it as read-only and use :meth:`fill` or :meth:`write`."""
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    @property
    def memory_bytes(self) -> int:
        """Memory that the table takes on each rank."""
        return sum(value.nbytes for value in self._values.values())

    def rows(self, sample_ids: Tensor, device: torch.device) -> dict[str, Tensor]:
        """All columns of some samples: name -> (B, ...) on ``device``."""
        index = sample_ids.cpu()
        return {name: value[index].to(device) for name, value in self._values.items()}

    def fill(self, name: str, values: Tensor) -> None:
        """Replace a whole column by values that every rank computed alike.

        Rank 0's are taken, since processors of different makes may round differently.

        Args:
            name: Column.
            values: (N, ...) of the column's shape.
        """
        target = self._values[name]
        if values.shape != target.shape:
            raise ValueError(
                f"column {name!r} takes {tuple(target.shape)}, got {tuple(values.shape)}"
            )
        target.copy_(collectives.broadcast(values.detach().to("cpu", target.dtype)))

    def write(self, sample_ids: Tensor, *, order: int = 0, **values: Tensor) -> None:
        """Note rows that this rank worked out; they take effect at :meth:`synchronise`.

        Args:
            sample_ids: (B,) int64.
            order: Number of the step that this belongs to, the same on all ranks. Of several rows
                of one sample, that of the last step and of the last place in its global batch
                stays, so a sample that is drawn twice is no matter of ranks.
            values: Column name -> (B, ...) tensor.
        """
        index = sample_ids.detach().cpu()
        for name, value in values.items():
            column = self.columns[name]
            if value.shape != (len(index), *column.shape):
                raise ValueError(
                    f"column {name!r} takes {(len(index), *column.shape)}, got {tuple(value.shape)}"
                )
            # Where it is: a copy to the CPU at each step would make a GPU wait.
            entry = value.detach().to(column.dtype, copy=True)
            steps = torch.full_like(index, order)
            self._pending.setdefault(name, []).append((index, steps, entry))

    @contextmanager
    def all_or_nothing(self) -> Iterator[None]:
        """Forget what is written inside where it ends with an exception."""
        try:
            yield
        except BaseException:
            self._pending.clear()
            raise

    def synchronise(self, *, expected_ids: Tensor | None = None) -> None:
        """Exchange the rows written since the last call; afterwards all ranks agree.

        Args:
            expected_ids: Ids of which every column that was written must have received each exactly
                once; None where some may be written not at all or several times.

        Raises:
            LedgerError: An expected id did not arrive or arrived twice; the same on each rank.
        """
        for name in self._pending_names():
            ids, steps, values = self._collect(name)
            if expected_ids is not None:
                _require_each_once(name, ids, expected_ids)
            newest = _last_of_each(ids, steps)
            self._values[name][ids[newest]] = values[newest]
        self._pending.clear()

    def _pending_names(self) -> list[str]:
        """Columns that any rank has written to."""
        names = collectives.gather_objects(list(self._pending))
        return sorted({name for of_rank in names for name in of_rank})

    def _collect(self, name: str) -> tuple[Tensor, Tensor, Tensor]:
        """All ranks' pending (ids, steps, rows) of a column, in rank order."""
        column = self.columns[name]
        nothing = torch.empty(0, dtype=torch.int64)
        empty = nothing, nothing, torch.empty((0, *column.shape), dtype=column.dtype)
        parts = zip(empty, *self._pending.get(name, []), strict=True)
        ids, steps, rows = (
            collectives.gather_rows(torch.cat([rows.cpu() for rows in part])) for part in parts
        )
        return ids, steps, rows

    def digest(self) -> str:
        """SHA-256 over all columns: equal tables have equal digests."""
        state = hashlib.sha256()
        for name in sorted(self._values):
            state.update(name.encode())
            state.update(self._values[name].contiguous().numpy().tobytes())
        return state.hexdigest()

    def state_dict(self) -> dict[str, Tensor]:
        """The table as name -> (N, ...) tensors; :meth:`gather_pending` has the rest."""
        return dict(self._values)

    def gather_pending(self) -> dict[str, Tensor]:
        """All ranks' rows that wait for the exchange, for a checkpoint; a collective call.

        Returns:
            ``<column>/ids`` and ``<column>/steps`` (n,) int64 and ``<column>/rows`` (n, ...).
        """
        return {
            f"{name}/{part}": tensor
            for name in self._pending_names()
            for part, tensor in zip(_PENDING_PARTS, self._collect(name), strict=True)
        }

    def load_pending(self, state: Mapping[str, Tensor]) -> None:
        """Let the rows of :meth:`gather_pending` wait again, all of them on rank 0."""
        self._pending.clear()
        if collectives.rank() == 0:
            for name in self.columns:
                if f"{name}/ids" in state:
                    ids, steps, rows = (state[f"{name}/{part}"] for part in _PENDING_PARTS)
                    self._pending[name] = [(ids, steps, rows)]

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore a table of the same columns and length.

        Raises:
            ValueError: Columns or shapes differ.
        """
        if set(state) != set(self._values):
            raise ValueError(
                f"ledger has columns {sorted(state)}, this run needs {sorted(self._values)}"
            )
        for name, value in state.items():
            if value.shape != self._values[name].shape:
                raise ValueError(
                    f"ledger column {name!r} has shape {tuple(value.shape)}, "
                    f"this run needs {tuple(self._values[name].shape)}"
                )
            self._values[name].copy_(value)


def _last_of_each(ids: Tensor, steps: Tensor) -> Tensor:
    """Places of each id's last row: by step, then by place, which is that in the global batch."""
    by_step = steps.argsort(stable=True)
    order = by_step[ids[by_step].argsort(stable=True)]
    ranked = ids[order]
    is_last = torch.ones_like(ranked, dtype=torch.bool)
    is_last[:-1] = ranked[1:] != ranked[:-1]
    return order[is_last]


def _require_each_once(name: str, ids: Tensor, expected_ids: Tensor) -> None:
    """Check the ids that arrived for a column, over all ranks together."""
    arrived, counts = ids.unique(return_counts=True)
    if bool((counts > 1).any()):
        twice = arrived[counts > 1]
        raise LedgerError(
            f"column {name!r}: {len(twice)} sample_ids arrived more than once, "
            f"first {twice[:10].tolist()}"
        )
    if not torch.equal(arrived, expected_ids.unique()):
        missing = expected_ids[~torch.isin(expected_ids, arrived)]
        surplus = arrived[~torch.isin(arrived, expected_ids)]
        raise LedgerError(
            f"column {name!r}: {len(missing)} sample_ids missing, first {missing[:10].tolist()}; "
            f"{len(surplus)} unexpected, first {surplus[:10].tolist()}"
        )
