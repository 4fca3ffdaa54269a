"""Reads prepared images: one positioned read and one decoding an image.

No object is kept a sample: the table of places is a file mapped into memory, which all processes of
a machine share and which stays as large as it is. Positioned reads share no file position, so
forked workers may use the same open shards; pickled, a reader is its folder's name, and spawned
workers open the files anew.
"""

import io
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.errors import DataError
from data.images import Resize, decode_reduced, fit
from data.prepared.layout import RECORD, RECORDS, remedy, shard_name

__all__ = ["PreparedImages"]


class PreparedImages:
    """The images of a prepared folder, by sample_id."""

    def __init__(self, folder: Path, size: int, resize: Resize = "crop"):
        """Opens the table of places, and a shard when it is first read.

        Args:
            folder: A whole prepared folder.
            size: Side in pixels of what is delivered.
            resize: See `data.images.decode`.

        Raises:
            DataError: If the table cannot be read.
        """
        self.folder, self.size, self.resize = folder, size, resize
        path = folder / RECORDS
        try:
            self._records = np.load(path, mmap_mode="r")
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{path}: cannot be read ({error})") from error
        if self._records.dtype != RECORD:
            raise DataError(f"{path}: is no table of places; {remedy(folder)}")
        self._shards: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._records)

    def read(self, index: int) -> NDArray[np.uint8]:
        """Decodes one image: (size, size, 3) uint8.

        Raises:
            DataError: If its bytes are not those that were written; the message names the shard.
        """
        file = io.BytesIO(self.read_encoded(index).data)
        pixels, _ = decode_reduced(file, self.size, f"{self.folder}: image {index}", self.resize)
        return fit(pixels, self.size, self.resize)

    def read_encoded(self, index: int) -> NDArray[np.uint8]:
        """The content of one JPEG or PNG file: (num_bytes,) uint8.

        Raises:
            DataError: As `read` does.
        """
        shard, offset, length, crc32 = self._records[index].item()
        content = np.empty(length, np.uint8)
        where = self.folder / shard_name(shard)
        try:
            num_read = os.preadv(self._descriptor(shard), [content.data], offset)
        except OSError as error:
            raise DataError(f"{where}: cannot be read ({error.strerror})") from error
        if num_read != length or zlib.crc32(content.data) != crc32:
            raise DataError(
                f"{where}: image {index}, {length} bytes at {offset}, is damaged (its checksum "
                f"differs); copy the file anew, or {remedy(self.folder)}"
            )
        return content

    def _descriptor(self, shard: int) -> int:
        """The open shard; shards stay open as long as the reader lives."""
        if shard not in self._shards:
            opened = os.open(self.folder / shard_name(shard), os.O_RDONLY)
            # Two threads may have opened it at once; one of them wins.
            if self._shards.setdefault(shard, opened) != opened:
                os.close(opened)
        return self._shards[shard]

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "size": self.size, "resize": self.resize}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def __del__(self) -> None:
        for descriptor in getattr(self, "_shards", {}).values():
            os.close(descriptor)
