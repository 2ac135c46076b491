"""The HTML page of one run or several: everything in one file, without scripts and without a network."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import yaml

import foundation
from foundation.report.charts import Line, bar_chart, line_chart, scatter_chart
from foundation.report.pictures import mapping, mappings, number, numbers, robustness_charts
from foundation.report.run_record import RunRecord

MAX_BYTES = 1_900_000
"""Size of the page at which further runs get no details of their own [B]."""
_MAX_LINES = 12
"""Runs whose curves share a chart."""
_MAX_COLUMNS = 40
"""Columns of a table whose names files give; of more, the first ones are shown."""
_RETURNS = ("evaluation/mean_return", "data_collection/mean_return", "Train/mean_reward")
"""Tags of a run's progress, in the order in which they are looked for."""

_STYLE = """
:root{color-scheme:light dark;--line:#8884;--soft:#8881}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1500px;padding:16px;font:15px/1.5 system-ui,sans-serif;overflow-wrap:anywhere}
h1{font-size:1.5rem;margin:.2rem 0}h2{font-size:1.2rem;margin:1.8rem 0 .5rem;border-bottom:1px solid var(--line)}
h3{font-size:1rem;margin:1.1rem 0 .3rem}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,330px),1fr));gap:10px}
.charts>svg{width:100%;height:auto;border:1px solid var(--line);border-radius:6px;padding:4px}
.wide{overflow-x:auto}.wide+.wide,.wide+.charts,.charts+.wide{margin-top:12px}
table{border-collapse:collapse;font-size:.86rem}
th,td{padding:3px 10px;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap}
th:first-child,td:first-child,td.mono{text-align:left}
pre{background:var(--soft);padding:8px;border-radius:6px;overflow-x:auto;font-size:.8rem;white-space:pre-wrap}
td.mono{font-family:monospace;font-size:.75rem}
.note{border-left:4px solid #d55e00;padding:4px 10px;background:var(--soft)}
.figures{display:flex;flex-wrap:wrap;gap:10px}
.figures div{border:1px solid var(--line);border-radius:6px;padding:6px 14px}
.figures b{display:block;font-size:1.25rem}
details>summary{cursor:pointer;font-weight:600;margin:.6rem 0}
"""


