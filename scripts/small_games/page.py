"""The page of the study of small games: tables and a picture of what is done."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from small_games.games import (
    COMPRESSION_LOSS,
    FINAL_EPISODES,
    GAMES,
    LOSS_SHARE,
    LOSSES,
    MULTI_SHARE,
    SHARES,
    TOGETHER,
    Together,
)

WRITTEN = "## What showed, and what did not"
"""Heading of the part of the page that the script does not write."""


def written_part(path: Path) -> str:
    """Return what people have written under the tables of the page, which is kept; nothing if there is no page yet."""
    if not path.is_file():
        return ""
    _, heading, text = path.read_text(encoding="utf-8").partition(f"\n{WRITTEN}\n")
    return heading + text


def values(done: dict[str, dict[str, Any]], prefix: str, key: str = "score") -> list[float]:
    """Return a figure of all seeds of a run: by default the normalised score from held-out starts."""
    return [stage[key] for name, stage in done.items() if name.startswith(f"{prefix} s")]


def spread(found: Sequence[float]) -> str:
    """Write a median with its range."""
    if not found:
        return "-"
    if len(found) == 1:
        return f"{found[0]:.3f} (one seed)"
    return f"{statistics.median(found):.3f} ({min(found):.3f} to {max(found):.3f})"


def games_of(done: dict[str, dict[str, Any]]) -> list[str]:
    """Return the games that have a teacher, in order."""
    return [game for game in GAMES if f"teacher {game}" in done]


def page(done: dict[str, dict[str, Any]], name: str) -> str:
    """Return the page of what is done."""
    parts = [head(name), teachers_table(done), losses_table(done), compression_table(done), together_table(done)]
    return "\n".join(line for part in parts for line in part) + "\n"


def head(name: str) -> list[str]:
    """Return the beginning of the page: what was run and how it is measured."""
    from held_out_starts import EPSILON, MOST_STEPS, NUM_EPISODES

    return [
        "# Rusu et al. (2015) on small games",
        "",
        "Made by `python scripts/rusu.py` (extras sb3, gymnasium and bench). One teacher of each game, a DQN of",
        "`scripts/train_dqn.py` (seed 0); the seeds are those of the students.",
        "",
        "**Held-out starts.** The paper measures from states that people had reached. Here each of",
        f"{NUM_EPISODES} episodes begins where a player has been led in 1 to {MOST_STEPS} env steps: the teacher with",
        f"{EPSILON:.0%} of its choices random. No training episode begins there. Rewards count from there on, and all",
        "policies of a game have the same starts. A score is (student - random) / (teacher - random) on them. Ordinary",
        f"starts are those of the game's reset: {FINAL_EPISODES} episodes of seeds that nothing was trained on. Each",
        f"figure is the median over the seeds, with its range in brackets. Raw numbers: `{name}.json`.",
        "",
        f"![Score against the student's size]({name}.png)",
        "",
    ]


def teachers_table(done: dict[str, dict[str, Any]]) -> list[str]:
    """Return the section of the teachers."""
    lines = [
        "## Teachers",
        "",
        "The best of a training's evaluations is the teacher; env steps are those before it. Episodes differ, so that",
        "a score has an interval of its own (95 %, the largest of the game's runs).",
        "",
        "| game | observations, choices | parameters | env steps | return, ordinary starts | held-out starts "
        "| random, held-out | a score's interval |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for game in games_of(done):
        teacher = done[f"teacher {game}"]
        starts = done.get(f"starts {game}", {})
        returns = [stage["ordinary_teacher_return"] for stage in of_game(done, game)]
        intervals = [stage["interval"] for stage in of_game(done, game) if "interval" in stage]
        cells = [
            game,
            f"{teacher['num_obs']}, {teacher['num_choices']}",
            f"{teacher['parameters']:,}",
            f"{teacher['env_steps']:,}" if "env_steps" in teacher else "-",
            f"{statistics.median(returns):.1f}" if returns else "-",
            f"{starts['teacher_return']:.1f}" if starts else "-",
            f"{starts['random_return']:.1f}" if starts else "-",
            f"± {max(intervals):.3f}" if intervals else "-",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def of_game(done: dict[str, dict[str, Any]], game: str) -> list[dict[str, Any]]:
    """Return the runs of a game's students."""
    return [stage for name, stage in done.items() if name.startswith((f"losses {game} ", f"compression {game} "))]


def losses_table(done: dict[str, dict[str, Any]]) -> list[str]:
    """Return the section of the three losses."""
    lines = [
        f"## Three losses, students of {LOSS_SHARE:.0%} of the teacher's size",
        "",
        f"| game | starts | {' | '.join(LOSSES)} |",
        "|---|---|" + "---:|" * len(LOSSES),
    ]
    for game in games_of(done):
        for starts, key in (("held-out", "score"), ("ordinary", "ordinary_score")):
            cells = [spread(values(done, f"losses {game} {loss}", key)) for loss in LOSSES]
            lines.append(f"| {game} | {starts} | {' | '.join(cells)} |")
    return [*lines, ""]


