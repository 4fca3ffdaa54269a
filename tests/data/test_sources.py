import json
import logging
import os
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from data.config import SourceName
from data.errors import DataError
from data.manifest import TEST, TRAIN, UNKNOWN, VALIDATION
from data.sources import SOURCES, DataConfig, load_source
from data.sources.splits import carve

REALDATA = os.environ.get("MEDNOISE_REALDATA")
DIGITS = {"source": "digits", "image_size": 16}


def write_image(path, shade=128):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 10), (shade, shade, shade)).save(path)


def write_csv(path, header, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *rows]) + "\n")


def load(root, source, seed=0, **changes):
    settings = {"image_size": 8, "validation_fraction": 0.0} | changes
    return load_source(DataConfig(source=source, root=root, **settings), seed)


def class_counts(manifest, split):
    labels = manifest.labels[manifest.where(split)]
    return np.bincount(labels, minlength=manifest.num_classes).tolist()


def write_own(root, header, rows):
    """A plain CSV and its images."""
    write_csv(root / "labels.csv", header, rows)
    for row in rows:
        write_image(root / row.partition(",")[0])


# ---- the table of sources and its settings


def test_each_source_has_a_loader():
    assert set(SOURCES) == set(get_args(SourceName))


def test_the_settings_survive_strict_validation_of_their_own_dump():
    config = DataConfig(source="csv", root=Path("x"), labels=Path("y.csv"), num_classes=3)
    text = json.dumps(config.model_dump(mode="json"))
    assert DataConfig.model_validate_json(text, strict=True, extra="forbid") == config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"source": "busi"}, "root: not set; source busi needs"),
        ({"source": "folder", "root": "x", "labels": "y.csv"}, "source folder reads none"),
        ({"source": "digits", "labels": "y.csv"}, "source digits reads none"),
        ({"source": "imagenet"}, "'eyepacs'"),
        ({"validation_fraction": 1.0}, "less than 1"),
        ({"test_fraction": 0.0}, "greater than 0"),
    ],
)
def test_settings_that_fit_nothing_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        DataConfig(**settings)


# ---- the formats


def test_eyepacs_with_eyeq_labels(tmp_path):
    for split, start in (("train", 10), ("test", 20)):
        rows = [f"{i},{start + i}_left.jpeg,{i % 3},{i}" for i in range(5)]
        write_csv(tmp_path / f"Label_EyeQ_{split}.csv", ",image,quality,DR_grade", rows)
        for i in range(5):
            # Resized copies often come in another format than the names in the table.
            suffix = "png" if i % 2 else "jpeg"
            write_image(tmp_path / split / f"{start + i}_left.{suffix}", 40 * i)
    source = load(tmp_path, "eyepacs")
    manifest = source.manifest
    assert manifest.labels.tolist() == [0, 1, 2, 3, 4] * 2
    assert manifest.quality.tolist() == [2, 1, 0, 2, 1] * 2  # EyeQ's 0 is its best
    assert manifest.split.tolist() == [TRAIN] * 5 + [TEST] * 5
    assert manifest.names[1] == "train/11_left.png"
    assert (source.reader.read(1) == 40).all()
    assert (manifest.true_labels == UNKNOWN).all()


def test_eyepacs_with_kaggles_labels_keeps_both_eyes_of_a_patient_together(tmp_path):
    rows = [f"{p}_{eye},{p % 5}" for p in range(40) for eye in ("left", "right")]
    write_csv(tmp_path / "trainLabels.csv", "image,level", rows)
    for row in rows:
        write_image(tmp_path / "images" / f"{row.partition(',')[0]}.jpeg")
    manifest = load(tmp_path, "eyepacs", validation_fraction=1 / 3).manifest
    assert len(manifest) == 80
    for patient in range(40):
        assert len(set(manifest.split[2 * patient : 2 * patient + 2])) == 1
    assert class_counts(manifest, TEST) == [4, 4, 4, 4, 4]  # 0.2 of 16 is 3.2; patients bring two
    assert class_counts(manifest, VALIDATION) == [4, 4, 4, 4, 4]  # a third of the other 12


