"""Charts as SVG text: lines with bands, bars, and points with names; no library and no script is needed to see them."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

WIDTH = 420
HEIGHT = 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 12, 44, 40
"""Margins of the plotted area [px]."""
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b58900", "#56b4e9", "#7f7f7f")
"""Colours that are told apart without red and green too (Okabe and Ito 2008)."""
_KNOWN = {"student": 0, "policy": 0, "teacher": 1, "random": 3, "zero": 6}
"""Places of the colours of names that come again from chart to chart."""
MAX_POINTS = 400
"""Points of a line; of more, evenly spaced ones are drawn."""
_LARGEST = 1e100
"""Numbers beyond it are left out as infinite ones are: their differences and squares have to be numbers."""
_CLOSEST = 1e-9
"""Ends of an axis that are closer than this share of their size are moved apart: its ticks have to differ."""


@dataclass(frozen=True)
class Line:
    """One line of a chart."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    """Lower edge of a band around it."""
    high: Sequence[float] | None = None
    """Upper edge."""
    marks: bool = False
    """Draw a dot at each point."""


@dataclass(frozen=True)
class _Axis:
    """A linear or logarithmic scale between two ends of the picture."""

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = self._transform(self.low), self._transform(self.high), self._transform(value)
        return self.start + (self.stop - self.start) * (value - low) / (high - low)

    def _transform(self, value: float) -> float:
        return math.log10(max(value, 1e-300)) if self.log else value

    def ticks(self) -> list[float]:
        """Return round numbers between the ends."""
        if self.log:
            ends = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
            powers = [10.0**power for power in range(ends[0] - 1, ends[1] + 1)]
            round_ones = [power * factor for power in powers for factor in (1, 2, 5)]
            inside = [value for value in round_ones if self.low <= value <= self.high]
            decades = [value for value in powers if self.low <= value <= self.high]
            return decades if len(decades) > 2 else inside
        return nice_ticks(self.low, self.high)


def nice_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Return at most so many multiples of 1, 2 or 5 times a power of ten, within two ends."""
    raw = (high - low) / (most - 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [step * number for number in range(first, last + 1)]


def line_chart(
    title: str,
    x_label: str,
    y_label: str,
    lines: Sequence[Line],
    levels: Mapping[str, float] | None = None,
    bounds: tuple[float, float] | None = None,
    log: bool = False,
) -> str:
    """Draw lines.

    Args:
        title: Above the chart.
        x_label: Name and unit of the horizontal axis.
        y_label: Name and unit of the vertical one.
        lines: What is drawn; points that are not finite are left out.
        levels: Horizontal dashed lines by name.
        bounds: Ends of the vertical axis. None: those of the data.
        log: Draw the vertical axis logarithmically; all values are positive.

    Returns:
        The text of an ``<svg>`` element; "" where there is nothing to draw.
    """
    lines = [kept for kept in map(_finite_part, lines) if kept.x]
    levels = {name: value for name, value in (levels or {}).items() if _is_drawn(value)}
    if not lines:
        return ""
    heights = [value for line in lines for part in (line.y, line.low, line.high) for value in part or ()]
    ends = min([*heights, *levels.values()]), max([*heights, *levels.values()])
    low, high = (ends[0] / 1.2, ends[1] * 1.2) if log else bounds or _padded(*ends)
    places = [value for line in lines for value in line.x]
    left, right = min(places), max(places)
    if _are_close(left, right):
        apart = max(1.0, _CLOSEST * max(abs(left), abs(right)))
        left, right = left - apart, right + apart
    x = _Axis(left, right, _LEFT, WIDTH - _RIGHT)
    y = _Axis(low, high, HEIGHT - _BOTTOM, _TOP, log)
    names = [*(line.name for line in lines), *levels]
    colours = colours_of(names)
    parts = [_frame(title, x_label, y_label, x, y), _legend(names, colours, dashed=set(levels))]
    for name, value in levels.items():
        parts.append(
            f'<line x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}" '
            f'stroke="{colours[name]}" stroke-width="1.5" stroke-dasharray="5 4"/>'
        )
    parts += [_draw(line, colours[line.name], x, y) for line in lines]
    return _svg(title, parts)


def _is_drawn(value: float) -> bool:
    return -_LARGEST <= value <= _LARGEST


def _are_close(low: float, high: float) -> bool:
    """Whether there are no round numbers between the ends of an axis."""
    return high - low <= max(_CLOSEST * max(abs(low), abs(high)), 1.0 / _LARGEST)


def _finite_part(line: Line) -> Line:
    """Leave out the points that are not finite, and all but evenly spaced ones of many."""
    kept = [i for i, (x, y) in enumerate(zip(line.x, line.y, strict=True)) if _is_drawn(x) and _is_drawn(y)]
    stride = max(1, math.ceil(len(kept) / MAX_POINTS))
    kept = [*kept[:-1:stride], *kept[-1:]]

    def pick(values: Sequence[float] | None) -> list[float] | None:
        if values is None:
            return None
        return [values[i] if _is_drawn(values[i]) else line.y[i] for i in kept]

    x, y = [line.x[i] for i in kept], [line.y[i] for i in kept]
    return Line(line.name, x, y, pick(line.low), pick(line.high), line.marks)


def _draw(line: Line, colour: str, x: _Axis, y: _Axis) -> str:
    parts = []
    if line.low is not None and line.high is not None:
        there = [f"{x(a):.1f},{y(b):.1f}" for a, b in zip(line.x, line.high, strict=True)]
        back = [f"{x(a):.1f},{y(b):.1f}" for a, b in zip(reversed(line.x), reversed(line.low), strict=True)]
        parts.append(f'<polygon points="{" ".join([*there, *back])}" fill="{colour}" fill-opacity="0.18"/>')
    points = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in zip(line.x, line.y, strict=True))
    parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
    if line.marks or len(line.x) == 1:
        parts += [
            f'<circle cx="{x(a):.1f}" cy="{y(b):.1f}" r="2.6" fill="{colour}"/>'
            for a, b in zip(line.x, line.y, strict=True)
        ]
    return "".join(parts)


