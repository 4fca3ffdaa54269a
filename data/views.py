"""Views: the augmented variants of a batch of images, made on the device that trains.

A view is a function of (seed, epoch, sample_id, view, kind) alone: it depends on no worker, rank,
batch size or earlier draw. All its geometry is one resampling and all its colour one linear map.

"Weak" and "strong" are QMix's two kinds (arXiv 2404.05169): weak views give a sample its refined
label, strong views are what is trained on. The defaults of the strong kind are milder than usual;
the measured reason stands in ``StrongViewConfig``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from data import keyed
from data.transforms import (
    blur,
    colour_matrices,
    flip,
    mean_luma,
    recolour,
    resample,
    sampling_matrices,
)

__all__ = ["Kind", "StrongViewConfig", "ViewConfig", "Views", "ViewsConfig", "WeakViewConfig"]

Kind = Literal["plain", "weak", "strong"]

# Values of the images that a CPU works on at a time, 2 MB in float32. With whole batches of 224 px
# views took 1.6 times as long, at 384 px 2.5 times: cache misses, and memory asked for anew.
_CACHED_VALUES = 2**19

# Each name owns one column of a sample's draws, used or not, so that switching one transform
# on or off leaves the others' draws alone. Append; never reorder.
_DRAWS = (
    "horizontal_flip", "vertical_flip", "rotation", "shear", "scale", "shift_x", "shift_y",
    "crop", "crop_x", "crop_y", "brightness", "contrast", "saturation", "hue", "greyscale",
    "blur", "blur_sigma",
)  # fmt: skip


class ViewConfig(BaseModel):
    """One kind of view; the defaults change nothing."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    horizontal_flip: float = Field(0.0, ge=0, le=1, description="Probability of a mirror image.")
    vertical_flip: float = Field(0.0, ge=0, le=1, description="Probability of turning upside down.")
    rotation: float = Field(0.0, ge=0, le=180, description="Largest rotation, degrees, each way.")
    shear: float = Field(0.0, ge=0, lt=90, description="Largest shear, degrees, each way.")
    scale: tuple[float, float] = Field(
        (1.0, 1.0), description="Smallest and largest magnification (drawn evenly)."
    )
    shift: float = Field(
        0.0, ge=0, le=1, description="Largest shift as a share of the side, each way, each axis."
    )
    crop: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Smallest share of the area that a random square crop keeps; it is enlarged to "
        "the full size. 1 = no crop.",
    )
    brightness: float = Field(0.0, ge=0, lt=1, description="Largest change of the factor from 1.")
    contrast: float = Field(0.0, ge=0, lt=1, description="Largest change of the factor from 1.")
    saturation: float = Field(0.0, ge=0, le=1, description="Largest change of the factor from 1.")
    hue: float = Field(
        0.0, ge=0, le=0.5, description="Largest change in turns of the colour circle."
    )
    greyscale: float = Field(0.0, ge=0, le=1, description="Probability of losing all colour.")
    blur: float = Field(0.0, ge=0, le=1, description="Probability of a Gaussian blur.")
    blur_sigma: float = Field(
        0.01, gt=0, le=0.1, description="Largest standard deviation as a share of the image's side."
    )

    @model_validator(mode="after")
    def _check_scale(self) -> ViewConfig:
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale is {self.scale}; allowed: (low, high) with 0 < low <= high")
        return self

    @property
    def resamples(self) -> bool:
        """Whether any geometry beyond flips is on."""
        return bool(self.rotation or self.shear or self.shift) or (
            self.scale != (1.0, 1.0) or self.crop < 1
        )

    @property
    def recolours(self) -> bool:
        """Whether any change of colour is on."""
        return bool(
            self.brightness or self.contrast or self.saturation or self.hue or self.greyscale
        )


class WeakViewConfig(ViewConfig):
    """Views that label a sample: flips and rotation, as QMix was published."""

    horizontal_flip: float = Field(0.5, ge=0, le=1, description="Probability of a mirror image.")
    vertical_flip: float = Field(0.5, ge=0, le=1, description="Probability of turning upside down.")
    rotation: float = Field(15.0, ge=0, le=180, description="Largest rotation, degrees, each way.")


