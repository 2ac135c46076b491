"""The pipeline's table and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

INK, OURS, THEIRS = "#333333", "#0b6e4f", "#d1495b"
LABELS = {"student": "student", "published": "RAPTOR (published)", "teachers": "teachers"}
SETS = {
    "training": "vehicles of the training",
    "held_out": "held-out vehicles",
    "crazyflie": "Crazyflie",
}
SETS |= {f"{name}_slow": f"{title}, limit of 2 m/s" for name, title in SETS.items()}


def markdown(num_teachers: int, stages: dict[str, Any], flights: dict[str, Any], student: dict[str, Any]) -> str:
    """Write the tables.

    Args:
        num_teachers: That the student was distilled from.
        stages: Name -> wall and CPU seconds.
        flights: Set of vehicles -> engine -> policy -> figures of a ``Flight``.
        student: The distillation's ``summary.json``.
    """
    parameters = student.get("parameters", {}).get("student")
    lines = [f"# {num_teachers} teachers, one student of {parameters} parameters", ""]
    lines += ["| stage | wall [s] | CPU [s] |", "|---|---:|---:|"]
    lines += [f"| {name} | {s['wall_seconds']:.1f} | {s['cpu_seconds']:.1f} |" for name, s in stages.items()]
    total = [sum(stage[key] for stage in stages.values()) for key in ("wall_seconds", "cpu_seconds")]
    lines += [f"| **together** | {total[0]:.1f} | {total[1]:.1f} |", ""]
    for where, engines in flights.items():
        lines += [f"## {SETS[where]} ({_count(engines)})", ""]
        lines += ["| simulator | policy | mean return | of the teachers' | terminated | error [cm] | median [cm] |"]
        lines += ["|---|---|---:|---:|---:|---:|---:|"]
        for engine, policies in engines.items():
            reference = policies.get("teachers", {}).get("mean_return")
            lines += [_row(engine, LABELS[name], figures, reference) for name, figures in policies.items()]
        lines.append("")
    lines.append("The error is the mean distance to the target over the last second of episodes flown to their end.")
    return "\n".join(lines) + "\n"


def _count(engines: dict[str, Any]) -> str:
    figures = next(iter(next(iter(engines.values())).values()))
    number = len(figures["returns"])
    return f"{number} vehicle{'s' * (number > 1)}, {figures['episodes']} episodes"


def _row(engine: str, label: str, figures: dict[str, Any], reference: float | None) -> str:
    share = f"{100 * figures['mean_return'] / reference:.1f} %" if reference and reference > 0 else ""
    interval = figures["return_interval_95"]
    mean = f"{figures['mean_return']:.1f}" + ("" if interval is None else f" ± {interval:.1f}")
    errors = " | ".join(
        "–" if figures[key] is None else f"{100 * figures[key]:.2f}" for key in ("error", "error_median")
    )
    return f"| {engine} | {label} | {mean} | {share} | {100 * figures['terminated']:.2f} % | {errors} |"


def draw(flights: dict[str, Any], curve: Sequence[tuple[int, float]], path: Path) -> None:
    """Draw the learning curve, held-out returns against the published policy's, and the steady-state errors.

    Args:
        flights: As for :func:`markdown`.
        curve: Epoch and return ratio of each evaluation.
        path: PNG to write.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    if curve:
        left.plot([epoch for epoch, _ in curve], [100 * ratio for _, ratio in curve], color=OURS)
    left.set(xlabel="epoch", ylabel="return, % of the teachers'", title="Distillation")
    held_out = flights["held_out"]["torch"]
    if "published" in held_out:
        middle.scatter(held_out["published"]["returns"], held_out["student"]["returns"], s=8, color=OURS, alpha=0.6)
        low = min(min(held_out[name]["returns"]) for name in ("published", "student"))
        high = max(max(held_out[name]["returns"]) for name in ("published", "student"))
        middle.plot([low, high], [low, high], color=INK, linewidth=0.8)
    middle.set(xlabel="RAPTOR (published)", ylabel="student", title="Mean return on each held-out vehicle")
    for name, color in (("student", OURS), ("published", THEIRS)):
        if name in held_out:
            errors = sorted(100 * error for error in held_out[name]["errors"] if error is not None)
            shares = [(i + 1) / len(held_out[name]["errors"]) for i in range(len(errors))]
            right.plot(errors, shares, color=color, label=LABELS[name])
    right.set(xlabel="steady-state error [cm]", ylabel="share of the held-out vehicles", xscale="log", ylim=(0, 1))
    right.legend(frameon=False)
    for axes in (left, middle, right):
        axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def draw_axis(title: str, rows: Sequence[tuple[str, dict[str, Any]]], path: Path) -> None:
    """Draw one axis of the ablation: return on both sets of vehicles, and what terminated.

    Args:
        title: The axis.
        rows: Value and its figures: ``training`` and ``held_out``, each with ``mean_return`` and ``terminated``.
        path: PNG to write.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
    names = [name for name, _ in rows]
    for where, color, shift in (("training", OURS, -0.2), ("held_out", THEIRS, 0.2)):
        places = [i + shift for i in range(len(rows))]
        left.bar(places, [row[where]["mean_return"] for _, row in rows], 0.38, color=color, label=SETS[where])
        right.bar(places, [100 * row[where]["terminated"] for _, row in rows], 0.38, color=color)
    left.set(ylabel="mean return", title=title)
    right.set(ylabel="terminated [%]")
    figure.legend(frameon=False, fontsize=8, loc="outside lower center", ncols=2)
    for axes in (left, right):
        axes.set_xticks(range(len(rows)), names, fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def learning_curve(run: Path) -> list[tuple[int, float]]:
    """Read a run's evaluations from its TensorBoard file: epoch and return ratio."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run), size_guidance={"scalars": 0})
    events.Reload()
    tag = "evaluation/return_ratio"
    if tag not in events.Tags()["scalars"]:
        return []
    return [(event.step, event.value) for event in events.Scalars(tag)]
