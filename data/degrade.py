"""Makes a good photograph as poor as those that graders reject, for Mis-L noise in experiments.

The defects are those for which fundus photographs are rejected in practice, as EyeQ lists them (Fu
et al., MICCAI 2019, arXiv 1907.05345): blur, uneven illumination, haze of a clouded lens,
artefacts; and sensor noise. Lengths are shares of the image's side, so a defect hides as much at
every size.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

__all__ = ["degrade"]

# Keeps these draws apart from those that drew a synthetic picture of the same seed and number.
_STREAM = 0xDE64ADE

Picture = NDArray[np.float32]  # (H, W, 3) in [0, 1]


def degrade(
    image: NDArray[np.uint8], severity: tuple[float, float], seed: int, sample_id: int
) -> NDArray[np.uint8]:
    """Degrade one image by one to three defects.

    The result depends on the arguments alone. At least one of the defects that hide small lesions
    everywhere (defocus, haze) is always among them; illumination, artefacts and noise come on top.

    Args:
        image: (H, W, 3) uint8.
        severity: Lowest and highest strength, in [0, 1]; each defect draws its own between them. At
            0 a defect is faint, at 1 the image is beyond grading.
        seed: At least 0.
        sample_id: At least 0.

    Returns:
        (H, W, 3) uint8, a new array.
    """
    rng = np.random.default_rng([seed, sample_id, _STREAM])
    num_defects = int(rng.integers(1, 4))
    chosen = {str(rng.choice(_HIDING))}
    while len(chosen) < num_defects:
        chosen.add(str(rng.choice(list(_DEFECTS))))
    picture: Picture = image.astype(np.float32) / np.float32(255)
    for name, defect in _DEFECTS.items():
        if name in chosen:
            picture = defect(picture, float(rng.uniform(*severity)), rng)
    return (picture.clip(0, 1) * 255).round().astype(np.uint8)


def _places(picture: Picture) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Coordinates of the pixels' centres: (1, W, 1) across and (H, 1, 1) down, in [0, 1]."""
    height, width = picture.shape[:2]
    across = (np.arange(width, dtype=np.float32) + 0.5) / width
    down = (np.arange(height, dtype=np.float32) + 0.5) / height
    return across[None, :, None], down[:, None, None]


def _smooth(picture: Picture, sigma: float) -> Picture:
    """Gaussian blur; sigma in pixels."""
    levels = Image.fromarray((picture.clip(0, 1) * 255).round().astype(np.uint8))
    blurred = levels.filter(ImageFilter.GaussianBlur(sigma))
    return np.asarray(blurred, dtype=np.float32) / np.float32(255)


def _field(picture: Picture) -> Picture:
    """Where the photograph shows something rather than its black surround: (H, W, 1), soft."""
    brightest = picture.max(axis=2, keepdims=True)
    return np.clip((brightest - 0.06) / 0.06, 0, 1)


def _defocus(picture: Picture, strength: float, rng: np.random.Generator) -> Picture:
    """An eye out of focus."""
    side = min(picture.shape[:2])
    return _smooth(picture, (0.012 + 0.03 * strength) * side * rng.uniform(0.9, 1.1))


def _haze(picture: Picture, strength: float, rng: np.random.Generator) -> Picture:
    """A clouded lens: light scatters, so contrast falls and a milky veil lies over the field."""
    field = _field(picture)
    side = min(picture.shape[:2])
    veil = np.array([0.72, 0.60, 0.45], dtype=np.float32) * np.float32(rng.uniform(0.75, 1.1))
    across, down = _places(picture)
    x, y = rng.uniform(0.3, 0.7, 2)
    thick = np.exp(-((across - x) ** 2 + (down - y) ** 2) / 0.5).astype(np.float32)
    share = np.float32(0.6 + 0.33 * strength) * thick * field
    scattered = _smooth(picture, (0.008 + 0.014 * strength) * side)
    return scattered * (1 - share) + veil * share


def _illumination(picture: Picture, strength: float, rng: np.random.Generator) -> Picture:
    """Too dark, too bright, or lit from one side only."""
    kind = rng.choice(("dark", "bright", "uneven"))
    if kind == "dark":
        return picture * np.float32(0.4 - 0.28 * strength)
    if kind == "bright":
        return picture * np.float32(1.4 + 0.8 * strength)
    across, down = _places(picture)
    x, y = rng.uniform(0.1, 0.9, 2)
    away = (across - x) ** 2 + (down - y) ** 2
    light = 1.3 * np.exp(-away / (0.3 - 0.22 * strength)) + 0.05
    return picture * light.astype(np.float32)


def _artefacts(picture: Picture, strength: float, rng: np.random.Generator) -> Picture:
    """Dust and reflections as bright spots, smears as streaks, lashes as dark arcs from the rim."""
    height, width = picture.shape[:2]
    scale = np.array([width, height])
    side = min(width, height)
    layers = {0.95: Image.new("L", (width, height)), 0.03: Image.new("L", (width, height))}
    bright, dark = (ImageDraw.Draw(layer) for layer in layers.values())
    for _ in range(3 + round(9 * strength)):
        x, y = rng.uniform(0.1, 0.9, 2) * scale
        radius = rng.uniform(0.015, 0.03 + 0.06 * strength) * side
        bright.ellipse(
            (x - radius, y - radius, x + radius, y + radius), fill=int(rng.integers(60, 190))
        )
    for _ in range(1 + round(3 * strength)):
        ends = (rng.uniform(0.0, 1.0, (2, 2)) * scale).ravel().tolist()
        bright.line(ends, fill=int(rng.integers(40, 120)), width=max(1, round(0.03 * side)))
    for _ in range(round(10 * strength)):
        start = np.array([rng.uniform(0, 1), 0.0])
        bend = start + (rng.uniform(-0.1, 0.1), rng.uniform(0.1, 0.2))
        tip = bend + (rng.uniform(-0.2, 0.2), rng.uniform(0.05, 0.25))
        points = (np.stack([start, bend, tip]) * scale).ravel().tolist()
        dark.line(points, fill=230, width=max(1, round(0.012 * side)))
    field = _field(picture)
    for level, layer in layers.items():
        soft = layer.filter(ImageFilter.GaussianBlur(0.015 * side))
        cover = np.asarray(soft, dtype=np.float32)[:, :, None] / np.float32(255) * field
        picture = picture + cover * (np.float32(level) - picture)
    return picture


def _sensor_noise(picture: Picture, strength: float, rng: np.random.Generator) -> Picture:
    """Grain of a short exposure; coarser than a pixel in large images, where that hides nothing."""
    height, width = picture.shape[:2]
    grain = max(1, round(min(height, width) / 96))
    shape = (3, -(-height // grain), -(-width // grain))
    coarse = rng.normal(0, 0.03 + 0.07 * strength, shape).astype(np.float32)
    enlarged = [
        Image.fromarray(channel).resize((width, height), Image.Resampling.BICUBIC)
        for channel in coarse
    ]
    noise = np.stack([np.asarray(channel, dtype=np.float32) for channel in enlarged], axis=2)
    return picture + noise * _field(picture)


_Defect = Callable[[Picture, float, np.random.Generator], Picture]

# Applied in this order: what the eye does, what the lamp does, what lies on the lens, what the
# sensor does.
_DEFECTS: dict[str, _Defect] = {
    "defocus": _defocus,
    "haze": _haze,
    "illumination": _illumination,
    "artefacts": _artefacts,
    "sensor_noise": _sensor_noise,
}
_HIDING = ("defocus", "haze")
