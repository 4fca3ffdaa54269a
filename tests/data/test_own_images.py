"""Sources folder and csv: images and labels as people keep them."""

import logging
import unicodedata

import pytest
from PIL import Image
from pydantic import ValidationError

from data.errors import DataError
from data.manifest import TEST, TRAIN, UNKNOWN, VALIDATION
from data.prepared.build import Preparation
from data.prepared.convert import Recipe
from data.prepared.layout import read_manifest
from data.sources import DataConfig, load_source, settle


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


NFC, NFD = (unicodedata.normalize(form, "Müller/Größe {}.png") for form in ("NFC", "NFD"))


@pytest.mark.parametrize(("written", "stored"), [(NFC, NFD), (NFD, NFC), (f"{{root}}/{NFD}", NFC)])
def test_accents_may_be_letters_of_their_own(tmp_path, written, stored):
    root = tmp_path / unicodedata.normalize("NFC", "Bänder")
    write_csv(root, ["0", "1"] * 5, stored)
    text = (root / "labels.csv").read_text()
    text = text.replace(
        stored[:-6], written[:-6].replace("{root}", unicodedata.normalize("NFD", str(root)))
    )
    (root / "labels.csv").write_text(text)
    source = load(root, "csv")
    assert list(source.manifest.names) == [stored.format(index) for index in range(10)]
    (root / "labels.csv").write_text(f"{text}{stored.format(3)},0\n")
    with pytest.raises(DataError, match=r"same image twice \(1\): labels.csv:12 "):
        load(root, "csv")


def test_labels_and_patients_that_look_the_same_are_the_same(tmp_path):
    names = [unicodedata.normalize(form, "bösartig") for form in ("NFC", "NFD")]
    write_classes(tmp_path, f"train/{names[0]}", f"test/{names[1]}", "train/gutartig")
    for class_names in (None, ("gutartig", names[1])):
        manifest = load(tmp_path, class_names=class_names).manifest
        assert set(manifest.class_names) == {"gutartig", names[0]}
    rows = [
        f"{index}.png,{index % 2},{name},{split}"
        for index, (name, split) in enumerate(zip(names, ("train", "test"), strict=True))
    ]
    write_images(tmp_path, "0.png", "1.png")
    (tmp_path / "labels.csv").write_text("\n".join(["image,label,patient,split", *rows]) + "\n")
    with pytest.raises(DataError, match="patient or group in two splits"):
        load(tmp_path, "csv")


def test_a_backslash_in_a_name_is_hinted_at(tmp_path):
    write_csv(tmp_path, ["a", "b"] * 5, "deep/{}.png")
    text = (tmp_path / "labels.csv").read_text()
    (tmp_path / "labels.csv").write_text(text.replace("deep/", "deep\\"))
    with pytest.raises(DataError, match=r"no such image in ., images, where / separates .* \(10\)"):
        load(tmp_path, "csv")


# ---- classes and their order

GRADES = ("healthy", "mild", "grave")


def test_class_names_give_the_order_of_a_csv_in_names_or_numbers(tmp_path):
    for labels in ([*GRADES, "1"] * 5, ["0", "1.0", "2.", "1"] * 5):
        write_csv(tmp_path, labels)
        manifest = load(tmp_path, "csv", class_names=GRADES).manifest
        assert manifest.class_names == GRADES
        assert manifest.labels.tolist() == [0, 1, 2, 1] * 5


def test_numbers_that_are_names_are_no_places(tmp_path):
    """Of BI-RADS 1 to 5, 1 is the first, and 0 is not the first by another name."""
    write_csv(tmp_path, ["1", "2.0", "3", "4", "5"] * 4)
    names = ("1", "2", "3", "4", "5")
    manifest = load(tmp_path, "csv", class_names=names).manifest
    assert manifest.labels.tolist() == [0, 1, 2, 3, 4] * 4
    write_csv(tmp_path, ["0", "2", "3", "4", "5"] * 4)
    with pytest.raises(DataError, match=r"expected 1, 2, 3, 4, 5 \(4\): labels.csv:2 '0'"):
        load(tmp_path, "csv", class_names=names)
    with pytest.raises(DataError, match=r"expected none, 1, 2 .*'0'"):
        load(tmp_path, "csv", class_names=("none", "1", "2"))


