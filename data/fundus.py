"""Draws one synthetic fundus photograph of a wanted grade of diabetic retinopathy.

A drawing, not a simulation of optics: it holds what decides the grade on the international clinical
scale (Wilkinson et al., Ophthalmology 110(9), 2003) among what varies from person to person without
deciding anything:

    grade 0  no lesions
    grade 1  microaneurysms only
    grade 2  and some haemorrhages or hard exudates
    grade 3  many haemorrhages
    grade 4  and pre-retinal bleeding or new vessels

Lesions are drawn larger than life (a microaneurysm is a thousandth of the field's width), else they
would vanish in small images. All lengths are shares of the image's side, so a picture of 64 pixels
and one of 2,600 show the same eye.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

__all__ = ["NUM_GRADES", "draw_fundus"]

NUM_GRADES = 5

Point = NDArray[np.float64]

# Fewest and most lesions (both included) by grade: microaneurysms, haemorrhages, clusters of
# exudates.
_MICROANEURYSMS = ((0, 0), (3, 8), (3, 10), (5, 14), (3, 12))
_HAEMORRHAGES = ((0, 0), (0, 0), (2, 5), (8, 15), (1, 10))
_EXUDATES = ((0, 0), (0, 0), (0, 3), (0, 4), (0, 3))

_DISC_COLOUR = (0.98, 0.84, 0.55)
_VESSEL_COLOUR = (0.45, 0.10, 0.06)
_BLOOD_COLOUR = (0.34, 0.04, 0.03)
_EXUDATE_COLOUR = (0.98, 0.90, 0.50)


class _Mask:
    """A canvas finer than the picture; reduced, it says how far each pixel is covered."""

    def __init__(self, size: int) -> None:
        self.size = size
        # Small pictures need finer canvases: there a lesion is little more than a pixel.
        self.factor = 3 if size <= 128 else 2 if size <= 512 else 1
        self.scale = size * self.factor
        self.image = Image.new("L", (self.scale, self.scale))
        self.pen = ImageDraw.Draw(self.image)

    def ellipse(self, centre: Point, radii: tuple[float, float], strength: float = 1.0) -> None:
        """Fill an upright ellipse."""
        x, y = centre * self.scale
        half_width, half_height = radii[0] * self.scale, radii[1] * self.scale
        box = (x - half_width, y - half_height, x + half_width, y + half_height)
        self.pen.ellipse(box, fill=round(255 * strength))

    def polygon(self, points: Point, strength: float = 1.0) -> None:
        """Fill the polygon through (K, 2) points."""
        self.pen.polygon((points * self.scale).ravel().tolist(), fill=round(255 * strength))

    def line(self, points: Point, widths: Point, strength: float = 1.0) -> None:
        """Draw a line through (K, 2) points, with one width for each of its K - 1 pieces."""
        fill = round(255 * strength)
        places = (points * self.scale).tolist()
        for start, end, width in zip(
            places, places[1:], (widths * self.scale).tolist(), strict=False
        ):
            self.pen.line((*start, *end), fill=fill, width=max(1, round(width)))

    def cover(self) -> NDArray[np.float32]:
        """Coverage (size, size, 1) in [0, 1]."""
        reduced = self.image.reduce(self.factor) if self.factor > 1 else self.image
        return np.asarray(reduced, dtype=np.float32)[:, :, None] / np.float32(255)


@dataclass(frozen=True, kw_only=True)
class _Eye:
    """Where things are in one eye; a right one, with the optic disc on the right."""

    centre: Point
    radius: float
    disc: Point
    disc_radius: float
    macula: Point

    @staticmethod
    def draw(rng: np.random.Generator) -> _Eye:
        """Draw an individual's geometry."""
        radius = rng.uniform(0.43, 0.49)
        centre = np.array([0.5, 0.5]) + rng.uniform(-0.01, 0.01, 2)
        macula = centre + radius * rng.uniform((-0.2, -0.12), (0.1, 0.12))
        disc = macula + radius * rng.uniform((0.5, -0.12), (0.66, 0.04))
        disc_radius = radius * rng.uniform(0.12, 0.17)
        return _Eye(centre=centre, radius=radius, disc=disc, disc_radius=disc_radius, macula=macula)

    def lesion_places(self, num: int, rng: np.random.Generator) -> Point:
        """Draw (num, 2) places inside the field and off the disc."""
        kept = np.empty((0, 2))
        while len(kept) < num:
            places = self.centre + self.radius * rng.uniform(-0.9, 0.9, (4 * num, 2))
            inside = np.hypot(*(places - self.centre).T) < 0.86 * self.radius
            off_disc = np.hypot(*(places - self.disc).T) > 1.5 * self.disc_radius
            kept = np.concatenate([kept, places[inside & off_disc]])
        return kept[:num]


