"""Sources folder and csv: images and labels as people keep them."""

import logging

import pytest
from PIL import Image

from data.errors import DataError
from data.manifest import TEST, TRAIN, VALIDATION
from data.sources import DataConfig, load_source


def write_images(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 10)).save(root / name)


def write_classes(root, *classes, num_images=10):
    write_images(root, *(f"{name}/{index}.png" for name in classes for index in range(num_images)))


def write_csv(root, labels, name="{}.png"):
    """A CSV of these labels, and an image for each."""
    names = [name.format(index) for index in range(len(labels))]
    write_images(root, *names)
    rows = [",".join(pair) for pair in zip(names, labels, strict=True)]
    (root / "labels.csv").write_text("\n".join(["image,label", *rows]) + "\n", encoding="utf-8")


def load(root, source="folder", **changes):
    settings = {"image_size": 8, "validation_fraction": 0.0} | changes
    return load_source(DataConfig(source=source, root=root, **settings), 0)


# ---- folders


def test_one_class_is_refused_whatever_the_source(tmp_path):
    write_classes(tmp_path, "images/benign", "images/malignant")
    with pytest.raises(DataError, match="20 images of one class, images; .* Check data.root"):
        load(tmp_path)
    write_csv(tmp_path, ["cat"] * 5)
    with pytest.raises(DataError, match="5 images of one class, cat; expected two classes or more"):
        load(tmp_path, "csv")


@pytest.mark.parametrize("names", [("Train", "Valid", "TEST"), ("train", "VAL", "Test")])
def test_splits_may_be_written_in_capitals(tmp_path, names):
    write_classes(tmp_path, *(f"{split}/{name}" for split in names for name in "ab"))
    manifest = load(tmp_path).manifest
    assert manifest.class_names == ("a", "b")
    assert [len(manifest.where(split)) for split in (TRAIN, VALIDATION, TEST)] == [20, 20, 20]


@pytest.mark.parametrize("names", [("train", "testing"), ("Training", "Testing")])
def test_folders_that_look_like_splits_are_refused(tmp_path, names):
    write_classes(tmp_path, *(f"{split}/{name}" for split in names for name in "ab"))
    with pytest.raises(DataError, match=r"found (\w+, )?[Tt]esting(, Training)? .* train, val, "):
        load(tmp_path)


def test_another_folder_beside_splits_is_warned_of(tmp_path, caplog):
    write_classes(tmp_path, "train/a", "train/b", "masks/a", "masks/b")
    assert len(load(tmp_path).manifest) == 20
    assert "folders that are no split are not read: masks; splits are named train," in caplog.text


@pytest.mark.parametrize("split", ["", "train"])
def test_files_passed_over_are_counted(tmp_path, split, caplog):
    root = tmp_path / split
    write_classes(root, "a", "b")
    write_images(root, "a/deeper/0.gif", "b/1.gif", "c.png")
    (root / "a" / ".DS_Store").write_text("left by another system")
    (root / "README.txt").write_text("no image")
    with caplog.at_level(logging.WARNING):
        load(tmp_path)
    (message,) = [record.getMessage() for record in caplog.records]
    assert f"(3), such as {split and split + '/'}a/deeper/0.gif; " in message
    assert message.endswith("with the suffixes .jpg, .jpeg, .png, .tif, .tiff, .bmp, .webp")


def test_images_behind_a_linked_folder_are_read(tmp_path):
    write_classes(tmp_path / "data", "a", "b")
    write_classes(tmp_path, "other")
    (tmp_path / "data" / "a" / "more").symlink_to(tmp_path / "other")
    assert len(load(tmp_path / "data").manifest) == 30


def test_a_csv_names_a_file_with_a_suffix_that_is_not_read(tmp_path, caplog):
    write_csv(tmp_path, ["a", "b"] * 5)
    write_images(tmp_path, "10.gif", "images/11.gif")
    with (tmp_path / "labels.csv").open("a") as file:
        file.write("10.gif,a\n11.gif,a\nlabels,a\nimages,b\n")
    with pytest.raises(DataError) as error:
        load(tmp_path, "csv")
    lines = [line.strip() for line in str(error.value).splitlines()]
    assert lines[1].startswith("image with a suffix that is not read, expected .jpg, ")
    assert lines[1].endswith("(2): labels.csv:12 '10.gif', labels.csv:13 '11.gif'")
    assert lines[2].startswith("no such image in ., images (2): labels.csv:14 'labels', ")
    source = load(tmp_path, "csv", on_unreadable="quarantine")
    assert len(source.quarantined) == 4
    assert "left out, image with a suffix that is not read" in caplog.text
