"""Prepared data sets: what goes in comes out, whatever happens in between."""

import json
import multiprocessing
import pickle
import tarfile

import numpy as np
import pytest
from PIL import Image
from prepared_folders import own, prepare, prepared, recipe, write_own

from data.config import DataConfig
from data.errors import DataError
from data.images import decode
from data.manifest import TEST, TRAIN, VALIDATION
from data.prepared.build import Preparation
from data.prepared.check import check_folder
from data.prepared.layout import RECORDS, SAMPLES, remedy
from data.prepared.reader import PreparedImages
from data.sources import check_images, load_source, settle

COLUMNS = ("labels", "true_labels", "quality", "patients", "split")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raw")
    write_own(folder)
    return folder


@pytest.fixture(scope="module")
def folder(root, tmp_path_factory):
    """The set prepared, in several shards."""
    folder = tmp_path_factory.mktemp("whole") / "prepared"
    prepare(own(root), folder, bytes_per_shard=4000)
    return folder


@pytest.fixture
def copy(folder, tmp_path):
    """A copy that a test may damage."""
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


# ---- what goes in comes out


@pytest.mark.parametrize("resize", ["crop", "pad", "squash"])
@pytest.mark.parametrize("size", [48, 32])
def test_pixels_are_those_of_the_raw_images(root, folder, size, resize):
    raw = load_source(own(root).model_copy(update={"image_size": size, "resize": resize}), 0)
    small = load_source(prepared(folder, image_size=size, resize=resize), 0)
    for index in range(len(raw.reader)):
        difference = small.reader.read(index).astype(int) - raw.reader.read(index)
        # JPEG at quality 90 with colour at half the resolution; grey levels of 256.
        assert np.abs(difference).mean() < 2.5
        assert np.abs(difference).max() < 40
    # Another image is not what this tolerance lets pass.
    assert np.abs(small.reader.read(0).astype(int) - raw.reader.read(1)).mean() > 25


def test_a_lossless_copy_of_the_asked_size_gives_the_same_pixels(root, tmp_path):
    prepare(own(root), tmp_path / "png", encoding="png")
    raw, small = load_source(own(root), 0), load_source(prepared(tmp_path / "png"), 0)
    for index in range(len(raw.reader)):
        assert np.array_equal(small.reader.read(index), raw.reader.read(index))


def test_small_images_are_not_enlarged(root, tmp_path):
    prepare(own(root), tmp_path / "png", encoding="png", size=500)
    with np.load(tmp_path / "png" / SAMPLES) as samples:
        assert (samples["full_size"] == (120, 90)).all()
        assert (samples["box"] == (0, 0, 120, 90)).all()
    with tarfile.open(tmp_path / "png" / "images-00000.tar") as archive:
        assert Image.open(archive.extractfile(archive.next())).size == (120, 90)
    image = PreparedImages(tmp_path / "png", 200).read(3)
    assert np.array_equal(image, decode(root / "3.png", 200, "crop"))


@pytest.mark.parametrize("fractions", [(0.0, 0.2), (0.3, 0.2)])
def test_labels_splits_quality_and_patients_are_those_of_the_raw_set(root, folder, fractions):
    validation, test = fractions
    asked = {"validation_fraction": validation, "test_fraction": test}
    raw = load_source(own(root).model_copy(update=asked), 5).manifest
    small = load_source(prepared(folder, **asked), 5).manifest
    for column in COLUMNS:
        assert np.array_equal(getattr(small, column), getattr(raw, column))
    assert small.names == raw.names and small.class_names == raw.class_names
    assert set(small.split) == {TRAIN, TEST} | ({VALIDATION} if validation else set())


def test_each_seed_carves_its_own_validation_split(tmp_path):
    raw = DataConfig(source="digits", image_size=8, validation_fraction=0.2)
    prepare(raw, tmp_path / "digits", encoding="png")
    small = prepared(tmp_path / "digits", image_size=8, validation_fraction=0.2)
    splits = [load_source(small, seed).manifest.split for seed in (1, 2)]
    for seed, split in zip((1, 2), splits, strict=True):
        assert np.array_equal(split, load_source(raw, seed).manifest.split)
    assert not np.array_equal(*splits)


def test_images_lie_in_plain_tar_files_of_the_wanted_size(folder):
    names = []
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path, "r:") as archive:
            names += archive.getnames()
        assert path.stat().st_size < 4000 + 6000
    assert names == [f"{index:09}.jpg" for index in range(12)]
    assert len(list(folder.glob("*.tar"))) > 2