class StrongViewConfig(WeakViewConfig):
    """Views that are trained on: the weak ones' transforms, and mild colour, scale and shift.

    Mild because the lesions that decide a grade are a few pixels wide: in a trial on 2,000
    synthetic fundus images of 64 px with 55 % mixed noise, usual strengths lost kappa early, these
    kept 0.95 for ten epochs after warm-up. Scale and shift already crop. No blur: a blurred good
    image looks like a bad one.
    """

    scale: tuple[float, float] = Field(
        (0.93, 1.07), description="Smallest and largest magnification (drawn evenly)."
    )
    shift: float = Field(
        0.04, ge=0, le=1, description="Largest shift as a share of the side, each way, each axis."
    )
    brightness: float = Field(0.1, ge=0, lt=1, description="Largest change of the factor from 1.")
    contrast: float = Field(0.1, ge=0, lt=1, description="Largest change of the factor from 1.")
    saturation: float = Field(0.03, ge=0, le=1, description="Largest change of the factor from 1.")
    hue: float = Field(
        0.01, ge=0, le=0.5, description="Largest change in turns of the colour circle."
    )
    greyscale: float = Field(0.05, ge=0, le=1, description="Probability of losing all colour.")


class ViewsConfig(BaseModel):
    """Section ``views``: how the variants of an image are made."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    weak: WeakViewConfig = Field(
        default_factory=WeakViewConfig, description="Views that label a sample."
    )
    strong: StrongViewConfig = Field(
        default_factory=StrongViewConfig, description="Views that are trained on."
    )
    mean: tuple[float, float, float] = Field(
        (0.485, 0.456, 0.406), description="Subtracted from red, green, blue in [0, 1]; ImageNet's."
    )
    std: tuple[float, float, float] = Field(
        (0.229, 0.224, 0.225), description="Divides red, green, blue afterwards; ImageNet's."
    )

    @model_validator(mode="after")
    def _check_std(self) -> ViewsConfig:
        if min(self.std) <= 0:
            raise ValueError(f"std is {self.std}; allowed: three numbers above 0")
        return self


class Views:
    """Makes plain, weak and strong views of batches of images."""

    def __init__(self, config: ViewsConfig, seed: int) -> None:
        self.config = config
        self.seed = seed

    @torch.no_grad()
    def __call__(
        self,
        images: Tensor,
        sample_ids: Tensor,
        epoch: int,
        view: int,
        kind: Kind,
        repeats: NDArray[np.int64] | None = None,
    ) -> Tensor:
        """Make one view of each image.

        Args:
            images: (B, 3, S, S) uint8, on any device; contiguous ones are fastest to resample.
            sample_ids: (B,) int64, on the CPU (elsewhere they are copied back, which waits).
            epoch: Number of the epoch; each has its own views.
            view: Number of the view, from 0; views 0 and 1 of a sample differ.
            kind: "plain" is the image as it is; "weak" and "strong" follow the configuration. The
                same number of view draws differently for the two.
            repeats: (B,) how often each sample has come up in the epoch before; each time it has
                other views. None = never.

        Returns:
            (B, 3, S, S) float32 on the images' device, channels last, normalised by ``mean`` and
            ``std``.
        """
        draws: dict[str, NDArray[np.float64]] = {}
        if kind != "plain":
            key: int | NDArray[np.int64] = 2 * view + (kind == "strong")
            if repeats is not None:
                key = key + (repeats << 32)
            ids = sample_ids.cpu().numpy()
            columns = keyed.uniform(self.seed, epoch, ids, key, len(_DRAWS))
            draws = dict(zip(_DRAWS, columns.T, strict=True))
        made = torch.empty(images.shape, device=images.device, memory_format=torch.channels_last)
        for rows in _pieces(images):
            of_piece = {name: values[rows] for name, values in draws.items()}
            made[rows] = self._normalise(self._change(images[rows], of_piece, kind))
        return made

    def _change(self, images: Tensor, draws: dict[str, NDArray[np.float64]], kind: Kind) -> Tensor:
        """Geometry and colour of (n, 3, S, S) uint8 images: float32 in [0, 1]."""
        if kind == "plain":
            return images.float().div_(255)
        config = self.config.weak if kind == "weak" else self.config.strong
        device = images.device
        mirrored = torch.stack(
            [_tensor(draws[f"{axis}_flip"] < getattr(config, f"{axis}_flip"))
             for axis in ("horizontal", "vertical")], dim=1,
        )  # fmt: skip
        if config.resamples:
            images = images.contiguous()
            result = resample(images.float(), _sent(_geometry(config, draws, mirrored), device))
        else:
            result = flip(images, *_sent(mirrored, device).unbind(1)).float()
        result /= 255
        if config.recolours:
            matrices, offsets = (_sent(values, device) for values in _colours(config, draws))
            result = recolour(result, matrices, offsets * mean_luma(images))
        blurred = np.flatnonzero(draws["blur"] < config.blur)
        if len(blurred):
            largest = config.blur_sigma * images.shape[-1]
            sigmas = (1 - draws["blur_sigma"][blurred]) * largest  # in (0, largest]
            rows, sigmas_there = (_sent(_tensor(values), device) for values in (blurred, sigmas))
            result[rows] = blur(result[rows], sigmas_there, radius=math.ceil(3 * largest))
        return result

    def _normalise(self, images: Tensor) -> Tensor:
        """Shift and scale the channels of (B, 3, S, S) images in [0, 1], in place."""
        mean, std = (_by_channel(v, images.device) for v in (self.config.mean, self.config.std))
        return images.sub_(mean).div_(std)


def _pieces(images: Tensor) -> Iterator[slice]:
    """A GPU takes the whole batch at once, a CPU as many images as stay in its cache."""
    num = len(images)
    size = max(1, num * _CACHED_VALUES // max(images.numel(), 1))
    if images.device.type != "cpu":
        size = max(1, num)
    for start in range(0, num, size):
        yield slice(start, start + size)


@cache
def _by_channel(values: tuple[float, float, float], device: torch.device) -> Tensor:
    """(3, 1, 1) float32, copied to the device once."""
    return torch.tensor(values, device=device)[:, None, None]


def _sent(values: Tensor, device: torch.device) -> Tensor:
    """Values on the images' device; a GPU gets them in its turn, and nobody waits for it."""
    if device.type == "cuda":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)


