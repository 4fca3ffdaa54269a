"""Each source, prepared, says what it says raw; discs are cut out; looks tell images apart."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance

from data.config import DataConfig
from data.disc import find_disc
from data.fundus import draw_fundus
from data.prepared import looks as looks_module
from data.prepared.build import Preparation
from data.prepared.convert import Recipe
from data.prepared.layout import SAMPLES
from data.prepared.looks import MAX_DIFFERENT, NUM_BANDS, group_alike, look_of
from data.prepared.reader import PreparedImages
from data.sources import load_source

REALDATA = os.environ.get("MEDNOISE_REALDATA")
COLUMNS = ("labels", "true_labels", "quality", "patients", "split")
RECIPE = Recipe(size=16, crop="none", encoding="png", quality=90)


def names_of(source):
    """The images' places and the label files of a source with 20 images of its layout."""
    numbers = range(20)
    one_hot = [",".join("1" if c == i % 8 else "0" for c in range(8)) for i in numbers]
    half = ["train" if i < 10 else "test" for i in numbers]
    pack = [f"images/{i}.png" for i in numbers]
    tables = {
        "eyepacs": (
            [f"train/{i}_left.png" for i in numbers],
            {"trainLabels.csv": ["image,level", *(f"{i}_left,{i % 5}" for i in numbers)]},
        ),
        "ddr": (
            [f"{half[i]}/{i}.png" for i in numbers] + ["valid/v.png"],
            {
                "train.txt": [f"{i}.png {i % 5}" for i in range(10)],
                "valid.txt": ["v.png 0"],
                "test.txt": [f"{i}.png {i % 5}" for i in range(10, 20)],
            },
        ),
        "aptos2019": (
            [f"train_images/{i}.png" for i in numbers],
            {"train.csv": ["id_code,diagnosis", *(f"{i},{i % 5}" for i in numbers)]},
        ),
        "deepdrid": (
            pack,
            {"manifest.csv": ["image,label,quality,split,patient",
                              *(f"{pack[i]},{i % 5},{i % 2},{half[i]},{i}" for i in numbers)]},
        ),
        "isic2019": (
            [f"ISIC_2019_Training_Input/{i}.png" for i in range(20)],
            {"ISIC_2019_Training_GroundTruth.csv": [
                "image,MEL,NV,BCC,AK,BKL,DF,VASC,SCC", *(f"{i},{one_hot[i]}" for i in numbers)]},
        ),
        "ham10000": (
            pack,
            {"manifest.csv": ["image,label,split,group",
                              *(f"{pack[i]},{i % 7},{half[i]},{i}" for i in numbers)]},
        ),
        "busi": (
            pack,
            {"manifest.csv": ["image,label,split,group",
                              *(f"{pack[i]},{i % 3},{half[i]},{i}" for i in numbers)]},
        ),
        "folder": ([f"{half[i]}/{'ab'[i % 2]}/{i}.png" for i in numbers], {}),
        "csv": (
            [f"{i}.png" for i in numbers],
            {"labels.csv": ["image,label,quality",
                            *(f"{i}.png,{i % 3},{i % 4}" for i in numbers)]},
        ),
    }  # fmt: skip
    return tables[source]


FILE_SOURCES = (
    "eyepacs", "ddr", "aptos2019", "deepdrid", "isic2019", "ham10000", "busi", "folder", "csv",
)  # fmt: skip


@pytest.mark.parametrize("source", FILE_SOURCES)
def test_each_source_prepared_says_and_shows_what_it_does_raw(tmp_path, source):
    images, tables = names_of(source)
    raw, made = tmp_path / "raw", tmp_path / "made"
    for seed, name in enumerate(images):
        (raw / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (20, 24, 3), np.uint8)
        Image.fromarray(pixels).save(raw / name)
    for name, lines in tables.items():
        (raw / name).write_text("\n".join(lines) + "\n")
    asked = {"image_size": 16, "validation_fraction": 0.0, "test_fraction": 0.3}
    config = DataConfig(source=source, root=raw, **asked)
    Preparation(config, 0, RECIPE, made, 1 << 20).run(1, lambda number: None)
    expected = load_source(config, 4)
    found = load_source(DataConfig(prepared=made, **asked), 4)
    for column in COLUMNS:
        assert np.array_equal(getattr(found.manifest, column), getattr(expected.manifest, column))
    assert found.manifest.names == expected.manifest.names
    assert found.manifest.class_names == expected.manifest.class_names
    for index in range(len(images)):
        assert np.array_equal(found.reader.read(index), expected.reader.read(index))


# ---- discs


