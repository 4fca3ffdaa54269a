"""Dermatoscopic images of skin lesions."""

import logging
from collections import defaultdict
from pathlib import Path

from data.config import DataConfig
from data.errors import Problems
from data.sources.assemble import assemble, label_file
from data.sources.finder import stem
from data.sources.source import Source
from data.sources.table import Row, read_csv, read_lines, read_rows

__all__ = ["HAM10000_CLASSES", "ISIC2019_CLASSES", "load_ham10000", "load_isic2019"]

logger = logging.getLogger(__name__)

ISIC2019_CLASSES = ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC")
ISIC2019_UNKNOWN = "UNK"
ISIC2019_LISTS = {"train.txt": "train", "val.txt": "val", "test.txt": "test"}
HAM10000_CLASSES = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")


def load_isic2019(config: DataConfig, seed: int) -> Source:
    """ISIC 2019: the one-hot ISIC_2019_Training_GroundTruth.csv and ISIC_2019_Training_Input/.

    A published split is taken from train.txt, val.txt and test.txt beside the ground truth, with
    an image name on each line; images in none of them are left out. Such splits are by image:
    where ISIC_2019_Training_Metadata.csv is there, a warning counts the lesions on two sides.
    Splits without a list are carved, by lesion where the metadata are there.
    Class UNK has no training images in ISIC 2019; rows that have it are left out.
    """
    path = label_file(config, "ISIC_2019_Training_GroundTruth.csv")
    rows = _read_one_hot(path)
    known = [row for row in rows if row.label != ISIC2019_UNKNOWN]
    if len(known) < len(rows):
        logger.info("%s: left out %d images of class UNK", path, len(rows) - len(known))
    metadata = path.parent / "ISIC_2019_Training_Metadata.csv"
    if any((path.parent / name).is_file() for name in ISIC2019_LISTS):
        rows = _keep_listed(known, path.parent)
        with_lesions = _with_lesions(rows, metadata)
        _warn_of_divided_lesions(with_lesions)
        # What is carved from the rows for training keeps lesions together; the lists may not.
        train = ISIC2019_LISTS["train.txt"]
        rows = [
            with_lesion if row.split == train else row
            for row, with_lesion in zip(rows, with_lesions, strict=True)
        ]
    else:
        rows = _with_lesions(known, metadata)
    folders = ("ISIC_2019_Training_Input", "ISIC_2019_Training_Input/ISIC_2019_Training_Input", "")
    return assemble(rows, config, ISIC2019_CLASSES, folders)


def load_ham10000(config: DataConfig, seed: int) -> Source:
    """HAM10000 (Tschandl et al., Scientific Data 5, 2018) as a pack: manifest.csv and images/.

    Splits are by lesion, the column `group`.
    """
    columns = {"image": "image", "label": "label", "split": "split", "patient": "group"}
    rows = read_rows(
        label_file(config, "manifest.csv"), {field: (name,) for field, name in columns.items()}
    )
    return assemble(rows, config, HAM10000_CLASSES)


def _read_one_hot(path: Path) -> list[Row]:
    """Rows labelled with the name of the column that holds a 1; several names if several do."""
    header, records = read_csv(path, [(name,) for name in ("image", *ISIC2019_CLASSES)])
    classes = [name for name in (*ISIC2019_CLASSES, ISIC2019_UNKNOWN) if name in header]
    image, columns = header.index("image"), [header.index(name) for name in classes]
    rows = []
    for place, values in records:
        cells = [(name, values[column]) for name, column in zip(classes, columns, strict=True)]
        # "1.0" is a 1; a cell that is neither 0 nor 1 shows up as part of an unknown label.
        hot = [name for name, value in cells if value in ("1", "1.0")]
        odd = [f"{name}={value}" for name, value in cells if value not in ("0", "0.0", "1", "1.0")]
        rows.append(Row(place, values[image], "+".join(hot + odd)))
    return rows


def _keep_listed(rows: list[Row], folder: Path) -> list[Row]:
    """The rows that the lists name, with their splits.

    Raises:
        DataError: If a listed image has no label or stands in two lists.
    """
    by_name = {stem(row.image): row for row in rows}
    listed: dict[str, Row] = {}
    problems = Problems(str(folder))
    lists = {folder / name: split for name, split in ISIC2019_LISTS.items()}
    for path, split in lists.items():
        for place, line in read_lines(path) if path.is_file() else ():
            name = stem(line.rpartition("/")[2])
            if name not in by_name:
                problems.add("listed image without a label", f"{place} {line!r}")
            elif name in listed:
                problems.add("image listed twice", f"{place} {line!r}")
            else:
                listed[name] = by_name[name]._replace(split=split)
    problems.raise_any()
    logger.info("%s: %d of %d images are in no list", folder, len(rows) - len(listed), len(rows))
    return list(listed.values())


def _with_lesions(rows: list[Row], metadata: Path) -> list[Row]:
    """The rows with their lesions as groups; images without one stay alone."""
    if not metadata.is_file():
        return rows
    records = read_rows(metadata, {"image": ("image",), "patient": ("lesion_id",)})
    lesions = {record.image: record.patient for record in records}
    return [row._replace(patient=lesions.get(stem(row.image), "")) for row in rows]


def _warn_of_divided_lesions(rows: list[Row]) -> None:
    """Says how many lesions a published split has on two sides; it stays as published."""
    sides: defaultdict[str, set[str]] = defaultdict(set)
    for row in rows:
        sides[row.patient].add(row.split)
    num_divided = sum(len(splits) > 1 for lesion, splits in sides.items() if lesion)
    if num_divided:
        logger.warning("the listed splits have %d lesions on two sides", num_divided)
