"""The source that launcher/prepare.py makes of any other."""

import json
import logging
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from data.config import DataConfig
from data.errors import DataError
from data.manifest import Manifest, PackedStrings
from data.prepared.layout import MANIFEST, SAMPLES, check_sizes, read_manifest
from data.prepared.reader import PreparedImages
from data.sources.source import Source

__all__ = ["load_prepared", "settle"]

logger = logging.getLogger(__name__)

# What a prepared folder settles, so that a configuration need not say it.
SETTLED = ("source", "labels", "synthetic", "crop")
COLUMNS = ("labels", "true_labels", "quality", "patients", "split")


def load_prepared(config: DataConfig, folder: Path) -> Source:
    """A prepared data set with the labels and the own splits of the source it was made from.

    Args:
        config: The data section. What it asks for must be what was prepared; settings at their
            default ask for nothing.
        folder: What launcher/prepare.py made.

    Raises:
        DataError: If the folder is not whole, or does not hold what is asked for.
    """
    prepared = read_manifest(folder)
    check_sizes(folder, prepared)
    _check_asked(config, folder, prepared)
    try:
        with np.load(folder / SAMPLES) as samples:
            manifest = Manifest(
                names=PackedStrings(samples["names"], samples["name_offsets"]),
                class_names=tuple(prepared["class_names"]),
                **{column: samples[column] for column in COLUMNS},
            )
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"{folder / SAMPLES}: cannot be read ({error})") from error
    reader = PreparedImages(folder, config.image_size, config.resize)
    if len(reader) != len(manifest):
        raise DataError(
            f"{folder}: has places of {len(reader)} images and labels of {len(manifest)}; "
            "its files are not of one data set"
        )
    refused = tuple(prepared["refused"])
    if refused:
        logger.warning("%s: %d files were refused when it was made", folder, len(refused))
    return Source(manifest, reader, refused)


def settle(config: DataConfig) -> DataConfig:
    """The data section with what its prepared folder settles, such as the source, filled in.

    A run keeps these settings, so that its record names its data set, and new images are read for
    its network as the prepared ones were.

    Raises:
        DataError: As `load_prepared` does.
    """
    if config.prepared is None:
        return config
    prepared = read_manifest(config.prepared)
    _check_asked(config, config.prepared, prepared)
    settled = {key: prepared["request"][key] for key in SETTLED}
    # Null where the source's own order was taken, and in folders made before there was the key.
    settled["class_names"] = prepared["request"].get("class_names")
    tree = {**config.model_dump(mode="json"), **settled}
    return DataConfig.model_validate_json(json.dumps(tree), strict=True)


def _check_asked(config: DataConfig, folder: Path, prepared: dict[str, Any]) -> None:
    """The settings that decide what was prepared agree with the manifest."""
    where, made = folder / MANIFEST, prepared["request"]
    if config.image_size > made["size"]:
        raise DataError(
            f"data.image_size: {config.image_size}, but {where} was prepared with {made['size']}; "
            f"ask for {made['size']} at most or prepare it with --size {config.image_size}"
        )
    asked = config.model_dump(mode="json")
    for key in SETTLED:
        default = type(config).model_fields[key].get_default(call_default_factory=True)
        if getattr(config, key) not in (default, None) and asked[key] != made[key]:
            raise DataError(
                f"data.{key}: {asked[key]}, but {where} was prepared with {made[key]}; "
                f"leave data.{key} unset or name another folder in data.prepared"
            )
    names = prepared["class_names"]
    if config.class_names is not None and asked["class_names"] != names:
        raise DataError(
            f"data.class_names: {asked['class_names']}, but {where} was prepared with {names}; "
            "leave data.class_names unset or prepare the data set anew"
        )
    num_classes = len(names)
    if config.num_classes not in (None, num_classes):
        raise DataError(f"data.num_classes: {config.num_classes}, but {where} has {num_classes}")