def test_eyepacs_refuses_a_quality_that_eyeq_does_not_have(tmp_path):
    write_csv(tmp_path / "own.csv", "image,quality,DR_grade", ["1_left.jpeg,3,0"])
    write_image(tmp_path / "1_left.jpeg")
    with pytest.raises(DataError, match=r"quality that is no whole number.*own.csv:2 \"EyeQ's 3\""):
        load(tmp_path, "eyepacs", labels="own.csv")


def write_ddr(folder):
    for split, start in (("train", 0), ("valid", 10), ("test", 20)):
        lines = [f"007-{start + grade:04d}.jpg {grade}" for grade in range(6)]
        write_csv(folder / f"{split}.txt", lines[0], lines[1:])
        for line in lines:
            write_image(folder / split / line.split()[0])


@pytest.mark.parametrize("folder", ["DR_grading", ""])
def test_ddr_leaves_ungradable_images_out_and_says_so(tmp_path, folder, caplog):
    write_ddr(tmp_path / folder)
    with caplog.at_level(logging.INFO):
        manifest = load(tmp_path, "ddr", validation_fraction=0.5).manifest
    assert "3 ungradable" in caplog.text
    for split in (TRAIN, VALIDATION, TEST):  # its own validation split stays as it is
        assert class_counts(manifest, split) == [1, 1, 1, 1, 1]
    assert manifest.names[5] == os.path.join(folder, "valid", "007-0010.jpg")


def test_ddr_names_lines_without_a_grade(tmp_path):
    write_ddr(tmp_path)
    with (tmp_path / "valid.txt").open("a") as file:
        file.write("\n007-0011.jpg\n")
    with pytest.raises(DataError, match=r"empty label \(1\): valid.txt:8"):
        load(tmp_path, "ddr")


def test_aptos2019(tmp_path):
    rows = [f"{index:012x},{index % 5}" for index in range(50)]
    write_csv(tmp_path / "train.csv", "id_code,diagnosis", rows)
    for row in rows:
        write_image(tmp_path / "train_images" / f"{row.partition(',')[0]}.png")
    manifest = load(tmp_path, "aptos2019", test_fraction=0.3, validation_fraction=0.3).manifest
    assert class_counts(manifest, TEST) == [3] * 5
    assert class_counts(manifest, VALIDATION) == [2] * 5
    assert (manifest.patients == UNKNOWN).all()


ISIC_HEADER = "image,MEL,NV,BCC,AK,BKL,DF,VASC,SCC,UNK"


def write_isic(root, num_images=24, extra=()):
    rows = []
    for index in range(num_images):
        hot = ["1.0" if column == index % 8 else "0.0" for column in range(9)]
        rows.append(f"ISIC_{index:07d}," + ",".join(hot))
    write_csv(root / "ISIC_2019_Training_GroundTruth.csv", ISIC_HEADER, [*rows, *extra])
    for row in (*rows, *extra):
        write_image(root / "ISIC_2019_Training_Input" / f"{row.partition(',')[0]}.jpg")
    return [row.partition(",")[0] for row in rows]


def test_isic2019_with_list_files(tmp_path, caplog):
    names = write_isic(tmp_path)
    (tmp_path / "train.txt").write_text("\n".join(names[:12]))
    (tmp_path / "val.txt").write_text("\n".join(f"{name}.jpg" for name in names[12:16]) + "\n")
    (tmp_path / "test.txt").write_text("\n".join(names[16:20]))
    lesions = [f"{name},{'L1' if name in (names[0], names[17]) else ''}" for name in names]
    write_csv(tmp_path / "ISIC_2019_Training_Metadata.csv", "image,lesion_id", lesions)
    manifest = load(tmp_path, "isic2019", validation_fraction=0.5).manifest
    assert [len(manifest.where(split)) for split in range(3)] == [12, 4, 4]
    assert manifest.labels.tolist() == [index % 8 for index in range(20)]
    assert manifest.class_names == ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC")
    assert "1 lesions on two sides" in caplog.text


