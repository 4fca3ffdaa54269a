"""Reads a prepared folder from end to end and compares it with its checksums."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from data.errors import DataError, Problems
from data.prepared.layout import RECORDS, read_manifest, sha256_of
from data.prepared.reader import PreparedImages

__all__ = ["check_folder"]


def check_folder(folder: Path, num_threads: int) -> int:
    """Checks every file of a prepared folder, and names the images of damaged shards.

    Args:
        folder: What launcher/prepare.py made.
        num_threads: How many files are read at a time.

    Returns:
        The number of images.

    Raises:
        DataError: Naming every file that is missing or damaged, and the first damaged images.
    """
    manifest = read_manifest(folder)
    problems = Problems(str(folder))

    def checksum(name: str) -> str:
        return sha256_of(folder / name) if (folder / name).is_file() else ""

    files = manifest["files"]
    with ThreadPoolExecutor(num_threads) as pool:
        found = dict(zip(files, pool.map(checksum, files), strict=True))
    for name, facts in files.items():
        if not found[name]:
            problems.add("missing files", name)
        elif found[name] != facts["sha256"]:
            problems.add("damaged files (another SHA-256 than when they were made)", name)
    if found[RECORDS] == files[RECORDS]["sha256"]:
        for image in _damaged_images(folder):
            problems.add("damaged images", image)
    problems.raise_any()
    return int(manifest["num_images"])


def _damaged_images(folder: Path) -> list[str]:
    reader, damaged = PreparedImages(folder, 1), []
    for index in range(len(reader)):
        try:
            reader.read_encoded(index)
        except DataError:
            damaged.append(str(index))
    return damaged
