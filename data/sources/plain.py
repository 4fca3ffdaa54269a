"""Your own images: a folder per class, or a CSV; and BUSI, which comes as either."""

import logging
import os
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from data.config import DataConfig
from data.errors import DataError
from data.sources.assemble import SPLITS, assemble, data_root, label_file
from data.sources.finder import stem
from data.sources.source import Source
from data.sources.table import Row, read_rows

__all__ = ["BUSI_CLASSES", "load_busi", "load_csv", "load_folder"]
BUSI_CLASSES = ("normal", "benign", "malignant")


def load_csv(config: DataConfig, seed: int) -> Source:
    """A CSV (labels.csv, or `data.labels`) with the columns image and label.

    Optional columns: true_label, quality (larger is better, 0 = bad), patient or group (what must
    not be on two sides of a split), split (train, val, test). Images are relative to the root or
    to its folder images. Labels are numbers from 0, or names.
    """
    rows = read_rows(
        label_file(config, "labels.csv"),
        required={"image": ("image",), "label": ("label",)},
        optional={
            "true_label": ("true_label",),
            "quality": ("quality",),
            "patient": ("patient", "group"),
            "split": ("split",),
        },
        # A patient column under another name would otherwise go unnoticed.
        unused_level=logging.WARNING,
    )
    return assemble(rows, config, folders=("", "images"))


def load_folder(config: DataConfig, seed: int) -> Source:
    """A folder of images for each class: <root>/<class>/... or <root>/<split>/<class>/...

    Folders named train, val (valid, validation) and test are splits where there is a train folder.
    Classes are in alphabetical order, or in the order of their numbers.
    """
    root = data_root(config)
    if (root / "train").is_dir():
        splits = [name for name in _subfolders(root) if name in SPLITS]
    else:
        splits = [""]
    rows = [row for split in splits for row in _list_classes(root, split, split)]
    names = {row.label for row in rows} | {c for s in splits for c in _subfolders(root / s)}
    order = sorted(names, key=lambda name: (int(name) if name.isdecimal() else -1, name))
    if not rows:
        raise DataError(f"{root}: has no images in folders of classes; found {sorted(names)}")
    return assemble(rows, config, tuple(order))


def load_busi(config: DataConfig, seed: int) -> Source:
    """BUSI (Al-Dhabyani et al., Data in Brief 28, 2020), as a pack or as published.

    The pack (manifest.csv and images/) has splits by near-duplicate group. The published folders
    normal, benign and malignant have neither; their masks (..._mask.png) are left out.
    """
    root = data_root(config)
    if config.labels is not None or (root / "manifest.csv").is_file():
        columns = {"image": "image", "label": "label", "split": "split", "patient": "group"}
        path = label_file(config, "manifest.csv")
        rows = read_rows(path, {field: (name,) for field, name in columns.items()})
    else:
        folder = "Dataset_BUSI_with_GT"
        folder = folder if (root / folder).is_dir() else ""
        rows = _list_classes(root, folder, "", lambda name: "_mask" not in name)
        rows = [row for row in rows if row.label in BUSI_CLASSES]
    return assemble(rows, config, BUSI_CLASSES)


def _subfolders(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _list_classes(
    root: Path, folder: str, split: str, keep: Callable[[str], bool] = lambda name: True
) -> list[Row]:
    """A row for each image at any depth below the class folders of root / folder, sorted."""
    rows = []
    for class_name in _subfolders(root / folder):
        for parent, folders, files in os.walk(root / folder / class_name):
            folders.sort()
            for name in sorted(files):
                if stem(name) != name and not name.startswith(".") and keep(stem(name)):
                    path = str(PurePosixPath(Path(parent, name).relative_to(root)))
                    rows.append(Row(path, path, class_name, split=split))
    return rows
