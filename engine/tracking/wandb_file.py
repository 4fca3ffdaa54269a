"""What wandb has on disk of a run: the rows in its ``.wandb`` files.

wandb keeps up to 32 kB of rows in memory, which are lost where a process is killed. To know what is
there, so that nothing is shown twice and nothing is left out, its files are read. They are logs of
LevelDB's format (doc/log_format.md there): a header, then blocks of 32 kB with records of checksum,
length, kind and data, where long data are cut up among several records. Each datum is a message of
wandb's protocol.
"""

import importlib
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

__all__ = ["last_step", "newest_run_id", "read_records", "run_files"]

_BLOCK = 32768
_FILE_HEADER = 7
_HEADER = struct.Struct("<IHB")
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


def run_files(folder: Path, run_id: str, parts: Literal["", "offline-"] = "") -> list[Path]:
    """The files of a run and its resumes, in the order of their beginnings.

    Args:
        folder: The run's folder, which wandb was told to write in.
        run_id: What wandb knows the run by.
        parts: Those that were kept offline, or all.
    """
    found = (folder / "wandb").glob(f"{parts or '*'}run-*/run-{run_id}.wandb")
    return sorted(found, key=_beginning)


def newest_run_id(folder: Path) -> str | None:
    """What wandb knows the run by that was begun last in a run's folder; None without one."""
    files = sorted((folder / "wandb").glob("*run-*/run-*.wandb"), key=_beginning)
    return files[-1].stem.removeprefix("run-") if files else None


def _beginning(path: Path) -> tuple[str, int]:
    """The second in which a part was begun, and its number among those of a run in that second."""
    # offline-run-20261126_142404-<id>, then run-20261126_142404-<id>-1
    folder, run_id = path.parent.name, path.stem.removeprefix("run-")
    found = re.search(rf"run-(\d+_\d+)-{re.escape(run_id)}(?:-(\d+))?$", folder)
    return (found[1], int(found[2] or 0)) if found else ("", 0)


def read_records(path: Path) -> Iterator[Any]:
    """The messages in a file of wandb's, as far as it is whole."""
    # Its classes are made at run time, so no type checker knows them.
    messages: Any = importlib.import_module("wandb.proto.wandb_internal_pb2")
    for data in _read_log(path.read_bytes()):
        record = messages.Record()
        record.ParseFromString(data)
        yield record


def last_step(folder: Path, run_id: str, parts: Literal["", "offline-"] = "") -> int:
    """The largest step of the rows in a run's files; -1 where there is none; arguments as above."""
    steps = (
        record.history.step.num
        for path in run_files(folder, run_id, parts)
        for record in read_records(path)
        if record.WhichOneof("record_type") == "history"
    )
    return max(steps, default=-1)


def _read_log(content: bytes) -> Iterator[bytes]:
    """The data of a log; what follows a record that was not written whole is left out."""
    place, parts = _FILE_HEADER, list[bytes]()
    while True:
        rest = _BLOCK - place % _BLOCK
        if rest < _HEADER.size:
            place += rest
        if place + _HEADER.size > len(content):
            return
        _, length, kind = _HEADER.unpack_from(content, place)
        place += _HEADER.size
        if not _FULL <= kind <= _LAST or place + length > len(content):
            return
        if kind in (_FULL, _FIRST):
            parts.clear()
        parts.append(content[place : place + length])
        place += length
        if kind in (_FULL, _LAST):
            yield b"".join(parts)
