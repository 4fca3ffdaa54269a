"""A loaded data set, and the check that decodes every image of it."""

import logging
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from data.errors import DataError, shorten
from data.images import (
    FileImages,
    ImageReader,
    find_unreadable,
    is_nearly_black,
    warn_of_nearly_black,
)
from data.manifest import Manifest

__all__ = ["Source", "check_images", "quarantine_unreadable"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """A data set, ready to be read.

    Attributes:
        manifest: What is known about each sample.
        reader: Its images, by sample_id.
        quarantined: Names of the images that were left out because they cannot be read.
        decoded: Whether each image was decoded, and can be.
    """

    manifest: Manifest
    reader: ImageReader
    quarantined: tuple[str, ...] = ()
    decoded: bool = False


def check_images(source: Source, num_threads: int = 1) -> None:
    """Decodes every image once: the only way to find truncated files before the run does.

    Images of 16 bits that look dark because they use fewer are warned of.

    Args:
        source: What `load_source` returned. Where it is ``decoded`` there is no need to.
        num_threads: How many images are decoded at a time.

    Raises:
        DataError: Naming the first unreadable images and the number of the others.
    """
    reader = source.reader
    unreadable = _read_each(reader, num_threads)
    if unreadable:
        # Those that are prepared were readable once, and say what to do.
        remedy = "; mend them or set data.on_unreadable to quarantine"
        raise DataError(
            f"{len(unreadable)} of {len(reader)} images cannot be read"
            f"{remedy if isinstance(reader, FileImages) else ''}: "
            f"{shorten(list(unreadable.values()))}"
        )


def _read_each(reader: ImageReader, num_threads: int) -> dict[int, str]:
    """What `find_unreadable` returns, with a warning of files that look black."""
    black: list[int] = []

    def look(index: int, pixels: NDArray[np.uint8]) -> None:
        if isinstance(reader, FileImages) and is_nearly_black(
            pixels, reader.root / reader.names[index]
        ):
            black.append(index)

    unreadable = find_unreadable(reader, num_threads, look)
    if isinstance(reader, FileImages):
        warn_of_nearly_black([reader.names[index] for index in sorted(black)])
    return unreadable


def quarantine_unreadable(source: Source, num_threads: int = 1) -> Source:
    """Decodes every image once and leaves out, with a warning, those that fail.

    Args:
        source: A data set.
        num_threads: How many images are decoded at a time.

    Returns:
        The data set without them; the samples are numbered anew.
    """
    reader = source.reader
    if not isinstance(reader, FileImages):  # pixels that are prepared or in memory were decoded
        return source
    unreadable = _read_each(reader, num_threads)
    if not unreadable:
        return replace(source, decoded=True)
    logger.warning("left out as unreadable: %s", shorten(list(unreadable.values())))
    kept = np.setdiff1d(np.arange(len(reader)), list(unreadable))
    manifest = source.manifest.select(kept)
    return replace(
        source,
        manifest=manifest,
        reader=FileImages(reader.root, manifest.names, reader.size, reader.resize, reader.crop),
        quarantined=source.quarantined + tuple(reader.names[index] for index in unreadable),
        decoded=True,
    )