def _tensor(values: NDArray[np.generic]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values))


def _around(draws: NDArray[np.float64], reach: float) -> Tensor:
    """Spread draws in [0, 1) evenly over [-reach, reach)."""
    return _tensor((2 * draws - 1) * reach)


def _geometry(
    config: ViewConfig, draws: dict[str, NDArray[np.float64]], mirrored: Tensor
) -> Tensor:
    """Sampling matrices (B, 2, 3) float32 of flips, rotation, shear, scale, shift and crop."""
    low, high = config.scale
    scale = low + (high - low) * draws["scale"]
    side = np.sqrt(config.crop + (1 - config.crop) * draws["crop"])
    # A crop of this side lies anywhere inside: its centre moves by up to half of what it leaves.
    shift = torch.stack(
        [
            _around(draws[f"shift_{axis}"], config.shift)
            + _tensor((draws[f"crop_{axis}"] - 0.5) * (1 - side))
            for axis in "xy"
        ],
        dim=1,
    )
    return sampling_matrices(
        _around(draws["rotation"], config.rotation),
        _around(draws["shear"], config.shear),
        _tensor(scale / side),
        shift,
        mirrored,
    ).float()


def _colours(config: ViewConfig, draws: dict[str, NDArray[np.float64]]) -> tuple[Tensor, Tensor]:
    """Colour matrices (B, 3, 3) and the share (B,) of the mean luma to add; both float32."""
    brightness = 1 + _around(draws["brightness"], config.brightness)
    contrast = 1 + _around(draws["contrast"], config.contrast)
    saturation = 1 + _around(draws["saturation"], config.saturation)
    saturation[_tensor(draws["greyscale"] < config.greyscale)] = 0
    matrices = colour_matrices(brightness, contrast, saturation, _around(draws["hue"], config.hue))
    # Contrast turns about the mean luma of the brightened image: c b x + (1 - c) b mean(x).
    return matrices.float(), (brightness * (1 - contrast)).float()