def bar_chart(title: str, y_label: str, bars: Sequence[tuple[str, Mapping[str, float]]]) -> str:
    """Draw groups of bars.

    Args:
        title: Above the chart.
        y_label: Name and unit of the heights.
        bars: (label of a group, name -> height).

    Returns:
        The text of an ``<svg>`` element; "" where there is nothing to draw.
    """
    heights = [value for _, group in bars for value in group.values() if _is_drawn(value)]
    if not heights:
        return ""
    low, high = _padded(min(0.0, *heights), max(0.0, *heights))
    y = _Axis(low if min(heights) < 0 else 0.0, high, HEIGHT - _BOTTOM, _TOP)
    x = _Axis(0.0, float(len(bars)), _LEFT, WIDTH - _RIGHT)
    names = list(dict.fromkeys(name for _, group in bars for name in group))
    colours = colours_of(names)
    shown = max(1, math.ceil(len(bars) / 8))
    texts = _short_apart([label for label, _ in bars], 9)
    labels = {index + 0.5: text for index, text in enumerate(texts) if index % shown == 0}
    parts = [_frame(title, "", y_label, x, y, labels), _legend(names, colours)]
    for index, (label, group) in enumerate(bars):
        for number, name in enumerate(names):
            value = group.get(name, math.nan)
            if not _is_drawn(value):
                continue
            left = x(index + 0.1 + 0.8 * number / len(names))
            width = max(0.5, (x(1.0) - x(0.0)) * 0.8 / len(names) - 0.5)
            top, bottom = sorted((y(value), y(0.0)))
            tip = html.escape(f"{label}, {name}: {value:.4g}")
            parts.append(
                f'<rect x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{max(0.5, bottom - top):.1f}" '
                f'fill="{colours[name]}"><title>{tip}</title></rect>'
            )
    return _svg(title, parts)


def scatter_chart(
    title: str, x_label: str, y_label: str, points: Sequence[tuple[str, float, float]], front: Sequence[int] = ()
) -> str:
    """Draw named points over a logarithmic horizontal axis.

    Args:
        title: Above the chart.
        x_label: Name and unit of the horizontal axis, whose values are positive.
        y_label: Name and unit of the vertical one.
        points: (name, x, y).
        front: Numbers of the points that a dashed line joins, in the order of x.

    Returns:
        The text of an ``<svg>`` element; "" where there is nothing to draw.
    """
    points = [(name, x, y) for name, x, y in points if 1.0 / _LARGEST < x <= _LARGEST and _is_drawn(y)]
    if not points:
        return ""
    x = _Axis(min(p[1] for p in points) / 1.6, max(p[1] for p in points) * 1.6, _LEFT, WIDTH - _RIGHT, log=True)
    y = _Axis(*_padded(min(p[2] for p in points), max(p[2] for p in points)), HEIGHT - _BOTTOM, _TOP)
    parts = [_frame(title, x_label, y_label, x, y)]
    if len(front) > 1:
        line = " ".join(f"{x(points[i][1]):.1f},{y(points[i][2]):.1f}" for i in front)
        parts.append(f'<polyline points="{line}" fill="none" stroke="#7f7f7f" stroke-dasharray="4 3"/>')
    for number, (name, a, b) in enumerate(points):
        colour = _COLOURS[0] if number in front or not front else _COLOURS[-1]
        end = x(a) > WIDTH / 2
        parts.append(
            f'<circle cx="{x(a):.1f}" cy="{y(b):.1f}" r="4" fill="{colour}"><title>{html.escape(name)}</title></circle>'
            f'<text x="{x(a) + (-7 if end else 7):.1f}" y="{y(b) + 3.5:.1f}" font-size="10" '
            f'text-anchor="{"end" if end else "start"}">{html.escape(_short(name, 22))}</text>'
        )
    return _svg(title, parts)


