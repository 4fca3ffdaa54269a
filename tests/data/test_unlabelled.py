import numpy as np
import pytest
import torch
from PIL import Image

from data.errors import DataError
from data.images import decode
from data.unlabelled import list_images, load_batches


@pytest.fixture
def folder(tmp_path):
    for name in ("b.png", "a.JPG", "deep/c.tif", "deep/d.v2.png", ".hidden.png", ".cache/e.png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (20, 20), (len(name), 90, 30)).save(path)
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


def test_a_folder_is_searched_in_alphabetical_order(folder):
    found = list_images([folder])
    assert list(found.names) == ["a.JPG", "b.png", "deep/c.tif", "deep/d.v2.png"]
    assert list(found.paths) == [str(folder / name) for name in found.names]
    assert found.num_passed_over == 1


def test_a_csv_keeps_its_order_and_repetitions(folder):
    (folder / "list.csv").write_text(
        "\ufeffpicture,age\ndeep/c.tif,3\nb,4\n a.png ,5\nb,6\nno.png,7\ndeep/d.v2,8\n",
        encoding="utf-8",
    )
    found = list_images([folder / "list.csv"], column="picture")
    assert list(found.names) == ["deep/c.tif", "b", "a.png", "b", "no.png", "deep/d.v2"]
    files = ["deep/c.tif", "b.png", "a.JPG", "b.png", "no.png", "deep/d.v2.png"]
    assert list(found.paths) == [str(folder / name) for name in files]


def test_a_csv_may_name_what_lies_in_a_folder_images_beside_it(folder):
    (folder / "images").mkdir()
    for name in ("b.png", "new.png"):
        Image.new("RGB", (20, 20)).save(folder / "images" / name)
    (folder / "list.csv").write_text("image\nb.png\nnew\n")
    found = list_images([folder / "list.csv"])
    assert list(found.paths) == [str(folder / "b.png"), str(folder / "images" / "new.png")]


def test_a_csv_of_absolute_paths(folder):
    (folder / "lists").mkdir()
    (folder / "lists/list.csv").write_text(f"image\n{folder / 'b.png'}\n../a.JPG\n")
    found = list_images([folder / "lists/list.csv"])
    (path, other) = found.paths
    assert path == str(folder / "b.png") and decode(folder / "lists" / other, 8, "crop").any()


def test_a_name_that_fits_two_files_is_not_guessed_at(folder):
    Image.new("RGB", (20, 20)).save(folder / "b.bmp")
    (folder / "list.csv").write_text("image\nb\nb.bmp\n")
    found = list_images([folder / "list.csv"])
    assert [path.removeprefix(f"{folder}/") for path in found.paths] == ["b", "b.bmp"]


def test_files_and_folders_come_in_the_order_of_the_request(folder):
    found = list_images([folder / "notes.txt", folder / "deep", folder / "gone.png"])
    assert list(found.names) == [
        str(folder / "notes.txt"), "c.tif", "d.v2.png", str(folder / "gone.png")
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("empty", "empty: no images; expected files with the suffixes .jpg"),
        ("gone", "gone: no such folder or file"),
        ("gone.csv", "gone.csv: no such file"),
        ("list.csv", "list.csv: has the columns picture; required: image"),
    ],
)
def test_a_request_without_images_is_refused(tmp_path, name, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "list.csv").write_text("picture\na.png\n")
    with pytest.raises(DataError) as caught:
        list_images([tmp_path / name])
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_hold_what_training_would_read(folder, num_workers):
    found = list_images([folder, folder / "notes.txt"])
    batches = [np.array([3, 0]), np.array([4, 2])]
    loaded = list(load_batches(found.paths, batches, 16, "pad", num_workers, pin_memory=False))
    assert [batch.indices.tolist() for batch in loaded] == [[3, 0], [4, 2]]
    for batch in loaded:
        for index, image, error in zip(*batch, strict=True):
            if index == 4:
                assert "notes.txt" in error and not image.any()
                continue
            expected = decode(folder / found.names[int(index)], 16, "pad")
            assert torch.equal(image, torch.from_numpy(expected.transpose(2, 0, 1))) and not error


def test_a_rank_without_a_batch_reads_nothing(folder):
    assert (
        list(load_batches(list_images([folder]).paths, [], 16, "crop", 2, pin_memory=False)) == []
    )
