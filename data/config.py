"""Settings of the data section."""

import functools
import unicodedata
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from data.images import Crop, Resize
from data.synthetic import SyntheticConfig

__all__ = ["DataConfig", "SourceName"]

SourceName = Literal[
    "eyepacs",
    "ddr",
    "aptos2019",
    "deepdrid",
    "isic2019",
    "ham10000",
    "busi",
    "folder",
    "csv",
    "digits",
    "synthetic",
]
WITHOUT_FILES = ("digits", "synthetic")
WITH_OWN_CLASSES = ("csv", "folder")
WITHOUT_LABEL_FILE = ("folder", *WITHOUT_FILES)


# Labels are compared with letters and their accents as one character each.
Composed = Annotated[str, AfterValidator(functools.partial(unicodedata.normalize, "NFC"))]


class DataConfig(BaseModel):
    """Which images and labels a run learns from, and how they are read."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    source: SourceName = Field("synthetic", description="The data set, or the format of your own.")
    root: Path | None = Field(
        None, description="The data set's folder. Needed by all but digits and synthetic."
    )
    prepared: Path | None = Field(
        None,
        description="A folder that launcher/prepare.py made. Images, labels, splits and classes "
        "come from there and root is not read; source, labels and synthetic may stay unset, or "
        "must be what was prepared.",
    )
    labels: Path | None = Field(
        None,
        description="The label file in place of the source's usual one, relative to the root "
        "(ddr: the folder with its three lists).",
    )
    num_classes: int | None = Field(
        None,
        ge=2,
        description="Number of classes; unset = what the source says. Labels of a plain CSV are "
        "checked against it; for other sources it must agree with theirs.",
    )
    class_names: tuple[Composed, ...] | None = Field(
        None,
        min_length=2,
        description="For csv and folder: the classes in order, such as the grades of a disease, "
        "which quadratic kappa counts the steps between. Labels are these names or, where none is "
        "a number, their numbers from 0. Unset: what is found, names in alphabetical order.",
    )
    corrections: Path | tuple[Path, ...] | None = Field(
        None,
        description="Decisions on labels that a review page of an earlier run wrote "
        "(decisions.csv); several files apply one after the other. They are about the labels that "
        "run was given, injected noise included, and apply after the noise.",
    )
    image_size: int = Field(
        224, ge=8, description="Side in pixels of the square images that are delivered."
    )
    resize: Resize = Field(
        "crop",
        description="How an image becomes square: crop scales its shorter side and keeps the "
        "centre, pad scales its longer side and adds black, squash scales each side on its own.",
    )
    crop: Crop = Field(
        "none",
        description="disc takes only the disc of a fundus photograph, without the frame around it. "
        "Of a prepared data set it is what it was prepared with.",
    )
    validation_fraction: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="Share of the training samples held out for validation where the source has "
        "no such split: by patient where known, stratified by class; 0 = none.",
    )
    test_fraction: float = Field(
        0.2,
        gt=0,
        lt=1,
        description="Share of all samples held out for testing where the source has no test "
        "split: likewise, but the same for every run.seed.",
    )
    on_unreadable: Literal["error", "quarantine"] = Field(
        "error",
        description="What becomes of missing and damaged images: error stops (missing ones at "
        "once, damaged ones when --check or training meets them); quarantine decodes every image "
        "at each start, in each process, leaves the unreadable ones out and names them. Prepared "
        "images are without such already: one that is damaged since then stops.",
    )
    sampler: Literal["shuffled", "class_balanced"] = Field(
        "shuffled",
        description="What an epoch's batches hold: shuffled takes each training image at most "
        "once; class_balanced gives each given class the same share of the same number of batches, "
        "repeating images of rare classes and leaving out some of common ones, others in each "
        "epoch.",
    )
    num_workers: int = Field(2, ge=0, description="Processes a rank that read images; 0 = itself.")
    cache: Literal["none", "memory"] = Field(
        "none", description="memory keeps each image in memory once it has been read."
    )
    synthetic: SyntheticConfig = Field(
        default_factory=SyntheticConfig, description="The synthetic source's own settings."
    )

    @property
    def correction_files(self) -> tuple[Path, ...]:
        """The files of ``corrections``, in order."""
        given = self.corrections
        return () if given is None else (given,) if isinstance(given, Path) else given

    @model_validator(mode="after")
    def _check_class_names(self) -> "DataConfig":
        names = self.class_names
        if names is None:
            return self
        if self.prepared is None and self.source not in WITH_OWN_CLASSES:
            raise ValueError(f"class_names: set, but source {self.source} has classes of its own")
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice or not all(names):
            found = f"{', '.join(twice)} given more than once" if twice else "an empty name"
            raise ValueError(f"class_names: {found}; expected a name for each class")
        return self

    @model_validator(mode="after")
    def _check_paths(self) -> "DataConfig":
        if self.prepared is None and self.root is None and self.source not in WITHOUT_FILES:
            raise ValueError(f"root: not set; source {self.source} needs the folder of its images")
        if self.prepared is None and self.crop != "none" and self.source in WITHOUT_FILES:
            raise ValueError(f"crop: {self.crop}, but source {self.source} has no files to crop")
        if self.labels is not None and self.source in WITHOUT_LABEL_FILE:
            raise ValueError(f"labels: set to {self.labels}, but source {self.source} reads none")
        return self
