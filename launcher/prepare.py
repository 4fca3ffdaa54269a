"""Shrink a data set once: ``python launcher/prepare.py --config CONFIG --out FOLDER``.

The raw images of any source become small ones in a few large files, which a run reads with
``data.prepared=FOLDER``. A run that was cut off is gone on with by the same command.
"""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args

import numpy as np
from tqdm import tqdm

from data.config import WITHOUT_FILES, DataConfig, SourceName
from data.errors import DataError
from data.images import Crop
from data.prepared.build import Preparation, Prepared
from data.prepared.check import check_folder
from data.prepared.convert import Encoding, Recipe
from data.prepared.layout import DUPLICATES, REFUSED
from data.prepared.looks import MAX_DIFFERENT, NUM_BITS
from engine.config import ConfigError, load_config
from engine.interrupts import EXIT_INTERRUPTED, Interrupts, RunInterruptedError
from launcher import EXIT_USER_ERROR
from launcher.settings import Config

__all__ = ["main"]

DEFAULT_SIZE = 512
RETINA = ("eyepacs", "ddr", "aptos2019", "deepdrid")


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Command line: what to prepare, how, and where to."""
    parser = argparse.ArgumentParser(
        description="Shrink a data set once into a few large files that runs read quickly.",
        epilog="example: python launcher/prepare.py --source eyepacs --root /data/eyepacs "
        "--out /data/eyepacs-512",
    )
    parser.add_argument("--config", type=Path, help="YAML file whose section data is prepared")
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="settings that win over the file"
    )
    parser.add_argument("--source", choices=get_args(SourceName), help="data.source")
    parser.add_argument("--root", type=Path, help="data.root")
    parser.add_argument("--out", type=Path, help="folder to fill; the same one goes on")
    parser.add_argument(
        "--size", type=int,
        help="pixels of the shorter side; default: data.image_size, which is read quickest; "
        f"{DEFAULT_SIZE} without a configuration",
    )  # fmt: skip
    parser.add_argument(
        "--crop", choices=get_args(Crop),
        help="disc cuts fundus photographs to their disc; default: disc for retina sources, "
        "else data.crop",
    )  # fmt: skip
    parser.add_argument(
        "--encoding", choices=get_args(Encoding), default="jpeg",
        help="png loses nothing, but takes several times the space and time; default jpeg",
    )  # fmt: skip
    parser.add_argument("--quality", type=int, default=90, help="of JPEGs, 1 to 100; default 90")
    parser.add_argument(
        "--jobs", type=int, default=len(os.sched_getaffinity(0)),
        help="images at a time; default: the processors of this process",
    )  # fmt: skip
    parser.add_argument(
        "--shard-mib", type=int, default=2048, help="size of a file of images; default 2048"
    )
    parser.add_argument(
        "--verify", type=Path, metavar="FOLDER",
        help="prepare nothing; compare a prepared folder with its checksums",
    )  # fmt: skip
    options = parser.parse_intermixed_args(arguments)
    if options.verify is None:
        _require(parser, options)
    if options.jobs < 1:
        parser.error(f"--jobs: {options.jobs}; allowed: 1 or more")
    return options


def _require(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Refuse what cannot be prepared."""
    if options.out is None:
        parser.error("--out: not given; expected the folder to fill")
    if options.config is None:
        if options.source is None:
            parser.error("neither --config nor --source says what to prepare")
        if options.root is None and options.source not in WITHOUT_FILES:
            parser.error(f"--root: not given; source {options.source} needs its folder")
        if options.overrides:
            parser.error(f"{options.overrides[0]}: settings need --config")
    for name, value, low, high in (
        ("--size", DEFAULT_SIZE if options.size is None else options.size, 8, 8192),
        ("--quality", options.quality, 1, 100),
        ("--shard-mib", options.shard_mib, 1, 1 << 20),
    ):
        if not low <= value <= high:
            parser.error(f"{name}: {value}; allowed: {low} to {high}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = parse_arguments(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    interrupts = Interrupts()
    try:
        if options.verify is not None:
            num_images = check_folder(options.verify, options.jobs)
            print(f"{options.verify}: {num_images} images, every checksum is right")
            return 0
        with interrupts.listening():
            run(options, interrupts.raise_if_asked)
    except (ConfigError, DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except (RunInterruptedError, KeyboardInterrupt) as request:
        asked_by = str(request) or "the keyboard"
        print(f"stopped by {asked_by}; the same command goes on", file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0


def run(options: argparse.Namespace, raise_if_asked: Callable[[], None]) -> None:
    """Prepare the data set, or find it prepared, and print what there is."""
    data, seed = _data_section(options)
    crop = options.crop or ("disc" if data.source in RETINA else data.crop)
    recipe = Recipe(
        size=options.size or (data.image_size if options.config else DEFAULT_SIZE),
        crop=crop,
        encoding=options.encoding,
        quality=options.quality,
    )
    preparation = Preparation(data, seed, recipe, options.out, options.shard_mib << 20)
    if preparation.is_finished:
        print(f"{options.out}: is prepared already; data.prepared={options.out} reads it")
        return
    total = len(preparation.source.reader)
    with tqdm(total=total, desc="preparing", unit="image", mininterval=1) as bar:

        def advance(num_images: int) -> None:
            raise_if_asked()
            bar.update(num_images)

        prepared = preparation.run(options.jobs, advance)
    print(describe(prepared, options.out))


def _data_section(options: argparse.Namespace) -> tuple[DataConfig, int]:
    """The data section and the seed that the command line asks for."""
    if options.config is None:
        return DataConfig(source=options.source, root=options.root), 0
    given = {"source": options.source, "root": options.root}
    overrides = [f"data.{key}={value}" for key, value in given.items() if value is not None]
    config = load_config(Config, options.config, [*options.overrides, *overrides])
    return config.data, config.run.seed


def describe(prepared: Prepared, folder: Path) -> str:
    """What was made, what was refused, and which images resemble one another."""
    facts, manifest, duplicates = prepared.facts, prepared.manifest, prepared.duplicates
    num_bytes = sum(f["bytes"] for name, f in facts["files"].items() if name.endswith(".tar"))
    num_images = facts["num_images"]
    lines = [
        f"{folder}: {num_images} images, {num_bytes / 1e6:.1f} MB "
        f"({num_bytes / num_images / 1e3:.1f} kB an image)"
    ]
    if facts["refused"]:
        lines.append(f"refused: {len(facts['refused'])} files, named in {folder / REFUSED}")
    num_groups = duplicates.num_divided(np.arange(len(manifest)))
    lines.append(
        f"duplicates: {duplicates.same_file.sum()} images with the file of another one, "
        f"{duplicates.same_pixels.sum()} with its pixels, {len(duplicates.sample_ids)} that look "
        f"like another one (at most {MAX_DIFFERENT} of {NUM_BITS} bits of their look differ)"
    )
    if num_groups:
        lines.append(
            f"groups of them: {num_groups}; {duplicates.num_divided(manifest.split)} in several "
            f"splits, {duplicates.num_divided(manifest.labels)} with several labels; see "
            f"{folder / DUPLICATES}"
        )
    lines.append(f"to read it: data.prepared={folder}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
