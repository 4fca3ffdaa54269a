import numpy as np
import pytest

from data.corrections import apply_corrections
from data.errors import DataError
from data.manifest import LEFT_OUT, TEST, TRAIN, UNKNOWN, VALIDATION, Manifest, PackedStrings

HEADER = "sample_id,image,given_label,decision,new_label"
NAMES = ["a.png", "b.png", "sub, folder/c.png", "d.png", "e.png", "f.png"]
# The labels that a run is given: sample 1 was true 0 before noise.
LABELS = np.array([0, 1, 1, 2, 0, 2])
SPLIT = np.array([TRAIN, TRAIN, TRAIN, TRAIN, VALIDATION, TEST], np.uint8)


def manifest():
    unknown = np.full(len(NAMES), UNKNOWN)
    return Manifest(
        names=PackedStrings.pack(NAMES), labels=np.array([0, 0, 1, 2, 0, 2]),
        true_labels=unknown.copy(), quality=unknown.copy(), patients=unknown.copy(),
        split=SPLIT.copy(), class_names=("normal", "benign", "malignant"),
    )  # fmt: skip


@pytest.fixture
def apply(tmp_path):
    """Applies files of the given rows, ``decisions0.csv`` and so on."""

    def run(*files, header=HEADER):
        paths = [tmp_path / f"decisions{number}.csv" for number in range(len(files))]
        for path, rows in zip(paths, files, strict=True):
            path.write_text("\n".join([header, *rows]) + "\n")
        return apply_corrections(paths, manifest(), LABELS)

    return run


def test_each_decision_does_what_it_says_and_nothing_else(apply):
    given = LABELS.copy()
    corrected, labels = apply([
        "1,b.png,benign,change,normal",
        '2,"sub, folder/c.png",benign,keep,',
        "4,e.png,normal,unusable,",
    ])  # fmt: skip
    assert labels.tolist() == [0, 0, 1, 2, 0, 2]
    assert corrected.split.tolist() == [TRAIN, TRAIN, TRAIN, TRAIN, LEFT_OUT, TEST]
    # What was there before is not touched; names and numbers stay.
    assert (given == LABELS).all() and list(corrected.names) == NAMES
    assert manifest().where(VALIDATION).tolist() == [4] and not len(corrected.where(VALIDATION))


def test_without_files_nothing_changes():
    unchanged, labels = apply_corrections([], manifest(), LABELS)
    assert (labels == LABELS).all() and (unchanged.split == SPLIT).all()


def test_files_apply_one_after_the_other(apply):
    """The second is about the labels that the first one gave."""
    _, labels = apply(["1,b.png,benign,change,malignant"], ["1,b.png,malignant,change,normal"])
    assert labels.tolist() == [0, 0, 1, 2, 0, 2]
    with pytest.raises(DataError, match=r"given_label other .*\(here malignant\)"):
        apply(["1,b.png,benign,change,malignant"], ["1,b.png,benign,change,normal"])
    with pytest.raises(DataError, match="left out already"):
        apply(["1,b.png,benign,unusable,"], ["1,b.png,benign,keep,"])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("9,b.png,benign,keep,", "9,b.png,benign,keep, (here 1)"),
        ("0,b.png,benign,keep,", "0,b.png,benign,keep, (here 1)"),
        ("1,z.png,benign,keep,", "unknown sample"),
        ("x,z.png,benign,keep,", "unknown sample"),
        ("-1,f.png,malignant,keep,", "sample_id other than this image's"),
        ("1,b.png,normal,keep,", "given_label other than this run's; take data, noise"),
        ("1,b.png,1,keep,", "1,b.png,1,keep, (here benign)"),
        ("1,b.png,benign,drop,", "decision other than keep, change, unusable"),
        ("1,b.png,benign,change,cyst", "no class, expected normal, benign, malignant"),
        ("1,b.png,benign,change,", "no class, expected normal, benign, malignant"),
        ("1,b.png,benign,change,benign", "change to the given label; decide keep"),
        ("1,b.png,benign,keep,normal", "new_label with keep, expected none"),
        ("1,b.png,benign,unusable,benign", "new_label with unusable, expected none"),
        ("5,f.png,malignant,keep,", "sample that is of the test set"),
    ],
)
def test_a_wrong_row_is_named_on_one_line(apply, row, message):
    with pytest.raises(DataError) as caught:
        apply(["0,a.png,normal,keep,", row])
    text = str(caught.value)
    assert message in text and f"decisions0.csv:3 {row}" in text and "\n" not in text


def test_many_rows_of_one_kind_are_one_line_with_their_number(apply):
    """As after an image was taken out of the labels, or with another noise."""
    shifted = [f"{number + 1},{NAMES[number]},,keep," for number in (0, 1, 3, 4)]
    with pytest.raises(DataError) as caught:
        apply([*shifted, *(f"{number},{NAMES[number]},cyst,keep," for number in (0, 1, 3))])
    first, ids, labels = str(caught.value).splitlines()
    assert first.endswith("decisions0.csv:")
    assert "(4): decisions0.csv:2 1,a.png,,keep, (here 0), decisions0.csv:3 " in ids
    assert "labels that were reviewed" in ids
    assert "(3): decisions0.csv:6 0,a.png,cyst,keep, (here normal), " in labels
    assert "run that was reviewed" in labels


def test_a_sample_decided_on_twice_is_named_with_both_rows(apply):
    row = "1,b.png,benign,keep,"
    with pytest.raises(DataError, match=r"decided on twice.*csv:4 .*\(first at decisions0.csv:2\)"):
        apply([row, "0,a.png,normal,keep,", row])


@pytest.mark.parametrize(
    "header", ["sample_id,image,given_label,decision", f"{HEADER},note", "id,image,a,b,c"]
)
def test_another_header_is_refused(apply, header):
    fields = header.count(",")
    with pytest.raises(DataError, match=f"required: {HEADER.replace(',', ', ')}"):
        apply(["1" + "," * fields], header=header)


def test_semicolons_are_refused_with_a_hint(apply):
    """As spreadsheets write it where the comma is the decimal mark."""
    with pytest.raises(DataError, match="required: .*new_label, separated by commas"):
        apply(["1;b.png;benign;keep;"], header=HEADER.replace(",", ";"))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"data\.corrections: .*none\.csv: no such file"):
        apply_corrections([tmp_path / "none.csv"], manifest(), LABELS)


def test_a_class_must_keep_a_training_sample(apply):
    with pytest.raises(DataError, match="leaves no training sample of class malignant"):
        apply(["3,d.png,malignant,unusable,"])
