"""Data sets by name, each brought into one form: a manifest and a reader."""

from collections.abc import Callable
from dataclasses import replace

from data.config import DataConfig
from data.sources.embedded import load_digits, load_synthetic
from data.sources.packed import load_prepared, settle
from data.sources.plain import load_busi, load_csv, load_folder
from data.sources.retina import load_aptos2019, load_ddr, load_deepdrid, load_eyepacs
from data.sources.skin import load_ham10000, load_isic2019
from data.sources.source import Source, check_images, quarantine_unreadable
from data.sources.splits import check_splits, complete_splits

__all__ = ["SOURCES", "DataConfig", "Source", "check_images", "load_source", "settle"]

# A source reads its files as (config, seed) -> Source; splits that it lacks are carved afterwards.
SOURCES: dict[str, Callable[[DataConfig, int], Source]] = {
    "eyepacs": load_eyepacs,
    "ddr": load_ddr,
    "aptos2019": load_aptos2019,
    "deepdrid": load_deepdrid,
    "isic2019": load_isic2019,
    "ham10000": load_ham10000,
    "busi": load_busi,
    "folder": load_folder,
    "csv": load_csv,
    "digits": load_digits,
    "synthetic": load_synthetic,
}


def load_source(config: DataConfig, seed: int) -> Source:
    """Reads a data set, checks it and completes its splits.

    Missing images are found here, by listing folders. Damaged ones are found by decoding: here
    only with ``on_unreadable: quarantine``, else by `check_images`, or when one is read.

    Args:
        config: The data section.
        seed: At least 0; decides the validation split where it is carved, and the synthetic
            images. Test splits that are carved do not depend on it.

    Raises:
        DataError: Naming all that is wrong with the labels, or with the splits.
    """
    if config.prepared is not None:
        source = load_prepared(config, config.prepared)
    else:
        source = SOURCES[config.source](config, seed)
    if config.on_unreadable == "quarantine":
        source = quarantine_unreadable(source, config.num_workers)
    manifest = complete_splits(
        source.manifest, config.validation_fraction, config.test_fraction, seed
    )
    where = str(config.prepared or config.root or config.source)
    check_splits(manifest, where, needs_validation=config.validation_fraction > 0)
    return replace(source, manifest=manifest)