def test_class_names_give_the_order_of_folders(tmp_path, caplog):
    write_classes(tmp_path, *GRADES)
    manifest = load(tmp_path, class_names=GRADES).manifest
    assert manifest.class_names == GRADES and caplog.text == ""
    assert all(
        name.startswith(GRADES[label])
        for name, label in zip(manifest.names, manifest.labels, strict=True)
    )


@pytest.mark.parametrize("source", ["csv", "folder"])
def test_names_that_are_not_in_class_names_are_refused(tmp_path, source):
    write_classes(tmp_path, *GRADES)
    write_csv(tmp_path, GRADES * 3)
    place = {"csv": "labels.csv:3", "folder": "mild/0.png"}[source]
    with pytest.raises(DataError) as error:
        load(tmp_path, source, class_names=("healthy", "middling", "grave"))
    expected = f"'mild' (first {place}); expected healthy, middling, grave"
    assert str(error.value) == f"{tmp_path}: labels that are not in data.class_names: {expected}"
    with pytest.raises(DataError, match=r"no training sample has class 1 \(none\); expected"):
        load(tmp_path, source, class_names=("healthy", "none", "mild", "grave"))
    with pytest.raises(DataError, match=r"num_classes is 2, but the classes are \(3\): healthy, "):
        load(tmp_path, source, class_names=GRADES, num_classes=2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"source": "digits"}, "class_names: set, but source digits has classes of its own"),
        ({"class_names": ("a",)}, "at least 2 items"),
        ({"class_names": ("a", "b", "a")}, "class_names: a given more than once"),
        ({"class_names": ("a", "")}, "class_names: an empty name"),
    ],
)
def test_class_names_that_fit_nothing_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        DataConfig(**{"source": "csv", "root": "x", "class_names": ("a", "b")} | settings)


@pytest.mark.parametrize("source", ["csv", "folder"])
def test_that_three_names_are_in_alphabetical_order_is_said(tmp_path, source, caplog):
    caplog.set_level("INFO")
    write_classes(tmp_path, *GRADES)
    write_csv(tmp_path, GRADES * 3)
    assert load(tmp_path, source).manifest.class_names == ("grave", "healthy", "mild")
    message = "classes are in alphabetical order: grave, healthy, mild; quadratic kappa takes it"
    assert caplog.text.count(message) == 1


def test_two_names_have_no_order_and_numbers_have_theirs(tmp_path, caplog):
    caplog.set_level("INFO")
    write_classes(tmp_path / "numbers", "1", "2", "10")
    write_classes(tmp_path / "names", "b", "a")
    assert load(tmp_path / "numbers").manifest.class_names == ("1", "2", "10")
    assert load(tmp_path / "names").manifest.class_names == ("a", "b")
    assert "alphabetical order" not in caplog.text


def test_classes_that_differ_in_capitals_alone_are_warned_of(tmp_path, caplog):
    write_csv(tmp_path, ("bösartig", "Bösartig", "gutartig") * 6)
    assert load(tmp_path, "csv").manifest.num_classes == 3
    assert "classes that differ in capitals alone: Bösartig, bösartig" in caplog.text


def test_a_test_split_without_a_class_is_warned_of(tmp_path, caplog):
    write_classes(tmp_path / "train", *GRADES)
    write_classes(tmp_path / "test", "healthy", "mild")
    load(tmp_path)
    assert "no test sample has class 0 (grave): metrics are means over the others" in caplog.text


