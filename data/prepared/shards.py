"""Writes images one after the other into tar files, and takes up where a killed run stopped."""

import os
import tarfile
import zlib
from pathlib import Path
from typing import IO, Any

from data.prepared.layout import shard_name

__all__ = ["Shards"]

BLOCK = tarfile.BLOCKSIZE


class Shards:
    """The shards of a folder, open for appending.

    The bytes of a shard depend on the images alone, not on when or in how many runs they came.
    """

    def __init__(self, folder: Path, bytes_per_shard: int, last: dict[str, Any] | None):
        """Goes on behind the last image that is known to be whole; what lies there is cut off.

        Args:
            folder: Where the shards are.
            bytes_per_shard: A shard that has reached this size is closed.
            last: What `append` returned for the last image; None = begin.
        """
        self._folder, self._limit = folder, bytes_per_shard
        self._number = 0 if last is None else int(last["shard"])
        end = 0 if last is None else int(last["offset"]) + _padded(int(last["length"]))
        self._file = self._open(end)

    def append(self, name: str, content: bytes) -> dict[str, Any]:
        """Adds an image; returns its place: shard, offset, length, crc32."""
        if self._file.tell() >= self._limit:
            self.close()
            self._number += 1
            self._file = self._open(0)
        header = tarfile.TarInfo(name)
        header.size = len(content)
        self._file.write(header.tobuf(tarfile.USTAR_FORMAT))
        offset = self._file.tell()
        self._file.write(content.ljust(_padded(len(content)), b"\0"))
        return {
            "shard": self._number,
            "offset": offset,
            "length": len(content),
            "crc32": zlib.crc32(content),
        }

    def flush(self) -> None:
        """Waits until what was added is on disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Ends the archive that is open."""
        self._file.write(b"\0" * (2 * BLOCK))
        self.flush()
        self._file.close()

    def _open(self, end: int) -> IO[bytes]:
        path = self._folder / shard_name(self._number)
        path.touch()
        file = path.open("r+b")
        file.truncate(end)
        file.seek(end)
        return file


def _padded(length: int) -> int:
    """The space that so many bytes take in a tar file."""
    return -(-length // BLOCK) * BLOCK
