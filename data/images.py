"""Image readers: from a sample's place in the manifest to its pixels, always (size, size, 3) uint8.

Readers are small, picklable and keep no file open, so each worker process holds its own copy. The
same file gives the same pixels on every call and in every process.
"""

import math
import os
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from data.errors import DataError
from data.manifest import PackedStrings

__all__ = ["ArrayImages", "FileImages", "ImageReader", "Resize", "decode", "find_unreadable"]

Resize = Literal["crop", "pad", "squash"]

# Everything that Pillow raises at a file that is damaged, absurdly large or no image at all.
DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    struct.error,
    Image.DecompressionBombError,
)
# A JPEG is decoded at the smallest of 1/1, 1/2, 1/4, 1/8 that leaves this many times the pixels
# that are delivered, so that the antialiased resize, not the block average, decides their values.
DRAFT_MARGIN = 2


class ImageReader(Protocol):
    """The images of a manifest, by sample_id."""

    def __len__(self) -> int:
        """The number of images."""
        ...

    def read(self, index: int) -> NDArray[np.uint8]:
        """The image of sample_id `index`: (size, size, 3) uint8, RGB.

        Raises:
            DataError: If it cannot be read.
        """
        ...


class FileImages:
    """Images in files, decoded on each call."""

    def __init__(self, root: Path, names: PackedStrings, size: int, resize: Resize = "crop"):
        """Opens nothing yet.

        Args:
            root: The folder that names are relative to.
            names: (N) paths.
            size: Side in pixels of what is delivered.
            resize: See `decode`.
        """
        self.root, self.names, self.size, self.resize = root, names, size, resize

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> NDArray[np.uint8]:
        """Decodes one file: (size, size, 3) uint8.

        Raises:
            DataError: If it is missing, truncated or no image; the message names the file.
        """
        return decode(self.root / self.names[index], self.size, self.resize)


class ArrayImages:
    """Images held in memory."""

    def __init__(self, array: NDArray[np.uint8], size: int | None = None):
        """Keeps the array, not a copy; images of another side are scaled when read.

        Args:
            array: (N, S, S, 3) or (N, S, S) grey, uint8.
            size: Side in pixels of what is delivered; None = S.
        """
        self.array = array.view()
        self.array.flags.writeable = False
        self.size = array.shape[1] if size is None else size

    def __len__(self) -> int:
        return len(self.array)

    def read(self, index: int) -> NDArray[np.uint8]:
        """One image: (size, size, 3) uint8; a read-only view where nothing is to be changed."""
        image = self.array[index]
        if image.shape == (self.size, self.size, 3):
            return image
        return _fit(_to_rgb(Image.fromarray(image)), self.size, "squash")


def decode(path: Path, size: int, resize: Resize) -> NDArray[np.uint8]:
    """Reads an image file as (size, size, 3) uint8, RGB.

    JPEGs are decoded at a reduced scale where that is enough. Pixels are taken as stored, without
    the rotation that an EXIF tag may ask for; transparency is dropped; 16-bit grey is scaled from
    its full range, so data that use fewer bits look dark and should be converted beforehand.

    Args:
        path: The file.
        size: Side of the result in pixels.
        resize: "crop" scales the shorter side to `size` and keeps the centre; "pad" scales the
            longer side and adds black; "squash" scales each side on its own.

    Raises:
        DataError: If the file is missing, damaged or no image, or its pixels are floating point.
    """
    try:
        with Image.open(path) as image:
            short, long = sorted(image.size)
            needed = DRAFT_MARGIN * size * (short / long if resize == "pad" else 1)
            image.draft(None, (math.ceil(needed), math.ceil(needed)))
            return _fit(_to_rgb(image), size, resize)
    except DECODE_ERRORS as error:
        raise DataError(f"{path}: cannot be read as an image ({_reason(error)})") from error


def find_unreadable(reader: ImageReader, num_threads: int = 1) -> dict[int, str]:
    """Reads every image once and reports those that fail: {sample_id: message}, ascending.

    Decoding is what finds a truncated file; its size and its header look fine.

    Args:
        reader: What the run will read from.
        num_threads: How many images are decoded at a time (Pillow releases the interpreter lock).
    """

    def attempt(index: int) -> str:
        try:
            reader.read(index)
        except DataError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(max(1, num_threads)) as pool:
        messages = pool.map(attempt, range(len(reader)))
        return {index: message for index, message in enumerate(messages) if message}


def _to_rgb(image: Image.Image) -> Image.Image:
    """Any of Pillow's modes as 8-bit RGB."""
    if image.mode == "F":
        raise ValueError("floating-point pixels have no defined range; save it as 8 or 16 bits")
    if image.mode.startswith("I"):
        # Pillow's own conversion would clip everything above 255 to white.
        values = np.asarray(image)
        if values.min(initial=0) < 0 or values.max(initial=0) > 65535:
            raise ValueError("more than 16 bits a pixel; save it as 8 or 16 bits")
        image = Image.fromarray((values >> 8).astype(np.uint8))
    return image.convert("RGB")


def _fit(image: Image.Image, size: int, resize: Resize) -> NDArray[np.uint8]:
    """Scales an RGB image, antialiased, to (size, size, 3) uint8."""
    if resize == "pad":
        image = ImageOps.pad(image, (size, size), Image.Resampling.BICUBIC, color="black")
    elif resize == "crop":
        side, (width, height) = min(image.size), image.size
        left, top = (width - side) / 2, (height - side) / 2
        box = (left, top, left + side, top + side)
        image = image.resize((size, size), Image.Resampling.BICUBIC, box)
    else:
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    return np.array(image)


def _reason(error: BaseException) -> str:
    """Why a file could not be read, in few words and without its path, which is said already."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno)
    if isinstance(error, UnidentifiedImageError):
        return "no image format is recognised"
    return str(error) or type(error).__name__