def compression_table(done: dict[str, dict[str, Any]]) -> list[str]:
    """Return the section of smaller and smaller students, a table for each kind of game."""
    lines = [f"## Compression, loss {COMPRESSION_LOSS}, held-out starts", ""]
    for preset in dict.fromkeys(game.preset for game in GAMES.values()):
        games = [game for game in games_of(done) if GAMES[game].preset == preset]
        shares = [share for share in SHARES if any(values(done, f"compression {game} {share:g}") for game in games)]
        if not shares:
            continue
        lines += [
            f"| share of the teacher's parameters | {' | '.join(games)} |",
            "|---|" + "---:|" * len(games),
        ]
        for share in shares:
            cells = []
            for game in games:
                prefix = f"compression {game} {share:g}"
                sizes = values(done, prefix, "parameters")
                size = f"{sizes[0]:,} parameters: " if sizes else ""
                cells.append(f"{size}{spread(values(done, prefix))}")
            lines.append(f"| {share * 100:g} % | {' | '.join(cells)} |")
        lines.append("")
    return lines


def together_table(done: dict[str, dict[str, Any]]) -> list[str]:
    """Return the section of one policy of several games, a table for each set of games."""
    lines = [
        "## One policy of several games, held-out starts",
        "",
        "One student of several games, whose layers are those of a student of",
        f"{MULTI_SHARE:.0%} of the size of the first game's teacher (`--multi_task`: a trunk, and a first layer and a",
        "head of each game); students of one game; and, where it was trained, one DQN of all the games in turn",
        "(`scripts/train_joint_dqn.py`, the layers of one teacher).",
        "",
    ]
    for together in TOGETHER:
        if any(name.startswith(f"multi_task {together.name} ") for name in done):
            lines += [*rows_together(done, together), ""]
    return lines[:-1]


def rows_together(done: dict[str, dict[str, Any]], together: Together) -> list[str]:
    """Return the table of one set of games; the means are of the seeds that all its games have."""
    from foundation.rollout.baselines import geometric_mean

    students, joint = (
        [stage for key, stage in done.items() if key.startswith(f"{part} {together.name} ")]
        for part in ("multi_task", "joint")
    )
    of_one = [by_seed(done, f"compression {game} {MULTI_SHARE:g}") for game in together.tasks]
    seeds = sorted(set.intersection(*map(set, of_one)))
    columns = [
        ("one student of all", [scores_of(run, together) for run in students]),
        ("one student of its own", [[found[seed]["score"] for found in of_one] for seed in seeds]),
    ]
    sizes = [f"{students[0]['parameters']:,}", " + ".join(f"{parameters_of(found)}" for found in of_one)]
    if together.joint_steps is not None:
        columns.append(
            (f"one DQN of all, {together.joint_steps:,} env steps", [scores_of(run, together) for run in joint])
        )
        sizes.append(f"{joint[0]['parameters']:,}" if joint else "-")
    lines = [f"| game | {' | '.join(title for title, _ in columns)} |", "|---|" + "---:|" * len(columns)]
    for index, game in enumerate(together.tasks):
        cells = [spread([scores[index] for scores in runs]) for _, runs in columns]
        cells[1] = spread([stage["score"] for stage in of_one[index].values()])
        lines.append(f"| {game} | {' | '.join(cells)} |")
    means = [spread([geometric_mean(scores) for scores in runs]) for _, runs in columns]
    return [*lines, f"| parameters | {' | '.join(sizes)} |", f"| geometric mean | {' | '.join(means)} |"]


def by_seed(done: dict[str, dict[str, Any]], prefix: str) -> dict[str, dict[str, Any]]:
    """Return a run's stages by their seeds."""
    return {name.rpartition(" ")[2]: stage for name, stage in done.items() if name.startswith(f"{prefix} s")}


def scores_of(run: dict[str, Any], together: Together) -> list[float]:
    """Return the scores of a policy of several games, in their order."""
    return [run["tasks"][game]["score"] for game in together.tasks]


def parameters_of(stages: dict[str, dict[str, Any]]) -> str:
    """Return the size of the students of a run, which is that of each seed."""
    return f"{next(iter(stages.values()))['parameters']:,}" if stages else "-"


def draw(done: dict[str, dict[str, Any]], path: Path) -> None:
    """Draw the score against the student's size, a line for each game, the range over the seeds shaded."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8.0, 4.0), layout="constrained")
    for game in games_of(done):
        points = []
        for share in SHARES:
            prefix = f"compression {game} {share:g}"
            found = values(done, prefix)
            if found:
                actual = 100.0 * values(done, prefix, "parameters")[0] / done[f"teacher {game}"]["parameters"]
                points.append((actual, statistics.median(found), min(found), max(found)))
        if points:
            size, middle, low, high = zip(*points, strict=True)
            (line,) = axes.plot(size, middle, marker="o", label=game)
            axes.fill_between(size, low, high, color=line.get_color(), alpha=0.2)
    axes.axhline(1.0, color="grey", linewidth=0.8, linestyle="--")
    axes.set(xscale="log", xlabel="student's parameters [% of the teacher's]", ylabel="score from held-out starts")
    ticks = [100.0 * share for share in SHARES]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    if axes.lines[1:]:
        figure.legend(loc="outside right upper")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
