"""The loader: whatever the number of workers, the same batches bit by bit."""

import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from PIL import Image
from processes import ROOT

from data.degrade import degrade
from data.errors import DataError
from data.images import ArrayImages, FileImages
from data.loader import DegradedImages, ImageDataset, SampleLoader, hold_in_memory
from data.manifest import PackedStrings

# Three workers on a machine of two cores are slow, which is not what matters here.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")

NUM_IMAGES, SIDE = 14, 16
SEVERITY, SEED = (0.6, 1.0), 3
NUM_WORKERS = [0, 1, 3]
# Out of order, of several sizes, with one id in two batches: nothing that a sampler would yield.
BATCHES = [np.array(ids) for ids in ([5, 0, 9], [13], [2, 1, 4, 3], [9, 8], [12, 6, 7, 11, 10])]
OTHER_BATCHES = [np.array(ids) for ids in ([7, 3], [0, 13, 5])]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """JPEG files larger than what is delivered, so that decoding and scaling matter."""
    folder = tmp_path_factory.mktemp("images")
    noise = np.random.default_rng(0).integers(0, 256, (NUM_IMAGES, 40, 48, 3), np.uint8)
    names = [f"{index}.jpg" for index in range(NUM_IMAGES)]
    for name, image in zip(names, noise, strict=True):
        Image.fromarray(image).save(folder / name)
    return FileImages(folder, PackedStrings.pack(names), SIDE)


@pytest.fixture(scope="module")
def reader(files):
    """Every third image spoiled."""
    return DegradedImages(files, np.arange(NUM_IMAGES) % 3 == 0, SEVERITY, SEED)


@pytest.fixture
def loader(request, reader):
    return SampleLoader(ImageDataset(reader), request.param, pin_memory=False)


any_number_of_workers = pytest.mark.parametrize("loader", NUM_WORKERS, indirect=True)


def assert_loads(loader, batches, reader):
    """The given batches in the given order, with the pixels that the reader gives."""
    loaded = list(loader(batches))
    assert [sample_ids.tolist() for sample_ids, _ in loaded] == [ids.tolist() for ids in batches]
    for sample_ids, images in loaded:
        expected = np.stack([reader.read(int(index)) for index in sample_ids])
        assert sample_ids.dtype == torch.int64
        assert images.dtype == torch.uint8
        assert torch.equal(images, torch.from_numpy(expected.transpose(0, 3, 1, 2)))


@any_number_of_workers
def test_batches_are_those_given_bit_by_bit(loader, reader):
    assert_loads(loader, BATCHES, reader)


@any_number_of_workers
def test_workers_that_live_on_see_the_batches_of_each_phase(loader, reader):
    for batches in (BATCHES, OTHER_BATCHES, [], BATCHES[:1], BATCHES[::-1]):
        assert_loads(loader, batches, reader)


@any_number_of_workers
def test_an_abandoned_phase_does_not_leak_into_the_next(loader, reader):
    abandoned = loader(BATCHES)
    next(abandoned)
    assert_loads(loader, OTHER_BATCHES, reader)
    abandoned.close()
    assert_loads(loader, BATCHES, reader)


def test_only_marked_images_are_spoiled_and_always_in_the_same_way(reader, files):
    for index in range(NUM_IMAGES):
        original = files.read(index)
        if index % 3 == 0:
            expected = degrade(original, SEVERITY, SEED, index)
            assert not np.array_equal(expected, original)
        else:
            expected = original
        assert np.array_equal(reader.read(index), expected)
    assert len(reader) == NUM_IMAGES


@pytest.mark.parametrize("num_workers", NUM_WORKERS)
def test_a_truncated_image_is_an_error_that_names_the_file(tmp_path, num_workers):
    names = [f"{index}.jpg" for index in range(4)]
    for name in names:
        pixels = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
    cut = tmp_path / "2.jpg"
    cut.write_bytes(cut.read_bytes()[:2000])
    reader = FileImages(tmp_path, PackedStrings.pack(names), SIDE)
    loader = SampleLoader(ImageDataset(reader), num_workers, pin_memory=False)
    loaded = loader([np.array([0, 1]), np.array([3, 2])])
    assert next(loaded)[0].tolist() == [0, 1]
    with pytest.raises(DataError) as caught:
        next(loaded)
    message = str(caught.value)
    assert message.startswith(f"{cut}: cannot be read as an image (")
    assert "\n" not in message  # written for the user, without a worker's traceback


@pytest.mark.parametrize("num_threads", [0, 1, 3])
def test_images_held_in_memory_are_those_read_one_by_one(reader, num_threads):
    held = hold_in_memory(reader, num_threads, show_progress=False)
    assert len(held) == NUM_IMAGES
    for index in range(NUM_IMAGES):
        assert np.array_equal(held.read(index), reader.read(index))


def test_an_image_that_cannot_be_held_is_an_error_that_names_the_file(tmp_path):
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(tmp_path / "good.png")
    reader = FileImages(tmp_path, PackedStrings.pack(["good.png", "gone.png"]), SIDE)
    with pytest.raises(DataError, match=r"gone\.png: .*no such file"):
        hold_in_memory(reader, 2, show_progress=False)


def test_a_batch_can_be_changed_without_changing_the_images_held():
    held = ArrayImages(np.full((2, SIDE, SIDE, 3), 7, np.uint8))
    loader = SampleLoader(ImageDataset(held), 0, pin_memory=False)
    for _, images in loader([np.array([1])]):
        images += 1
    assert (held.read(1) == 7).all()


@pytest.mark.parametrize("seconds", [0, 1000])
def test_a_process_ends_whatever_its_workers_do(seconds):
    """They ignore SIGTERM, by which Python ends its children; idle, or stuck in an image."""
    program = textwrap.dedent(f"""
        import time

        import numpy as np
        from data.loader import ImageDataset, SampleLoader

        class Reader:
            def __len__(self):
                return 4

            def read(self, index):
                if index == 3:
                    print("stuck", flush=True)
                    time.sleep({seconds})
                return np.zeros((2, 2, 3), np.uint8)

        loader = SampleLoader(ImageDataset(Reader()), 2, pin_memory=False)
        for sample_ids, _ in loader([np.array([index]) for index in (0, 1, 2, 3)]):
            if sample_ids[0] == 2:
                raise SystemExit(7)
    """)
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (ended.returncode, ended.stderr) == (7, "")
    assert "stuck" in ended.stdout