def framed_fundus(seed, side=300, frame=(400, 700), at=(40, 180), background=0):
    """A drawn fundus in a larger frame, and the box of what is drawn."""
    pixels = draw_fundus(2, side, np.random.default_rng(seed))
    canvas = np.full((*frame, 3), background, np.uint8)
    region = canvas[at[0] : at[0] + side, at[1] : at[1] + side]
    y, x = np.mgrid[:side, :side]
    # A disc with a sharp border around the middle of what is drawn.
    lit = (x - side / 2) ** 2 + (y - side / 2) ** 2 < (0.42 * side) ** 2
    region[lit] = np.maximum(pixels, 30)[lit]
    rows, columns = np.flatnonzero(lit.any(axis=1)), np.flatnonzero(lit.any(axis=0))
    box = (at[1] + columns[0], at[0] + rows[0], at[1] + columns[-1] + 1, at[0] + rows[-1] + 1)
    return canvas, np.array(box)


@pytest.mark.parametrize("background", [0, 255])
@pytest.mark.parametrize("seed", range(4))
def test_the_box_of_a_disc_is_found_beside_text_and_noise(seed, background):
    frame, expected = framed_fundus(seed, background=background)
    picture = Image.fromarray(frame)
    ImageDraw.Draw(picture).text((560, 380), "OD 2024", fill=(128, 128, 128))
    noise = np.random.default_rng(seed).normal(0, 2, frame.shape)
    noisy = np.clip(np.asarray(picture) + noise, 0, 255).astype(np.uint8)
    assert np.abs(np.array(find_disc(noisy)) - expected).max() <= 6


def test_what_has_no_background_or_no_disc_stays_whole():
    filled = np.random.default_rng(0).integers(60, 200, (200, 300, 3), np.uint8)
    filled[:40, :40] = 220
    assert find_disc(filled) is None
    assert find_disc(np.zeros((200, 300, 3), np.uint8)) is None
    speck = np.zeros((200, 300, 3), np.uint8)
    speck[80:110, 100:140] = 200
    assert find_disc(speck) is None


def test_a_fundus_is_cut_to_its_disc_at_the_wanted_size(tmp_path):
    (tmp_path / "raw" / "0").mkdir(parents=True)
    frame, expected = framed_fundus(1, side=1200, frame=(1400, 2600), at=(100, 700))
    Image.fromarray(frame).save(tmp_path / "raw" / "0" / "eye.jpg", quality=95)
    recipe = Recipe(size=300, crop="disc", encoding="png", quality=90)
    (tmp_path / "raw" / "1").mkdir()
    config = DataConfig(source="folder", root=tmp_path / "raw", image_size=300)
    made = tmp_path / "made"
    Preparation(config, 0, recipe, made, 1 << 20).run(1, lambda number: None)
    with np.load(made / SAMPLES) as samples:
        assert np.abs(samples["box"][0].astype(int) - expected).max() <= 12
        assert samples["full_size"].tolist() == [[2600, 1400]]
        left, top, right, bottom = samples["box"][0]
    image = PreparedImages(made, 300).read(0).astype(int)
    cut = Image.fromarray(frame[top:bottom, left:right]).resize((300, 300), Image.BICUBIC)
    assert np.abs(image - np.asarray(cut)).mean() < 3


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_raw_images_cropped_to_the_disc_look_like_prepared_ones(tmp_path, suffix):
    frame, _ = framed_fundus(3, side=800, frame=(1000, 1500), at=(100, 300))
    for name in ("train/0", "train/1", "test/0"):
        (tmp_path / "raw" / name).mkdir(parents=True)
        Image.fromarray(frame).save(tmp_path / "raw" / name / f"eye.{suffix}", quality=95)
    asked = {"image_size": 96, "validation_fraction": 0.0}
    raw = DataConfig(source="folder", root=tmp_path / "raw", crop="disc", **asked)
    recipe = Recipe(size=96, crop="disc", encoding="png", quality=90)
    made = tmp_path / "made"
    Preparation(raw, 0, recipe, made, 1 << 20).run(1, lambda number: None)
    cropped = load_source(raw, 0).reader.read(0)
    assert np.array_equal(
        load_source(DataConfig(prepared=made, **asked), 0).reader.read(0), cropped
    )
    whole = load_source(raw.model_copy(update={"crop": "none"}), 0).reader.read(0)
    assert np.abs(whole.astype(int) - cropped).mean() > 10


# ---- looks


