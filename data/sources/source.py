"""A loaded data set, and the check that decodes every image of it."""

import logging
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from data.errors import DataError, shorten
from data.images import FileImages, ImageReader, find_unreadable, has_deep_grey
from data.manifest import Manifest

__all__ = ["Source", "check_images", "quarantine_unreadable"]

logger = logging.getLogger(__name__)

# A quarter of the range of 8 bits.
DARK = 64


@dataclass(frozen=True)
class Source:
    """A data set, ready to be read.

    Attributes:
        manifest: What is known about each sample.
        reader: Its images, by sample_id.
        quarantined: Names of the images that were left out because they cannot be read.
    """

    manifest: Manifest
    reader: ImageReader
    quarantined: tuple[str, ...] = ()


def check_images(source: Source, num_threads: int = 1) -> None:
    """Decodes every image once: the only way to find truncated files before the run does.

    Images of 16 bits that look dark because they use fewer are warned of.

    Args:
        source: What `load_source` returned. With ``on_unreadable: quarantine`` it has been
            checked already.
        num_threads: How many images are decoded at a time.

    Raises:
        DataError: Naming the first unreadable images and the number of the others.
    """
    reader, dark = source.reader, list[int]()

    def look(index: int, pixels: NDArray[np.uint8]) -> None:
        # What is delivered of 16 bits are the upper 8.
        if not isinstance(reader, FileImages) or pixels.max() >= DARK:
            return
        if has_deep_grey(reader.root / reader.names[index]):
            dark.append(index)

    unreadable = find_unreadable(reader, num_threads, look)
    if dark:
        logger.warning(
            "images of 16 bits that use less than a quarter of their range (%d), such as %s: they "
            "are read as nearly black; save them with their brightest value at 65535",
            len(dark), source.manifest.names[min(dark)],
        )  # fmt: skip
    if unreadable:
        # Those that are prepared were readable once, and say what to do.
        remedy = "; mend them or set data.on_unreadable to quarantine"
        raise DataError(
            f"{len(unreadable)} of {len(reader)} images cannot be read"
            f"{remedy if isinstance(reader, FileImages) else ''}: "
            f"{shorten(list(unreadable.values()))}"
        )


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
    unreadable = find_unreadable(reader, num_threads)
    if not unreadable:
        return source
    logger.warning("left out as unreadable: %s", shorten(list(unreadable.values())))
    kept = np.setdiff1d(np.arange(len(reader)), list(unreadable))
    manifest = source.manifest.select(kept)
    return replace(
        source,
        manifest=manifest,
        reader=FileImages(reader.root, manifest.names, reader.size, reader.resize, reader.crop),
        quarantined=source.quarantined + tuple(reader.names[index] for index in unreadable),
    )
