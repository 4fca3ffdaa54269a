"""Images without labels: a folder, a CSV of names or some files, read as training reads them.

A file that cannot be read is an answer, not an error: it is named and the others go on.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from data.errors import DataError, shorten
from data.images import Crop, Resize, decode
from data.manifest import PackedStrings
from data.sources.finder import IMAGE_SUFFIXES, ImageFinder, stem
from data.sources.table import read_csv

__all__ = ["FileBatch", "UnlabelledImages", "list_images", "load_batches"]


class FileBatch(NamedTuple):
    """Some of the images.

    Attributes:
        indices: (B,) int64, places in the list of images.
        images: (B, 3, S, S) uint8; one that could not be read is black.
        errors: B messages, empty for those that were read.
    """

    indices: Tensor
    images: Tensor
    errors: list[str]


class UnlabelledImages(NamedTuple):
    """What is to be predicted, in the order of the request.

    Attributes:
        names: N names as the user gave them; those found in a folder relative to it.
        paths: N paths.
        num_passed_over: Files in folders that have no image's suffix.
    """

    names: PackedStrings
    paths: PackedStrings
    num_passed_over: int


def list_images(sources: Sequence[Path], column: str = "image") -> UnlabelledImages:
    """Finds the images to predict.

    Args:
        sources: Folders (searched with their subfolders, in alphabetical order; hidden files are
            left alone), CSV files, image files; in any number and order.
        column: Of a CSV, the column with the images' paths, relative to the CSV or to the folder
            images beside it; as in training a suffix may be absent or another than the file's.

    Raises:
        DataError: A source is missing, a CSV has no such column or no rows, or there is no image.
    """
    found: list[tuple[str, Path]] = []
    num_passed_over = 0
    for source in sources:
        if source.is_dir():
            inside = _walk(source)
            images = [name for name in inside if stem(name) != name]
            found += [(name, source / name) for name in images]
            num_passed_over += len(inside) - len(images)
        elif source.suffix.lower() == ".csv":
            found += _read_names(source, column)
        elif source.exists() or source.suffix.lower() in IMAGE_SUFFIXES:
            found.append((str(source), source))
        else:
            raise DataError(f"{source}: no such folder or file")
    if not found:
        allowed = ", ".join(IMAGE_SUFFIXES)
        raise DataError(
            f"{shorten([str(source) for source in sources])}: no images; expected files with the "
            f"suffixes {allowed}, and found {num_passed_over} others"
        )
    names, paths = zip(*found, strict=True)
    return UnlabelledImages(
        PackedStrings.pack(names), PackedStrings.pack(map(str, paths)), num_passed_over
    )


def _walk(folder: Path) -> list[str]:
    """Paths of all files below a folder that are not hidden, relative to it, sorted."""
    files: list[str] = []
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        inside = Path(parent).relative_to(folder)
        files += [(inside / name).as_posix() for name in names if not name.startswith(".")]
    return sorted(files)


def _read_names(path: Path, column: str) -> list[tuple[str, Path]]:
    """Names in a column of a CSV, and the files that they mean."""
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    header, rows = read_csv(path, ((column,),))
    finder, place = ImageFinder(path.parent, ("", "images")), header.index(column)
    found: list[tuple[str, Path]] = []
    for _, values in rows:
        name = values[place]
        matches = finder.find(name) if name else []
        # One that is not there, or not to be told from others, fails when it is read.
        found.append((name, path.parent / (matches[0] if len(matches) == 1 else name)))
    return found


class _Files(Dataset[Any]):
    """(index, (3, S, S) uint8, message) of each path."""

    def __init__(self, paths: PackedStrings, size: int, resize: Resize, crop: Crop) -> None:
        self.paths, self.size, self.resize, self.crop = paths, size, resize, crop

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[int, Tensor, str]:
        try:
            image = decode(Path(self.paths[index]), self.size, self.resize, self.crop)
        except DataError as error:
            return index, torch.zeros((3, self.size, self.size), dtype=torch.uint8), str(error)
        return index, torch.from_numpy(image.transpose(2, 0, 1).copy()), ""


def load_batches(
    paths: PackedStrings,
    batches: Sequence[NDArray[np.int64]],
    size: int,
    resize: Resize,
    num_workers: int,
    *,
    crop: Crop = "none",
    pin_memory: bool,
) -> Iterator[FileBatch]:
    """Decodes batches of images in the given order.

    Args:
        paths: Of all images.
        batches: (B,) int64 places in `paths` of each batch.
        size: Side in pixels of what is delivered.
        resize: As in training, see `data.images.decode`.
        num_workers: Processes that decode; 0 = this one.
        crop: Likewise.
        pin_memory: Whether to page-lock batches, for asynchronous copies to a GPU.
    """
    if not batches:
        return
    loader: DataLoader[Any] = DataLoader(
        _Files(paths, size, resize, crop),
        batch_sampler=[batch.tolist() for batch in batches],
        num_workers=num_workers,
        pin_memory=pin_memory,
    )
    for indices, images, errors in loader:
        yield FileBatch(indices, images, list(errors))
