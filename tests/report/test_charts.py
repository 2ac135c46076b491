"""Charts: well-formed, escaped, and with their points where they belong."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest

from foundation.report.charts import HEIGHT, WIDTH, Line, bar_chart, grid, line_chart, nice_ticks, scatter_chart

EVIL = '<script>alert("x")</script>&'


def tree(svg: str) -> ElementTree.Element:
    """Parse a chart; it must be well-formed XML."""
    return ElementTree.fromstring(svg)


def test_untrusted_names_are_text():
    """In every kind of chart, wherever a name is shown."""
    charts = [
        line_chart(EVIL, EVIL, EVIL, [Line(EVIL, [0, 1], [0, 1])], {EVIL: 0.5}),
        bar_chart(EVIL, EVIL, [(EVIL, {EVIL: 1.0})]),
        scatter_chart(EVIL, EVIL, EVIL, [(EVIL, 1.0, 2.0)]),
    ]
    for chart in [*charts, grid(charts)]:
        assert "<script" not in chart
        assert all(element.tag.rpartition("}")[2] != "script" for element in tree(chart).iter())


def test_a_line_is_drawn_to_scale():
    """Three points at even distances in both directions are so in the picture, higher values further up."""
    svg = line_chart("t", "x", "y", [Line("a", [0, 1, 2], [10.0, 20.0, 30.0])])
    (points,) = re.findall(r'<polyline points="([^"]+)"', svg)
    places = [tuple(map(float, pair.split(","))) for pair in points.split()]
    assert places[1][0] - places[0][0] == pytest.approx(places[2][0] - places[1][0], abs=0.11)
    assert places[0][1] - places[1][1] == pytest.approx(places[1][1] - places[2][1], abs=0.11) and places[0][1] > 0
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in places)


def test_what_is_not_finite_is_left_out():
    """NaN among the values leaves the rest; nothing else draws nothing."""
    svg = line_chart("t", "x", "y", [Line("a", [0, 1, 2], [1.0, math.nan, 3.0], [0.0, 0.0, math.nan], [2.0, 2.0, 4.0])])
    assert "nan" not in svg and len(re.findall(r'<polyline points="([^"]+)"', svg)[0].split()) == 2
    assert line_chart("t", "x", "y", [Line("a", [0], [math.nan])], {"level": 1.0}) == ""
    assert bar_chart("t", "y", [("a", {"x": math.nan})]) == ""
    assert scatter_chart("t", "x", "y", [("a", 0.0, 1.0)]) == ""


@pytest.mark.parametrize("values", [[5.0], [0.0, 0.0], [-1e-30, 1e-30], [1e12, 1e12 + 1], [-3.0, -3.0]])
def test_flat_and_extreme_values_are_drawn(values):
    """One point, and values that are all the same, have an axis too."""
    tree(line_chart("t", "x", "y", [Line("a", list(range(len(values))), values)]))
    tree(bar_chart("t", "y", [(str(i), {"a": value}) for i, value in enumerate(values)]))


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-0.3, 0.7), (1e-6, 3e-6), (123, 456789), (-5, -4.9)])
def test_ticks_are_round_and_few(low, high):
    """Multiples of 1, 2 or 5 times a power of ten, between the ends, at least two and at most six."""
    ticks = nice_ticks(low, high)
    assert 2 <= len(ticks) <= 6
    assert all(low - 1e-9 * abs(low) <= tick <= high + 1e-9 * abs(high) for tick in ticks)
    step = ticks[1] - ticks[0]
    mantissa = step / 10 ** math.floor(math.log10(step) + 1e-9)
    assert min(abs(mantissa - m) for m in (1, 2, 5, 10)) < 1e-6


def test_a_line_of_many_points_is_thinned():
    """A run of 100,000 epochs makes no picture of megabytes; its end is kept."""
    svg = line_chart("t", "x", "y", [Line("a", list(range(100_000)), [float(i) for i in range(100_000)])])
    assert len(svg) < 20_000
    (points,) = re.findall(r'<polyline points="([^"]+)"', svg)
    assert points.split()[-1].split(",")[0] == f"{WIDTH - 12:.1f}"


HUGE = [-1e308, 1e308, math.inf, math.nan, 1e101]


@pytest.mark.parametrize("value", HUGE)
def test_numbers_that_cannot_be_subtracted_are_left_out(value):
    """As infinite ones are, in lines, bands, levels, bars and points."""
    line = Line("a", [0.0, 1.0, value], [1.0, value, 2.0], [value] * 3, [value] * 3)
    charts = [
        line_chart("t", "x", "y", [line], {"level": value}),
        bar_chart("t", "y", [("a", {"b": value, "c": 1.0})]),
        scatter_chart("t", "x", "y", [("a", 1.0, 2.0), ("b", value, 1.0), ("c", 1.0, value)]),
    ]
    for chart in charts:
        assert "nan" not in chart and "inf" not in chart
        assert len(tree(chart)) > 0


@pytest.mark.parametrize("values", [(2.0**64, 2.0**64 + 4096), (5e-324, 1e-323), (1e99, 1e99), (0.0, 0.0), (1.0, 1.0)])
def test_values_that_are_nearly_the_same_have_an_axis(values):
    """Steps of 64 bits and the smallest numbers too: the ticks differ."""
    for x, y in ((values, (1.0, 2.0)), ((1.0, 2.0), values), (values, values)):
        assert "polyline" in line_chart("t", "x", "y", [Line("a", list(x), list(y))])
    scatter_chart("t", "x", "y", [("a", values[0], values[1])])
    assert "rect" in bar_chart("t", "y", [("a", {"b": values[0], "c": values[1]})])


def test_long_names_that_begin_alike_are_told_apart():
    """A sweep's runs differ at the ends of their names: the legend and the bars keep these."""
    names = ["hidden_dims--4", "hidden_dims--16-16", "hidden_dims--64-64"]
    legend = line_chart("t", "x", "y", [Line(name, [0, 1], [0, 1]) for name in names] + [Line("other", [0, 1], [0, 1])])
    bars = bar_chart("t", "y", [(name, {"a": 1.0}) for name in names])
    for chart in (legend, bars):
        texts = [element.text or "" for element in tree(chart).iter() if element.tag.endswith("text")]
        for end in ("--4", "-16-16", "-64-64"):
            assert sum(text.startswith("…") and text.endswith(end) for text in texts) == 1
