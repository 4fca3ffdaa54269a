"""Where the disc of a fundus photograph lies in its frame."""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

__all__ = ["Box", "find_disc"]

# Left, top, right and bottom (the last two excluded).
Box = tuple[int, int, int, int]

# A pixel belongs to the disc if it differs from the background by this share of what the bright
# parts differ by, and by more than the noise of a dark frame.
SHARE = 0.1
NOISE = 10
# Less than this share of the frame's shorter side is no disc but a reflection or burned-in text.
SMALLEST = 0.4
# The corners show the background where they differ by no more than this.
CORNERS_DIFFER = 24


def find_disc(pixels: NDArray[np.uint8]) -> Box | None:
    """Finds the box around the disc, the largest connected region unlike the background.

    The background is what the corners of the frame show, black or white. Text and specks beside the
    disc do not widen the box.

    Args:
        pixels: (H, W, 3) uint8; a few hundred pixels are enough.

    Returns:
        The box; None where there is no background (the disc fills the frame) or no disc.
    """
    height, width = pixels.shape[:2]
    patch = max(1, min(height, width) // 50)
    ends = (slice(0, patch), slice(-patch, None))
    corners = np.stack(
        [np.median(pixels[rows, columns], axis=(0, 1)) for rows in ends for columns in ends]
    )
    background = np.median(corners, axis=0)
    if np.abs(corners - background).max() > CORNERS_DIFFER:
        return None
    contrast = np.abs(pixels.astype(np.float32) - background).max(axis=2)
    threshold = max(NOISE, SHARE * float(np.percentile(contrast, 95)))
    regions, num_regions = ndimage.label(contrast > threshold)
    if not num_regions:
        return None
    sizes = np.bincount(regions.ravel())
    sizes[0] = 0  # the background
    rows, columns = ndimage.find_objects(regions)[int(sizes.argmax()) - 1]
    box = (columns.start, rows.start, columns.stop, rows.stop)
    if min(box[2] - box[0], box[3] - box[1]) < SMALLEST * min(height, width):
        return None
    return box
