"""What has been prepared so far: a line an image, written only after its bytes are on disk.

A run that is killed leaves a journal whose whole lines are true: whatever lies behind the last of
them, in the journal or in a shard, is cut off when the run goes on. The first line holds what was
asked for, so that a folder is never filled by two different requests.
"""

import fcntl
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from data.errors import DataError

__all__ = ["JOURNAL", "Journal"]

logger = logging.getLogger(__name__)

JOURNAL = "journal.jsonl"


class Journal:
    """The journal of a folder, opened and locked.

    Attributes:
        num_entries: Number of whole entries after the first line.
        last: The last entry of an image that lies in a shard; None where there is none.
    """

    def __init__(self, folder: Path, request: dict[str, Any]):
        """Begins a journal, or goes on with the one that is there.

        Args:
            folder: An existing folder.
            request: What is asked for, as JSON holds it.

        Raises:
            DataError: If the folder holds other things, or something else was asked for, or
                another process is at work.
        """
        path = folder / JOURNAL
        if not path.exists() and any(folder.iterdir()):
            raise DataError(f"{folder}: is neither empty nor a prepared data set; name another one")
        self._file: IO[bytes] = path.open("a+b")
        try:
            # Released by the system when the process ends, however it ends.
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            self._file.close()
            raise DataError(f"{folder}: another process is preparing it") from error
        except OSError as error:
            logger.warning(
                "%s: this file system has no locks (%s); prepare it by one process at a time",
                folder, error.strerror,
            )  # fmt: skip
        self.num_entries = 0
        self.last: dict[str, Any] | None = None
        self._recover(folder, request)

    def _recover(self, folder: Path, request: dict[str, Any]) -> None:
        """Reads what is there and cuts a torn line off."""
        end, asked = 0, None
        for line, entry in self._lines():
            end += len(line)
            if asked is None:
                asked = entry
            else:
                self.num_entries += 1
                self.last = entry if "shard" in entry else self.last
        self._file.truncate(end)
        if asked is None:
            self.append([request])
        elif asked != request:
            changed = [
                f"{key} {asked.get(key)} -> {request.get(key)}"
                for key in asked | request
                if asked.get(key) != request.get(key)
            ]
            self._file.close()
            raise DataError(f"{folder}: was begun with other settings: {'; '.join(changed)}")

    def _lines(self) -> Iterator[tuple[bytes, dict[str, Any]]]:
        """Whole lines, and what they say; ends at the first that is torn."""
        self._file.seek(0)
        for line in self._file:
            try:
                entry = json.loads(line)
            except ValueError:
                return
            if not line.endswith(b"\n"):
                return
            yield line, entry

    def append(self, entries: list[dict[str, Any]]) -> None:
        """Writes entries and waits until they are on disk."""
        self._file.write(b"".join(json.dumps(entry).encode() + b"\n" for entry in entries))
        self._file.flush()
        os.fsync(self._file.fileno())

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """All entries without the first line."""
        lines = self._lines()
        next(lines)
        return (entry for _, entry in lines)

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