# ---- interruptions


class StoppedError(Exception):
    pass


def stop_after(num_images):
    done = 0

    def advance(number):
        nonlocal done
        done += number
        if done >= num_images:
            raise StoppedError

    return advance


def contents(folder):
    """Every file but the manifest, which holds the time."""
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != "manifest.json"}


@pytest.mark.parametrize("num_threads", [1, 3])
def test_a_set_made_in_several_runs_equals_one_made_at_once(
    root, folder, tmp_path, monkeypatch, num_threads
):
    monkeypatch.setattr("data.prepared.build.BATCH", 2)
    target = tmp_path / "prepared"
    for num_images in (1, 4, 5, 9, 12):
        preparation = Preparation(own(root), 0, recipe(), target, 4000)
        with pytest.raises(StoppedError):
            preparation.run(num_threads, stop_after(num_images))
        with pytest.raises(DataError, match="not finished"):
            load_source(prepared(target), 0)
    prepare(own(root), target, num_threads=num_threads, bytes_per_shard=4000)
    assert contents(target) == contents(folder)


def test_a_run_that_is_stopped_while_it_looks_for_duplicates_is_gone_on_with(
    root, folder, tmp_path
):
    target = tmp_path / "prepared"
    done = 0

    def advance(number):
        nonlocal done
        done += number
        if done == 12 and number == 0:
            raise StoppedError

    with pytest.raises(StoppedError):
        Preparation(own(root), 0, recipe(), target, 4000).run(1, advance)
    assert not (target / "manifest.json").exists()
    prepare(own(root), target, bytes_per_shard=4000)
    assert contents(target) == contents(folder)


def test_what_lies_behind_the_last_note_is_made_again(root, folder, tmp_path, monkeypatch):
    monkeypatch.setattr("data.prepared.build.BATCH", 2)
    target = tmp_path / "prepared"
    with pytest.raises(StoppedError):
        Preparation(own(root), 0, recipe(), target, 4000).run(1, stop_after(7))
    journal = target / "journal.jsonl"
    journal.write_bytes(journal.read_bytes()[:-20])  # a torn line
    last = max(target.glob("*.tar"))
    last.write_bytes(last.read_bytes() + b"half an image")
    prepare(own(root), target, bytes_per_shard=4000)
    assert contents(target) == contents(folder)


def test_a_folder_begun_otherwise_is_refused(root, folder, tmp_path):
    with pytest.raises(StoppedError):
        Preparation(own(root), 0, recipe(), tmp_path / "part", 4000).run(1, stop_after(2))
    other = Preparation(own(root), 0, recipe(quality=80), tmp_path / "part", 4000)
    with pytest.raises(DataError, match=r"other settings: quality 90 -> 80$"):
        other.run(1, lambda number: None)
    whole = Preparation(own(root), 0, recipe(size=40), folder, 4000)
    with pytest.raises(DataError, match=r"prepared otherwise \(size 48\)"):
        _ = whole.is_finished
    assert Preparation(own(root), 0, recipe(), folder, 4000).is_finished
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    with pytest.raises(DataError, match="neither empty nor"):
        prepare(own(root), tmp_path / "mine")


# ---- damage and mismatch


def test_a_damaged_shard_is_found_by_its_checksum(copy):
    assert check_folder(copy, 2) == 12
    record = np.load(copy / RECORDS)[7]
    shard = copy / f"images-{record['shard']:05}.tar"
    content = bytearray(shard.read_bytes())
    content[int(record["offset"]) + 300] ^= 1  # one bit of image 7
    shard.write_bytes(content)
    reader = load_source(prepared(copy), 0).reader
    with pytest.raises(DataError, match=rf"{shard.name}: image 7, .* is damaged"):
        reader.read(7)
    for index in (*range(7), *range(8, 12)):
        reader.read(index)
    with pytest.raises(DataError, match=f"images cannot be read: .*{remedy(copy)}"):
        check_images(load_source(prepared(copy, on_unreadable="quarantine"), 0))
    with pytest.raises(DataError) as caught:
        check_folder(copy, 2)
    assert f"SHA-256 than when they were made) (1): {shard.name}" in str(caught.value)
    assert "damaged images (1): 7" in str(caught.value)


