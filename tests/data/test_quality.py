import csv
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from data.images import decode
from data.quality import QualityReference, image_statistics


def as_batch(*images):
    return torch.stack([torch.as_tensor(image, dtype=torch.uint8) for image in images])


def by_hand(image):
    """Both statistics of a (3, S, S) image, pixel by pixel."""
    pixels = image.numpy().astype(float)
    luma = 0.299 * pixels[0] + 0.587 * pixels[1] + 0.114 * pixels[2]
    field, side = pixels.max(0) > 16, len(luma)
    edges = []
    for y in range(1, side - 1):
        for x in range(1, side - 1):
            around = field[max(y - 2, 0) : y + 3, max(x - 2, 0) : x + 3]
            if around.all():
                cross = luma[y - 1, x] + luma[y + 1, x] + luma[y, x - 1] + luma[y, x + 1]
                edges.append(abs(4 * luma[y, x] - cross))
    return [np.mean(edges) if edges else 0, luma[field].mean() if field.any() else 0]


def test_statistics_follow_their_definition():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (3, 12, 12), generator=generator, dtype=torch.uint8)
    surrounded = noise.clone()
    surrounded[:, :, :4] = 16
    flat, black = torch.full((3, 12, 12), 90), torch.zeros(3, 12, 12)
    images = as_batch(noise, surrounded, flat, black)
    found = image_statistics(images).numpy()
    assert found == pytest.approx(np.array([by_hand(image) for image in images]), abs=1e-9)
    assert found[2].tolist() == [0, 90] and found[3].tolist() == [0, 0]


def test_an_image_is_measured_alike_in_any_batch():
    images = torch.randint(0, 256, (7, 3, 32, 32), dtype=torch.uint8)
    alone = torch.cat([image_statistics(image[None]) for image in images])
    assert torch.equal(image_statistics(images), alone)


def test_ranks_and_warnings_are_those_among_the_training_images():
    values = np.arange(1001.0)
    reference = QualityReference.of(np.stack([values, 1000 - values], axis=1))
    statistics = np.array([[500.0, 500], [49, 500], [51, 19], [500, 981], [-1, 2000], [500, 979]])
    judged = reference.judge(statistics)
    assert [quality.warnings for quality in judged] == [
        (), ("blurred",), ("dark",), ("bright",), ("blurred", "bright"), ()
    ]  # fmt: skip
    assert judged[1].sharpness_rank == pytest.approx(0.049)
    assert judged[2].brightness_rank == pytest.approx(0.019)
    assert (judged[4].sharpness_rank, judged[4].brightness_rank) == (0, 1)


def test_the_order_of_the_training_images_does_not_matter():
    values = np.random.default_rng(0).random((50, 2))
    assert QualityReference.of(values) == QualityReference.of(values[::-1])


def test_equal_training_images_warn_of_what_differs_alone():
    reference = QualityReference.of(np.tile([3.0, 100.0], (4, 1)))
    same, darker = reference.judge(np.array([[3.0, 100], [3, 99]]))
    assert same.warnings == () and darker.warnings == ("dark",)


@pytest.mark.slow
@pytest.mark.skipif("MEDNOISE_REALDATA" not in os.environ, reason="MEDNOISE_REALDATA is not set")
def test_warnings_on_deepdrid_point_at_images_graded_as_poor():
    root = Path(os.environ["MEDNOISE_REALDATA"]) / "deepdrid"
    with (root / "manifest.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    images = [torch.from_numpy(decode(root / row["image"], 96, "crop")) for row in rows]
    statistics = torch.cat(
        [image_statistics(torch.stack(part).permute(0, 3, 1, 2)) for part in
         (images[i : i + 100] for i in range(0, len(images), 100))]
    ).numpy()  # fmt: skip
    is_test = np.array([row["split"] == "test" for row in rows])
    good = np.array([row["quality"] == "1" for row in rows])[is_test]
    judged = QualityReference.of(statistics[~is_test]).judge(statistics[is_test])
    assert roc_auc_score(good, [quality.sharpness_rank for quality in judged]) > 0.7
    warned = np.array([bool(quality.warnings) for quality in judged])
    print(
        f"{warned.sum()} of {len(warned)} warned of, {(~good)[warned].mean():.2f} of them poor, "
        f"{(~good).mean():.2f} of all"
    )
    assert (~good)[warned].mean() > (~good).mean() + 0.25
