"""A data set of a CSV and its images, raw and prepared, for tests of what is prepared."""

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from data.config import DataConfig
from data.prepared.build import Preparation
from data.prepared.convert import Recipe


def photograph(seed, height=90, width=120):
    """A smooth picture with some texture, other for each seed."""
    noise = np.random.default_rng(seed).standard_normal((height, width, 3))
    coarse = gaussian_filter(noise, (height / 10, height / 10, 0))
    fine = gaussian_filter(noise[:, :, :1], (height / 40, height / 40, 0))
    picture = 120 + 45 * coarse / coarse.std() + 12 * fine / fine.std()
    return np.clip(picture, 0, 255).astype(np.uint8)


def write_own(root, num_images=12, suffix="png"):
    """A CSV with every column, and its images, the last three of them for testing."""
    rows = ["image,label,true_label,quality,patient,split"]
    for i in range(num_images):
        Image.fromarray(photograph(i)).save(root / f"{i}.{suffix}")
        split = "test" if i >= num_images - 3 else "train"
        patient = i // 3 + (100 if split == "test" else 0)  # nobody is in both
        labels = f"{'ab'[i % 2]},{'ab'[i % 3 == 1]}"
        rows.append(f"{i}.{suffix},{labels},{i % 3},{patient},{split}")
    (root / "labels.csv").write_text("\n".join(rows) + "\n")


def recipe(**changes):
    return Recipe(**{"size": 48, "crop": "none", "encoding": "jpeg", "quality": 90} | changes)


def prepare(config, folder, seed=0, num_threads=1, bytes_per_shard=1 << 20, **changes):
    """Prepare a data set; returns what was made."""
    preparation = Preparation(config, seed, recipe(**changes), folder, bytes_per_shard)
    return preparation.run(num_threads, lambda num_images: None)


def own(root, **changes):
    return DataConfig(source="csv", root=root, image_size=48, validation_fraction=0.0, **changes)


def prepared(folder, **changes):
    return DataConfig(prepared=folder, **{"image_size": 48, "validation_fraction": 0.0} | changes)
