"""What a data set holds that is not as it should be, and what preparing it says of that."""

import csv
import errno

import numpy as np
import pytest
from PIL import Image
from prepared_folders import own, photograph, prepare, prepared, write_own

from data.errors import DataError
from data.sources import load_source


def test_refused_files_are_listed_and_not_fatal(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    write_own(raw)
    (raw / "1.png").write_bytes((raw / "1.png").read_bytes()[:2000])
    (raw / "4.png").write_text("<html>404</html>")
    (raw / "7.png").unlink()
    made = prepare(own(raw), tmp_path / "made")
    with (tmp_path / "made" / "refused.csv").open() as file:
        reasons = {row["image"]: row["reason"] for row in csv.DictReader(file)}
    assert list(reasons) == ["7.png", "1.png", "4.png"]
    assert reasons["7.png"] == "no such image"
    assert reasons["1.png"].startswith("1.png: cannot be read as an image")
    assert "no image format is recognised" in reasons["4.png"]
    source = load_source(prepared(tmp_path / "made"), 0)
    kept = [i for i in range(12) if i not in (1, 4, 7)]
    assert source.manifest.patients.tolist() == made.manifest.patients.tolist()
    assert list(source.manifest.names) == [f"{i}.png" for i in kept]
    assert source.manifest.labels.tolist() == [i % 2 for i in kept]
    assert sorted(source.quarantined) == ["1.png", "4.png", "7.png"]
    raw_reader = load_source(own(raw, on_unreadable="quarantine"), 0).reader
    for index in range(9):
        difference = source.reader.read(index).astype(int) - raw_reader.read(index)
        assert np.abs(difference).mean() < 2.5


def test_images_of_16_bits_that_use_fewer_are_warned_of(tmp_path, caplog):
    raw = tmp_path / "raw"
    raw.mkdir()
    write_own(raw)
    levels = np.random.default_rng(0).integers(0, 4096, (60, 60), np.uint16)
    Image.fromarray(levels).save(raw / "4.png")
    prepare(own(raw), tmp_path / "made")
    assert "use less than a quarter of their range (1), such as 4.png" in caplog.text
    caplog.clear()
    load_source(own(raw, on_unreadable="quarantine"), 0)
    assert "use less than a quarter of their range (1), such as 4.png" in caplog.text


def test_where_there_are_no_locks_it_is_said(tmp_path, monkeypatch, caplog):
    raw = tmp_path / "raw"
    raw.mkdir()
    write_own(raw)

    def unsupported(file, operation):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("data.prepared.journal.fcntl.lockf", unsupported)
    assert len(prepare(own(raw), tmp_path / "made").manifest) == 12
    assert "this file system has no locks (Function not implemented)" in caplog.text


def test_a_set_without_a_usable_image_is_an_error(tmp_path):
    (tmp_path / "labels.csv").write_text("image,label\na.png,0\nb.png,1\n")
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_text("no image")
    with pytest.raises(DataError, match="none of 2 images can be used"):
        prepare(own(tmp_path), tmp_path / "made")


def test_duplicates_across_splits_are_found(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    write_own(raw, 14, suffix="jpg")
    Image.fromarray(photograph(2, 600, 800)).save(raw / "2.jpg", quality=95)
    # In the test split (11 to 13): the same file, the same pixels, a poor copy.
    (raw / "11.jpg").write_bytes((raw / "0.jpg").read_bytes())
    with_comment = (raw / "1.jpg").read_bytes()
    (raw / "12.jpg").write_bytes(with_comment[:2] + b"\xff\xfe\x00\x06mine" + with_comment[2:])
    Image.open(raw / "2.jpg").resize((400, 300)).save(raw / "13.jpg", quality=60)
    made = prepare(own(raw), tmp_path / "made")
    with (tmp_path / "made" / "duplicates.csv").open() as file:
        rows = list(csv.DictReader(file))
    found = [(row["image"], row["match"], row["split"], row["label"]) for row in rows]
    groups = {frozenset(found[at : at + 2]) for at in (0, 2, 4)}
    assert groups == {
        frozenset({("0.jpg", "file", "train", "a"), ("11.jpg", "file", "test", "b")}),
        frozenset({("1.jpg", "pixels", "train", "b"), ("12.jpg", "pixels", "test", "a")}),
        frozenset({("2.jpg", "look", "train", "a"), ("13.jpg", "look", "test", "b")}),
    }
    assert len(rows) == 6
    # Patients by the names that the CSV has for them.
    assert {row["image"]: row["patient"] for row in rows}["11.jpg"] == "103"
    assert made.duplicates.num_divided(made.manifest.split) == 3
    assert made.duplicates.num_divided(made.manifest.labels) == 3
