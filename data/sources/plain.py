"""Your own images: a folder per class, or a CSV; and BUSI, which comes as either."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from data.config import DataConfig
from data.errors import DataError, shorten
from data.sources.assemble import SPLITS, assemble, data_root, label_file
from data.sources.classes import in_order
from data.sources.finder import IMAGE_SUFFIXES, compose, stem
from data.sources.source import Source
from data.sources.table import Row, read_rows

__all__ = ["BUSI_CLASSES", "load_busi", "load_csv", "load_folder"]

logger = logging.getLogger(__name__)

BUSI_CLASSES = ("normal", "benign", "malignant")
# Beside or in place of a folder train these are meant as splits, and would be lost or be classes.
LIKE_SPLITS = ("training", "testing", "tests", "dev", "eval", "evaluation", "holdout")


def load_csv(config: DataConfig, seed: int) -> Source:
    """A CSV (labels.csv, or `data.labels`) with the columns image and label.

    Optional columns: true_label, quality (larger is better, 0 = bad), patient or group (what must
    not be on two sides of a split), split (train, val, test). Images are relative to the root or
    to its folder images. Labels are numbers from 0, or names (in the order of `data.class_names`,
    else in alphabetical order).
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

    Folders named train, val (valid, validation) and test, in capitals or not, are splits where
    there is a train folder. Classes are in the order of `data.class_names`, else of their numbers,
    else in alphabetical order.
    """
    root = data_root(config)
    splits = _split_folders(root)
    files = [(split, *found) for split in splits for found in _files_of_classes(root, split)]
    rows = [Row(path, path, name, split=split) for split, name, path in files if _is_image(path)]
    names = {compose(name) for split in splits for name in _subfolders(root / split)}
    passed_over = [path for _, _, path in files if not _is_image(path)]
    passed_over += [path for split in splits for path in _images_beside(root, split)]
    if passed_over:
        logger.warning(
            "%s: files passed over (%d), such as %s; images in folders of classes are read, with "
            "the suffixes %s", root, len(passed_over), passed_over[0], ", ".join(IMAGE_SUFFIXES),
        )  # fmt: skip
    if not rows:
        raise DataError(f"{root}: has no images in folders of classes; found {sorted(names)}")
    return assemble(rows, config, config.class_names or in_order(names, str(root)))


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
        found = list(_files_of_classes(root, folder))
        rows = [
            Row(path, path, name)
            for name, path in found
            if name in BUSI_CLASSES and _is_image(path) and "_mask" not in Path(path).name
        ]
        if not rows:
            folders = shorten(sorted({name for name, _ in found}) or ["none with files"])
            raise DataError(
                f"{root / folder}: no image in folders {', '.join(BUSI_CLASSES)}; found folders: "
                f"{folders}"
            )
    return assemble(rows, config, BUSI_CLASSES)


def _split_folders(root: Path) -> list[str]:
    """The folders of splits; the root itself, "", where there are none.

    Raises:
        DataError: If folders look like splits and are not named so.
    """
    folders = _subfolders(root)
    splits = [name for name in folders if name.lower() in SPLITS]
    has_train = "train" in map(str.lower, splits)
    alike = [name for name in folders if name.lower() in LIKE_SPLITS]
    if alike and (has_train or "training" in map(str.lower, alike)):
        raise DataError(
            f"{root}: found {', '.join(alike)} where folders of splits stand; "
            f"their names must be {', '.join(SPLITS)}"
        )
    if not has_train:
        return [""]
    others = [name for name in folders if name not in splits]
    if others:
        logger.warning(
            "%s: folders that are no split are not read: %s; splits are named %s",
            root, shorten(others), ", ".join(SPLITS),
        )  # fmt: skip
    return splits


def _subfolders(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _is_image(path: str) -> bool:
    return stem(path) != path


def _images_beside(root: Path, folder: str) -> list[str]:
    """Images in root / folder itself, which belong to no class."""
    names = sorted(p.name for p in (root / folder).iterdir() if p.is_file())
    return [
        str(PurePosixPath(folder, name))
        for name in names
        if _is_image(name) and not name.startswith(".")
    ]


def _files_of_classes(root: Path, folder: str) -> Iterator[tuple[str, str]]:
    """(class, path relative to the root) of each file at any depth below the class folders."""
    for class_name in _subfolders(root / folder):
        for parent, folders, files in os.walk(root / folder / class_name, followlinks=True):
            folders.sort()
            place = PurePosixPath(Path(parent).relative_to(root))
            for name in sorted(files):
                if not name.startswith("."):
                    yield class_name, str(place / name)
