"""Image transforms of a whole batch, with one set of parameters for each image.

Pure functions of tensors, on any device. Each image's result is the same, bit by bit, whatever else
is in the batch: sums are over integers, and matrix products over three channels are written out,
because a library's batched product may choose another order of summation for another batch size.

Shapes: B batch, S image side. Images are (B, 3, S, S).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "blur",
    "colour_matrices",
    "flip",
    "mean_luma",
    "recolour",
    "resample",
    "sampling_matrices",
]

# ITU-R BT.601 weights of red, green and blue in luma, in thousandths.
_LUMA = (299, 587, 114)


def flip(images: Tensor, horizontal: Tensor, vertical: Tensor) -> Tensor:
    """Mirror the marked images exactly, without resampling.

    Args:
        images: (B, 3, S, S), any dtype.
        horizontal: (B,) bool; True swaps left and right.
        vertical: (B,) bool; True swaps top and bottom.
    """
    images = torch.where(horizontal[:, None, None, None], images.flip(3), images)
    return torch.where(vertical[:, None, None, None], images.flip(2), images)


def sampling_matrices(
    rotation: Tensor, shear: Tensor, zoom: Tensor, shift: Tensor, mirrored: Tensor
) -> Tensor:
    """Affine maps from a place in the output to the place in the input that it shows.

    Args:
        rotation: (B,) degrees, counter-clockwise.
        shear: (B,) degrees, along the horizontal axis.
        zoom: (B,) magnification; above 1 shows less of the image, larger.
        shift: (B, 2) how far the window moves right and down, as a share of the side.
        mirrored: (B, 2) bool; whether left and right, top and bottom are swapped before the rest.

    Returns:
        (B, 2, 3) in ``rotation``'s dtype, in coordinates from -1 to 1 across the image.
    """
    cosine, sine = torch.cos(torch.deg2rad(rotation)), torch.sin(torch.deg2rad(rotation))
    slope = torch.tan(torch.deg2rad(shear))
    rows = [
        torch.stack([cosine / zoom, (cosine * slope - sine) / zoom, 2 * shift[:, 0]], dim=1),
        torch.stack([sine / zoom, (sine * slope + cosine) / zoom, 2 * shift[:, 1]], dim=1),
    ]
    return torch.stack(rows, dim=1) * torch.where(mirrored, -1.0, 1.0)[:, :, None]


def resample(images: Tensor, matrices: Tensor) -> Tensor:
    """Resample each image bilinearly through its affine map.

    Outside the image its nearest edge pixel is repeated: a fundus photograph stays black there,
    zeros would cut black corners into images that fill their frame, and a reflection could show one
    lesion twice.

    Args:
        images: (B, 3, S, S) floating point.
        matrices: (B, 2, 3), as ``sampling_matrices`` makes them.
    """
    side = images.shape[-1]
    # Pixel centres, as align_corners=False has them. affine_grid's matrix product is avoided (see
    # above).
    centres = (torch.arange(side, device=images.device, dtype=images.dtype) * 2 + 1) / side - 1
    m = matrices.to(images.dtype)[..., None]
    grid = images.new_empty(len(images), side, side, 2)
    for axis in (0, 1):
        across = m[:, axis, 0] * centres
        down = m[:, axis, 1] * centres + m[:, axis, 2]
        torch.add(across[:, None, :], down[:, :, None], out=grid[..., axis])
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def mean_luma(images: Tensor) -> Tensor:
    """Average brightness of each image.

    Args:
        images: (B, 3, S, S) uint8.

    Returns:
        (B,) float32 in [0, 1], from an exact integer sum.
    """
    red, green, blue = images.sum(dim=(2, 3), dtype=torch.int64).unbind(dim=1)
    total = _LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue
    return total.float() / (1000 * 255 * images.shape[2] * images.shape[3])


def colour_matrices(
    brightness: Tensor, contrast: Tensor, saturation: Tensor, hue: Tensor
) -> Tensor:
    """Combine all colour changes in one linear map of (red, green, blue).

    Brightness multiplies; saturation blends with the luma (0 = grey); hue turns the plane of the
    two colour differences of YIQ, which keeps luma and greys as they are (the hue of HSV keeps
    neither luma nor linearity). Contrast only multiplies here: ``recolour`` adds what holds the
    mean luma.

    Args:
        brightness: (B,) factors, 1 = unchanged.
        contrast: (B,) factors, 1 = unchanged.
        saturation: (B,) factors, 1 = unchanged.
        hue: (B,) turns, 0 = unchanged.

    Returns:
        (B, 3, 3) in ``hue``'s dtype, from input channels (last axis) to output channels.
    """
    to_yiq = hue.new_tensor(
        [[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]]
    )
    # Every such map is luma + cos(turn) * differences + sin(turn) * differences turned by 90
    # degrees.
    luma = to_yiq[:1].expand(3, 3)
    differences = torch.eye(3, dtype=hue.dtype, device=hue.device) - luma
    turned = torch.linalg.inv(to_yiq)[:, 1:] @ torch.stack([to_yiq[2], -to_yiq[1]])
    cosine = (saturation * torch.cos(2 * math.pi * hue))[:, None, None]
    sine = (saturation * torch.sin(2 * math.pi * hue))[:, None, None]
    factor = (brightness * contrast)[:, None, None]
    return factor * (luma + cosine * differences + sine * turned)


def recolour(images: Tensor, matrices: Tensor, offsets: Tensor) -> Tensor:
    """Map each pixel's colour linearly and clip the result to [0, 1].

    Args:
        images: (B, 3, S, S) floating point in [0, 1].
        matrices: (B, 3, 3), as ``colour_matrices`` makes them.
        offsets: (B,) added to every channel.
    """
    m = matrices.to(images.dtype)[:, :, :, None, None]
    mixed = m[:, :, 0] * images[:, 0:1]
    for channel in (1, 2):
        mixed.addcmul_(m[:, :, channel], images[:, channel : channel + 1])
    mixed += offsets.to(images.dtype)[:, None, None, None]
    return mixed.clamp_(0, 1)


def blur(images: Tensor, sigmas: Tensor, radius: int) -> Tensor:
    """Blur each image with its own Gaussian; edges are repeated outwards.

    Args:
        images: (B, 3, S, S) floating point.
        sigmas: (B,) standard deviations in pixels, above 0.
        radius: The kernel reaches this many pixels each way. It is given rather than taken from the
            largest sigma, so that the batch changes nothing.
    """
    places = torch.arange(-radius, radius + 1, dtype=torch.float64, device=sigmas.device)
    weights = torch.exp(-0.5 * (places / sigmas.double()[:, None]) ** 2)
    weights = (weights / weights.sum(dim=1, keepdim=True)).to(images)
    for dim in (2, 3):
        size = images.shape[dim]
        pad = (radius, radius, 0, 0) if dim == 3 else (0, 0, radius, radius)
        padded = F.pad(images, pad, mode="replicate")
        images = torch.zeros_like(images)
        for k in range(2 * radius + 1):
            images += weights[:, k, None, None, None] * padded.narrow(dim, k, size)
    return images
