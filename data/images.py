"""Image readers: from a sample's place in the manifest to its pixels, always (size, size, 3) uint8.

Readers are small and picklable, so each worker process holds its own copy. The same file gives the
same pixels on every call and in every process.

Pillow reads every format and decodes JPEGs at a reduced scale; torch resamples, since its routine
for bytes does in 1.3 ms what takes Pillow's 10 (1,300 to 384 px, within one grey level of it).
"""

import logging
import math
import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from data.disc import Box, find_disc
from data.errors import DataError
from data.manifest import PackedStrings
from data.threads import map_in_threads

__all__ = [
    "ArrayImages",
    "Crop",
    "FileImages",
    "ImageReader",
    "Part",
    "Resize",
    "decode",
    "decode_reduced",
    "find_unreadable",
    "fit",
    "is_nearly_black",
    "read_part",
    "scale",
    "shorten",
    "to_rgb",
    "warn_of_nearly_black",
]

logger = logging.getLogger(__name__)

Resize = Literal["crop", "pad", "squash"]
Crop = Literal["none", "disc"]

# Everything that Pillow raises at a file that is damaged, absurdly large or no image at all.
DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    TypeError,
    struct.error,
    Image.DecompressionBombError,
)
# A JPEG is decoded at the smallest of 1/1, 1/2, 1/4, 1/8 that leaves this many times the pixels
# that are delivered, so that the antialiased resize, not the block average, decides their values.
DRAFT_MARGIN = 2
# Shorter side of the picture in which a disc is looked for.
PROBE = 256
# A quarter of the range of 8 bits.
DARK = 64


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

    def __init__(
        self,
        root: Path,
        names: PackedStrings,
        size: int,
        resize: Resize = "crop",
        crop: Crop = "none",
    ):
        """Opens nothing yet.

        Args:
            root: The folder that names are relative to.
            names: (N) paths.
            size: Side in pixels of what is delivered.
            resize: See `decode`.
            crop: See `decode`.
        """
        self.root, self.names, self.size, self.resize, self.crop = root, names, size, resize, crop

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> NDArray[np.uint8]:
        """Decodes one file: (size, size, 3) uint8.

        Raises:
            DataError: If it is missing, truncated or no image; the message names the file.
        """
        return decode(self.root / self.names[index], self.size, self.resize, self.crop)


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
        return fit(to_rgb(Image.fromarray(image)), self.size, "squash")


def decode(path: Path, size: int, resize: Resize, crop: Crop = "none") -> NDArray[np.uint8]:
    """Reads an image file as (size, size, 3) uint8, RGB.

    JPEGs are decoded at a reduced scale where that is enough. Pixels are taken as stored, without
    the rotation that an EXIF tag may ask for (but in TIFF, which Pillow turns); transparency is
    dropped; 16-bit grey is scaled from its full range, so data that use fewer bits look dark and
    should be converted beforehand.

    Args:
        path: The file.
        size: Side of the result in pixels.
        resize: "crop" scales the shorter side to `size` and keeps the centre; "pad" scales the
            longer side and adds black; "squash" scales each side on its own.
        crop: "disc" takes only the disc of a fundus photograph, see `data.disc.find_disc`.

    Raises:
        DataError: If the file is missing, damaged or no image, or its pixels are floating point.
    """

    def read(wanted: int) -> tuple[NDArray[np.uint8], tuple[int, int]]:
        return decode_reduced(path, wanted, str(path), resize if crop == "none" else "crop")

    return fit(read_part(read, size, crop).pixels, size, resize)


@dataclass(frozen=True)
class Part:
    """The part of an image that is kept.

    Attributes:
        pixels: (H, W, 3) uint8, perhaps at a reduced scale.
        full_size: Width and height of the whole image at full scale.
        box: Where the part lies in it.
    """

    pixels: NDArray[np.uint8]
    full_size: tuple[int, int]
    box: Box


def read_part(
    read: Callable[[int], tuple[NDArray[np.uint8], tuple[int, int]]], size: int, crop: Crop
) -> Part:
    """Decodes the part of an image that is kept, at no larger a scale than needed.

    Args:
        read: From the pixels that the shorter side is to be scaled down to, to the whole image and
            its full size, as `decode_reduced` gives them.
        size: What the part's shorter side will be scaled down to.
        crop: See `decode`.
    """
    if crop == "none":
        pixels, full_size = read(size)
        return Part(pixels, full_size, (0, 0, *full_size))
    pixels, full_size = read(max(size, PROBE))
    probe = shorten(pixels, PROBE) if min(pixels.shape[:2]) > PROBE else pixels
    disc = find_disc(probe)
    if disc is None:
        return Part(pixels, full_size, (0, 0, *full_size))
    box = _rescaled(disc, _size(probe), full_size)
    # The whole frame was decoded for its shorter side; the disc may need a larger scale.
    wanted = size * min(full_size) / min(box[2] - box[0], box[3] - box[1])
    if _size(pixels) != full_size and min(pixels.shape[:2]) < DRAFT_MARGIN * wanted:
        pixels, _ = read(math.ceil(wanted))
    left, top, right, bottom = _rescaled(box, full_size, _size(pixels))
    return Part(pixels[top:bottom, left:right], full_size, box)


