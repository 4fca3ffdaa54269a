"""Line charts as the geometry of an SVG; a template draws them in the colours of the page.

No pixels and no colours here: a page can then show the same chart on a light and a dark ground, and
read out the values under the pointer.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.ticker import MaxNLocator

__all__ = ["NUM_COLOURS", "Chart", "Line", "line_chart"]

WIDTH, HEIGHT = 380, 220
LEFT, RIGHT, TOP, BOTTOM = 42, 10, 10, 28
NUM_COLOURS = 8


@dataclass(frozen=True)
class Line:
    """A line of a chart.

    Attributes:
        name: Its name in the legend.
        y: A value for each x of the chart; NaN leaves a gap.
        low: Lower edge of a band around it; empty for no band.
        high: Upper edge.
        style: Number of its colour; beyond ``NUM_COLOURS`` it is dashed.
    """

    name: str
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    style: int = 0


@dataclass(frozen=True)
class _Tick:
    at: float
    text: str


@dataclass(frozen=True)
class _Drawn:
    """A line as SVG paths; lone points have no length and are drawn as dots by round caps."""

    name: str
    path: str
    band: str
    colour: int
    is_dashed: bool


@dataclass(frozen=True)
class Chart:
    """A chart in units of an SVG of ``width`` x ``height``.

    Attributes:
        title: What is shown.
        lines: The lines.
        x_ticks: Marks of the epochs.
        y_ticks: Marks of the values.
        mark: Where a vertical line marks an epoch; None for nowhere.
        mark_text: What it marks.
        values: JSON for the readout: the epochs, and each line's values, null where undefined.
        width: Of the whole.
        height: Likewise.
        box: Left, top, right and bottom edge of the part that is plotted on.
    """

    title: str
    lines: tuple[_Drawn, ...]
    x_ticks: tuple[_Tick, ...]
    y_ticks: tuple[_Tick, ...]
    mark: float | None
    mark_text: str
    values: str
    width: int = WIDTH
    height: int = HEIGHT
    box: tuple[int, int, int, int] = (LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM)


def line_chart(
    title: str,
    epochs: Sequence[int],
    lines: Sequence[Line],
    mark: Mapping[int, str] | None = None,
) -> Chart | None:
    """Lay a chart out.

    Args:
        title: What is shown.
        epochs: Increasing; one or more.
        lines: With a value for each epoch.
        mark: An epoch -> what is special about it.

    Returns:
        The chart without the lines that have no value; None where no line has any.
    """
    shown = [line for line in lines if any(math.isfinite(value) for value in line.y)]
    if not shown:
        return None
    values = [v for line in shown for v in (*line.y, *line.low, *line.high) if math.isfinite(v)]
    y_values = MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]).tick_values(min(values), max(values))
    first, last = epochs[0], epochs[-1]
    low, high = float(y_values[0]), float(y_values[-1])

    def x(epoch: float) -> float:
        share = (epoch - first) / (last - first) if last > first else 0.5
        return round(LEFT + share * (WIDTH - LEFT - RIGHT), 2)

    def y(value: float) -> float:
        return round(HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM), 2)

    xs = [x(epoch) for epoch in epochs]
    drawn = tuple(
        _Drawn(
            line.name,
            path=_path(xs, [y(v) if math.isfinite(v) else math.nan for v in line.y]),
            band=_band(xs, [y(v) for v in line.low], [y(v) for v in line.high]),
            colour=line.style % NUM_COLOURS,
            is_dashed=line.style >= NUM_COLOURS,
        )
        for line in shown
    )
    whole = MaxNLocator(6, integer=True).tick_values(first, last)
    epoch_ticks = [int(tick) for tick in whole if first <= tick <= last] or [first]
    marked, mark_text = next(iter((mark or {}).items()), (None, ""))
    readout = {
        "x": list(epochs),
        "at": xs,
        "y": [[v if math.isfinite(v) else None for v in line.y] for line in shown],
    }
    return Chart(
        title,
        drawn,
        x_ticks=tuple(_Tick(x(tick), str(tick)) for tick in epoch_ticks),
        y_ticks=tuple(_Tick(y(float(tick)), f"{tick:.4g}") for tick in y_values),
        mark=None if marked is None else x(marked),
        mark_text=mark_text,
        values=json.dumps(readout, allow_nan=False),
    )


def _path(xs: Sequence[float], ys: Sequence[float]) -> str:
    """An SVG path through the points; NaN interrupts it."""
    parts, is_down = [], False
    for i, (x, y) in enumerate(zip(xs, ys, strict=True)):
        if math.isnan(y):
            is_down = False
            continue
        parts.append(f"{'L' if is_down else 'M'}{x:g} {y:g}")
        if not is_down and (i + 1 == len(ys) or math.isnan(ys[i + 1])):
            parts.append("h0")  # a dot
        is_down = True
    return "".join(parts)


def _band(xs: Sequence[float], low: Sequence[float], high: Sequence[float]) -> str:
    """A closed path around the band, over the points where it is defined."""
    points = [
        (x, a, b)
        for x, a, b in zip(xs, low, high, strict=bool(low))
        if math.isfinite(a) and math.isfinite(b)
    ]
    if not points:
        return ""
    there = [f"{x:g} {a:g}" for x, a, _ in points]
    back = [f"{x:g} {b:g}" for x, _, b in reversed(points)]
    return "M" + "L".join(there + back) + "Z"
