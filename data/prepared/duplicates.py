"""Images that are there more than once: the same file, the same pixels, or nearly the same look."""

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.manifest import SPLIT_NAMES, UNKNOWN, Manifest
from data.prepared.looks import group_alike

__all__ = ["Duplicates", "find_duplicates"]

HEADER = ("group", "match", "image", "split", "label", "patient")


@dataclass(frozen=True)
class Duplicates:
    """Groups of images that resemble one another.

    Attributes:
        sample_ids: (D,) int64: the images that resemble another one, group by group.
        groups: (D,) int64: the number of each one's group, from 0.
        same_file: (D,) bool: whether another image has the same file.
        same_pixels: (D,) bool: whether another image has the same pixels.
    """

    sample_ids: NDArray[np.int64]
    groups: NDArray[np.int64]
    same_file: NDArray[np.bool_]
    same_pixels: NDArray[np.bool_]

    def num_divided(self, values: NDArray[np.integer]) -> int:
        """How many groups have images of different values, such as splits or labels.

        Args:
            values: (N,), of all samples.
        """
        pairs = np.unique(np.stack([self.groups, values[self.sample_ids]]), axis=1)
        return int((np.bincount(pairs[0]) > 1).sum()) if pairs.size else 0

    def as_csv(self, manifest: Manifest) -> str:
        """A row for each image, groups with images in several splits first."""
        split = manifest.split[self.sample_ids]
        num_groups = int(self.groups.max(initial=-1)) + 1
        lowest, highest = np.full(num_groups, 255), np.zeros(num_groups, np.int64)
        np.minimum.at(lowest, self.groups, split)
        np.maximum.at(highest, self.groups, split)
        order = np.lexsort((self.sample_ids, self.groups, (lowest == highest)[self.groups]))
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(HEADER)
        for place in order:
            index = int(self.sample_ids[place])
            patient, names = int(manifest.patients[index]), manifest.patient_names
            match = "file" if self.same_file[place] else "pixels"
            writer.writerow([
                self.groups[place],
                match if self.same_pixels[place] else "look",
                manifest.names[index],
                SPLIT_NAMES[split[place]],
                manifest.class_names[manifest.labels[index]],
                "" if patient == UNKNOWN else patient if names is None else names[patient],
            ])  # fmt: skip
        return text.getvalue()


def find_duplicates(
    files: NDArray[np.uint8],
    pixels: NDArray[np.uint8],
    looks: NDArray[np.uint8],
    advance: Callable[[], None] = lambda: None,
) -> Duplicates:
    """Groups images by their hashes.

    Args:
        files: (N, 32) uint8, hashes of the original files.
        pixels: (N, 16) uint8, hashes of the prepared pixels. Equal files have equal pixels.
        looks: (N, 32) uint8, see `data.prepared.looks.look_of`.
        advance: Called time and again; what it raises stops the search.
    """
    file_codes, pixel_codes = (
        np.unique(hashes, axis=0, return_inverse=True)[1].ravel() for hashes in (files, pixels)
    )
    groups = group_alike(looks, advance)
    sizes = np.bincount(groups)
    sample_ids = np.flatnonzero(sizes[groups] > 1)
    sample_ids = sample_ids[np.argsort(groups[sample_ids], kind="stable")]
    return Duplicates(
        sample_ids=sample_ids,
        groups=np.unique(groups[sample_ids], return_inverse=True)[1].astype(np.int64),
        same_file=(np.bincount(file_codes)[file_codes] > 1)[sample_ids],
        same_pixels=(np.bincount(pixel_codes)[pixel_codes] > 1)[sample_ids],
    )
