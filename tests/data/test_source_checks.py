import logging

import numpy as np
import pytest
from PIL import Image

from data.errors import DataError, Problems
from data.manifest import TRAIN
from data.sources import DataConfig, check_images, load_source


def write_own(root, header, rows):
    """A plain CSV and an image for each of its rows."""
    (root / "labels.csv").write_text("\n".join([header, *rows]) + "\n")
    for row in rows:
        Image.new("RGB", (12, 10)).save(root / row.partition(",")[0].strip('"'))


def load(root, source="csv", **changes):
    settings = {"image_size": 8, "validation_fraction": 0.0} | changes
    return load_source(DataConfig(source=source, root=root, **settings), 0)


def test_every_kind_of_problem_is_in_one_message_with_ten_names(tmp_path):
    wrong = [
        "0.png,0,train",
        "8.png,2,train",
        "9.png,-1,train",
        "10.png,x,train",
        "11.png,,test",
        "12.png,1.5,test",
        "13.png,1,dev",
        "14.png,1,",
    ]
    right = [f"{i}.png,{i % 2},{'test' if i > 5 else 'train'}" for i in range(8)]
    write_own(tmp_path, "image,label,split", right + wrong)
    with (tmp_path / "labels.csv").open("a") as file:
        file.writelines(f"absent{index}.png,0,train\n" for index in range(23))
    with pytest.raises(DataError) as error:
        load(tmp_path, "csv", num_classes=2)
    lines = str(error.value).splitlines()
    assert lines[0] == f"{tmp_path}:"
    assert sorted(line.strip() for line in lines[1:]) == sorted(
        [
            "same image twice (1): labels.csv:10 '0.png' (also labels.csv:2)",
            "no such image in ., images (23): "
            + ", ".join(f"labels.csv:{18 + index} 'absent{index}.png'" for index in range(10))
            + " and 13 more",
            "label outside 0..1 (2): labels.csv:11 '2', labels.csv:12 '-1'",
            "label that is no number and no class, expected 0..1 (2): "
            "labels.csv:13 'x', labels.csv:15 '1.5'",
            "empty label (1): labels.csv:14",
            "split other than train, val or test (1): labels.csv:16 'dev'",
            "empty split (1): labels.csv:17",
        ]
    )


@pytest.mark.parametrize(
    ("header", "rows", "message"),
    [
        ("image,grade", ["a.png,0"], "has the columns image, grade; required: image, label"),
        ("image;label", ["a.png"], "has the columns image;label; .*, separated by commas"),
        ("image,label", [], "labels.csv: has no rows"),
        ("image,label,label", ["a.png,0,1"], "columns given more than once: label"),
        ("image,label", ["a.png,0", "b.png,1,2"], r"without 2 fields: line 3 \(3\)"),
        ("image,label", ['"a.png,0'], "line 2 is no CSV"),
        ("image,label,quality", ["a.png,0,good"], "quality that is no whole number.*'good'"),
        ("image,label,quality", ["a.png,0,-1"], "quality that is no whole number.*'-1'"),
        ("image,label", ["a.png,0", "b.png,9"], r"label outside 0\.\.0 \(1\): labels.csv:3 '9'"),
        (
            "image,label",
            [f"{index}.png,{index % 2 * 2}" for index in range(10)],
            r"no label is 1, but the largest in column label is 2 \(first labels.csv:3\); expected",
        ),
        ("image,label,split", ["a.png,0,train", "b.png,1,val"], "no sample is left for test"),
        ("image,label,split", ["a.png,0,test", "b.png,1,test"], "no sample is left for train"),
        (
            "image,label,patient,split",
            ["a.png,0,p,train", "b.png,1,q,train", "c.png,1,p,test", "d.png,1,q,val"],
            r"two splits \(2\): p: train \(labels.csv:2\) and test \(labels.csv:4\), q: train",
        ),
    ],
)
def test_a_wrong_csv_is_refused(tmp_path, header, rows, message):
    write_own(tmp_path, header, rows)
    with pytest.raises(DataError, match=message):
        load(tmp_path, "csv", test_fraction=0.2)


def test_a_single_problem_is_one_line():
    problems = Problems("labels.csv")
    problems.raise_any()
    problems.add("empty label", "labels.csv:3")
    with pytest.raises(DataError, match=r"^labels\.csv: empty label \(1\): labels\.csv:3$"):
        problems.raise_any()


def test_absent_files_are_named(tmp_path):
    with pytest.raises(DataError, match=r"data\.root: .*nowhere is no folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(
        DataError, match=r"labels\.csv: no such file; .* name the labels in data\.l"
    ):
        load(tmp_path)
    with pytest.raises(DataError, match=r"trainLabels\.csv: no such file"):
        load(tmp_path, "eyepacs")
    with pytest.raises(DataError, match="has no images in folders of classes"):
        load(tmp_path, "folder")


def test_labels_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "labels.csv").write_bytes("image,label\nä.png,0\n".encode("utf-16"))
    with pytest.raises(DataError, match="labels.csv:1: not UTF-8 text; save it as UTF-8"):
        load(tmp_path)


def test_a_line_of_another_encoding_is_named(tmp_path):
    text = "image,label\na.png,gutartig\nb.png,bösartig\n"
    (tmp_path / "labels.csv").write_text(text, encoding="cp1252")
    with pytest.raises(DataError, match="labels.csv:3: not UTF-8 text"):
        load(tmp_path)


