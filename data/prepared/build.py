"""Makes a prepared folder of a raw data set, in any number of runs."""

import csv
import hashlib
import io
import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.recfunctions import repack_fields

from data.config import DataConfig
from data.errors import DataError
from data.images import warn_of_nearly_black
from data.manifest import Manifest
from data.prepared.convert import Recipe, convert, open_original
from data.prepared.duplicates import Duplicates, find_duplicates
from data.prepared.journal import JOURNAL, Journal
from data.prepared.layout import (
    DUPLICATES,
    FORMAT,
    MANIFEST,
    RECORD,
    RECORDS,
    REFUSED,
    SAMPLES,
    check_sizes,
    read_manifest,
    replace_file,
    sha256_of,
    shard_name,
)
from data.prepared.shards import Shards
from data.sources import SOURCES
from data.sources.source import Source
from data.sources.splits import complete_splits
from data.threads import map_in_threads

__all__ = ["Preparation", "Prepared"]

# So many images are written before they are noted; a killed run repeats about as many.
BATCH = 64
HASHES = ("file_sha256", "pixels_hash", "look")
# What samples.npz says beside the manifest: where an image came from, and its hashes.
SAMPLE = np.dtype(
    [
        ("file_sha256", "u1", 32),
        ("pixels_hash", "u1", 16),
        ("look", "u1", 32),
        ("full_size", "<u4", 2),
        ("box", "<u4", 4),
    ]
)
LIBRARIES = ("numpy", "pillow", "torch", "torchvision")


@dataclass(frozen=True)
class Prepared:
    """What a finished folder holds.

    Attributes:
        manifest: The samples, with the splits that a run of the configuration would have.
        facts: What manifest.json says.
        duplicates: Groups of images that resemble one another.
    """

    manifest: Manifest
    facts: dict[str, Any]
    duplicates: Duplicates


class Preparation:
    """A raw data set, and the folder that it is prepared in."""

    def __init__(
        self, config: DataConfig, seed: int, recipe: Recipe, folder: Path, bytes_per_shard: int
    ):
        """Reads the labels and lists the images; nothing is written yet.

        Args:
            config: The data section; `prepared` is ignored, and missing images are no error.
            seed: Decides synthetic images, and the splits of the report.
            recipe: How images are prepared.
            folder: Where to; made if missing.
            bytes_per_shard: Size from which on a shard is closed.

        Raises:
            DataError: If the labels are not as they must be.
        """
        lenient = {
            "prepared": None,
            "on_unreadable": "quarantine",
            "image_size": recipe.size,
            "crop": "none",
        }
        self.config = config.model_copy(update=lenient)
        self.source: Source = SOURCES[config.source](self.config, seed)
        self.seed, self.recipe, self.folder = seed, recipe, folder
        self.bytes_per_shard = bytes_per_shard
        self.request = self._request()

    def _request(self) -> dict[str, Any]:
        """What decides the content of the shards, as JSON holds it."""
        keys = {"source", "labels", "synthetic"}
        if self.config.class_names is not None:
            keys.add("class_names")
        asked = self.config.model_dump(mode="json", include=keys)
        return {
            **asked,
            **asdict(self.recipe),
            "bytes_per_shard": self.bytes_per_shard,
            "samples_sha256": _fingerprint(self.source.manifest),
        }

    @property
    def is_finished(self) -> bool:
        """Whether the folder holds this very data set already.

        Raises:
            DataError: If it holds another one, or is damaged: a file is missing or cut off.
        """
        if not (self.folder / MANIFEST).exists():
            return False
        manifest = read_manifest(self.folder)
        made = manifest["request"]
        changed = [f"{key} {made.get(key)}" for key in made if made[key] != self.request.get(key)]
        if changed:
            raise DataError(
                f"{self.folder}: holds a data set prepared otherwise ({', '.join(changed)}); "
                "name another folder"
            )
        check_sizes(self.folder, manifest)
        return True

    def run(self, num_threads: int, advance: Callable[[int], None]) -> Prepared:
        """Prepares what is not prepared yet, and finishes the folder.

        Args:
            num_threads: How many images are prepared at a time (what decodes, scales, encodes and
                hashes them releases the interpreter lock). The files do not depend on it.
            advance: Called with the number of images done, those of earlier runs first, and with 0
                while duplicates are looked for; what it raises stops the run, which can be gone on
                with.

        Raises:
            DataError: If the folder holds other things, or no image can be used.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with Journal(self.folder, self.request) as journal:
            advance(journal.num_entries)
            self._write_images(journal, num_threads, advance)
            prepared = self._finish(journal, num_threads, advance)
        (self.folder / JOURNAL).unlink()
        return prepared

    def _write_images(
        self, journal: Journal, num_threads: int, advance: Callable[[int], None]
    ) -> None:
        shards = Shards(self.folder, self.bytes_per_shard, journal.last)
        pending: list[dict[str, Any]] = []
        first = journal.num_entries
        try:
            for index, entry in enumerate(self._entries(first, num_threads), start=first):
                encoded = entry.pop("encoded", None)
                if encoded is not None:
                    suffix = "png" if self.recipe.encoding == "png" else "jpg"
                    entry |= shards.append(f"{index:09}.{suffix}", encoded)
                pending.append(entry)
                if len(pending) == BATCH:
                    # The images first: what is noted is there.
                    shards.flush()
                    journal.append(pending)
                    pending.clear()
                advance(1)
            shards.flush()
            journal.append(pending)
        finally:
            shards.close()

    def _entries(self, first: int, num_threads: int) -> Iterator[dict[str, Any]]:
        """The journal's entries from `first` on, in order, with the encoded images in them."""

        def attempt(index: int) -> dict[str, Any]:
            try:
                return asdict(convert(open_original(self.source.reader, index), self.recipe))
            except DataError as error:
                return {"refused": str(error)}

        return map_in_threads(attempt, range(first, len(self.source.reader)), num_threads)

    def _finish(
        self, journal: Journal, num_threads: int, advance: Callable[[int], None]
    ) -> Prepared:
        """Writes everything but the images; the manifest last."""
        columns, reasons, black = _collect(journal, len(self.source.reader))
        kept = np.setdiff1d(np.arange(len(self.source.reader)), list(reasons))
        if not len(kept):
            raise DataError(f"{self.folder}: none of {len(reasons)} images can be used")
        manifest = self.source.manifest.select(kept)
        records, samples = (
            columns[list(RECORD.names or ())][kept],
            columns[list(SAMPLE.names or ())][kept],
        )
        files, pixels, looks = (samples[name] for name in HASHES)
        duplicates = find_duplicates(files, pixels, looks, lambda: advance(0))
        with_splits = complete_splits(
            manifest, self.config.validation_fraction, self.config.test_fraction, self.seed
        )
        names = self.source.manifest.names
        warn_of_nearly_black([names[index] for index in black])
        refused = [
            *((name, "no such image") for name in self.source.quarantined),
            *((names[index], reason) for index, reason in reasons.items()),
        ]
        replace_file(self.folder / RECORDS, _npy(repack_fields(records)))
        replace_file(self.folder / SAMPLES, _npz(manifest, samples))
        replace_file(self.folder / REFUSED, _csv([("image", "reason"), *refused]).encode())
        replace_file(self.folder / DUPLICATES, duplicates.as_csv(with_splits).encode())
        facts = self._facts(manifest, [name for name, _ in refused], records, num_threads)
        replace_file(self.folder / MANIFEST, (json.dumps(facts, indent=1) + "\n").encode())
        return Prepared(with_splits, facts, duplicates)

    def _facts(
        self, manifest: Manifest, refused: list[str], records: np.ndarray, num_threads: int
    ) -> dict[str, Any]:
        """What manifest.json says; reads every file back for its checksum."""
        shards = [shard_name(number) for number in range(int(records["shard"].max()) + 1)]
        names = [*shards, RECORDS, SAMPLES, REFUSED, DUPLICATES]
        paths = [self.folder / name for name in names]
        with ThreadPoolExecutor(num_threads) as pool:
            checksums = list(pool.map(sha256_of, paths))
        return {
            "format": FORMAT,
            "num_images": len(manifest),
            "class_names": list(manifest.class_names),
            "refused": refused,
            "request": self.request,
            "made": {
                "when": datetime.now(UTC).isoformat(timespec="seconds"),
                "root": str(self.config.root.resolve()) if self.config.root else None,
                "seed": self.seed,
                "versions": {name: version(name) for name in LIBRARIES},
            },
            "files": {
                name: {"bytes": path.stat().st_size, "sha256": checksum}
                for name, path, checksum in zip(names, paths, checksums, strict=True)
            },
        }