def test_whole_numbers_may_have_a_point(tmp_path):
    header = "image,label,true_label,quality"
    rows = [
        f"{i}.png,{i % 11}.0,{'' if i % 2 else '10.0'},{'' if i % 3 else '1.0'}" for i in range(55)
    ]
    write_images(tmp_path, *(f"{i}.png" for i in range(55)))
    (tmp_path / "labels.csv").write_text("\n".join([header, *rows]) + "\n")
    manifest = load(tmp_path, "csv").manifest
    assert manifest.class_names == tuple(map(str, range(11)))
    assert manifest.labels.tolist() == [i % 11 for i in range(55)]
    assert manifest.true_labels.tolist() == [UNKNOWN if i % 2 else 10 for i in range(55)]
    assert manifest.quality.tolist() == [UNKNOWN if i % 3 else 1 for i in range(55)]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([*GRADES * 4, "2"], r"number among names, expected grave, .* \(1\): labels.csv:14 '2'$"),
        ([*GRADES * 4, "7.0"], r"number among names, .* \(1\): labels.csv:14 '7.0'$"),
        (
            [*"012" * 4, "mild"],
            r"no number and no class, expected 0..2 \(1\): labels.csv:14 'mild'$",
        ),
        (
            [*"012" * 4, "9", "9"],
            r"no label is 3, 4, .*, 8, but .* label is 9 \(first labels.csv:14",
        ),
        (
            [*"0022" * 4],
            r"no label is 1, but the largest in column label is 2 \(first labels.csv:4",
        ),
        ([*"3412" * 4], r"labels begin at 1 \(first labels.csv:4\); expected from 0$"),
    ],
)
def test_a_few_labels_unlike_the_others_are_named(tmp_path, labels, message):
    write_csv(tmp_path, labels)
    with pytest.raises(DataError, match=message) as error:
        load(tmp_path, "csv")
    assert "\n" not in str(error.value)


def test_the_largest_label_may_be_a_true_one(tmp_path):
    rows = [f"{i}.png,{i % 2},{'5' if i == 7 else ''}" for i in range(10)]
    write_images(tmp_path, *(f"{i}.png" for i in range(10)))
    (tmp_path / "labels.csv").write_text("\n".join(["image,label,true_label", *rows]) + "\n")
    message = (
        r"no label is 2, 3, 4, 5, but the largest in column true_label is 5 \(first labels.csv:9"
    )
    with pytest.raises(DataError, match=message):
        load(tmp_path, "csv")


def prepare(folder, root, **changes):
    config = DataConfig(source="csv", root=root, image_size=8, **changes)
    recipe = Recipe(size=8, crop="none", encoding="png", quality=90)
    preparation = Preparation(config, 0, recipe, folder, 1 << 20)
    preparation.run(1, lambda num_images: None)
    return preparation


def test_prepared_data_keep_the_order_of_classes(tmp_path):
    write_csv(tmp_path / "raw", GRADES * 5)
    prepare(tmp_path / "made", tmp_path / "raw", class_names=GRADES)
    asked = DataConfig(prepared=tmp_path / "made", image_size=8, validation_fraction=0.0)
    assert settle(asked).class_names == GRADES
    for names in (None, GRADES):
        config = asked.model_copy(update={"class_names": names})
        assert load_source(config, 0).manifest.class_names == GRADES
    with pytest.raises(
        DataError, match=r"data.class_names: \['a', 'b'\], but .* prepared with \['h"
    ):
        settle(asked.model_copy(update={"class_names": ("a", "b")}))


def test_prepared_data_without_class_names_are_as_those_made_before_there_were_any(tmp_path):
    write_csv(tmp_path / "raw", GRADES * 5)
    preparation = prepare(tmp_path / "made", tmp_path / "raw")
    assert "class_names" not in read_manifest(tmp_path / "made")["request"]
    assert preparation.is_finished
    assert settle(DataConfig(prepared=tmp_path / "made", image_size=8)).class_names is None
