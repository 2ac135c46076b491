"""What the benchmark prints."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Table


def _number(value: float | None, form: str = "{:.2f}") -> str:
    return "missed" if value is None else form.format(value)


def race_table(result: dict[str, Any]) -> Table:
    """Show medians and ranges over seeds of both criteria, and how many times more than ours."""
    seeds = max(len(run["seeds"]) for run in result["runs"].values())
    title = f"To a share of the teacher's return ({result['teacher']['mean_return']:.1f}), medians (ranges) of {seeds}"
    table = Table(title=title)
    columns = ("", "to", "first, CPU s", "x ours", "settled, CPU s", "x", "first, steps", "x", "settled, steps", "x")
    for column in columns:
        table.add_column(column, justify="left" if column in ("", "to") else "right")
    quantities = {"cpu_seconds": 2, "settled_cpu_seconds": 2, "env_steps": 0, "settled_env_steps": 0}
    for name, run in result["runs"].items():
        for level, median in run["median"].items():
            times = (result["ratios"].get(name) or {}).get(level, {})
            cells: list[str] = []
            for quantity, digits in quantities.items():
                ends = run["range"][level][quantity]
                spread = "" if ends is None else f" ({ends[0]:,.{digits}f} to {ends[1]:,.{digits}f})"
                cells.append(_number((median or {}).get(quantity), f"{{:,.{digits}f}}") + spread)
                cells.append(_times(times.get(quantity)))
            table.add_row(run["label"], f"{100 * float(level):.0f} %", *cells)
    return table


def _times(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def sweep_table(name: str, rows: list[dict[str, Any]]) -> Table:
    """Show one side's sweep."""
    table = Table(title=f"{name} (median CPU s)")
    for column in ("changes", "score", "95 %", "98 %"):
        table.add_column(column, justify="left" if column == "changes" else "right")
    for row in rows:
        cells = [_number((median or {}).get("cpu_seconds")) for median in row["median"].values()]
        label = ", ".join(f"{key}={value:g}" for key, value in row["changes"].items()) or "base"
        table.add_row(label, f"{row['score']:.2f}", *cells)
    return table


def breakdown_tables(result: dict[str, Any]) -> list[Table]:
    """Show the shares of an epoch and collection's overhead."""
    shares = result["shares"]
    first = Table(title=f"An epoch of {shares['num_envs']} environments: {1e3 * shares['seconds_per_epoch']:.1f} ms")
    first.add_column("part")
    first.add_column("share", justify="right")
    for name, share in shares["shares"].items():
        first.add_row(name, f"{100 * share:.1f} %")
    second = Table(title=f"Collection, {result['overhead']['num_envs']} environments [ms per batched env step]")
    for column in ("", "bare loop", "collection", "overhead"):
        second.add_column(column, justify="right" if column else "left")
    for phase, row in result["overhead"].items():
        if isinstance(row, dict):
            second.add_row(phase, *(f"{row[key]:.3f}" for key in ("bare loop", "collection", "overhead")))
    second.add_row("first write to fresh memory, once", "", "", f"{result['overhead']['first touch']:.3f}")
    third = Table(title="Tensor operations of a batched env step")
    for column in ("", "bare loop", "collection", "more"):
        third.add_column(column, justify="right" if column else "left")
    for phase, row in result.get("operations", {}).items():
        third.add_row(phase, *(f"{row[key]:.1f}" for key in ("bare loop", "collection", "more")))
    fourth = Table(title="An update of the student [us]")
    for column in ("bare loop", "learner", "the bare loop's share"):
        fourth.add_column(column, justify="right")
    learning = result["learning"]
    fourth.add_row(f"{learning['bare loop']:.0f}", f"{learning['learner']:.0f}", f"{100 * learning['share']:.0f} %")
    return [first, second, third, fourth]


def simulator_table(rows: list[dict[str, Any]]) -> Table:
    """Show the simulator's speed."""
    table = Table(title="Simulator [million env steps per second]")
    for column in ("environments", "mode", "per CPU s", "per wall s"):
        table.add_column(column, justify="left" if column == "mode" else "right")
    for row in rows:
        table.add_row(
            f"{row['num_envs']:,}",
            row["mode"],
            f"{row['per_cpu_second'] / 1e6:.2f}",
            f"{row['per_wall_second'] / 1e6:.2f}",
        )
    return table


