"""The table and the picture of ``scripts/forgetting.py``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

from foundation.evaluation.forgetting import Forgetting, TaskReturns, measure_forgetting

PLAIN, DISTILLED = "PPO", "distil, then PPO"
"""Labels of the methods without retention."""
KEEPS, LEARNS = 0.9, 0.95
"""Shares of the old task's score, and of plain PPO's on the new one, from which a method is said to do both."""
INK, OLD, NEW = "#333333", "#5b7db1", "#d1495b"
Measured = Mapping[str, Mapping[str, float]]
"""Task -> figures of ``measure``."""


def measures(random: Measured, references: Measured, stages: Sequence[Measured]) -> Forgetting:
    """Compute the measures of one run.

    Args:
        random: Figures of random actions, which an untrained policy is taken to be.
        references: Figures of each task's own teacher on that task.
        stages: Figures after each stage.
    """
    key = "mean_return"
    return measure_forgetting(
        [
            TaskReturns(
                name,
                random=random[name][key],
                reference=references[name][key],
                before=random[name][key],
                after=tuple(stage[name][key] for stage in stages),
            )
            for name in references
        ]
    )


def spread(values: Sequence[float], percent: bool = True) -> str:
    """Write a median, and the range where there are several values."""
    factor, digits = (100.0, 1) if percent else (1.0, 2)
    text = f"{factor * median(values):.{digits}f}"
    if len(values) > 1:
        text += f" ({factor * min(values):.{digits}f} to {factor * max(values):.{digits}f})"
    return text


def new_scores(runs: Sequence[Forgetting]) -> list[float]:
    """Return the score on the new task at the end of each run."""
    return [run.matrix[-1][1] for run in runs]


def markdown(found: Mapping[str, Sequence[Forgetting]], ends: Mapping[str, Sequence[Measured]]) -> str:
    """Write the table of two tasks.

    Args:
        found: Label of a method -> measures of its runs, one a seed.
        ends: Label of a method -> what was measured at the end of its runs.
    """
    old, new = next(iter(found.values()))[0].names
    lines = [
        f"| second stage | runs | {old} before [%] | {old} after [%] | kept [%] | {new} after [%] | "
        f"of plain PPO's {new} [%] | mean of both [%] | backward transfer | JS to the {old} teacher [nats] | "
        f"JS to the {new} teacher [nats] |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    plain = median(new_scores(found[PLAIN])) if PLAIN in found else 0.0
    for label, runs in found.items():
        shares = [score / plain for score in new_scores(runs)] if plain > 0.0 else []  # of nothing there are none
        cells = [
            label,
            str(len(runs)),
            spread([run.matrix[0][0] for run in runs]),
            spread([run.matrix[-1][0] for run in runs]),
            spread([run.retention[0] for run in runs]),
            spread(new_scores(runs)),
            spread(shares) if shares else "–",
            spread([run.mean_score for run in runs]),
            spread([run.backward_transfer for run in runs], percent=False),
            *(_divergence([end[name] for end in ends[label]]) for name in (old, new)),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def findings(found: Mapping[str, Sequence[Forgetting]]) -> list[str]:
    """Say what the figures say: which methods keep one task and learn the other, and whether distilling first helps.

    Args:
        found: Label of a method -> measures of its runs, one a seed.
    """
    plain = found.get(PLAIN)
    if plain is None:
        return []
    both = [
        label
        for label, runs in found.items()
        if median(run.retention[0] for run in runs) >= KEEPS
        and median(new_scores(runs)) >= LEARNS * median(new_scores(plain))
    ]
    limits = (
        f"at least {100 * KEEPS:.0f} % of the old task and reach at least {100 * LEARNS:.0f} % of plain PPO's score"
    )
    lines = [f"In the median, these keep {limits} on the new one: {', '.join(both) or 'none'}."]
    distilled = found.get(DISTILLED)
    if distilled is not None:
        lines += ["", _distilling_first(plain, distilled)]
    return [*lines, ""]


def _distilling_first(plain: Sequence[Forgetting], distilled: Sequence[Forgetting]) -> str:
    """Answer whether a student forgets less than the teacher that it was distilled from."""
    kept = {"teacher": [run.retention[0] for run in plain], "student": [run.retention[0] for run in distilled]}
    if min(kept["student"]) > max(kept["teacher"]):
        answer = "yes, every run of the student's keeps more than any of the teacher's"
    elif max(kept["student"]) < min(kept["teacher"]):
        answer = "no, every run of the student's keeps less than any of the teacher's"
    else:
        answer = "no difference is seen, the ranges overlap"
    return (
        "Does distilling first reduce forgetting by itself? Without any retention the teacher keeps "
        f"{spread(kept['teacher'])} % of the old task, and a student of the same size that was distilled from it "
        f"{spread(kept['student'])} %: {answer}. On the new task they reach {spread(new_scores(plain))} % and "
        f"{spread(new_scores(distilled))} %."
    )


def _divergence(figures: Sequence[Mapping[str, float]]) -> str:
    values = [entry["js_divergence"] for entry in figures if "js_divergence" in entry]
    return spread(values, percent=False) if values else "–"


REFERENCES = {
    "random": "random actions",
    "chase": "the chase's teacher",
    "evade": "the evasion's teacher",
    "joint": "one student of both teachers, a head for each task",
}


MIN_SEEDS = 3
FEW = [f"Of fewer than {MIN_SEEDS} seeds: a first look, not a ranking.", ""]
"""Said of a table that no spread can be read from."""


def page(
    table: str,
    said: Sequence[str],
    references: Mapping[str, Measured],
    settings: Mapping[str, object],
    seeds: Sequence[int],
    name: str,
) -> str:
    """Write the page around the table.

    Args:
        table: From :func:`markdown`.
        said: From :func:`findings`.
        references: Figures of the policies of :data:`REFERENCES` that were measured.
        settings: ``iterations`` and ``episodes``.
        seeds: Of the second stages.
        name: The picture's file, without its ending.
    """
    rows = []
    for who, label in REFERENCES.items():
        if who in references:
            cells = [_returns(references[who].get(task)) for task in ("chase", "evade")]
            rows.append(f"| {label} | {' | '.join(cells)} |")
    command = f"--iterations {settings['iterations']} --episodes {settings['episodes']}"
    return "\n".join(
        [
            "# Chase, then evade",
            "",
            "A policy that chases a target is taught to evade a pursuer, by several methods. Both tasks have one "
            "observation layout, with columns that say which task runs. Scores are normalised: 0 is what random "
            "actions reach, 100 % what the task's own teacher reaches; *kept* is the score on the old task after the "
            "second stage, of that before it. The first stage is the same teacher for all, the second has "
            f"{settings['iterations']} iterations; medians, and ranges where there is more than one run.",
            "",
            *(FEW if len(seeds) < MIN_SEEDS else []),
            "```bash",
            f"python scripts/forgetting.py {command} --seeds {' '.join(map(str, seeds))}",
            "```",
            "",
            table,
            *said,
            f"![Scores on both tasks after both stages, by method]({name}.png)",
            "",
            f"Mean returns and success rates that the scores are made of, {settings['episodes']} episodes each:",
            "",
            "| policy | chase | evade |",
            "|---|---:|---:|",
            *rows,
            "",
        ]
    )


def _returns(figures: Mapping[str, float] | None) -> str:
    if figures is None:
        return "–"
    text = f"{figures['mean_return']:.1f}"
    return text + (f", {100 * figures['success_rate']:.1f} %" if "success_rate" in figures else "")


def draw(found: Mapping[str, Sequence[Forgetting]], path: Path) -> None:
    """Draw each method's old-task and new-task scores at the end: the median as a bar, every run as a dot.

    Args:
        found: Label of a method -> measures of its runs.
        path: The PNG.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 10, "font.family": "DejaVu Sans", "text.color": INK, "axes.edgecolor": "#bbbbbb"})
    figure, axes = plt.subplots(figsize=(7.2, 0.62 * len(found) + 1.5), dpi=160)
    names = next(iter(found.values()))[0].names
    for row, runs in enumerate(found.values()):
        for task, (shift, color) in enumerate(((-0.19, OLD), (0.19, NEW))):
            scores = [100.0 * run.matrix[-1][task] for run in runs]
            label = f"{names[task]} ({'old' if task == 0 else 'new'} task)" if row == 0 else None
            axes.barh(row + shift, median(scores), height=0.34, color=color, alpha=0.75, label=label)
            axes.plot(scores, [row + shift] * len(scores), "o", color=INK, markersize=3)
    axes.set_yticks(range(len(found)), list(found))
    axes.invert_yaxis()
    axes.axvline(100.0, color="#999999", linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
    axes.axvline(0.0, color="#999999", linewidth=0.8)
    axes.set_xlabel("score after both stages [%]")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK, which="both", color="#bbbbbb")
    axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, fontsize=9)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})
    plt.close(figure)