def colours_of(names: Sequence[str]) -> dict[str, str]:
    """Give names their colours: those that come again the same in every chart, others what is left."""
    taken = {name: _KNOWN[name] for name in names if name in _KNOWN}
    free = [place for place in range(len(_COLOURS)) if place not in taken.values()] or list(range(len(_COLOURS)))
    others = [name for name in dict.fromkeys(names) if name not in taken]
    taken |= {name: free[number % len(free)] for number, name in enumerate(others)}
    return {name: _COLOURS[taken[name]] for name in names}


def standalone(svg: str) -> str:
    """Return an ``<svg>`` element as a file of its own, on white ground."""
    return svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" style="background:#fff" ', 1) + "\n"


def grid(charts: Sequence[str], columns: int = 3) -> str:
    """Put charts side by side into one file of its own."""
    charts = [chart for chart in charts if chart]
    columns = min(columns, len(charts))
    rows = math.ceil(len(charts) / max(1, columns))
    placed = [
        chart.replace(
            "<svg ",
            f'<svg x="{WIDTH * (i % columns)}" y="{HEIGHT * (i // columns)}" width="{WIDTH}" height="{HEIGHT}" ',
            1,
        )
        for i, chart in enumerate(charts)
    ]
    size = f'viewBox="0 0 {WIDTH * columns} {HEIGHT * rows}" width="{WIDTH * columns}" height="{HEIGHT * rows}"'
    return standalone(f"<svg {size}>{''.join(placed)}</svg>")


def _svg(title: str, parts: Sequence[str]) -> str:
    label = html.escape(title, quote=True)
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}" font-family="sans-serif" '
        f'font-size="11" fill="currentColor">{"".join(parts)}</svg>'
    )


def _frame(
    title: str, x_label: str, y_label: str, x: _Axis, y: _Axis, places: Mapping[float, str] | None = None
) -> str:
    """Draw title, axes, ticks and grid; ``places`` label the horizontal axis instead of numbers."""
    bottom = HEIGHT - _BOTTOM
    parts = [f'<text x="8" y="15" font-size="13" font-weight="600">{html.escape(_short(title, 58))}</text>']
    for tick in y.ticks():
        at = y(tick)
        parts.append(
            f'<line x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}" stroke="currentColor" '
            f'stroke-opacity="0.13"/><text x="{_LEFT - 5}" y="{at + 3.5:.1f}" text-anchor="end">{_number(tick)}</text>'
        )
    labels = places if places is not None else {tick: _number(tick) for tick in x.ticks()}
    for tick, label in labels.items():
        parts.append(f'<text x="{x(tick):.1f}" y="{bottom + 14}" text-anchor="middle">{html.escape(label)}</text>')
    parts.append(f'<line x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{bottom}" y2="{bottom}" stroke="currentColor"/>')
    middle = (_TOP + bottom) / 2
    parts.append(
        f'<text x="{(_LEFT + WIDTH - _RIGHT) / 2:.0f}" y="{HEIGHT - 8}" text-anchor="middle">'
        f"{html.escape(_short(x_label, 60))}</text>"
        f'<text transform="translate(11 {middle:.0f}) rotate(-90)" text-anchor="middle">'
        f"{html.escape(_short(y_label, 36))}</text>"
    )
    return "".join(parts)


def _legend(names: Sequence[str], colours: Mapping[str, str], dashed: set[str] | None = None) -> str:
    """Write the names beside a stroke of their colour, in one row below the title."""
    parts = []
    place = float(_LEFT)
    names = list(dict.fromkeys(names))
    longest = max(4, int((WIDTH - _LEFT) / max(1, len(names)) / 6.2) - 4)
    for name, text in zip(names, _short_apart(names, longest), strict=True):
        dash = ' stroke-dasharray="4 3"' if dashed and name in dashed else ""
        parts.append(
            f'<line x1="{place:.0f}" x2="{place + 16:.0f}" y1="30" y2="30" stroke="{colours[name]}" '
            f'stroke-width="3"{dash}/><text x="{place + 20:.0f}" y="34">{html.escape(text)}</text>'
        )
        place += 32 + 6.2 * len(text)
    return "".join(parts)


def _padded(low: float, high: float) -> tuple[float, float]:
    """Return ends a little beyond two values, and apart where they are the same."""
    size = max(abs(low), abs(high))
    margin = 0.05 * (high - low)
    if _are_close(low, high):
        margin = max(1e-12, 0.05 * size) if size else 1.0
    return low - margin, high + margin


def _number(value: float) -> str:
    """Write a tick in as few signs as say it."""
    if abs(value) >= 1e4 or 0 < abs(value) < 1e-3:
        return f"{value:.0e}".replace("e+0", "e").replace("e-0", "e-")
    return f"{value:.6g}" if abs(value) > 1e-12 else "0"


def _short(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _short_apart(texts: Sequence[str], longest: int) -> list[str]:
    """Shorten texts at their ends; those that would look the same then, at their starts."""
    short = [_short(text, longest) for text in texts]
    return [
        cut if short.count(cut) == 1 or len(text) <= longest else "…" + text[1 - longest :]
        for text, cut in zip(texts, short, strict=True)
    ]
