"""What it costs to read images: as usual programs do it, ours from raw folders, ours prepared.

``python benchmarks/prepared_data.py``. Originals of the size of EyePACS's (6.7 megapixels, about
730 kB) are made of smooth random fields and of drawn eyes with such fields as texture. Times are of
one core, as processor time: all is decoding from memory, and the machine may have other work.
(It is not called ``data.py``: Python would take that for the package ``data``.)
"""

import argparse
import io
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter
from timing import Goal, interleaved, median_ratio, print_figures
from torch import Tensor
from torch.nn import functional as F
from torchvision import transforms as published
from torchvision.io import decode_jpeg, read_file

from data.config import DataConfig
from data.fundus import draw_fundus
from data.images import Crop, FileImages
from data.loader import ImageDataset
from data.manifest import PackedStrings
from data.prepared.build import Preparation
from data.prepared.convert import Recipe
from data.prepared.layout import RECORDS
from data.prepared.reader import PreparedImages
from data.views import Views, ViewsConfig
from engine.config import load_config
from launcher.settings import Config

__all__ = ["main"]

SIDE, SIZE, ORIGINAL_BYTES = 2600, 384, 730_000
LARGER_SIZE = 512
# Reading what is prepared is so much shorter that a round repeats it.
REPEATS = 10
SSCL_SIZE, SSCL_BATCH = 224, 16
ROOT = Path(__file__).resolve().parents[1]