def test_isic2019_without_a_list_for_validation_carves_it_by_lesion(tmp_path):
    names = write_isic(tmp_path, 160)
    (tmp_path / "train.txt").write_text("\n".join(names[:128]))
    (tmp_path / "test.txt").write_text("\n".join(names[128:]))
    # Images 0 and 128 show one lesion on two sides of the lists, which stay as they are.
    lesions = [f"{name},L{index % 128 // 16}-{index % 8}" for index, name in enumerate(names)]
    write_csv(tmp_path / "ISIC_2019_Training_Metadata.csv", "image,lesion_id", lesions)
    manifest = load(tmp_path, "isic2019", validation_fraction=0.25).manifest
    assert len(manifest.where(TEST)) == 32 and len(manifest.where(VALIDATION)) == 32
    of_lesion = [f"{index // 16}-{index % 8}" for index in range(128)]
    split = dict(zip(manifest.names, manifest.split, strict=True))
    for lesion in set(of_lesion):
        members = [name for name, own in zip(names, of_lesion, strict=False) if own == lesion]
        assert len({split[next(n for n in split if name in n)] for name in members}) == 1


def test_isic2019_without_lists_is_split_by_lesion(tmp_path):
    names = write_isic(tmp_path, 160, ["ISIC_9000000,0,0,0,0,0,0,0,0,1"])
    lesions = [f"{name},L{index // 16}-{index % 8}" for index, name in enumerate(names)]
    write_csv(tmp_path / "ISIC_2019_Training_Metadata.csv", "image,lesion_id", lesions)
    manifest = load(tmp_path, "isic2019").manifest
    assert len(manifest) == 160  # the unknown class is none
    assert class_counts(manifest, TEST) == [4] * 8
    assert len(set(manifest.patients)) == 80
    for lesion in range(80):
        assert len(set(manifest.split[manifest.patients == lesion])) == 1


def test_isic2019_names_rows_that_are_not_one_hot(tmp_path):
    extra = ["A,1,1,0,0,0,0,0,0,0", "B,0,0,0,0,0,0,0,0,0", "C,0,0.5,0,0,0,0,0,0,0"]
    write_isic(tmp_path, extra=extra)
    with pytest.raises(DataError) as error:
        load(tmp_path, "isic2019")
    assert "ISIC_2019_Training_GroundTruth.csv:26 'MEL+NV'" in str(error.value)
    assert "empty label (1): ISIC_2019_Training_GroundTruth.csv:27" in str(error.value)
    assert "'NV=0.5'" in str(error.value)


def test_isic2019_names_wrong_lines_of_lists(tmp_path):
    names = write_isic(tmp_path)
    (tmp_path / "train.txt").write_text("\n".join(names))
    (tmp_path / "test.txt").write_text(f"{names[3]}\nISIC_none\n")
    with pytest.raises(DataError) as error:
        load(tmp_path, "isic2019")
    assert f"listed twice (1): test.txt:1 '{names[3]}'" in str(error.value)
    assert "without a label (1): test.txt:2 'ISIC_none'" in str(error.value)


@pytest.mark.parametrize("folder", ["", "Dataset_BUSI_with_GT"])
def test_busi_as_published_leaves_masks_out(tmp_path, folder):
    write_image(tmp_path / folder / "Benign" / "1.png")
    with pytest.raises(DataError, match="folders normal, benign, malignant; found folders: Benign"):
        load(tmp_path, "busi")
    for name in ("benign", "malignant", "normal"):
        for index in range(1, 11):
            stem = tmp_path / folder / name / f"{name} ({index})"
            for ending in (".png", "_mask.png", "_mask_1.png"):
                write_image(Path(f"{stem}{ending}"))
    manifest = load(tmp_path, "busi").manifest
    assert len(manifest) == 30
    assert manifest.class_names == ("normal", "benign", "malignant")
    assert class_counts(manifest, TEST) == [2, 2, 2]
    assert (
        manifest.labels[list(manifest.names).index(os.path.join(folder, "normal/normal (7).png"))]
        == 0
    )