def make_page(runs: Sequence[RunRecord], title: str | None = None) -> str:
    """Write the page.

    Args:
        runs: At least one.
        title: Heading; the run's name, or the number of runs, where it is None.

    Returns:
        An HTML document. Whatever the runs' files hold is text in it and never markup.
    """
    heading = title or (runs[0].name if len(runs) == 1 else f"{len(runs)} runs")
    when = datetime.now().strftime("%Y-%m-%d %H:%M")
    parts = [
        f"<h1>{_text(heading)}</h1><p>foundation {_text(foundation.__version__)}, {when}</p>",
    ]
    if len(runs) > 1:
        parts.append(_comparison(runs))
    left_out = []
    size = sum(map(len, parts))
    for run in runs:
        details = _encodable(_details(run, is_only=len(runs) == 1))
        if size + len(details.encode()) > MAX_BYTES:
            left_out.append(run.name)
            continue
        parts.append(details)
        size += len(details.encode())
    if left_out:
        parts.append(
            f'<p class="note">Without details, as the page would be too large: {_text(", ".join(left_out))}</p>'
        )
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    return _encodable(
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="icon" href="data:,">'
        f"<title>{_text(heading)}</title><style>{_STYLE}</style></head><body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _encodable(text: str) -> str:
    """Return text in which halves of characters, as in names of files that are no UTF-8, are escaped."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _text(value: object) -> str:
    """Return a value as text of the page, whatever signs it has."""
    return html.escape(str(value), quote=True)


def _number(value: float, form: str = ".4g") -> str:
    return "" if not math.isfinite(value) else f"{value:{form}}"


def _table(head: Sequence[str], rows: Iterable[Sequence[object]], mono: int | None = None) -> str:
    """Lay a table out; nothing where it has no rows. ``mono``: number of a column of code."""
    body = []
    for row in rows:
        cells = [f"<td{' class=mono' if i == mono else ''}>{_text(cell)}</td>" for i, cell in enumerate(row)]
        body.append(f"<tr>{''.join(cells)}</tr>")
    if not body:
        return ""
    heads = "".join(f"<th>{_text(name)}</th>" for name in head)
    return f'<div class="wide"><table><thead><tr>{heads}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'


def _columns(names: Iterable[str]) -> list[str]:
    """Return each name once, as columns of a table, and no more than can be looked at."""
    return list(dict.fromkeys(names))[:_MAX_COLUMNS]


def _charts(charts: Iterable[str]) -> str:
    drawn = "".join(chart for chart in charts if chart)
    return f'<div class="charts">{drawn}</div>' if drawn else ""


def _section(title: str, *parts: str) -> str:
    """Return a section with a heading; nothing where it would be empty."""
    content = "".join(parts)
    return f"<h2>{_text(title)}</h2>{content}" if content else ""


# -- several runs -----------------------------------------------------------------------------------------------------


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the points that no other one beats: none is as small and scores more. In the order of size.

    Args:
        points: (size, score).
    """
    front = []
    best = -math.inf
    for index in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if points[index][1] > best:
            best = points[index][1]
            front.append(index)
    return front


def _comparison(runs: Sequence[RunRecord]) -> str:
    """Return the table of several runs, their curves, and size against score."""
    names = _short_names(runs)
    rows = []
    for run, name in zip(runs, names, strict=True):
        summary = run.summary
        success = number(summary.get("success_rate"))
        seconds = sum(value for value in map(number, mapping(summary.get("wall_seconds")).values()) if value == value)
        rows.append(
            [
                name,
                run.student,
                _number(run.parameters, ",.0f"),
                _number(number(summary.get("best_student_return")), ".2f"),
                _number(100 * number(summary.get("return_ratio")), ".2f"),
                _number(100 * success, ".2f"),
                _number(_worst(run), ".1f"),
                _number(number(summary.get("epochs")), ".0f"),
                _number(seconds or math.nan, ".0f"),
            ]
        )
    head = [
        "run",
        "student",
        "parameters",
        "return",
        "of teacher's [%]",
        "success [%]",
        "worst return",
        "epochs",
        "time [s]",
    ]
    lines = []
    for run, name in list(zip(runs, names, strict=True))[:_MAX_LINES]:
        curve = _progress(run)[1]
        lines.append(Line(name, curve.steps, curve.values))
    scored = [(name, run.parameters, *run.score) for run, name in zip(runs, names, strict=True)]
    points = [(name, size, score) for name, size, score, _ in scored if size > 0 and math.isfinite(score)]
    kinds = {kind for _, size, score, kind in scored if size > 0 and math.isfinite(score)}
    pareto = ""
    if len(points) > 1 and len(kinds) == 1:  # a ratio and a return are not to be compared
        front = pareto_front([(size, score) for _, size, score in points])
        pareto = scatter_chart("Size against score", "parameters of the student", kinds.pop(), points, front)
    charts = [line_chart("Return over the runs", "epoch", "mean return", lines, _shared_levels(runs)), pareto]
    filled = [column for column in range(len(head)) if any(row[column] for row in rows)]  # what no run has is left out
    table = _table([head[column] for column in filled], [[row[column] for column in filled] for row in rows])
    return _section("Runs side by side", table, _charts(charts))


def _shared_levels(runs: Sequence[RunRecord]) -> dict[str, float]:
    """Return the teacher's return, where all runs have the same task."""
    tasks = {str(run.summary.get("task")) for run in runs}
    return {"teacher": runs[0].levels().get("teacher", math.nan)} if len(tasks) == 1 else {}


def _short_names(runs: Sequence[RunRecord]) -> list[str]:
    """Name runs by what tells them apart: the end of the folder's name, the whole of it, or the path."""
    folders = [run.path.resolve().name for run in runs]
    ends = [name.split("_", 2)[2] if name.count("_") >= 2 else name for name in folders]
    for names in (ends, folders):
        if len(set(names)) == len(runs):
            return names
    return [str(run.path) for run in runs]


def _worst(run: RunRecord) -> float:
    """Return the lowest return of the student in the study of robustness; NaN without one."""
    quantities = mapping(mapping(run.summary.get("robustness")).get("quantities"))
    worst = [
        number(mapping(mapping(mapping(quantity).get("policies")).get(policy)).get("worst_return"))
        for quantity in quantities.values()
        for policy in ("student", "policy")
    ]
    return min((value for value in worst if math.isfinite(value)), default=math.nan)


# -- one run ----------------------------------------------------------------------------------------------------------


def _details(run: RunRecord, is_only: bool) -> str:
    notes = "".join(f'<p class="note">{_text(note)}</p>' for note in run.notes)
    content = "".join(
        [
            notes,
            _figures(run),
            _section("Learning", _charts(_learning_charts(run))),
            _section("Teachers", _charts([_teacher_bars(run)])),
            _robustness(run),
            _similarity(run),
            _efficiency(run),
            _section("Commands", f"<pre>{_text(chr(10).join(run.commands()))}</pre>"),
            _configuration(run),
            _section(
                "Files", _table(["file", "bytes", "SHA-256"], [(n, f"{s:,}", d) for n, s, d in run.files], mono=2)
            ),
        ]
    )
    if is_only:
        return content
    return f"<details><summary>{_text(run.name)}</summary>{content}</details>"


def _figures(run: RunRecord) -> str:
    """Return the run's main figures as tiles."""
    summary = run.summary
    student = mapping(summary.get("student"))
    shown = {
        "task": str(summary.get("task") or mapping(run.params.get("distillation")).get("task") or ""),
        "student": " ".join(filter(None, [run.student, _number(run.parameters, ",.0f")])),
        "return": _with_interval(number(summary.get("best_student_return")), number(student.get("return_interval_95"))),
        "teacher's return": _number(number(summary.get("teacher_return")), ".2f"),
        "of the teacher's": _percent(number(summary.get("return_ratio"))),
        "success": _percent(number(summary.get("success_rate"))),
        "best epoch": _number(number(summary.get("best_epoch")), ".0f"),
        "env steps": _number(number(summary.get("env_steps")), ",.0f"),
    }
    tiles = "".join(f"<div>{_text(name)}<b>{_text(value)}</b></div>" for name, value in shown.items() if value)
    return f'<div class="figures">{tiles}</div>'


def _with_interval(value: float, interval: float) -> str:
    if not math.isfinite(value):
        return ""
    return f"{value:.2f}" + (f" ± {interval:.2f}" if math.isfinite(interval) else "")


def _percent(value: float) -> str:
    return _number(100.0 * value, ".2f") + " %" if math.isfinite(value) else ""


def _progress(run: RunRecord) -> tuple[str, Any]:
    """Return tag and curve of the run's progress."""
    tag = next((tag for tag in _RETURNS if run.curve(tag).steps), _RETURNS[0])
    return tag, run.curve(tag)


def _learning_charts(run: RunRecord) -> list[str]:
    tag, curve = _progress(run)
    spread = run.curve(tag.replace("mean_", "std_"))
    low = high = None
    if spread.steps == curve.steps and spread.steps:
        low = [value - std for value, std in zip(curve.values, spread.values, strict=True)]
        high = [value + std for value, std in zip(curve.values, spread.values, strict=True)]
    name = "student" if "distillation" in run.params else "policy"
    lines = [Line(name, curve.steps, curve.values, low, high)]
    levels = run.levels()
    teacher = {key: value for key, value in levels.items() if key == "teacher"}
    charts = [
        line_chart("Return, beside teacher, zero and random actions", "epoch", "mean return", lines, levels),
        line_chart("Return, close to the teacher", "epoch", "mean return", _upper(lines, levels), teacher),
    ]
    others = [
        ("Loss", "training/loss", "loss"),
        ("Success", "evaluation/success_rate", "success [%]"),
        ("Error of the actions", "evaluation/action_rmse", "RMSE [action units]"),
        ("Divergence from the teacher", "evaluation/js_divergence", "Jensen-Shannon [nats]"),
    ]
    for title, tag, label in others:
        curve = run.curve(tag)
        log = title == "Loss" and min(curve.values, default=0.0) > 0
        shown = [100.0 * value for value in curve.values] if title == "Success" else curve.values
        bounds = (-4.0, 104.0) if title == "Success" else None
        charts.append(line_chart(title, "epoch", label, [Line(name, curve.steps, shown)], bounds=bounds, log=log))
    return charts


def _upper(lines: Sequence[Line], levels: Mapping[str, float]) -> list[Line]:
    """Leave out the beginning, far below the teacher; nothing where there is no teacher."""
    teacher = levels.get("teacher", math.nan)
    floor = max((value for name, value in levels.items() if name != "teacher"), default=math.nan)
    edge = teacher - 0.1 * (teacher - floor)
    if not math.isfinite(edge):
        return []
    kept = []
    for line in lines:
        above = [i for i, value in enumerate(line.y) if value >= edge]
        if len(above) > 1:
            kept.append(Line(line.name, [line.x[i] for i in above], [line.y[i] for i in above]))
    return kept


def _teacher_bars(run: RunRecord) -> str:
    """Return the bars of the returns with each of many teachers."""
    each = mapping(mapping(run.summary.get("teachers")).get("each"))
    bars = []
    for name, figures in each.items():
        own = mapping(figures)
        pair = {"teacher": number(own.get("teacher_return")), "student": number(own.get("student_return"))}
        bars.append((str(name), pair))
    return bar_chart("Return with each teacher", "mean return", bars)


def _robustness(run: RunRecord) -> str:
    measured = run.studies.get("robustness")
    if not measured:
        return ""
    rows = []
    for name, quantity in mapping(mapping(run.summary.get("robustness")).get("quantities")).items():
        for policy, figures in mapping(mapping(quantity).get("policies")).items():
            own = mapping(figures)
            cells = [f"{str(name).replace('_', ' ')} [{mapping(quantity).get('unit', '')}]", policy]
            cells += [_number(number(own.get(key)), ".1f") for key in ("nominal_return", "worst_return")]
            cells += [_number(number(own.get("worst_at")), "g"), _number(number(own.get("area_return")), ".1f")]
            rows.append([*cells, _percent(number(own.get("worst_success")))])
    head = ["quantity", "policy", "nominal return", "worst", "at", "mean over the range", "worst success"]
    missing = measured.get("missing")
    lacking = (
        f"<p>Not varied: {_text(', '.join(map(str, missing)))}.</p>" if isinstance(missing, list) and missing else ""
    )
    return _section("Robustness", _charts(robustness_charts(measured)), _table(head, rows), lacking)


def _similarity(run: RunRecord) -> str:
    """Return the figures on the states of both, the observations that explain the errors, and the worst episodes."""
    states = mappings(mapping(run.studies.get("similarity")).get("states"))
    names = _columns(str(name) for one in states for name in mapping(one.get("figures")))
    rows = [
        [one.get("states", ""), *(_number(number(mapping(one.get("figures")).get(name))) for name in names)]
        for one in states
    ]
    explained = [
        [one.get("states", ""), column.get("name", ""), _percent(number(column.get("share")))]
        + [_number(number(column.get(key))) for key in ("low", "high", "rmse")]
        for one in states
        for column in mappings(one.get("columns"))
    ]
    head = ["states of", "observation", "of the variance", "largest from", "to", "RMSE there"]
    charts = _training_charts(run)
    for one in states:
        for place, episode in enumerate(mappings(one.get("episodes")), start=1):
            steps, errors = numbers(episode.get("steps")), numbers(episode.get("errors"))
            if len(steps) == len(errors):
                title = f"Lowest return {place}: {_number(number(episode.get('total')), '.1f')}"
                lines = [Line("student", steps, errors)]
                charts.append(line_chart(title, "env step", "error of the actions", lines))
    return _section(
        "Similarity to the teacher",
        _table(["states of", *(name.replace("_", " ") for name in names)], rows),
        _table(head, explained),
        _charts(charts),
    )


def _training_charts(run: RunRecord) -> list[str]:
    """Draw each figure of similarity at the measured epochs of the training, on the states of both."""
    snapshots = mappings(mapping(run.studies.get("similarity")).get("training"))
    epochs = [number(one.get("epoch")) for one in snapshots]
    each = [mapping(one.get("states")) for one in snapshots]
    charts = []
    for name in _columns(str(name) for states in each for figures in states.values() for name in mapping(figures)):
        lines = [
            Line(f"{acts}'s states", epochs, [number(mapping(s.get(acts)).get(name)) for s in each], marks=True)
            for acts in _columns(str(acts) for states in each for acts in states)
        ]
        charts.append(line_chart(f"Over the training: {name.replace('_', ' ')}", "epoch", name, lines))
    return charts


def _efficiency(run: RunRecord) -> str:
    """Return the table of sizes and times, the teacher's beside the student's."""
    measured = mapping(run.summary.get("efficiency"))
    if not measured:
        sizes = mapping(run.summary.get("parameters"))
        return _section(
            "Efficiency", _table(["", "parameters"], [(name, _number(number(n), ",.0f")) for name, n in sizes.items()])
        )
    return _section("Efficiency", _efficiency_table(measured))


def _efficiency_table(measured: Mapping[str, Any]) -> str:
    names = _columns(str(name) for figures in measured.values() for name in mapping(figures))
    rows = [
        [policy, *(_counted(number(mapping(figures).get(name))) for name in names)]
        for policy, figures in measured.items()
    ]
    return _table(["", *(name.replace("_", " ") for name in names)], rows)


def _counted(value: float) -> str:
    """Write a count in full, and a small number with four digits."""
    return _number(value, ",.0f" if abs(value) >= 1000 else ".4g")


def _configuration(run: RunRecord) -> str:
    parts = []
    for name, values in run.params.items():
        if values:
            text = yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True, width=100)
            parts.append(f"<details><summary>{_text(name)}.yaml</summary><pre>{_text(text)}</pre></details>")
    return _section("Configuration", *parts)