def dataset_table(result: dict[str, Any]) -> Table:
    """Show a large dataset's memory and sampling."""
    title = (
        f"Dataset of {result['rows']:,} rows: {result['resident_bytes'] / 1e9:.2f} GB, "
        f"{100 * result['resident_over_announced']:.1f} % of what was announced; killed while saving and resumed: "
        + ("bit-identical" if result["identical_after_kill_and_resume"] else "NOT IDENTICAL")
    )
    table = Table(title=title)
    for column in ("batch", "minibatches [M rows/CPU s]", "index_select [M rows/CPU s]", "share"):
        table.add_column(column, justify="right")
    for row in result["sampling"]:
        speeds = [f"{row[name] / 1e6:.2f}" for name in ("minibatches", "index_select")]
        table.add_row(f"{row['batch_size']:,}", *speeds, f"{100 * row['share']:.0f} %")
    return table


def kinds_table(rows: list[dict[str, Any]]) -> Table:
    """Show what every kind of student ends with."""
    table = Table(title="Students on `deployable`")
    for column in ("student", "seed", "parameters", "CPU s", "of the teacher's return", "survive", "error"):
        table.add_column(column, justify="left" if column == "student" else "right")
    for row in rows:
        table.add_row(
            row["kind"],
            str(row["seed"]),
            f"{row['parameters']:,}",
            f"{row['cpu_seconds']:.1f}",
            f"{100 * row['return_ratio']:.2f} %",
            f"{100 * row['success_rate']:.1f} %",
            f"{100 * row['position_error']:.2f} cm",
        )
    return table


def raptor_tables(result: dict[str, Any]) -> list[Table]:
    """Show the epochs of many teachers, and their inference."""
    first = Table(title="An on-policy epoch of many teachers: 10 episodes x 500 steps each [ms]")
    columns = ("teachers", "simulator", "rollout", "labelling", "training", "epoch", "k/s", "original, k/s")
    for column in columns:
        first.add_column(column, justify="left" if column == "simulator" else "right")
    for row in result["epochs"]:
        parts = (f"{1e3 * row[name]:.0f}" for name in ("rollout", "labelling", "training", "epoch_seconds"))
        original = "" if row["original"] is None else " to ".join(f"{v / 1e3:.0f}" for v in sorted({*row["original"]}))
        kind = "compiled" if row["compiled"] else "eager"
        first.add_row(str(row["teachers"]), kind, *parts, f"{row['transitions_per_second'] / 1e3:.0f}", original)
    second = Table(title="Stacked teachers: time of one step")
    for column in ("layers", "teachers", "rows", "weights MB", "ms", "x one teacher", "x reading the weights"):
        second.add_column(column, justify="left" if column == "layers" else "right")
    for row in result["inference"]:
        second.add_row(
            "-".join(map(str, row["layers"])),
            str(row["teachers"]),
            str(row["rows"]),
            f"{row['weights_mb']:.1f}",
            f"{row['milliseconds']['stacked']:.2f}",
            f"{row['over_one']:.2f}",
            f"{row['over_reading']:.2f}",
        )
    return [first, second]


def tables_of(result: dict[str, Any]) -> Iterator[Table]:
    """Yield a table of every part that there is."""
    for kind in ("sweep", "sweep_memory"):
        for name, side in result.get(kind, {}).items():
            if isinstance(side, dict):
                yield sweep_table(f"{kind}: {name}", side["rows"])
    one = {
        **dict.fromkeys(("distill", "memory", "last_percent"), race_table),
        "kinds": kinds_table,
        "simulator": simulator_table,
        "dataset": dataset_table,
    }
    for name, make in one.items():
        if name in result:
            yield make(result[name])
    for name, make_all in {"raptor": raptor_tables, "breakdown": breakdown_tables}.items():
        if name in result:
            yield from make_all(result[name])


def show(console: Console, result: dict[str, Any]) -> None:
    """Print every table that there is."""
    for table in tables_of(result):
        console.print(table)