def _collect(
    entries: Iterable[dict[str, Any]], num_entries: int
) -> tuple[np.ndarray, dict[int, str], list[int]]:
    """Journal entries as a table, (num_entries,).

    Also the reasons of those that were refused, and which look nearly black.
    """
    table = np.zeros(num_entries, [*RECORD.descr, *SAMPLE.descr])
    reasons: dict[int, str] = {}
    black: list[int] = []
    for index, entry in enumerate(entries):
        if "refused" in entry:
            reasons[index] = entry["refused"]
            continue
        if entry.get("nearly_black"):
            black.append(index)
        for name in table.dtype.names or ():
            value = entry[name]
            table[name][index] = list(bytes.fromhex(value)) if name in HASHES else value
    return table, reasons, black


def _fingerprint(manifest: Manifest) -> str:
    """A hash of the names, the labels and all else that is known."""
    digest = hashlib.sha256("\n".join(manifest.class_names).encode())
    for array in (
        *manifest.names.arrays, manifest.labels, manifest.true_labels, manifest.quality,
        manifest.patients, manifest.split,
    ):  # fmt: skip
        digest.update(array.tobytes())
    return digest.hexdigest()


def _npy(array: np.ndarray) -> bytes:
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


def _npz(manifest: Manifest, samples: np.ndarray) -> bytes:
    """What is known about each sample, by name of the column."""
    names, name_offsets = manifest.names.arrays
    content = io.BytesIO()
    extracted: dict[str, Any] = {name: samples[name] for name in SAMPLE.names or ()}
    np.savez(
        content,
        names=names,
        name_offsets=name_offsets,
        labels=manifest.labels,
        true_labels=manifest.true_labels,
        quality=manifest.quality,
        patients=manifest.patients,
        split=manifest.split,
        **extracted,
    )
    return content.getvalue()


def _csv(rows: list[tuple[str, str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
