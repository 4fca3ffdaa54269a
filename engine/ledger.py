"""The ledger: what the run knows about each training sample.

Columns are index-aligned tensors with one row per sample of the manifest. A rank writes the rows of
the samples that it handled; :meth:`Ledger.synchronise` exchanges them, after which every rank holds
the same table. Separation reads it, training reads its masks from it, checkpoints carry it.

Columns are as narrow as their values allow, and what is written together travels under one id of
four bytes; ``docs/scale.md`` counts the bytes of a sample. Nothing here sorts.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from engine import collectives

__all__ = ["Column", "Ledger", "LedgerError"]


_IDS, _STEPS, _ROWS = "/ids", "/steps", "/rows"


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


class _Rows(NamedTuple):
    """Rows that were written together."""

    ids: Tensor  # (n,) sample_ids
    runs: Tensor  # (k, 2) int64: a step and how many of the rows, one after the other, are its
    columns: dict[str, Tensor]  # name -> (n, ...)

    @property
    def steps(self) -> Tensor:
        """(n,) int64, the step of each row."""
        return self.runs[:, 0].repeat_interleave(self.runs[:, 1])


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
        self._index_dtype = torch.int32 if num_samples < 2**31 else torch.int64
        # Names of the columns written together -> what was written.
        self._pending: dict[tuple[str, ...], list[_Rows]] = {}

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
        """All columns of some samples: name -> (B, ...) on ``device``.

        Integers come as int64, in which torch takes indices and classes.
        """
        index = sample_ids.cpu()
        rows = {name: value[index] for name, value in self._values.items()}
        if device.type == "cuda":
            # From here copies arrive in their turn, and this process need not wait for them.
            rows = {name: value.pin_memory() for name, value in rows.items()}
        rows = {name: value.to(device, non_blocking=True) for name, value in rows.items()}
        return {k: v if v.is_floating_point() else v.long() for k, v in rows.items()}

    def fill(self, name: str, values: Tensor) -> None:
        """Replace a whole column by values that every rank computed alike.

        Rank 0's are taken, since processors of different makes may round differently.

        Args:
            name: Column.
            values: (N, ...) of the column's shape.

        Raises:
            ValueError: Another shape, or integers that the column is too narrow for.
        """
        target = self._values[name]
        if values.shape != target.shape:
            raise ValueError(
                f"column {name!r} takes {tuple(target.shape)}, got {tuple(values.shape)}"
            )
        narrow = values.detach().to("cpu", target.dtype)
        if not target.is_floating_point() and not torch.equal(narrow.to(values), values):
            raise ValueError(
                f"column {name!r} is {target.dtype} and cannot hold"
                f" {values.min().item()}..{values.max().item()}"
            )
        target.copy_(collectives.broadcast(narrow))

    def write(self, sample_ids: Tensor, *, order: int = 0, **values: Tensor) -> None:
        """Note rows that this rank worked out; they take effect at :meth:`synchronise`.

        Args:
            sample_ids: (B,) int64.
            order: Number of the step that this belongs to, the same on all ranks. Of several rows
                of one sample, that of the last step and of the last place in its global batch
                stays, so a sample that is drawn twice is no matter of ranks.
            values: Column name -> (B, ...) tensor. A step writes a column in one call.
        """
        if not values:
            return
        index = sample_ids.detach().to("cpu", self._index_dtype)
        entries = {}
        for name in sorted(values):
            column, value = self.columns[name], values[name]
            if value.shape != (len(index), *column.shape):
                raise ValueError(
                    f"column {name!r} takes {(len(index), *column.shape)}, got {tuple(value.shape)}"
                )
            # Where it is: a copy to the CPU at each step would make a GPU wait.
            entries[name] = value.detach().to(column.dtype, copy=True)
        rows = _Rows(index, torch.tensor([[order, len(index)]]), entries)
        self._pending.setdefault(tuple(entries), []).append(rows)

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
        for rows in self._collect():
            kept: Tensor | slice = slice(None)
            if expected_ids is None:
                kept = _last_of_each(rows, self.num_samples)
            else:
                _require_each_once(rows, expected_ids, self.num_samples)
            ids = rows.ids[kept]
            for name, values in rows.columns.items():
                self._values[name][ids] = values[kept]
        self._pending.clear()

    def _collect(self) -> list[_Rows]:
        """All ranks' pending rows in rank order; a column is in one of them only."""
        written = collectives.gather_objects(list(self._pending))
        together = sorted({names for of_rank in written for names in of_rank})
        gathered = [self._gather(names) for names in together]
        # Columns that were always written together stay so.
        columns: dict[tuple[int, ...], list[str]] = {}
        for name in sorted({name for names in together for name in names}):
            places = tuple(i for i, names in enumerate(together) if name in names)
            columns.setdefault(places, []).append(name)
        return [
            _joined([gathered[place] for place in places], names)
            for places, names in columns.items()
        ]

    def _gather(self, names: tuple[str, ...]) -> _Rows:
        """All ranks' rows of the columns that were written together under these names."""
        nothing = _Rows(
            torch.empty(0, dtype=self._index_dtype),
            torch.empty(0, 2, dtype=torch.int64),
            {n: torch.empty(0, *self.columns[n].shape, dtype=self.columns[n].dtype) for n in names},
        )
        mine = _joined([nothing, *self._pending.get(names, [])], names)
        columns = {name: collectives.gather_rows(mine.columns[name]) for name in names}
        return _Rows(collectives.gather_rows(mine.ids), collectives.gather_rows(mine.runs), columns)

    def digest(self) -> str:
        """SHA-256 over all columns: equal tables have equal digests."""
        state = hashlib.sha256()
        for name in sorted(self._values):
            state.update(name.encode())
            state.update(self._values[name].contiguous().flatten().view(torch.uint8).numpy().data)
        return state.hexdigest()

    def state_dict(self) -> dict[str, Tensor]:
        """The table as name -> (N, ...) tensors; :meth:`gather_pending` has the rest."""
        return dict(self._values)

    def gather_pending(self) -> dict[str, Tensor]:
        """All ranks' rows that wait for the exchange, for a checkpoint; a collective call.

        Returns:
            ``<a>+<b>/ids`` and ``<a>+<b>/steps`` (n,) of columns a and b that were written
            together, and ``<column>/rows`` (n, ...) of each.
        """
        state: dict[str, Tensor] = {}
        for rows in self._collect():
            together = "+".join(rows.columns)
            state |= {together + _IDS: rows.ids, together + _STEPS: rows.steps}
            state |= {name + _ROWS: values for name, values in rows.columns.items()}
        return state

    def load_pending(self, state: Mapping[str, Tensor]) -> None:
        """Let the rows of :meth:`gather_pending` wait again, all of them on rank 0."""
        self._pending.clear()
        if collectives.rank() == 0:
            for together in (key.removesuffix(_IDS) for key in state if key.endswith(_IDS)):
                names = tuple(together.split("+"))
                steps, counts = state[together + _STEPS].unique_consecutive(return_counts=True)
                ids = state[together + _IDS].to(self._index_dtype)
                columns = {name: state[name + _ROWS] for name in names}
                self._pending[names] = [_Rows(ids, torch.stack([steps, counts], 1), columns)]

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


