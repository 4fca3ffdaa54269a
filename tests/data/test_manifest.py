import pickle

import numpy as np
import pytest

from data.errors import DataError
from data.manifest import TEST, TRAIN, VALIDATION, Manifest, PackedStrings


def make_manifest(**changes):
    columns = {
        "names": PackedStrings.pack(["a.png", "b.png", "c.png", "d.png"]),
        "labels": np.array([0, 1, 2, 1]),
        "true_labels": np.array([0, 2, -1, 1]),
        "quality": np.array([1, 0, -1, 2]),
        "patients": np.array([7, 7, -1, 3]),
        "split": np.array([TRAIN, TRAIN, VALIDATION, TEST], np.uint8),
        "class_names": ("none", "mild", "severe"),
    }
    return Manifest(**columns | changes)


STRINGS = ["train/10_left.jpeg", "", "ärztlich/眼.png", "x"]


def test_packed_strings_are_a_sequence_of_the_same_strings():
    packed = PackedStrings.pack(iter(STRINGS))
    assert len(packed) == 4
    assert list(packed) == STRINGS
    assert [packed[index] for index in (-1, -4)] == ["x", STRINGS[0]]
    assert packed == PackedStrings.pack(STRINGS)
    assert packed != PackedStrings.pack([STRINGS[0] + STRINGS[1], *STRINGS[2:], ""])
    assert list(PackedStrings.pack([])) == []


@pytest.mark.parametrize("index", [4, -5])
def test_packed_strings_refuse_an_index_outside(index):
    with pytest.raises(IndexError, match="of 4"):
        PackedStrings.pack(STRINGS)[index]


def test_packed_strings_pickle_as_two_arrays():
    # 20,000 strings as Python objects would pickle to far more than their own bytes and offsets.
    strings = [f"images/{index:06d}.jpeg" for index in range(20_000)]
    pickled = pickle.dumps(PackedStrings.pack(strings))
    assert len(pickled) < sum(map(len, strings)) + 8 * 20_001 + 1000
    assert list(pickle.loads(pickled)) == strings


def test_where_gives_the_sample_ids_of_a_split():
    manifest = make_manifest()
    assert len(manifest) == 4
    assert manifest.num_classes == 3
    assert manifest.where(TRAIN).tolist() == [0, 1]
    assert manifest.where(VALIDATION).tolist() == [2]
    assert manifest.where(TEST).tolist() == [3]
    assert manifest.where(TRAIN).dtype == np.int64


def test_select_keeps_the_columns_aligned():
    selected = make_manifest().select(np.array([3, 0]))
    assert list(selected.names) == ["d.png", "a.png"]
    assert selected.labels.tolist() == [1, 0]
    assert selected.true_labels.tolist() == [1, 0]
    assert selected.quality.tolist() == [2, 1]
    assert selected.patients.tolist() == [3, 7]
    assert selected.split.tolist() == [TEST, TRAIN]
    assert selected.class_names == ("none", "mild", "severe")


def test_columns_cannot_be_changed():
    manifest = make_manifest()
    with pytest.raises(ValueError, match="read-only"):
        manifest.labels[0] = 1
    with pytest.raises(AttributeError):
        manifest.labels = np.zeros(4, np.int64)


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("labels", np.array([0, 1, 3, 1]), r"labels\[2\] is 3, expected 0\.\.2"),
        ("labels", np.array([0, -1, 2, 1]), r"labels\[1\] is -1"),
        ("labels", np.array([0, 1, 2]), r"labels: int64 \(3,\), expected int64 \(4,\)"),
        ("labels", np.array([0, 1, 2, 1], np.int32), "labels: int32"),
        ("true_labels", np.array([0, 1, -2, 1]), r"true_labels\[2\] is -2"),
        ("quality", np.array([0, 1, -2, 1]), r"quality\[2\] is -2"),
        ("patients", np.array([0, 1, -2, 1]), r"patients\[2\] is -2"),
        ("split", np.array([0, 1, 3, 4], np.uint8), r"split\[3\] is 4, expected 0\.\.3"),
        ("split", np.array([0, 1, 2, 0]), "split: int64"),
    ],
)
def test_a_wrong_column_is_refused(column, values, message):
    with pytest.raises(ValueError, match=message):
        make_manifest(**{column: values})


def test_a_name_in_another_encoding_is_named():
    with pytest.raises(DataError, match=r"'caf\\udce9.png': a name that is not UTF-8; rename it"):
        PackedStrings.pack(["a.png", "caf\udce9.png"])