def smooth_field(height: int, width: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """A random field (height, width, 3) float32 with structure of many sizes, mean 0."""
    field = np.zeros((height, width, 3), np.float32)
    for sigma, strength in ((width / 12, 40), (width / 60, 14), (width / 300, 5), (1.2, 2)):
        # Coarse fields are drawn coarsely and enlarged, which looks the same and is quick.
        step = max(1, int(sigma / 4))
        noise = rng.standard_normal((height // step + 2, width // step + 2)).astype(np.float32)
        layer = gaussian_filter(noise, sigma / step)
        planes = torch.from_numpy(layer / layer.std())[None, None]
        layer = F.interpolate(planes, (height, width), mode="bilinear")[0, 0].numpy()
        field += strength * layer[..., None] * rng.uniform(0.6, 1, 3).astype(np.float32)
    return field


def save_of_size(pixels: NDArray[np.uint8], path: Path, num_bytes: int) -> None:
    """Save a JPEG at the quality whose size is nearest to a wanted one."""
    candidates = []
    for quality in range(70, 97, 3):
        content = io.BytesIO()
        Image.fromarray(pixels).save(content, "JPEG", quality=quality)
        candidates.append(content.getvalue())
    path.write_bytes(min(candidates, key=lambda content: abs(len(content) - num_bytes)))


def make_originals(folder: Path, num_images: int) -> None:
    """Half random fields, half drawn eyes, as files of one class of a folder source."""
    (folder / "0").mkdir(parents=True)
    for index in range(num_images):
        rng = np.random.default_rng(index)
        field = smooth_field(SIDE, SIDE, rng)
        if index % 2:
            eye = draw_fundus(index % 5, SIDE, rng)
            lit = eye.max(axis=2, keepdims=True) > 20
            pixels = np.where(lit, eye + field / 3, eye)
        else:
            pixels = 128 + field
        pixels = np.clip(pixels, 0, 255).astype(np.uint8)
        save_of_size(pixels, folder / "0" / f"{index}.jpg", ORIGINAL_BYTES)


def prepare(root: Path, folder: Path, size: int, crop: Crop) -> None:
    """Prepare a folder source as launcher/prepare.py does by default."""
    recipe = Recipe(size=size, crop=crop, encoding="jpeg", quality=90)
    config = DataConfig(source="folder", root=root)
    Preparation(config, 0, recipe, folder, 1 << 31).run(2, lambda number: None)


def read_by_pillow(path: Path) -> Tensor:
    """As the published programs do: decode in full, resize, make a tensor."""
    with Image.open(path) as image:
        resized = image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1).contiguous()


def read_by_torchvision(path: Path) -> Tensor:
    """Decode in full and resize as a tensor."""
    pixels = decode_jpeg(read_file(str(path)))
    scaled = F.interpolate(pixels[None], (SIZE, SIZE), mode="bilinear", antialias=True)
    return scaled[0].contiguous()


def all_of(read: Callable[[Any], Any], items: Sequence[Any]) -> Callable[[], None]:
    """Work that reads every item."""

    def work() -> None:
        for item in items:
            read(item)

    return work


def measure_reading(folder: Path, num_images: int, rounds: int) -> dict[str, float | Goal]:
    """Originals to 384 px uint8 by each route."""
    make_originals(folder / "raw", num_images)
    prepare(folder / "raw", folder / "prepared", SIZE, "disc")
    prepare(folder / "raw", folder / "prepared-larger", LARGER_SIZE, "disc")
    names = PackedStrings.pack(f"0/{index}.jpg" for index in range(num_images))
    raw = ImageDataset(FileImages(folder / "raw", names, SIZE))
    reader = PreparedImages(folder / "prepared", SIZE)
    prepared = ImageDataset(reader)
    larger = ImageDataset(PreparedImages(folder / "prepared-larger", SIZE))
    paths = [folder / "raw" / name for name in names]
    often = list(range(num_images)) * REPEATS
    timings = interleaved(
        {
            "pillow": all_of(read_by_pillow, paths),
            "torchvision": all_of(read_by_torchvision, paths),
            "raw": all_of(raw.__getitem__, range(num_images)),
            "prepared": all_of(prepared.__getitem__, often),
            "prepared_larger": all_of(larger.__getitem__, often),
        },
        rounds,
        time.process_time,
    )
    per_image = {
        name: 1e3 * statistics.median(times) / num_images / (REPEATS if "prepared" in name else 1)
        for name, times in timings.items()
    }
    num_bytes = [len(reader.read_encoded(index)) for index in range(num_images)]
    return {
        "kilobytes_original": statistics.mean(path.stat().st_size for path in paths) / 1e3,
        "ms_pillow": per_image["pillow"],
        "ms_torchvision": per_image["torchvision"],
        "ms_raw": Goal(per_image["raw"], 15),
        "ms_prepared": Goal(per_image["prepared"], 1.5),
        "kilobytes_prepared": Goal(statistics.mean(num_bytes) / 1e3, 60),
        "pillow_over_torchvision": median_ratio(timings, "pillow", "torchvision"),
        "pillow_over_raw": median_ratio(timings, "pillow", "raw"),
        "pillow_over_prepared": Goal(
            REPEATS * median_ratio(timings, "pillow", "prepared"), 30, at_most=False
        ),
        "ms_prepared_larger": per_image["prepared_larger"],
        "pillow_over_prepared_larger": REPEATS * median_ratio(timings, "pillow", "prepared_larger"),
    }


def published_views() -> Callable[[Image.Image], list[Tensor]]:
    """Three views of one image as SSCL's program makes them, with Pillow: two strong, one weak."""
    finish = [
        published.ToTensor(),
        published.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ]
    strong = published.Compose([
        published.RandomResizedCrop(SSCL_SIZE, (0.2, 1.0)),
        published.RandomHorizontalFlip(),
        published.RandomApply([published.ColorJitter(0.4, 0.4, 0.4, 0.1)], 0.8),
        published.RandomGrayscale(0.2),
        *finish,
    ])  # fmt: skip
    weak = published.Compose(
        [published.RandomResizedCrop(SSCL_SIZE), published.RandomHorizontalFlip(), *finish]
    )
    return lambda image: [strong(image), strong(image), weak(image)]


def sscl_views() -> ViewsConfig:
    """The views of our configuration of SSCL."""
    path = ROOT / "configs" / "sscl_isic2019.yaml"
    return load_config(Config, path, ["data.root=unused"]).views


def measure_views(folder: Path, rounds: int) -> dict[str, float | Goal]:
    """A 1024 x 768 JPEG to three normalised views of 224 px."""
    raw = folder / "lesions"
    (raw / "0").mkdir(parents=True)
    for index in range(SSCL_BATCH):
        field = smooth_field(768, 1024, np.random.default_rng(index))
        pixels = np.clip(140 + field, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(raw / "0" / f"{index:02}.jpg", quality=90)
    prepare(raw, folder / "prepared-lesions", 256, "none")
    dataset = ImageDataset(PreparedImages(folder / "prepared-lesions", SSCL_SIZE))
    views, make_published = Views(sscl_views(), 0), published_views()
    ids = torch.arange(SSCL_BATCH)

    def theirs() -> None:
        for path in sorted((raw / "0").iterdir()):
            with Image.open(path) as image:
                make_published(image.convert("RGB"))

    def ours() -> None:
        stacked = torch.stack([dataset[index][1] for index in range(SSCL_BATCH)])
        images = stacked.permute(0, 3, 1, 2).contiguous()
        for view in (0, 1):
            views(images, ids, 0, view, "strong")
        views(images, ids, 0, 0, "weak")

    timings = interleaved({"published": theirs, "ours": ours}, rounds, time.process_time)
    per_image = {n: 1e3 * statistics.median(times) / SSCL_BATCH for n, times in timings.items()}
    return {
        "ms_three_views_published": per_image["published"],
        "ms_three_views_ours": Goal(per_image["ours"], 4),
        "three_views_published_over_ours": median_ratio(timings, "published", "ours"),
    }


def memory_bytes() -> dict[str, int]:
    """This process's memory: its peak, and what it shares with nobody's file."""
    status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    sizes = {line.partition(":")[0]: line.split()[1] for line in status if line.endswith("kB")}
    return {"peak": 1024 * int(sizes["VmHWM"]), "own": 1024 * int(sizes["RssAnon"])}


def read_epochs(reader: PreparedImages, num_epochs: int) -> list[dict[str, int]]:
    """Read every row once an epoch, in another order each; decode one in 500. Memory after each."""
    # One array, shuffled in place: what an epoch's order takes is not the reader's.
    order, found = np.arange(len(reader)), []
    for epoch in range(num_epochs):
        np.random.default_rng(epoch).shuffle(order)
        for count, index in enumerate(map(int, order)):
            if count % 500:
                reader.read_encoded(index)
            else:
                reader.read(index)
        found.append(memory_bytes())
    return found


def measure_memory(folder: Path, num_rows: int) -> dict[str, float | Goal]:
    """Memory of a spawned worker over three epochs of a manifest of many rows."""
    records = np.load(folder / "prepared" / RECORDS)
    large = folder / "large"
    large.mkdir()
    np.save(large / RECORDS, np.resize(records, num_rows))
    for shard in (folder / "prepared").glob("*.tar"):
        (large / shard.name).symlink_to(shard)
    reader = PreparedImages(large, SIZE)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        first, *_, last = pool.submit(read_epochs, reader, 3).result()
    return {
        "memory_rows": num_rows,
        "megabytes_worker_peak": last["peak"] / 1e6,
        # Within the noise of an allocator.
        "megabytes_peak_growth_after_first_epoch": Goal((last["peak"] - first["peak"]) / 1e6, 1),
        "megabytes_own_growth_after_first_epoch": Goal((last["own"] - first["own"]) / 1e6, 1),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=int, default=8, help="originals, at least 2")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the manifest for memory")
    options = parser.parse_args(arguments)
    if options.images < 2:
        parser.error(f"--images: found {options.images}, expected 2 or more, of two classes")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        figures = measure_reading(folder, options.images, options.rounds)
        figures |= measure_views(folder, options.rounds)
        figures |= measure_memory(folder, options.rows)
    print_figures(figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
