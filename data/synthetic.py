"""The embedded data set: synthetic fundus photographs with known grades of diabetic retinopathy.

It needs no download, its true labels are certain, and each picture takes a few milliseconds at 64
pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator

from data.fundus import NUM_GRADES, draw_fundus

__all__ = ["SyntheticConfig", "SyntheticFundus", "generate"]

_TRAIN, _TEST = 0, 2  # the manifest's codes


class SyntheticConfig(BaseModel):
    """How many pictures, and of which grades."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    num_train: int = Field(2000, ge=1, description="Pictures to train on.")
    num_test: int = Field(600, ge=0, description="Pictures to test on.")
    class_balance: tuple[float, float, float, float, float] = Field(
        (0.3, 0.15, 0.25, 0.15, 0.15),
        description="Share of each grade from 0 to 4, mildly uneven as in screening; sums to 1.",
    )

    @field_validator("class_balance")
    @classmethod
    def _check_shares(cls, shares: tuple[float, ...]) -> tuple[float, ...]:
        if min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
            raise ValueError(f"got {shares}; allowed: shares of at least 0 that sum to 1")
        return shares


@dataclass(frozen=True, kw_only=True)
class SyntheticFundus:
    """A generated data set of N = num_train + num_test pictures.

    Attributes:
        images: (N, S, S, 3) uint8.
        grades: (N,) int64 in 0..4, true by construction.
        split: (N,) uint8, the manifest's TRAIN or TEST; the training pictures come first.
    """

    images: NDArray[np.uint8]
    grades: NDArray[np.int64]
    split: NDArray[np.uint8]


def generate(config: SyntheticConfig, size: int, seed: int) -> SyntheticFundus:
    """Draw the data set.

    Picture i depends on (seed, i, size, class_balance) alone, so a larger set begins with the
    smaller one.

    Args:
        config: How many pictures, and of which grades.
        size: Side of a picture in pixels.
        seed: At least 0.
    """
    num = config.num_train + config.num_test
    images = np.empty((num, size, size, 3), dtype=np.uint8)
    grades = np.empty(num, dtype=np.int64)
    for index in range(num):
        rng = np.random.default_rng([seed, index])
        grades[index] = rng.choice(NUM_GRADES, p=config.class_balance)
        images[index] = draw_fundus(int(grades[index]), size, rng)
    split = np.where(np.arange(num) < config.num_train, _TRAIN, _TEST).astype(np.uint8)
    return SyntheticFundus(images=images, grades=grades, split=split)