def test_a_name_that_two_files_answer_to_is_refused(tmp_path):
    write_own(tmp_path, "image,label", ["a.png,0", "a.jpg,1", "b.png,0"])
    (tmp_path / "labels.csv").write_text("image,label\na,0\nb,1\n")
    with pytest.raises(
        DataError, match=r"more than one file \(1\): labels.csv:2 'a' \(a.jpg, a.png\)"
    ):
        load(tmp_path)


def test_the_same_image_by_another_path_is_refused(tmp_path):
    root = tmp_path / "data"
    (root / "a").mkdir(parents=True)
    write_own(root, "image,label", [f"a/{index}.png,{index % 2}" for index in range(4)])
    (root / "b").symlink_to("a")
    (tmp_path / "link").symlink_to(root)
    others = [f"{root}/a/0.png", f"{tmp_path}/link/a/1.png", "../data/a/2.png", "b/3.png"]
    with (root / "labels.csv").open("a") as file:
        file.writelines(f"{name},0\n" for name in others)
    for start in (root, tmp_path / "link"):
        with pytest.raises(DataError, match=r"same image twice \(4\): labels.csv:6 ") as error:
            load(start)
        assert all(
            f"{name!r} (also labels.csv:{i + 2})" in str(error.value)
            for i, name in enumerate(others)
        )


def test_images_are_named_from_the_root_and_those_outside_it_as_they_are_given(tmp_path):
    root = tmp_path / "data"
    root.mkdir()
    outside = [f"{tmp_path}/2.png", "../3.png"]
    names = [f"{root}/0.png", "../data/1.png", *outside]
    write_own(root, "image,label", [f"{name},{index % 2}" for index, name in enumerate(names)])
    source = load(root, test_fraction=0.5)
    assert list(source.manifest.names) == ["0.png", "1.png", *outside]
    check_images(source)


def test_another_number_of_classes_than_the_sources_is_refused(tmp_path):
    (tmp_path / "train.csv").write_text("id_code,diagnosis\na,0\n")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="data.num_classes is 2, but the classes are .*no DR, mild"):
        load(tmp_path, "aptos2019", num_classes=2)
    with pytest.raises(DataError, match="data.num_classes: 9; source digits has 10"):
        load(None, "digits", num_classes=9)


ROWS = [f"{index}.png,{index % 2},{'test' if index > 15 else 'train'}" for index in range(20)]


@pytest.fixture
def damaged(tmp_path):
    """Twenty images: number 3 is cut off, 4 is no image, 5 is absent."""
    write_own(tmp_path, "image,label,split", ROWS)
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "3.png")
    (tmp_path / "3.png").write_bytes((tmp_path / "3.png").read_bytes()[:2000])
    (tmp_path / "4.png").write_text("no image")
    (tmp_path / "5.png").unlink()
    return tmp_path


def test_absent_images_stop_the_start_and_damaged_ones_the_check(damaged):
    with pytest.raises(DataError, match=r"no such image in \., images \(1\): labels.csv:7 '5.png'"):
        load(damaged)
    Image.new("RGB", (12, 10)).save(damaged / "5.png")
    source = load(damaged)  # listing folders does not open files
    with pytest.raises(
        DataError, match=r"3\.png: cannot be read as an image \(image file is trunc"
    ):
        source.reader.read(3)
    with pytest.raises(DataError) as error:
        check_images(source, num_threads=2)
    assert str(error.value).startswith("2 of 20 images cannot be read")
    assert "3.png" in str(error.value)
    assert "4.png" in str(error.value)


def test_quarantine_leaves_unreadable_images_out_and_says_so(damaged, caplog):
    with caplog.at_level(logging.WARNING):
        source = load(damaged, on_unreadable="quarantine")
    assert source.quarantined == ("5.png", "3.png", "4.png")
    for name in source.quarantined:
        assert name in caplog.text
    manifest = source.manifest
    kept = [index for index in range(20) if index not in (3, 4, 5)]
    assert list(manifest.names) == [f"{index}.png" for index in kept]
    assert manifest.labels.tolist() == [index % 2 for index in kept]
    assert len(source.reader) == 17
    check_images(source)


def test_quarantine_does_not_hide_that_a_class_is_lost(tmp_path):
    write_own(tmp_path, "image,label,split", ["a.png,0,train", "b.png,1,train", "c.png,1,test"])
    (tmp_path / "b.png").write_text("no image")
    with pytest.raises(DataError, match=r"no training sample has class 1 \(1\)"):
        load(tmp_path, on_unreadable="quarantine")


def test_a_sound_data_set_passes_the_check(tmp_path):
    write_own(tmp_path, "image,label,split", ROWS)
    source = load(tmp_path, on_unreadable="quarantine")
    assert source.quarantined == ()
    assert len(source.manifest.where(TRAIN)) == 16
    check_images(source)


def test_images_of_16_bits_that_use_fewer_are_warned_of(tmp_path, caplog):
    write_own(tmp_path, "image,label,split", ROWS)
    levels = np.random.default_rng(0).integers(0, 4096, (40, 40), np.uint16)
    for index, factor in ((7, 1), (4, 1), (9, 15)):
        Image.fromarray(levels * np.uint16(factor)).save(tmp_path / f"{index}.png")
    check_images(load(tmp_path), num_threads=2)  # others are black, of 8 bits
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith("images of 16 bits that use less than a quarter of their range (2), ")
    assert "such as 4.png: they are read as nearly black" in message