def poor_copies(picture):
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=60)
    yield Image.open(content)
    yield picture.resize((picture.width * 3 // 5, picture.height * 3 // 5))
    yield ImageEnhance.Brightness(picture).enhance(1.1)


def test_looks_group_copies_and_keep_drawn_eyes_apart():
    pictures = [
        Image.fromarray(draw_fundus(i % 5, 128, np.random.default_rng(i))) for i in range(40)
    ]
    looks = [look_of(np.asarray(picture)) for picture in pictures]
    for picture in pictures[:8]:
        looks += [look_of(np.array(copy)) for copy in poor_copies(picture)]
    groups = group_alike(np.stack(looks))
    assert len(set(groups[:40])) == 40
    copies = groups[40:].reshape(8, 3)
    assert (copies == groups[:8, None]).mean() > 0.9


def half_constant(rng, num_looks):
    """Bits of looks of which the first half are hardly ever set, as in the corners of a fundus."""
    return (rng.random((num_looks, 256)) < np.repeat([0.01, 0.5], 128)).astype(np.int64)


def clustered(rng, seeds):
    """Bits of 300 looks, each of which differs in a few from one of the seeds."""
    chosen = seeds[rng.integers(0, len(seeds), 300)]
    return chosen ^ (rng.random((300, 256)) < 0.02)


@pytest.mark.parametrize("looks", ["random", "clustered", "half constant"])
def test_groups_are_those_of_comparing_everything_with_everything(looks):
    rng = np.random.default_rng(0)
    bits = {
        "random": lambda: rng.integers(0, 2, (300, 256)),
        "clustered": lambda: clustered(rng, rng.integers(0, 2, (60, 256))),
        "half constant": lambda: clustered(rng, half_constant(rng, 60)),
    }[looks]()
    distances = (bits[:, None] != bits[None]).sum(axis=2)
    near = distances <= MAX_DIFFERENT
    expected = np.arange(300)
    for _ in range(300):  # the smallest index that a chain reaches
        expected = np.where(near, expected[None], 300).min(axis=1)
    groups = group_alike(np.packbits(bits, axis=1))
    assert np.array_equal(groups[:, None] == groups[None], expected[:, None] == expected[None])
    assert 60 <= len(set(groups)) < 300 or looks == "random"


def test_bits_that_are_nearly_constant_do_not_make_every_look_compared(monkeypatch):
    bits, num_compared = half_constant(np.random.default_rng(0), 1000), 0
    real = looks_module._num_different

    def counting(first, second):
        nonlocal num_compared
        num_compared += len(first)
        return real(first, second)

    monkeypatch.setattr(looks_module, "_num_different", counting)
    group_alike(np.packbits(bits, axis=1))
    num_by_neighbours = 0
    for band in bits.reshape(1000, NUM_BANDS, -1).swapaxes(0, 1):
        _, sizes = np.unique(band, axis=0, return_counts=True)
        num_by_neighbours += int((sizes * (sizes - 1) // 2).sum())
    num_pairs = 1000 * 999 // 2
    assert num_by_neighbours > 5 * num_pairs
    assert 0 < num_compared < 0.1 * num_pairs


def test_the_search_can_be_stopped_at_each_band():
    looks = np.packbits(np.random.default_rng(0).integers(0, 2, (50, 256)), axis=1)
    num_calls = 0

    def advance():
        nonlocal num_calls
        num_calls += 1
        if num_calls == NUM_BANDS:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        group_alike(looks, advance)


def test_many_that_are_all_alike_are_one_group_beside_the_others():
    """Such as a film's frames, of which each resembles each: more pairs than there are images."""
    rng = np.random.default_rng(0)
    frames = np.tile(rng.integers(0, 2, 256), (400, 1))
    frames[np.arange(400)[:, None], rng.integers(0, 256, (400, 4))] ^= 1
    others = rng.integers(0, 2, (50, 256))
    groups = group_alike(np.packbits(np.concatenate([frames, others]), axis=1))
    assert len(set(groups[:400])) == 1 and len(set(groups)) == 51


@pytest.mark.skipif(not REALDATA, reason="MEDNOISE_REALDATA names no folder of real images")
def test_no_real_eye_is_taken_for_another_patients(tmp_path):
    config = DataConfig(source="deepdrid", root=Path(REALDATA, "deepdrid"), image_size=96)
    recipe = Recipe(size=96, crop="disc", encoding="jpeg", quality=90)
    made = Preparation(config, 0, recipe, tmp_path / "made", 1 << 30).run(2, lambda number: None)
    assert len(made.manifest) == 1600
    assert made.duplicates.num_divided(made.manifest.patients) == 0
    assert made.duplicates.num_divided(np.arange(1600)) > 10  # views of one eye