@pytest.mark.parametrize("splits", [("",), ("train", "val", "test")])
def test_a_folder_for_each_class(tmp_path, splits):
    for split in splits:
        for name in ("10", "9", "1"):
            for index in range(10):
                write_image(tmp_path / split / name / "deeper" / f"{name}-{index}.PNG")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / splits[0] / "9" / "._hidden.png").write_text("left by another system")
    manifest = load(tmp_path, "folder").manifest
    assert manifest.class_names == ("1", "9", "10")
    expected = [[10] * 3] * 3 if len(splits) > 1 else [[8] * 3, [0] * 3, [2] * 3]
    assert [class_counts(manifest, split) for split in range(3)] == expected
    assert all(
        name.split("-")[0].endswith(manifest.class_names[label])
        for name, label in zip(manifest.names, manifest.labels, strict=True)
    )


def test_csv_with_all_its_columns(tmp_path, caplog):
    header = "\ufeffimage,label,true_label,quality,patient,split,age"
    rows = [
        "a.png,cat,dog,1,p1,train,3",
        "b.png,dog,,0,,train,4",
        "",
        '"c.png",cat,cat,,p2,Val,5',
        " d.png , dog,dog,2,p3,test,6",
    ]
    write_csv(tmp_path / "labels.csv", header, rows)
    for name in ("a.png", "b.png", "images/c.png", "d.png"):
        write_image(tmp_path / name)
    manifest = load(tmp_path, "csv").manifest
    assert manifest.class_names == ("cat", "dog")
    assert manifest.labels.tolist() == [0, 1, 0, 1]
    assert manifest.true_labels.tolist() == [1, UNKNOWN, 0, 1]
    assert manifest.quality.tolist() == [1, 0, UNKNOWN, 2]
    assert manifest.patients.tolist() == [0, UNKNOWN, 1, 2]
    assert manifest.split.tolist() == [TRAIN, TRAIN, VALIDATION, TEST]
    assert "not read: age" in caplog.text  # a warning: it could be the patient, misspelt


def test_csv_groups_are_patients(tmp_path):
    rows = [f"{index}.png,{index % 2},g{index // 4}" for index in range(40)]
    write_own(tmp_path, "image,label,group", rows)
    manifest = load(tmp_path, "csv").manifest
    assert manifest.patients.tolist() == [index // 4 for index in range(40)]
    assert class_counts(manifest, TEST) == [4, 4]


def test_digits():
    source = load(None, "digits", validation_fraction=0.1, image_size=16)
    manifest = source.manifest
    assert len(manifest) == len(source.reader) == 1797
    assert manifest.num_classes == 10
    totals = np.bincount(manifest.labels)
    num_test, num_validation = (
        np.array(class_counts(manifest, split)) for split in (TEST, VALIDATION)
    )
    assert (np.abs(num_test - 0.2 * totals) <= 0.5).all()
    assert (np.abs(num_validation - 0.1 * (totals - num_test)) <= 0.5).all()
    image = source.reader.read(0)  # a 0: a ring around an empty middle
    assert image.shape == (16, 16, 3)
    assert image[8, 8].max() < 60 < image[8, 4:12].max()


def test_synthetic_images_differ_with_the_seed_and_only_with_it():
    settings = {"synthetic": {"num_train": 60, "num_test": 10}, "validation_fraction": 0.2}
    one, same, other = (load(None, "synthetic", seed, **settings) for seed in (1, 1, 2))
    assert len(one.manifest.where(TEST)) == 10
    assert 10 <= len(one.manifest.where(VALIDATION)) <= 14
    assert np.array_equal(one.manifest.true_labels, one.manifest.labels)
    assert np.array_equal(one.reader.read(5), same.reader.read(5))
    assert not np.array_equal(one.reader.read(5), other.reader.read(5))


# ---- carving


def test_carving_is_seeded_but_the_test_split_is_the_same_for_every_seed():
    first, again, other = (
        load(None, seed=seed, validation_fraction=0.1, **DIGITS).manifest for seed in (3, 3, 4)
    )
    assert np.array_equal(first.split, again.split)
    assert np.array_equal(first.where(TEST), other.where(TEST))
    assert not np.array_equal(first.where(VALIDATION), other.where(VALIDATION))


def test_carving_single_samples_gives_each_class_its_share():
    labels = np.repeat([0, 1, 2], [100, 30, 4])
    chosen = carve(labels, np.full(134, UNKNOWN), 0.25, np.random.default_rng(0))
    # A quarter of 30 is 7.5; taking an eighth brings it no nearer than 7.
    assert np.bincount(labels[chosen]).tolist() == [25, 7, 1]
    assert (np.diff(chosen) > 0).all()


def test_carving_keeps_groups_together_and_comes_near_the_shares():
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 300, 1200)
    labels = rng.choice(4, 1200, p=[0.6, 0.25, 0.1, 0.05])
    chosen = carve(labels, groups, 0.2, rng)
    rest = np.setdiff1d(np.arange(1200), chosen)
    assert not set(groups[chosen]) & set(groups[rest])
    shares = np.bincount(labels[chosen]) / np.bincount(labels)
    assert np.abs(shares - 0.2).max() < 0.03


