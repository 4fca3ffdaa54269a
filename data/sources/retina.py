"""Fundus photographs with grades 0 to 4 of diabetic retinopathy."""

import logging

from data.config import DataConfig
from data.sources.assemble import assemble, data_root, label_file
from data.sources.source import Source
from data.sources.table import Row, read_lines, read_rows

__all__ = ["GRADES", "load_aptos2019", "load_ddr", "load_deepdrid", "load_eyepacs"]

logger = logging.getLogger(__name__)

# International Clinical Diabetic Retinopathy scale (Wilkinson et al., Ophthalmology 110, 2003).
GRADES = ("no DR", "mild", "moderate", "severe", "proliferative")
EYEQ_FILES = {"Label_EyeQ_train.csv": "train", "Label_EyeQ_test.csv": "test"}
# EyeQ counts 0 = good, 1 = usable, 2 = reject; the manifest's quality grows with the quality.
EYEQ_QUALITY = {"": "", "0": "2", "1": "1", "2": "0"}
# As unpacked from Kaggle, from its resized copies, or all in one folder.
EYEPACS_FOLDERS = (
    "train",
    "test",
    "images",
    "",
    "resized_train",
    "resized_train/resized_train",
    "resized_train_cropped",
    "resized_train_cropped/resized_train_cropped",
)
DDR_UNGRADABLE = "5"


def load_eyepacs(config: DataConfig, seed: int) -> Source:
    """EyePACS with the labels of EyeQ (Fu et al., MICCAI 2019) or of Kaggle.

    EyeQ's Label_EyeQ_train.csv and Label_EyeQ_test.csv (image, quality, DR_grade) give both
    splits and the quality: 2 = good, 1 = usable, 0 = reject. Without them Kaggle's
    trainLabels.csv (image, level) is read. `data.labels` names one file of either kind. The
    patient is the number before "_left" or "_right".
    """
    root = data_root(config)
    files = {name: split for name, split in EYEQ_FILES.items() if (root / name).is_file()}
    if config.labels is not None:
        files = {str(config.labels): ""}
    rows = [
        row._replace(
            quality=EYEQ_QUALITY.get(row.quality, f"EyeQ's {row.quality}"),
            patient=row.image.rpartition("/")[2].partition("_")[0],
            split=split,
        )
        for name, split in (files or {"trainLabels.csv": ""}).items()
        for row in read_rows(
            root / name,
            required={"image": ("image",), "label": ("DR_grade", "level")},
            optional={"quality": ("quality",)},
        )
    ]
    return assemble(rows, config, GRADES, EYEPACS_FOLDERS)


def load_ddr(config: DataConfig, seed: int) -> Source:
    """DDR (Li et al., Information Sciences 501, 2019): DR_grading/{train,valid,test}.txt.

    Each line is an image in the folder of the same name and its grade. Grade 5 means that the
    image cannot be graded: it is no class, and such images are left out.
    """
    root = data_root(config)
    folder = str(config.labels or ("DR_grading" if (root / "DR_grading").is_dir() else ""))
    rows: list[Row] = []
    for split in ("train", "valid", "test"):
        for place, line in read_lines(root / folder / f"{split}.txt"):
            name, *grade = line.rsplit(maxsplit=1)
            label = grade[0] if grade else ""
            rows.append(Row(place, f"{split}/{name}", label, split=split))
    gradable = [row for row in rows if row.label != DDR_UNGRADABLE]
    logger.info("%s: left out %d ungradable images (grade 5)", root, len(rows) - len(gradable))
    return assemble(gradable, config, GRADES, (folder,))


def load_aptos2019(config: DataConfig, seed: int) -> Source:
    """APTOS 2019 (Kaggle): train.csv (id_code, diagnosis) and train_images/.

    Its own test images have no public grades, so a test split is carved. Patients are unknown.
    """
    rows = read_rows(
        label_file(config, "train.csv"), {"image": ("id_code",), "label": ("diagnosis",)}
    )
    return assemble(rows, config, GRADES, ("train_images", ""))


def load_deepdrid(config: DataConfig, seed: int) -> Source:
    """DeepDRiD (Liu et al., Patterns 3, 2022) as a pack: manifest.csv and images/.

    Splits are by patient; quality 1 = good enough to diagnose, 0 = not.
    """
    names = ("image", "label", "quality", "split", "patient")
    rows = read_rows(label_file(config, "manifest.csv"), {name: (name,) for name in names})
    return assemble(rows, config, GRADES)
