"""One original image becomes its small copy: cut to the disc, scaled down, encoded, hashed."""

import hashlib
import io
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data.disc import Box
from data.errors import DataError
from data.images import (
    ArrayImages,
    Crop,
    FileImages,
    ImageReader,
    Part,
    decode_reduced,
    is_nearly_black,
    read_part,
    shorten,
    to_rgb,
)
from data.prepared.looks import look_of

__all__ = ["Converted", "Encoding", "Original", "Recipe", "convert", "open_original"]

Encoding = Literal["jpeg", "png"]


@dataclass(frozen=True)
class Recipe:
    """How images are prepared.

    Attributes:
        size: Pixels of the shorter side; smaller images stay as they are.
        crop: disc cuts fundus photographs to their disc.
        encoding: jpeg, or png, which loses nothing and takes several times the space and time.
        quality: JPEG's, 1 to 100.
    """

    size: int
    crop: Crop
    encoding: Encoding
    quality: int


@dataclass(frozen=True)
class Original:
    """An image before it is prepared: the content of its file, or pixels where there is no file."""

    name: str
    content: bytes
    pixels: NDArray[np.uint8] | None = None


@dataclass(frozen=True)
class Converted:
    """A prepared image and what is known about how it came about.

    Attributes:
        encoded: The content of a JPEG or PNG file.
        file_sha256: Of the original file (of the pixels where there was none), hexadecimal.
        pixels_hash: Of the prepared pixels before they were encoded, hexadecimal.
        look: Of what the image looks like, see `look_of`, hexadecimal.
        full_size: Width and height of the original.
        box: What part of the original is kept, in its pixels.
        nearly_black: See `data.images.is_nearly_black`.
    """

    encoded: bytes
    file_sha256: str
    pixels_hash: str
    look: str
    full_size: tuple[int, int]
    box: Box
    nearly_black: bool


def open_original(reader: ImageReader, index: int) -> Original:
    """Reads one image of a raw source, without decoding it.

    Raises:
        DataError: If its file cannot be read.
        TypeError: If the reader is none of a raw source's.
    """
    if isinstance(reader, FileImages):
        name = reader.names[index]
        try:
            return Original(name, (reader.root / name).read_bytes())
        except OSError as error:
            raise DataError(f"{name}: {error.strerror}") from error
    if isinstance(reader, ArrayImages):
        pixels = reader.array[index]
        return Original(str(index), pixels.tobytes(), to_rgb(Image.fromarray(pixels)))
    raise TypeError(f"{type(reader).__name__} holds no original images")


def convert(original: Original, recipe: Recipe) -> Converted:
    """Makes the small copy of one image.

    Raises:
        DataError: If it is damaged or no image.
    """
    part = _read(original, recipe)
    pixels = part.pixels
    if min(pixels.shape[:2]) > recipe.size:
        pixels = shorten(pixels, recipe.size)
    pixels = np.ascontiguousarray(pixels)
    shape = str(pixels.shape).encode()
    return Converted(
        encoded=_encode(pixels, recipe),
        file_sha256=hashlib.sha256(original.content).hexdigest(),
        pixels_hash=hashlib.blake2b(shape + pixels.tobytes(), digest_size=16).hexdigest(),
        look=look_of(pixels).tobytes().hex(),
        full_size=part.full_size,
        box=part.box,
        nearly_black=original.pixels is None
        and is_nearly_black(pixels, io.BytesIO(original.content)),
    )


def _read(original: Original, recipe: Recipe) -> Part:
    """Decodes the part that is kept."""

    def read(size: int) -> tuple[NDArray[np.uint8], tuple[int, int]]:
        if original.pixels is not None:
            height, width = original.pixels.shape[:2]
            return original.pixels, (width, height)
        return decode_reduced(io.BytesIO(original.content), size, original.name)

    return read_part(read, recipe.size, recipe.crop)


def _encode(pixels: NDArray[np.uint8], recipe: Recipe) -> bytes:
    content = io.BytesIO()
    if recipe.encoding == "png":
        Image.fromarray(pixels).save(content, "PNG")
    else:
        # Colour at half the resolution, as cameras store it; optimised tables save a few per cent.
        Image.fromarray(pixels).save(content, "JPEG", quality=recipe.quality, optimize=True)
    return content.getvalue()
