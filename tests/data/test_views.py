"""Views against torchvision's transforms, and their independence of the batch."""

import json

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tv
from pydantic import ValidationError
from torchvision.transforms import InterpolationMode

from data.transforms import (
    blur,
    colour_matrices,
    flip,
    mean_luma,
    recolour,
    resample,
    sampling_matrices,
)
from data.views import StrongViewConfig, ViewConfig, Views, ViewsConfig, WeakViewConfig


def as_weak(config):
    """The same transforms as a weak view, whose own defaults differ."""
    return WeakViewConfig(**config.model_dump())


def as_strong(config):
    return StrongViewConfig(**config.model_dump())


EVERYTHING = ViewConfig(
    horizontal_flip=0.5,
    vertical_flip=0.5,
    rotation=40,
    shear=10,
    scale=(0.8, 1.2),
    shift=0.1,
    crop=0.6,
    brightness=0.3,
    contrast=0.3,
    saturation=0.5,
    hue=0.2,
    greyscale=0.3,
    blur=0.5,
    blur_sigma=0.03,
)
IDENTITY_NORM = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def random_images(num, side=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (num, 3, side, side), dtype=torch.uint8, generator=generator)


def smooth_images(num, side=32, seed=0):
    """Images of middle values, so that no factor in the tests clips a pixel."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(num, 3, 5, 5, generator=generator) * 0.4 + 0.3
    return torch.nn.functional.interpolate(coarse, size=side, mode="bicubic").clamp(0.25, 0.75)


def column(*values):
    return torch.tensor(values, dtype=torch.float64)


def geometry(rotation=0, shear=0, zoom=1, shift=(0, 0), mirrored=(False, False)):
    """The sampling matrix (1, 2, 3) float32 of one image."""
    values = (column(rotation), column(shear), column(zoom), column(shift))
    return sampling_matrices(*values, torch.tensor([mirrored])).float()


def test_plain_is_the_normalised_image():
    images = random_images(3)
    config = ViewsConfig()
    got = Views(config, seed=0)(images, torch.arange(3), 0, 0, "plain")
    expected = tv.normalize(tv.to_dtype(images, torch.float32, scale=True), config.mean, config.std)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("side", [32, 33])
def test_each_view_is_independent_of_its_batch(side):
    images, ids = random_images(9, side), torch.arange(100, 109)
    views = Views(ViewsConfig(weak=as_weak(EVERYTHING), strong=as_strong(EVERYTHING)), seed=4)
    for kind in ("plain", "weak", "strong"):
        whole = views(images, ids, 2, 1, kind)
        for rows in ([0], [8, 3], [5, 1, 2, 7]):
            assert torch.equal(views(images[rows], ids[rows], 2, 1, kind), whole[rows]), kind


def test_default_views_are_independent_of_their_batch(monkeypatch):
    images, ids = random_images(16, 64), torch.arange(16)
    views = Views(ViewsConfig(), seed=4)
    monkeypatch.setattr("data.views._CACHED_VALUES", 7 * images[0].numel())
    for kind in ("weak", "strong"):
        whole = views(images, ids, 2, 1, kind)
        parts = [views(images[i : i + 5], ids[i : i + 5], 2, 1, kind) for i in range(0, 16, 5)]
        assert torch.equal(torch.cat(parts), whole)
        assert whole.is_contiguous(memory_format=torch.channels_last)
        assert views(images[:0], ids[:0], 2, 1, kind).shape == (0, 3, 64, 64)


def test_every_part_of_the_key_changes_the_view():
    images, ids = random_images(4), torch.arange(4)
    config = ViewsConfig(weak=as_weak(EVERYTHING), strong=as_strong(EVERYTHING))
    reference = Views(config, seed=0)(images, ids, 0, 0, "weak")
    others = [
        Views(config, seed=1)(images, ids, 0, 0, "weak"),
        Views(config, seed=0)(images, ids + 4, 0, 0, "weak"),
        Views(config, seed=0)(images, ids, 1, 0, "weak"),
        Views(config, seed=0)(images, ids, 0, 1, "weak"),
        Views(config, seed=0)(images, ids, 0, 0, "strong"),
    ]
    for other in others:
        assert (other != reference).flatten(1).any(dim=1).all()
    assert torch.equal(Views(config, seed=0)(images, ids, 0, 0, "weak"), reference)


def test_flips_alone_are_exact_and_fair():
    flips = ViewConfig(horizontal_flip=0.5, vertical_flip=0.25)
    views = Views(ViewsConfig(weak=as_weak(flips), **IDENTITY_NORM), seed=1)
    image = random_images(1, side=7)
    got = views(image.expand(2000, -1, -1, -1), torch.arange(2000), 0, 0, "weak")
    plain = image.float() / 255
    variants = [plain, plain.flip(3), plain.flip(2), plain.flip(2, 3)]
    shares = [float((got == v).flatten(1).all(dim=1).float().mean()) for v in variants]
    # Five standard deviations of a share of 2000 are at most 0.056.
    np.testing.assert_allclose(shares, [0.375, 0.375, 0.125, 0.125], atol=0.056)
    assert sum(shares) == pytest.approx(1)


def test_switching_one_transform_on_leaves_the_others_draws_alone():
    images, ids = random_images(64), torch.arange(64)
    images = torch.maximum(images, images.flip(3))  # flips of it cannot be seen
    alone = ViewConfig(brightness=0.3)
    joined = ViewConfig(brightness=0.3, horizontal_flip=0.5)
    first = Views(ViewsConfig(weak=as_weak(alone)), seed=0)(images, ids, 0, 0, "weak")
    assert torch.equal(
        first, Views(ViewsConfig(weak=as_weak(joined)), seed=0)(images, ids, 0, 0, "weak")
    )


@pytest.mark.parametrize(
    ("rotation", "zoom", "shift"),
    [(30, 1.0, (0, 0)), (-75, 1.0, (0, 0)), (0, 1.25, (0, 0)), (20, 0.8, (0, 0)), (0, 1, (4, -6))],
)
def test_geometry_matches_torchvision(rotation, zoom, shift):
    images = smooth_images(2)
    # torchvision moves the content, in pixels; ours moves the window over it, in shares of the
    # side.
    matrices = geometry(rotation, 0, zoom, (-shift[0] / 32, -shift[1] / 32))
    got = resample(images, matrices.expand(2, -1, -1))
    expected = tv.affine(
        images, -rotation, list(shift), zoom, [0.0, 0.0], interpolation=InterpolationMode.BILINEAR
    )
    seen = tv.affine(
        torch.ones_like(images), -rotation, list(shift), zoom, [0.0, 0.0],
        interpolation=InterpolationMode.BILINEAR,
    ) > 0.999  # fmt: skip
    assert seen.float().mean() > 0.5
    torch.testing.assert_close(got[seen], expected[seen], atol=2e-5, rtol=0)


def test_quarter_turn_and_shear_by_hand():
    images = smooth_images(1)
    torch.testing.assert_close(
        resample(images, geometry(rotation=90)), torch.rot90(images, 1, (2, 3)), atol=2e-6, rtol=0
    )
    # A shear of 45 degrees reads row r (centre y) at x + y: each row moves by its distance to the
    # centre.
    side = images.shape[-1]
    got = resample(images, geometry(shear=45))[0, :, side // 2 + 2, : side - 3]
    row = images[0, :, side // 2 + 2]
    expected = (row[:, 2 : side - 1] + row[:, 3:side]) / 2
    torch.testing.assert_close(got, expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize("mirrored", [(True, False), (False, True), (True, True)])
def test_an_image_is_mirrored_before_it_is_moved(mirrored):
    images, moved = smooth_images(1), {"rotation": 20, "shear": 10, "zoom": 1.2, "shift": (0.1, 0)}
    flipped = flip(images, *torch.tensor([mirrored]).unbind(1))
    expected = resample(flipped, geometry(**moved))
    got = resample(images, geometry(**moved, mirrored=mirrored))
    torch.testing.assert_close(got, expected, atol=2e-6, rtol=0)
    assert (expected - resample(images, geometry(**moved))).abs().max() > 0.01


def test_outside_the_image_its_edge_is_repeated():
    image = torch.zeros(1, 3, 8, 8)
    image[:, :, :, 0] = 1
    assert torch.equal(resample(image, geometry(shift=(-1, 0))), torch.ones(1, 3, 8, 8))


def recoloured(images, brightness=1.0, contrast=1.0, saturation=1.0, hue=0.0):
    num = len(images)
    matrices = colour_matrices(
        *(
            torch.full((num,), v, dtype=torch.float64)
            for v in (brightness, contrast, saturation, hue)
        )
    )
    luma = mean_luma((images * 255).round().to(torch.uint8))
    return recolour(images, matrices.float(), brightness * (1 - contrast) * luma)


@pytest.mark.parametrize(
    ("change", "reference"),
    [
        ({"brightness": 1.2}, lambda x: tv.adjust_brightness(x, 1.2)),
        ({"contrast": 0.6}, lambda x: tv.adjust_contrast(x, 0.6)),
        ({"contrast": 1.3}, lambda x: tv.adjust_contrast(x, 1.3)),
        ({"saturation": 0.4}, lambda x: tv.adjust_saturation(x, 0.4)),
        ({"saturation": 0.0}, lambda x: tv.rgb_to_grayscale(x, num_output_channels=3)),
        (
            {"brightness": 0.9, "contrast": 0.8, "saturation": 1.1},
            lambda x: tv.adjust_saturation(
                tv.adjust_contrast(tv.adjust_brightness(x, 0.9), 0.8), 1.1
            ),
        ),
    ],
)
def test_colour_matches_torchvision(change, reference):
    images = (smooth_images(3) * 255).round() / 255
    # torchvision's luma weights sum to 0.9999 and have four digits.
    torch.testing.assert_close(recoloured(images, **change), reference(images), atol=3e-4, rtol=0)


def test_hue_keeps_luma_and_greys_and_moves_like_torchvision():
    images = (smooth_images(3) * 255).round() / 255
    luma = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    turned = recoloured(images, hue=0.1)
    torch.testing.assert_close((turned * luma).sum(1), (images * luma).sum(1), atol=2e-5, rtol=0)
    grey = images[:, :1].expand(-1, 3, -1, -1)
    torch.testing.assert_close(recoloured(grey, hue=0.3), grey, atol=2e-5, rtol=0)
    # A third of a turn permutes the primaries: HSV does it exactly, YIQ in their dominant channel.
    red = torch.tensor([0.6, 0.3, 0.3])[None, :, None, None].expand(1, 3, 4, 4)
    third = recoloured(red, hue=1 / 3)[0, :, 0, 0]
    assert int(third.argmax()) == int(tv.adjust_hue(red, 1 / 3)[0, :, 0, 0].argmax())


def test_colours_are_clipped():
    bright = recoloured(torch.full((1, 3, 4, 4), 0.9), brightness=1.5)
    assert torch.equal(bright, torch.ones(1, 3, 4, 4))


def test_blur_matches_torchvision():
    images = smooth_images(2, side=24) + 0.2 * torch.rand(2, 3, 24, 24)
    got = blur(images, column(0.8, 1.5), radius=5)
    for row, sigma in enumerate((0.8, 1.5)):
        expected = tv.gaussian_blur(images[row], kernel_size=[11, 11], sigma=[sigma, sigma])
        inside = slice(5, -5)  # torchvision reflects at the edges
        torch.testing.assert_close(
            got[row, :, inside, inside], expected[:, inside, inside], atol=1e-5, rtol=0
        )


def test_draws_span_their_ranges():
    only = ViewConfig(brightness=0.2)
    views = Views(ViewsConfig(strong=as_strong(only), **IDENTITY_NORM), seed=0)
    images = torch.full((4000, 3, 2, 2), 102, dtype=torch.uint8)
    factors = views(images, torch.arange(4000), 0, 0, "strong")[:, 0, 0, 0].numpy() / 0.4
    assert factors.min() == pytest.approx(0.8, abs=2e-3)
    assert factors.max() == pytest.approx(1.2, abs=2e-3)
    assert factors.mean() == pytest.approx(1, abs=5 * 0.4 / np.sqrt(12 * 4000))


def test_a_crop_stays_inside_the_image():
    # The image's rim is bright; a crop without shift shows it at two sides at most, never beyond
    # it.
    image = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    image[:, :, 0, :] = image[:, :, -1, :] = image[:, :, :, 0] = image[:, :, :, -1] = 255
    views = Views(ViewsConfig(strong=as_strong(ViewConfig(crop=0.5)), **IDENTITY_NORM), seed=0)
    got = views(image.expand(200, -1, -1, -1), torch.arange(200), 0, 0, "strong")[:, 0]
    # Half the area is enlarged 1.41 times: a rim of one pixel covers 2.1 columns or rows at most.
    assert got[:, 3:-3, 3:-3].max() == 0
    assert got.flatten(1).max(dim=1).values.min() == 0  # some crop misses the whole rim
    assert got.max() > 0.9  # and some touches it


def test_images_are_left_as_they_were():
    images = random_images(4)
    before = images.clone()
    Views(ViewsConfig(strong=as_strong(EVERYTHING)), seed=0)(
        images, torch.arange(4), 0, 0, "strong"
    )
    assert torch.equal(images, before)


def test_configuration_survives_strict_json():
    tree = json.loads(ViewsConfig().model_dump_json())
    again = ViewsConfig.model_validate_json(json.dumps(tree), strict=True, extra="forbid")
    assert again == ViewsConfig()


@pytest.mark.parametrize(
    "tree",
    [
        {"weak": {"scale": [1.2, 0.8]}},
        {"weak": {"scale": [0.0, 1.0]}},
        {"strong": {"greyscale": 1.5}},
        {"strong": {"rotations": 3.0}},
        {"std": [0.2, 0.0, 0.2]},
    ],
)
def test_bad_settings_are_refused(tree):
    with pytest.raises(ValidationError):
        ViewsConfig.model_validate_json(json.dumps(tree), strict=True, extra="forbid")


def test_changing_one_key_leaves_the_other_defaults_on():
    config = ViewsConfig.model_validate({"weak": {"rotation": 5}, "strong": {"hue": 0.0}})
    assert config.weak == WeakViewConfig(rotation=5, horizontal_flip=0.5, vertical_flip=0.5)
    assert config.strong.brightness == StrongViewConfig().brightness > 0


def test_a_sample_that_comes_up_again_has_other_views():
    views, images = Views(ViewsConfig(), 3), random_images(1).expand(4, -1, -1, -1)
    ids = torch.tensor([7, 7, 7, 7])
    again = views(images, ids, 2, 0, "strong", np.array([0, 1, 2, 1]))
    first = views(images[:1], ids[:1], 2, 0, "strong")
    assert torch.equal(again[:1], first)
    assert torch.equal(again[1], again[3])
    assert len({again[i].numpy().tobytes() for i in range(3)}) == 3