def _joined(parts: Sequence[_Rows], names: Sequence[str]) -> _Rows:
    """Some columns of several writes, one after the other, on the CPU."""
    if len(parts) == 1:
        ids, runs, columns = parts[0]
        return _Rows(ids, runs, {name: columns[name] for name in names})
    return _Rows(
        torch.cat([part.ids for part in parts]),
        torch.cat([part.runs for part in parts]),
        {name: torch.cat([part.columns[name].cpu() for part in parts]) for name in names},
    )


def _last_of_each(rows: _Rows, num_samples: int) -> Tensor:
    """Mask (n,) of each id's last row: by step, then by place, the one in the global batch."""
    ids, num_rows = rows.ids.long(), len(rows.ids)
    age = rows.steps * num_rows + torch.arange(num_rows)
    latest = torch.full((num_samples,), -1).scatter_reduce_(0, ids, age, "amax")
    return latest[ids] == age


def _require_each_once(rows: _Rows, expected_ids: Tensor, num_samples: int) -> None:
    """Check the ids that arrived for some columns, over all ranks together."""
    columns = ", ".join(map(repr, rows.columns))
    counts = torch.bincount(rows.ids, minlength=num_samples)
    if bool((counts > 1).any()):
        twice = (counts > 1).nonzero().flatten()
        raise LedgerError(
            f"column {columns}: {len(twice)} sample_ids arrived more than once, "
            f"first {twice[:10].tolist()}"
        )
    arrived = counts > 0
    is_expected = torch.zeros_like(arrived)
    is_expected[expected_ids] = True
    if not torch.equal(arrived, is_expected):
        missing = (is_expected & ~arrived).nonzero().flatten()
        surplus = (arrived & ~is_expected).nonzero().flatten()
        raise LedgerError(
            f"column {columns}: {len(missing)} sample_ids missing, first {missing[:10].tolist()}; "
            f"{len(surplus)} unexpected, first {surplus[:10].tolist()}"
        )
