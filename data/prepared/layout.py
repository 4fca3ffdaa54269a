"""The files of a prepared data set, and the table that says where each image lies.

    manifest.json       what was prepared, from what, how, and the checksum of every other file
    records.npy         where each image lies: shard, offset, length, CRC-32
    samples.npz         what is known about each sample: names, labels, splits, hashes, boxes
    images-00000.tar    the encoded images, one after the other, in a plain tar file
    refused.csv         files that are left out, each with the reason
    duplicates.csv      images that resemble another one

Images lie in tar files so that any program can unpack them. An image is read at its offset, so
nobody walks through the archive. ``manifest.json`` is written last: without it a folder is not
whole.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from data.errors import DataError

__all__ = [
    "DUPLICATES",
    "FORMAT",
    "MANIFEST",
    "RECORD",
    "RECORDS",
    "REFUSED",
    "SAMPLES",
    "check_sizes",
    "read_manifest",
    "remedy",
    "replace_file",
    "sha256_of",
    "shard_name",
]

FORMAT = 1
MANIFEST, RECORDS, SAMPLES = "manifest.json", "records.npy", "samples.npz"
REFUSED, DUPLICATES = "refused.csv", "duplicates.csv"
RECORD = np.dtype([("shard", "<u4"), ("offset", "<u8"), ("length", "<u4"), ("crc32", "<u4")])


def shard_name(number: int) -> str:
    """The name of a shard: ``images-00000.tar``."""
    return f"images-{number:05}.tar"


def read_manifest(folder: Path) -> dict[str, Any]:
    """What ``manifest.json`` says.

    Raises:
        DataError: If the folder holds no whole prepared data set, or one of another format.
    """
    path = folder / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(
            f"{folder}: has no {MANIFEST}, so it is no prepared data set or not finished; "
            "launcher/prepare.py makes one, and goes on with one that was cut off"
        ) from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise DataError(
            f"{path}: is not of format {FORMAT}; prepare the data set anew, into another folder"
        )
    return manifest


def check_sizes(folder: Path, manifest: dict[str, Any]) -> None:
    """Each file is there and as long as it was; a call a file, which are few.

    Args:
        folder: What launcher/prepare.py made.
        manifest: What its ``manifest.json`` says.

    Raises:
        DataError: Naming the first file that is not.
    """
    for name, facts in manifest["files"].items():
        path = folder / name
        size = path.stat().st_size if path.is_file() else None
        if size != facts["bytes"]:
            found = "is missing" if size is None else f"has {size} bytes"
            raise DataError(
                f"{path}: {found}, expected {facts['bytes']} bytes, so the prepared data set is "
                f"damaged; copy the file anew, or {remedy(folder)}"
            )


def remedy(folder: Path) -> str:
    """What helps where files are not as they were made: a finished folder is not made again."""
    return f"delete {folder} and prepare the data set again"


def sha256_of(path: Path) -> str:
    """The checksum of a file's content, as `sha256sum` shows it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def replace_file(path: Path, content: bytes) -> None:
    """Writes a file so that its name never stands for a part of it."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
