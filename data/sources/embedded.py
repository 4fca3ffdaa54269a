"""Data sets that need no files: scikit-learn's digits and the synthetic fundus photographs."""

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits as read_digits

from data.config import DataConfig
from data.errors import DataError
from data.images import ArrayImages
from data.manifest import TRAIN, UNKNOWN, Manifest, PackedStrings
from data.sources.retina import GRADES
from data.sources.source import Source
from data.synthetic import generate

__all__ = ["load_digits", "load_synthetic"]


def load_digits(config: DataConfig, seed: int) -> Source:
    """The 1,797 digits of scikit-learn, 8 x 8 in 17 grey levels, scaled up when read.

    They are a part of Alpaydin and Kaynak's optical recognition set (UCI, 1998).
    """
    digits = read_digits()
    grey = np.round(digits.images * (255 / 16)).astype(np.uint8)
    labels = digits.target.astype(np.int64)
    split = np.full(len(labels), TRAIN, np.uint8)
    manifest = _manifest("digit", labels, split, tuple(map(str, range(10))))
    return _source(manifest, ArrayImages(grey, config.image_size), config)


def load_synthetic(config: DataConfig, seed: int) -> Source:
    """Synthetic fundus photographs, drawn at the size that is delivered; all labels are right."""
    drawn = generate(config.synthetic, config.image_size, seed)
    manifest = _manifest("synthetic", drawn.grades, drawn.split, GRADES)
    return _source(manifest, ArrayImages(drawn.images), config)


def _manifest(
    prefix: str, labels: NDArray[np.int64], split: NDArray[np.uint8], class_names: tuple[str, ...]
) -> Manifest:
    """A manifest of samples with generated names and with labels that are known to be right."""
    unknown = np.full(len(labels), UNKNOWN, np.int64)
    return Manifest(
        names=PackedStrings.pack(f"{prefix}-{index:05d}" for index in range(len(labels))),
        labels=labels,
        true_labels=labels.copy(),
        quality=unknown,
        patients=unknown.copy(),
        split=split,
        class_names=class_names,
    )


def _source(manifest: Manifest, reader: ArrayImages, config: DataConfig) -> Source:
    if config.num_classes not in (None, manifest.num_classes):
        raise DataError(
            f"data.num_classes: {config.num_classes}; source {config.source} has "
            f"{manifest.num_classes}"
        )
    return Source(manifest, reader)