# ---- the real packs

PACKS = {
    # From the tables of the packs' own description: samples of each class, then groups.
    "deepdrid": {"train": [540, 140, 234, 214, 72], "test": [174, 46, 92, 68, 20]},
    "busi": {"train": [100, 328, 158], "test": [33, 109, 52]},
    "ham10000": {
        "train": [90, 112, 142, 45, 165, 210, 60],
        "test": [30, 38, 48, 15, 55, 70, 20],
    },
}
NUM_GROUPS = {"deepdrid": (300, 100), "busi": (426, 147), "ham10000": (824, 276)}


@pytest.mark.skipif(not REALDATA, reason="MEDNOISE_REALDATA names no folder of real images")
@pytest.mark.parametrize("name", PACKS)
def test_a_real_pack_has_the_counts_of_its_description(name):
    source = load(Path(REALDATA, name), name, image_size=96)
    manifest = source.manifest
    assert class_counts(manifest, TRAIN) == PACKS[name]["train"]
    assert class_counts(manifest, TEST) == PACKS[name]["test"]
    groups = [set(manifest.patients[manifest.where(split)]) for split in (TRAIN, TEST)]
    assert tuple(map(len, groups)) == NUM_GROUPS[name]
    assert not groups[0] & groups[1]
    assert UNKNOWN not in groups[0] | groups[1]
    image = source.reader.read(7)
    assert image.shape == (96, 96, 3)
    assert image.std() > 10  # a picture, not a blank
    if name == "deepdrid":
        quality = manifest.quality[manifest.where(TRAIN)]
        assert np.bincount(quality).tolist() == [624, 576]


@pytest.mark.skipif(not REALDATA, reason="MEDNOISE_REALDATA names no folder of real images")
@pytest.mark.parametrize("name", PACKS)
def test_validation_carved_from_a_real_pack_shares_no_patient_and_no_test_image(name):
    whole = load(Path(REALDATA, name), name).manifest
    manifest = load(Path(REALDATA, name), name, seed=5, validation_fraction=0.1).manifest
    assert np.array_equal(manifest.where(TEST), whole.where(TEST))
    train, validation = manifest.where(TRAIN), manifest.where(VALIDATION)
    assert not set(manifest.patients[train]) & set(manifest.patients[validation])
    shares = np.array(class_counts(manifest, VALIDATION)) / PACKS[name]["train"]
    assert (np.abs(shares - 0.1) < 0.04).all()
