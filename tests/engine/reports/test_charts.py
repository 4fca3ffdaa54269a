import json
import math
import re

import pytest

from engine.reports.charts import NUM_COLOURS, Line, line_chart


def numbers(path):
    return [float(text) for text in re.findall(r"-?[\d.]+", path)]


def test_points_lie_where_the_ticks_say():
    chart = line_chart("c", [1, 2, 3], [Line("a", [0.0, 1.0, 0.5])])
    left, top, right, bottom = chart.box
    at = {tick.text: tick.at for tick in chart.y_ticks}
    assert at["0"] == bottom and at["1"] == top
    x = {tick.text: tick.at for tick in chart.x_ticks}
    assert (x["1"], x["3"]) == (left, right)
    assert numbers(chart.lines[0].path) == [left, bottom, x["2"], top, right, (top + bottom) / 2]


def test_a_gap_interrupts_the_line_and_a_lone_point_is_a_dot():
    nan = math.nan
    chart = line_chart("c", [1, 2, 3, 4, 5], [Line("a", [0.1, 0.2, nan, 0.3, nan])])
    assert re.sub(r"[\d. ]+", "", chart.lines[0].path) == "MLMh"
    assert json.loads(chart.values)["y"] == [[0.1, 0.2, None, 0.3, None]]


def test_lines_without_a_value_are_left_out_and_so_is_a_chart_without_lines():
    empty = Line("none", [math.nan, math.nan])
    assert line_chart("c", [1, 2], [empty]) is None
    assert line_chart("c", [1, 2], []) is None
    chart = line_chart("c", [1, 2], [empty, Line("a", [1.0, 2.0], style=1)])
    assert [(line.name, line.colour) for line in chart.lines] == [("a", 1)]


@pytest.mark.parametrize("values", [[0.5], [0.0], [1e-9], [3e6]])
def test_one_epoch_of_one_value_has_a_chart(values):
    chart = line_chart("c", [4], [Line("a", values)])
    assert [tick.text for tick in chart.x_ticks] == ["4"]
    assert all(math.isfinite(n) for n in numbers(chart.lines[0].path))
    assert chart.box[1] <= numbers(chart.lines[0].path)[1] <= chart.box[3]


def test_a_band_goes_there_and_back_and_counts_for_the_scale():
    chart = line_chart("c", [1, 2], [Line("a", [0.5, 0.5], low=[0.0, math.nan], high=[1.0, 0.9])])
    assert chart.lines[0].band.count("L") == 1  # the first epoch alone
    assert chart.y_ticks[-1].text == "1"


def test_an_epoch_is_marked_and_colours_come_round_dashed():
    lines = [Line(str(i), [0.1, 0.2], style=i) for i in range(NUM_COLOURS + 1)]
    chart = line_chart("c", [1, 2], lines, {2: "best"})
    assert (chart.mark, chart.mark_text) == (chart.box[2], "best")
    assert [(d.colour, d.is_dashed) for d in (chart.lines[0], chart.lines[-1])] == [
        (0, False),
        (0, True),
    ]