def draw_fundus(grade: int, size: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Draw one picture.

    Args:
        grade: Diabetic retinopathy grade, 0 to 4.
        size: Side of the picture in pixels.
        rng: Source of all that varies; the same state gives the same picture.

    Returns:
        (size, size, 3) uint8, red, green, blue.
    """
    eye = _Eye.draw(rng)
    picture = _background(eye, size, rng)
    _paint(picture, _vessels(eye, size, rng), _VESSEL_COLOUR, rng.uniform(0.55, 0.85))
    _paint(picture, _exudates(eye, grade, size, rng), _EXUDATE_COLOUR, rng.uniform(0.7, 0.95))
    _paint(picture, _blood(eye, grade, size, rng), _BLOOD_COLOUR, rng.uniform(0.7, 0.95))
    picture *= _illumination(eye, size, rng)
    field = _Mask(size)
    field.ellipse(eye.centre, (eye.radius, eye.radius))
    picture *= field.cover()
    if rng.random() < 0.5:  # a left eye
        picture = picture[:, ::-1]
    # The noise comes last: it alone takes more draws for more pixels.
    noisy = picture + rng.normal(0, rng.uniform(0.005, 0.02), picture.shape)
    return (noisy.clip(0, 1) * 255).round().astype(np.uint8)


def _paint(
    picture: NDArray[np.float32],
    cover: NDArray[np.float32],
    colour: tuple[float, float, float],
    strength: float,
) -> None:
    """Lay a colour over (S, S, 3) in place, where and as far as the mask covers."""
    picture += np.float32(strength) * cover * (np.array(colour, dtype=np.float32) - picture)


def _distance(size: int, point: Point) -> NDArray[np.float32]:
    """Distance (size, size, 1) of each pixel's centre from a point."""
    places = (np.arange(size, dtype=np.float32) + 0.5) / size
    across, down = places - np.float32(point[0]), places - np.float32(point[1])
    return np.sqrt(across[None, :] ** 2 + down[:, None] ** 2)[:, :, None]


def _background(eye: _Eye, size: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """The retina of one person, with macula and optic disc."""
    red = rng.uniform(0.62, 0.9)
    colour = red * np.array([1, rng.uniform(0.4, 0.58), rng.uniform(0.12, 0.3)])
    coarse = rng.normal(0, 1, (9, 9)).astype(np.float32)
    clouds = np.asarray(Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC))
    retina = (colour * (1 + 0.05 * clouds[:, :, None])).astype(np.float32)
    macula = np.exp(-((_distance(size, eye.macula) / (0.22 * eye.radius)) ** 2))
    retina *= 1 - np.float32(rng.uniform(0.15, 0.35)) * macula
    softness = 0.1 * eye.disc_radius + 0.3 / size
    away = (_distance(size, eye.disc) - eye.disc_radius) / softness
    disc = 1 / (1 + np.exp(away.clip(-30, 30)))
    _paint(retina, disc.astype(np.float32), _DISC_COLOUR, rng.uniform(0.6, 0.95))
    cup = np.exp(-((_distance(size, eye.disc) / (0.5 * eye.disc_radius)) ** 2))
    retina += np.float32(rng.uniform(0.0, 0.15)) * cup
    return retina


def _illumination(eye: _Eye, size: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Brightness (size, size, 1): exposure, falling off from a point near the field's centre."""
    bright = eye.centre + eye.radius * rng.uniform(-0.4, 0.4, 2)
    falloff = rng.uniform(0.1, 0.4) * (_distance(size, bright) / eye.radius) ** 2
    return np.float32(rng.uniform(0.8, 1.1)) * (1 - falloff).astype(np.float32).clip(0.2)


def _vessels(eye: _Eye, size: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Arteries and veins: arcades around the macula, trunks to the nasal side, branches."""
    mask = _Mask(size)
    for upward in (-1.0, 1.0):
        for width, strength in ((0.011, 0.6), (0.015, 0.85)):  # an artery and the vein beside it
            arcade = (upward * rng.uniform(1.7, 2.1), upward * rng.uniform(0.9, 1.5))
            _trunk(mask, eye, arcade, (1.7, width), strength, rng)
            nasal = (upward * rng.uniform(0.4, 1.1), upward * rng.uniform(-0.5, 0.5))
            _trunk(mask, eye, nasal, (0.8, 0.75 * width), strength, rng)
    return mask.cover()


def _trunk(
    mask: _Mask,
    eye: _Eye,
    course: tuple[float, float],
    extent: tuple[float, float],
    strength: float,
    rng: np.random.Generator,
) -> None:
    """Draw a vessel from the disc outwards, and thinner branches off it.

    Args:
        mask: Where to draw.
        eye: Whose vessel.
        course: Heading at the disc and how far it turns in all, radians.
        extent: Length in field radii and width at the disc.
        strength: How dark it is, in [0, 1].
        rng: Source of its wriggles and branches.
    """
    heading, turn = course
    length, width = extent[0] * eye.radius, extent[1]
    points, headings = _walk(eye.disc, heading, turn, length, rng)
    widths = width * np.linspace(1, 0.45, len(points) - 1)
    mask.line(points, widths, strength)
    for place in rng.integers(3, len(points) - 2, size=4):
        aside = rng.choice((-1.0, 1.0)) * rng.uniform(0.4, 0.9)
        branch, _ = _walk(
            points[place], headings[place] + aside, -0.6 * aside, 0.4 * length, rng, num_steps=7
        )
        mask.line(branch, 0.6 * widths[place] * np.linspace(1, 0.5, 7), strength)


def _walk(
    start: Point,
    heading: float,
    turn: float,
    length: float,
    rng: np.random.Generator,
    *,
    num_steps: int = 14,
) -> tuple[Point, Point]:
    """A wriggling line: (num_steps + 1, 2) points and (num_steps,) headings in radians."""
    wriggle = rng.normal(0, 0.12, num_steps)
    headings = heading + turn * np.linspace(0, 1, num_steps) + wriggle
    steps = length / num_steps * np.stack([np.cos(headings), np.sin(headings)], axis=1)
    return np.concatenate([start[None], start + np.cumsum(steps, axis=0)]), headings


def _blood(eye: _Eye, grade: int, size: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Microaneurysms, haemorrhages, and at grade 4 pre-retinal bleeding or new vessels."""
    mask = _Mask(size)
    fewest, most = _MICROANEURYSMS[grade]
    for place in eye.lesion_places(int(rng.integers(fewest, most + 1)), rng):
        radius = rng.uniform(0.013, 0.018)
        mask.ellipse(place, (radius, radius), rng.uniform(0.7, 1.0))
    fewest, most = _HAEMORRHAGES[grade]
    for place in eye.lesion_places(int(rng.integers(fewest, most + 1)), rng):
        mask.polygon(_blot(place, rng.uniform(0.028, 0.044), rng), rng.uniform(0.8, 1.0))
    if grade == 4:
        kind = rng.random()
        if kind < 0.9:
            _pre_retinal_bleeding(mask, eye, rng)
        if kind >= 0.6:
            _new_vessels(mask, eye, rng)
    return mask.cover()


def _blot(centre: Point, radius: float, rng: np.random.Generator) -> Point:
    """Outline (12, 2) of an irregular spot."""
    angles = np.linspace(0, 2 * math.pi, 12, endpoint=False)
    reach = radius * rng.uniform(0.6, 1.25, 12)
    return centre + reach[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _pre_retinal_bleeding(mask: _Mask, eye: _Eye, rng: np.random.Generator) -> None:
    """Blood before the retina: it settles, so the upper border is level and the lower one round."""
    centre = eye.lesion_places(1, rng)[0]
    angles = np.linspace(0, math.pi, 16)
    width, depth = rng.uniform(0.08, 0.15), rng.uniform(0.05, 0.1)
    mask.polygon(centre + np.stack([width * np.cos(angles), depth * np.sin(angles)], axis=1))


def _new_vessels(mask: _Mask, eye: _Eye, rng: np.random.Generator) -> None:
    """A tangle of fine vessels, on the disc or elsewhere."""
    centre = eye.disc if rng.random() < 0.5 else eye.lesion_places(1, rng)[0]
    for heading in rng.uniform(0, 2 * math.pi, 9):
        turn = rng.choice((-1.0, 1.0)) * rng.uniform(2, 5)
        points, _ = _walk(centre, heading, turn, rng.uniform(0.1, 0.2), rng)
        mask.line(points, np.full(14, 0.008), 0.9)


def _exudates(eye: _Eye, grade: int, size: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Hard exudates: clusters of small bright spots with sharp borders."""
    mask = _Mask(size)
    fewest, most = _EXUDATES[grade]
    for centre in eye.lesion_places(int(rng.integers(fewest, most + 1)), rng):
        for place in centre + rng.normal(0, 0.03, (int(rng.integers(3, 9)), 2)):
            radius = rng.uniform(0.010, 0.016)
            mask.ellipse(place, (radius, radius), rng.uniform(0.7, 1.0))
    return mask.cover()
