import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.errors import DataError
from data.images import ArrayImages, FileImages, decode, find_unreadable
from data.manifest import PackedStrings

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def three_squares(side):
    """Red, green and blue squares side by side: (side, 3 * side, 3)."""
    row = np.repeat(np.array([RED, GREEN, BLUE], np.uint8), side, axis=0)
    return np.broadcast_to(row, (side, 3 * side, 3)).copy()


def smooth_image(width, height):
    """Waves a few dozen pixels long, so that scaling changes them little."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / 40), np.cos(y / 30), np.sin((x + y) / 50)]
    return (127.5 + 100 * np.stack(waves, axis=-1)).astype(np.uint8)


@pytest.fixture
def squares(tmp_path):
    path = tmp_path / "squares.png"
    Image.fromarray(three_squares(100)).save(path)
    return path


def test_crop_keeps_the_centre(squares):
    image = decode(squares, 50, "crop")
    assert image.shape == (50, 50, 3)
    assert image.dtype == np.uint8
    assert (image[:, 2:-2] == GREEN).all()  # the filter reaches over the border of the crop
    assert (image[:, [0, -1], 1] > 200).all()


def test_crop_of_a_tall_image_keeps_the_centre(tmp_path):
    Image.fromarray(three_squares(30).transpose(1, 0, 2)).save(tmp_path / "tall.png")
    assert (decode(tmp_path / "tall.png", 10, "crop")[2:-2] == GREEN).all()


def test_squash_keeps_everything(squares):
    image = decode(squares, 30, "squash")
    for part, colour in enumerate((RED, GREEN, BLUE)):
        # Away from the borders between the squares, where the filter mixes them.
        assert (image[:, part * 10 + 3 : part * 10 + 7] == colour).all()


def test_pad_keeps_everything_and_adds_black(squares):
    image = decode(squares, 90, "pad")  # 300 x 100 becomes 90 x 30, rows 30 to 59
    assert (image[:30] == 0).all()
    assert (image[60:] == 0).all()
    for part, colour in enumerate((RED, GREEN, BLUE)):
        assert (image[30:60, part * 30 + 5 : part * 30 + 25] == colour).all()


def test_a_small_image_is_enlarged(tmp_path):
    Image.new("RGB", (7, 9), BLUE).save(tmp_path / "small.png")
    assert (decode(tmp_path / "small.png", 32, "crop") == BLUE).all()


@pytest.mark.parametrize("resize", ["crop", "pad", "squash"])
@pytest.mark.parametrize("shape", [(1600, 1000), (1000, 1600)])
def test_a_jpeg_decoded_at_reduced_scale_looks_like_the_whole_one(tmp_path, resize, shape):
    path = tmp_path / "large.jpg"
    Image.fromarray(smooth_image(*shape)).save(path, quality=95)
    Image.open(path).convert("RGB").save(tmp_path / "large.png")  # has no reduced scale
    reduced = decode(path, 64, resize).astype(int)
    assert np.abs(reduced - decode(tmp_path / "large.png", 64, resize)).max() <= 6


def test_shrinking_averages_instead_of_picking_pixels(tmp_path):
    checkers = np.indices((256, 256)).sum(axis=0) % 2 * 255
    Image.fromarray(checkers.astype(np.uint8)).save(tmp_path / "checkers.png")
    assert np.abs(decode(tmp_path / "checkers.png", 16, "crop").astype(int) - 127).max() <= 2


@pytest.mark.parametrize(
    ("mode", "value", "expected"),
    [
        ("L", 90, (90, 90, 90)),
        ("1", 1, (255, 255, 255)),
        ("LA", (90, 0), (90, 90, 90)),
        ("RGBA", (10, 20, 30, 0), (10, 20, 30)),
        ("I;16", 0x8034, (128, 128, 128)),
        ("I;16", 0x00FF, (0, 0, 0)),
        ("I;16", 0xFFFF, (255, 255, 255)),
    ],
)
def test_modes_become_rgb(tmp_path, mode, value, expected):
    Image.new(mode, (8, 8), value).save(tmp_path / "image.png")
    assert (decode(tmp_path / "image.png", 8, "crop") == expected).all()


def test_palette_and_cmyk_become_rgb(tmp_path):
    Image.new("RGB", (8, 8), GREEN).quantize(4).save(tmp_path / "palette.png")
    assert (decode(tmp_path / "palette.png", 8, "crop") == GREEN).all()
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "cmyk.tif")
    assert (decode(tmp_path / "cmyk.tif", 8, "crop") == RED).all()


def test_floating_point_pixels_are_refused(tmp_path):
    Image.new("F", (8, 8), 0.5).save(tmp_path / "float.tif")
    with pytest.raises(DataError, match="float.tif.*save it as 8 or 16 bits"):
        decode(tmp_path / "float.tif", 8, "crop")


def test_an_exif_rotation_is_not_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees for display
    Image.fromarray(three_squares(64)).save(tmp_path / "image.jpg", quality=95, exif=exif)
    image = decode(tmp_path / "image.jpg", 48, "squash").astype(int)
    assert np.abs(image[:, 4:12] - RED).max() < 20
    assert np.abs(image[:, -12:-4] - BLUE).max() < 20


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.9, 0.99])
def test_a_truncated_file_is_named(tmp_path, suffix, share):
    path = tmp_path / f"cut.{suffix}"
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (200, 300, 3), np.uint8)).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(DataError, match=rf"cut\.{suffix}: cannot be read as an image"):
        decode(path, 16, "crop")


def test_what_is_no_image_is_named_with_the_reason(tmp_path):
    (tmp_path / "page.jpg").write_text("<html>404</html>")
    (tmp_path / "folder.png").mkdir()
    for name, reason in [
        ("page.jpg", "no image format is recognised"),
        ("absent.png", "no such file"),
        ("folder.png", "Is a directory"),
    ]:
        with pytest.raises(DataError, match=rf"{name}: .*\({reason}\)"):
            decode(tmp_path / name, 16, "crop")


def write_images(folder, num_images):
    names = [f"{index}.jpg" for index in range(num_images)]
    for index, name in enumerate(names):
        Image.fromarray(np.roll(smooth_image(40, 30), index, axis=0)).save(folder / name)
    return PackedStrings.pack(names)


def test_file_images_read_the_same_pixels_again_and_after_pickling(tmp_path):
    reader = FileImages(tmp_path, write_images(tmp_path, 3), 24, "pad")
    copy = pickle.loads(pickle.dumps(reader))
    assert len(reader) == len(copy) == 3
    for index in range(3):
        expected = decode(tmp_path / f"{index}.jpg", 24, "pad")
        assert np.array_equal(reader.read(index), expected)
        assert np.array_equal(copy.read(index), expected)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs Linux's /proc")
def test_no_file_stays_open(tmp_path):
    reader = FileImages(tmp_path, write_images(tmp_path, 4), 16)
    (tmp_path / "1.jpg").write_bytes((tmp_path / "1.jpg").read_bytes()[:300])
    (tmp_path / "2.jpg").write_text("no image")
    before = len(os.listdir("/proc/self/fd"))
    messages = []  # exceptions with their tracebacks would keep frames, and files in them, alive
    for index in range(4):
        try:
            reader.read(index)
        except DataError as error:
            messages.append(error)
    assert len(messages) == 2
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("num_threads", [0, 3])
def test_find_unreadable_decodes_each_image(tmp_path, num_threads):
    reader = FileImages(tmp_path, write_images(tmp_path, 6), 16)
    assert find_unreadable(reader, num_threads) == {}
    whole = (tmp_path / "1.jpg").read_bytes()
    (tmp_path / "1.jpg").write_bytes(whole[: len(whole) // 2])  # its header still reads well
    (tmp_path / "4.jpg").unlink()
    found = find_unreadable(reader, num_threads)
    assert list(found) == [1, 4]
    assert "1.jpg" in found[1]
    assert "no such file" in found[4]


def test_array_images_hand_out_what_they_hold():
    array = np.random.default_rng(0).integers(0, 256, (3, 12, 12, 3), np.uint8)
    reader = ArrayImages(array)
    assert len(reader) == 3
    assert np.array_equal(reader.read(2), array[2])
    with pytest.raises(ValueError, match="read-only"):
        reader.read(2)[:] = 0
    array[0] = 0  # the caller's own array stays writable


def test_array_images_scale_and_colour_grey_images():
    grey = np.full((2, 8, 8), 40, np.uint8)
    grey[1, :, 4:] = 200
    reader = ArrayImages(grey, 32)
    assert (reader.read(0) == 40).all()
    image = reader.read(1)
    assert image.shape == (32, 32, 3)
    # Bicubic scaling overshoots at most a little beside the edge, and not at all away from it.
    assert (image[:, :8] == 40).all()
    assert (image[:, 24:] == 200).all()
