"""Is an image as sharp and as bright as those that a model was trained on?

Two plain statistics of the pixels, and where they lie among those of the training images. They need
no grades of quality. On the DeepDRiD pack (512 of its 1,200 training images as reference, its 400
test images judged, at 224 px) sharpness tells images good enough to diagnose from the others with
an AUROC of 0.79, and those of clarity 6 or more with 0.94. Brightness alone says nothing (0.52),
but both of its ends hold poor images. 30 are warned of, 27 of them poor (90 %; of all, 55 %). So a
warning is to be trusted and its absence is not: artefacts, a field of view that is cut off, or an
image of something else get none.

Shapes: B batch, S image side, N images.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

__all__ = ["BLURRED", "BRIGHT", "DARK", "ImageQuality", "QualityReference", "image_statistics"]

BLURRED, DARK, BRIGHT = "blurred", "dark", "bright"
# Shares of the training images beyond which an image is warned of.
BLURRED_TAIL, BRIGHTNESS_TAIL = 0.05, 0.02
# A pixel whose brightest channel is at most this belongs to the black surround of a photograph.
SURROUND = 16
# The rim of the field is an edge in every image, however blurred; so far it is left out.
RIM_PIXELS = 2
# ITU-R BT.601 weights of red, green and blue in luma, in thousandths.
_LUMA = (299, 587, 114)


def image_statistics(images: Tensor) -> Tensor:
    """Sharpness and brightness of each image inside its field of view.

    From exact integer sums, so an image's values do not depend on its batch or the device.

    Args:
        images: (B, 3, S, S) uint8, on any device.

    Returns:
        (B, 2) float64 on the same device. Sharpness: mean absolute Laplacian of the luma (the
        pixel four times less its four neighbours), in grey levels; brightness: mean luma, 0 to 255.
        Both are 0 for an image without a field.
    """
    weights = torch.tensor(_LUMA, dtype=torch.int32, device=images.device)[:, None, None]
    luma = (images.int() * weights).sum(1, dtype=torch.int32)
    field = images.amax(1) > SURROUND
    middle = luma[:, 1:-1, 1:-1]
    laplacian = 4 * middle - luma[:, :-2, 1:-1] - luma[:, 2:, 1:-1]
    laplacian = laplacian - luma[:, 1:-1, :-2] - luma[:, 1:-1, 2:]
    outside = (~field).float().unsqueeze(1)
    near_outside = F.max_pool2d(outside, 2 * RIM_PIXELS + 1, stride=1, padding=RIM_PIXELS)
    inner = near_outside[:, 0, 1:-1, 1:-1] == 0
    return torch.stack([_mean(laplacian.abs(), inner), _mean(luma, field)], dim=1)


def _mean(values: Tensor, chosen: Tensor) -> Tensor:
    """Mean (B,) float64 of (B, H, W) int32 thousandths over the chosen pixels; 0 for none."""
    total = (values * chosen).sum((1, 2), dtype=torch.int64)
    return total.double() / (1000 * chosen.sum((1, 2)).clamp_min(1))


@dataclass(frozen=True)
class ImageQuality:
    """How an image compares with the training images.

    Attributes:
        sharpness_rank: Share of the training images that are less sharp, in [0, 1].
        brightness_rank: Share of them that are darker, in [0, 1].
        warnings: Some of ``blurred``, ``dark``, ``bright``.
    """

    sharpness_rank: float
    brightness_rank: float
    warnings: tuple[str, ...]


class QualityReference(BaseModel):
    """Percentiles 0 to 100 of both statistics over training images."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    sharpness: tuple[float, ...] = Field(min_length=101, max_length=101)
    brightness: tuple[float, ...] = Field(min_length=101, max_length=101)

    @classmethod
    def of(cls, statistics: NDArray[np.float64]) -> "QualityReference":
        """The reference that training images give.

        Args:
            statistics: (N, 2) of :func:`image_statistics`, N >= 1.
        """
        sharpness, brightness = np.percentile(statistics, np.arange(101), axis=0).T.tolist()
        return cls(sharpness=tuple(sharpness), brightness=tuple(brightness))

    def judge(self, statistics: NDArray[np.float64]) -> list[ImageQuality]:
        """Compare images with the training images.

        Args:
            statistics: (N, 2) of :func:`image_statistics`.
        """
        return [self._judge(sharpness, brightness) for sharpness, brightness in statistics.tolist()]

    def _judge(self, sharpness: float, brightness: float) -> ImageQuality:
        found = {
            BLURRED: sharpness < _quantile(self.sharpness, BLURRED_TAIL),
            DARK: brightness < _quantile(self.brightness, BRIGHTNESS_TAIL),
            BRIGHT: brightness > _quantile(self.brightness, 1 - BRIGHTNESS_TAIL),
        }
        return ImageQuality(
            _rank(self.sharpness, sharpness),
            _rank(self.brightness, brightness),
            tuple(name for name, is_so in found.items() if is_so),
        )


def _quantile(percentiles: Sequence[float], share: float) -> float:
    return percentiles[round(100 * share)]


def _rank(percentiles: Sequence[float], value: float) -> float:
    """Share of the training images below a value; between percentiles by a straight line."""
    return float(np.interp(value, percentiles, np.linspace(0, 1, 101)))