def test_files_that_are_missing_or_cut_off_are_named_before_anything_is_read(copy):
    shard = copy / "images-00001.tar"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-512])
    with pytest.raises(DataError, match=rf"{shard.name}: has {len(whole) - 512} bytes, expected"):
        load_source(prepared(copy), 0)
    shard.unlink()
    with pytest.raises(DataError, match=rf"{shard.name}: is missing"):
        load_source(prepared(copy), 0)
    with pytest.raises(DataError, match=rf"missing files.*{shard.name}"):
        check_folder(copy, 1)


@pytest.mark.parametrize("name", ["images-00001.tar", SAMPLES])
def test_a_damaged_folder_is_not_taken_for_a_finished_one(root, copy, name):
    preparation = Preparation(own(root), 0, recipe(), copy, 4000)
    assert preparation.is_finished
    whole = (copy / name).read_bytes()
    (copy / name).write_bytes(whole[:100])
    message = (
        f"{copy / name}: has 100 bytes, expected {len(whole)} bytes, so the prepared data set is "
        f"damaged; copy the file anew, or delete {copy} and prepare the data set again"
    )
    for look in (lambda: preparation.is_finished, lambda: load_source(prepared(copy), 0)):
        with pytest.raises(DataError) as caught:
            look()
        assert str(caught.value) == message
    assert (copy / name).stat().st_size == 100  # nothing is mended unasked
    (copy / name).unlink()
    with pytest.raises(DataError, match=f"{name}: is missing, .*{remedy(copy)}"):
        _ = preparation.is_finished


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 49}, r"data\.image_size: 49, but .* prepared with 48; .*--size 49$"),
        ({"source": "folder"}, r"data\.source: folder, but .* was prepared with csv"),
        ({"source": "csv", "labels": "y.csv"}, r"data\.labels: y.csv, but .* with None"),
        ({"synthetic": {"num_train": 7}}, r"data\.synthetic: .*'num_train': 7.* was prepared"),
        ({"crop": "disc"}, r"data\.crop: disc, but .* was prepared with none"),
        ({"num_classes": 3}, r"data\.num_classes: 3, but .* has 2"),
    ],
)
def test_a_mismatch_of_what_is_asked_is_one_clear_line(folder, changes, message):
    with pytest.raises(DataError, match=message) as caught:
        load_source(prepared(folder, **changes), 0)
    assert "\n" not in str(caught.value)


def test_settings_that_agree_are_no_mismatch(folder):
    small = load_source(prepared(folder, source="csv", num_classes=2, root="elsewhere"), 0)
    assert len(small.manifest) == 12


def test_a_run_keeps_what_its_prepared_folder_settles(folder):
    settled = settle(prepared(folder, image_size=32))
    assert (settled.source, settled.crop, settled.image_size) == ("csv", "none", 32)
    assert settle(settled) == settled and len(load_source(settled, 0).manifest) == 12
    assert settle(DataConfig()) == DataConfig()


def test_a_folder_that_is_not_prepared_is_named(tmp_path):
    with pytest.raises(DataError, match=r"has no manifest\.json.*launcher/prepare\.py makes one"):
        load_source(prepared(tmp_path), 0)
    (tmp_path / "manifest.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(DataError, match="is not of format 1"):
        load_source(prepared(tmp_path), 0)


# ---- every source, and workers


@pytest.mark.parametrize("source", ["digits", "synthetic"])
def test_sources_without_files_are_prepared_too(tmp_path, source):
    raw = DataConfig(
        source=source, image_size=24, validation_fraction=0.0,
        synthetic={"num_train": 30, "num_test": 10},
    )  # fmt: skip
    size = 24 if source == "synthetic" else 8
    made = prepare(raw, tmp_path / "made", seed=3, encoding="png", size=size)
    small = load_source(prepared(tmp_path / "made", image_size=size), 3)
    expected = load_source(raw.model_copy(update={"image_size": size}), 3)
    assert len(made.manifest) == len(expected.manifest)
    assert np.array_equal(small.manifest.labels, expected.manifest.labels)
    for index in (0, 17, len(expected.manifest) - 1):
        assert np.array_equal(small.reader.read(index), expected.reader.read(index))


def read_sum(reader, index):
    return int(reader.read(index).sum())


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_read_the_same_pixels_however_they_are_started(folder, method):
    reader = PreparedImages(folder, 32)
    expected = [read_sum(reader, index) for index in range(12)]  # opens the shards before a fork
    with multiprocessing.get_context(method).Pool(2) as pool:
        found = pool.starmap(read_sum, [(reader, index) for index in range(12)])
    assert found == expected
    assert len(pickle.dumps(reader)) < 400