def _size(pixels: NDArray[np.uint8]) -> tuple[int, int]:
    """Width and height."""
    return pixels.shape[1], pixels.shape[0]


def _rescaled(box: Box, old: tuple[int, int], new: tuple[int, int]) -> Box:
    """A box in a picture of another size."""
    across, down = new[0] / old[0], new[1] / old[1]
    left, top, right, bottom = box
    return (
        int(left * across),
        int(top * down),
        min(new[0], round(right * across)),
        min(new[1], round(bottom * down)),
    )


def decode_reduced(
    file: Path | BinaryIO, size: int, name: str, resize: Resize = "crop"
) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """Reads an image file at the smallest scale from which `size` pixels can be had.

    Args:
        file: The file, or its content.
        size: What the result's shorter side (with "pad" its longer one) will be scaled down to; it
            has at least twice as many pixels, unless the file has fewer.
        name: The file's name for messages.
        resize: See `decode`.

    Returns:
        (H, W, 3) uint8, RGB; and the width and height that the file has in full.

    Raises:
        DataError: As `decode` does.
    """
    try:
        with Image.open(file) as image:
            full = image.size
            short, long = sorted(full)
            needed = math.ceil(DRAFT_MARGIN * size * (short / long if resize == "pad" else 1))
            image.draft(None, (needed, needed))
            return to_rgb(image), full
    except DECODE_ERRORS as error:
        raise DataError(f"{name}: cannot be read as an image ({_reason(error)})") from error


def find_unreadable(
    reader: ImageReader,
    num_threads: int = 1,
    look: Callable[[int, NDArray[np.uint8]], None] = lambda index, pixels: None,
) -> dict[int, str]:
    """Reads every image once and reports those that fail: {sample_id: message}, ascending.

    Decoding is what finds a truncated file; its size and its header look fine.

    Args:
        reader: What the run will read from.
        num_threads: How many images are decoded at a time (Pillow releases the interpreter lock).
        look: Called with the sample_id and the pixels of each other one, in no order.
    """

    def attempt(index: int) -> str:
        try:
            look(index, reader.read(index))
        except DataError as error:
            return str(error)
        return ""

    messages = enumerate(map_in_threads(attempt, range(len(reader)), num_threads))
    return {index: message for index, message in messages if message}


def is_nearly_black(pixels: NDArray[np.uint8], file: Path | BinaryIO) -> bool:
    """Whether grey levels of 16 bits, of which the upper 8 are delivered, use only the darkest.

    Args:
        pixels: (H, W, 3) as they were delivered.
        file: Where they came from; its header is read where they are dark.
    """
    if pixels.max() >= DARK:
        return False
    with Image.open(file) as image:
        return image.mode.startswith("I")


def warn_of_nearly_black(names: Sequence[str]) -> None:
    """Says of what images :func:`is_nearly_black` holds, if there are any."""
    if names:
        logger.warning(
            "images of 16 bits that use less than a quarter of their range (%d), such as %s: they "
            "are read as nearly black; save them with their brightest value at 65535",
            len(names), names[0],
        )  # fmt: skip


def to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    """Any of Pillow's modes as (H, W, 3) uint8."""
    if image.mode == "F":
        raise ValueError("floating-point pixels have no defined range; save it as 8 or 16 bits")
    if image.mode.startswith("I"):
        # Pillow's own conversion would clip everything above 255 to white.
        values = np.asarray(image)
        if values.min(initial=0) < 0 or values.max(initial=0) > 65535:
            raise ValueError("more than 16 bits a pixel; save it as 8 or 16 bits")
        image = Image.fromarray((values >> 8).astype(np.uint8))
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def scale(pixels: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Resamples (H, W, 3) uint8 to (height, width, 3), bicubic and antialiased.

    Colours lie one after the other in memory, as the batches that are made of the images want them.
    """
    if pixels.shape[:2] == (height, width):
        return pixels
    if not pixels.flags.writeable:  # torch warns of views that it could write through
        pixels = pixels.copy()
    planes = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    scaled = F.interpolate(planes, (height, width), mode="bicubic", antialias=True)
    return scaled[0].permute(1, 2, 0).numpy()


def shorten(pixels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Scales (H, W, 3) uint8 so that its shorter side has `size` pixels."""
    height, width = pixels.shape[:2]
    short = min(height, width)
    return scale(pixels, round(height * size / short), round(width * size / short))


def fit(pixels: NDArray[np.uint8], size: int, resize: Resize) -> NDArray[np.uint8]:
    """Makes (H, W, 3) uint8 square, (size, size, 3); see `decode`."""
    if resize == "squash":
        return scale(pixels, size, size)
    if resize == "crop":
        pixels = shorten(pixels, size)
        top, left = ((side - size) // 2 for side in pixels.shape[:2])
        return pixels[top : top + size, left : left + size]
    long = max(pixels.shape[:2])
    height, width = (max(1, round(side * size / long)) for side in pixels.shape[:2])
    padded = np.zeros((size, size, 3), np.uint8)
    top, left = (size - height) // 2, (size - width) // 2
    padded[top : top + height, left : left + width] = scale(pixels, height, width)
    return padded


def _reason(error: BaseException) -> str:
    """Why a file could not be read, in few words and without its path, which is said already."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno)
    if isinstance(error, UnidentifiedImageError):
        return "no image format is recognised"
    return str(error) or type(error).__name__
