"""Distil, then fine-tune by PPO on the same task: how low the return falls on the way, and where it ends.

    python scripts/point_ctrl_finetune.py                # a student of the shipped teacher, six ways, three seeds
    python scripts/point_ctrl_finetune.py --quick        # tiny sizes, to see that it runs

The student sees the 22 numbers that a vehicle can measure; PPO goes on from it (a) after the critic has learned alone,
(b) at once, (c) at once and with the moments that the distillation's optimiser had, as a resumed run would have them,
(d) as (c), with the settings that train the task from scratch, (e) as (a), held near the student by a KL divergence,
(f) as (a), with the short rollouts and the advantages that the task is trained with.
Start and end are measured on the same fresh episodes, so that their difference is one of pairs. Every finished stage is
kept in ``<folder>/stages.json`` and is not run again. Writes ``<out>.json``, ``<out>.md`` and ``<out>.png``.
"""

from __future__ import annotations

import argparse
import functools
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

if TYPE_CHECKING:
    import torch

    from foundation.ppo.finetune import FinetuneRunner

ROOT = Path(__file__).resolve().parents[1]
TASK = "Isaac-Quadcopter-Point-Ctrl-v0"
TEACHER = ROOT / "foundation" / "assets" / "teachers" / "point_ctrl" / "model.pt"
EXPERIMENT = "point_ctrl_finetune"
FRESH_SEED = 5_000_021
"""Seed of the episodes that are compared; neither training nor the choice of the best policy sees them."""
STUDENT = ["experiment=fast_adam", "distill.student.obs_groups=[deployable]"]
SETTINGS = ["experiment=polish"]
"""Of PPO: little noise and small steps, around a policy that is good already."""
FROM_SCRATCH = ["--init_std", "0.3"]
"""Of the way that has the task's own settings of PPO: its noise at the start."""
HELD = ["--kl_coef", "1.0"]
"""Of the way that a KL divergence to the student holds near it."""
SHORT = ["agent.algorithm.lam=0.95", "agent.num_steps_per_env=32"]
"""Of the way that estimates advantages as the task's own settings do."""
WARMUP = 15
"""Iterations of the critic alone."""
INK, FLOOR = "#333333", 0.95
"""Colour of text; share of the start's return below which no evaluation is to fall."""
WAYS = {
    "warm-up": "critic warm-up",
    "at once": "no warm-up",
    "old moments": "no warm-up, the old optimiser's moments",
    "from scratch": "the same, settings of training from scratch",
    "held": "critic warm-up, KL to the student",
    "short": "critic warm-up, short rollouts",
}
COLORS = {
    "warm-up": "#2a7f62",
    "at once": "#5b7db1",
    "old moments": "#d99a2b",
    "from scratch": "#d1495b",
    "held": "#7a4fa3",
    "short": "#6b7280",
}


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    from foundation.cli.cli_args import positive_int, seed
    from foundation.cli.parser import ScriptParser

    parser = ScriptParser(__doc__)
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS), help="(default: all)")
    parser.add_argument("--seeds", nargs="+", type=seed, default=[0, 1, 2], help="of the fine-tuning (0 1 2)")
    parser.add_argument("--iterations", type=positive_int, default=30, help="in which the actor learns (%(default)s)")
    parser.add_argument("--episodes", type=positive_int, default=1024, help="fresh ones, to compare (%(default)s)")
    parser.add_argument("--student", type=Path, metavar="PATH", help="fine-tune this one (one is distilled)")
    parser.add_argument("--folder", type=Path, default=Path("logs/point_ctrl_finetune"), help="(%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("docs/results/finetune"), help="(default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it runs, reaches nothing")
    args = parser.read(argv)
    if args.quick:
        args.iterations, args.episodes, args.seeds = 2, 16, args.seeds[:1]
    return args


def tokens(student: Path, way: str, seed: int, iterations: int) -> list[str]:
    """Return the arguments of ``finetune.py`` of one run.

    Args:
        student: The policy to start from.
        way: One of :data:`WAYS`.
        seed: Of the run.
        iterations: In which the actor learns; a warm-up comes before them.
    """
    warmup = 0 if way in ("at once", "old moments", "from scratch") else WARMUP
    return [
        *("--task", TASK, "--checkpoint", str(student), "--seed", str(seed), "--device", "cpu"),
        *("--max_iterations", str(warmup + iterations), "--critic_warmup_iterations", str(warmup)),
        *("--eval_interval", "5", "--final_eval_episodes", "16"),  # the fresh episodes come afterwards
        *(FROM_SCRATCH if way == "from scratch" else SETTINGS),
        *(HELD if way == "held" else []),
        *(SHORT if way == "short" else []),
    ]


def take_moments(runner: FinetuneRunner, checkpoint: Path) -> None:
    """Give PPO's optimiser the moments that the distillation's had for the actor's weights.

    The critic and the standard deviation, which the student does not have, begin with none.

    Args:
        runner: Before its first iteration.
        checkpoint: The student, with the state of its optimiser.

    Raises:
        UserError: If the file has no such state for every weight of the student.
    """
    import torch

    from foundation.core.errors import UserError
    from foundation.core.files import load_checkpoint

    saved = load_checkpoint(checkpoint)
    moments = saved.get("optimizer_state_dict", {}).get("state", {})
    weights = [weight for name, weight in runner.student.named_parameters() if name in saved["model_state_dict"]]
    shapes = [moments[index]["exp_avg"].shape for index in sorted(moments)]
    if shapes != [weight.shape for weight in weights]:
        raise UserError(f"'{checkpoint}' has no optimiser state for every weight of its student")
    for index, weight in enumerate(weights):
        known = {name: moments[index][name].clone() for name in ("step", "exp_avg", "exp_avg_sq")}
        runner.ppo.optimizer.state[weight] = {name: torch.as_tensor(value) for name, value in known.items()}


@functools.cache
def fresh_returns(checkpoint: Path, episodes: int) -> torch.Tensor:
    """Return a policy's return in each of the fresh episodes. Shape: (episodes,)."""
    from continual.measure import load, opened

    from foundation.policies.actors import PolicyActor
    from foundation.rollout.evaluate import evaluate

    with opened(TASK, episodes) as env:
        return evaluate(env, PolicyActor(*load(checkpoint)), episodes, FRESH_SEED).returns.double()


def mean_and_interval(values: torch.Tensor) -> list[float]:
    """Return the mean and the half-width of its 95 % confidence interval."""
    return [float(values.mean()), 1.96 * float(values.std()) / math.sqrt(len(values))]


class Study:
    """The stages of one folder."""

    def __init__(self, args: argparse.Namespace):
        """Open, or begin, the folder."""
        from raptor.stages import Stages

        from foundation.core.errors import UserError

        if args.student is not None and not args.student.is_file():
            raise UserError(f"--student {args.student}: no such file")
        self.args = args
        self.folder: Path = args.folder.resolve()
        given = None if args.student is None else str(args.student.resolve())
        settings = {"iterations": args.iterations, "episodes": args.episodes, "quick": args.quick, "student": given}
        self.stages = Stages(self.folder, settings)

    @property
    def student(self) -> Path:
        """The policy that all runs start from."""
        return Path(self.args.student or self.stages.done["distil"]["checkpoint"]).resolve()

    def distil(self) -> dict[str, Any]:
        """Distil the shipped teacher."""
        from raptor.stages import newest_run, python

        names = ("--task", TASK, "--experiment_name", EXPERIMENT, "--run_name", "student", "--seed", 0)
        more = ("--n_epochs", 2) if self.args.quick else ()
        script = "foundation/rsl_rl/distillation.py"
        python(script, "--teacher_checkpoint", TEACHER, *names, *STUDENT, *more, log=self.folder / "student.log")
        return {"checkpoint": str((newest_run(EXPERIMENT, "student") / "best_student.pt").resolve())}

    def references(self) -> dict[str, Any]:
        """Measure teacher and student on the fresh episodes."""
        episodes = self.args.episodes
        paths = {"teacher": TEACHER, "student": self.student}
        return {name: mean_and_interval(fresh_returns(path, episodes)) for name, path in paths.items()}

    def fine_tune(self, way: str, seed: int) -> dict[str, Any]:
        """Fine-tune, and compare start, best and end on the same fresh episodes."""
        from foundation.cli.finetune_job import LOG_ROOT, Job
        from foundation.ppo.finetune import FinetuneRunner
        from foundation.ppo.settings import AgentSettings
        from foundation.rsl_rl.finetune import build_parser
        from foundation.runs.run_dir import RunDir

        job = Job.choose_engine(build_parser(), tokens(self.student, way, seed, self.args.iterations))
        run = RunDir.create(LOG_ROOT, EXPERIMENT, f"{way.replace(' ', '_')}_s{seed}")
        with job.launch() as session:
            env = session.make_env()
            job.cfg.num_envs = env.num_envs
            settings = AgentSettings.read(session.agent_cfg, job.cfg)
            runner = FinetuneRunner(env, job.cfg, settings, run, make_eval_env=session.make_eval_env)
            if way in ("old moments", "from scratch"):
                take_moments(runner, self.student)
            summary = runner.run()
        episodes = self.args.episodes
        start = fresh_returns(self.student, episodes)
        ends = {name: fresh_returns(run.path / f"{name}_student.pt", episodes) for name in ("best", "final")}
        return {
            "evaluations": summary["evaluations"],
            "lowest_share_of_start": summary["lowest_share_of_start"],
            "iterations_cpu_seconds": summary["cpu_seconds"],
            "start": mean_and_interval(start),
            **{name: mean_and_interval(returns) for name, returns in ends.items()},
            **{f"{name}_less_start": mean_and_interval(returns - start) for name, returns in ends.items()},
        }

    def run(self) -> None:
        """Run what is not done yet, one seed of all ways after the other, and report after each."""
        if self.args.student is None:
            self.stages.run("distil", self.distil)
        self.stages.run("references", self.references)
        for seed in self.args.seeds:
            for way in self.args.ways:
                self.stages.run(f"{way}, seed {seed}", lambda way=way, seed=seed: self.fine_tune(way, seed))
                self.report()
        self.report()

    def report(self) -> None:
        """Write JSON, page and picture of everything that is finished."""
        from raptor.stages import write_json

        done = self.stages.done
        found = {way: {key: stage for key, stage in done.items() if key.startswith(f"{way}, seed ")} for way in WAYS}
        found = {way: runs for way, runs in found.items() if runs}
        out: Path = self.args.out
        settings = {name: value for name, value in self.stages.settings.items() if name != "student"}
        references = {name: done["references"][name] for name in ("teacher", "student")}
        raw = [{"way": way, "seed": int(key.split()[-1]), **run} for way in found for key, run in found[way].items()]
        write_json(out.with_suffix(".json"), {"settings": settings, "references": references, "runs": raw})
        text = page({way: list(runs.values()) for way, runs in found.items()}, references, settings, out.name)
        out.with_suffix(".md").write_text(text, encoding="utf-8")
        draw({way: list(runs.values()) for way, runs in found.items()}, out.with_suffix(".png"))


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Write a median and, of several values, the range."""
    text = f"{median(values):.{digits}f}"
    return text if len(values) == 1 else f"{text} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def page(
    found: Mapping[str, Sequence[Mapping[str, Any]]],
    references: Mapping[str, Sequence[float]],
    settings: Mapping[str, Any],
    name: str,
) -> str:
    """Write the page.

    Args:
        found: Runs of each way.
        references: Mean return and interval of teacher and student.
        settings: ``iterations`` and ``episodes``.
        name: The picture's file, without its ending.
    """
    ends = ["| fine-tuning | seed | student | last policy | last - student | best - student |"]
    ends.append("|---|---:|---:|---:|---:|---:|")
    falls = ["| fine-tuning | runs | lowest evaluation [% of the start] | evaluations below 95 % | last - student |"]
    falls.append("|---|---:|---:|---:|---:|")
    for way, runs in found.items():
        for seed, run in enumerate(runs):
            cells = [f"{run['start'][0]:.2f}", f"{run['final'][0]:.2f}"]
            cells += [_signed(run["final_less_start"]), _signed(run["best_less_start"])]
            ends.append(f"| {WAYS[way]} | {seed} | {' | '.join(cells)} |")
        lowest = spread([100.0 * run["lowest_share_of_start"] for run in runs], 1)
        below = sum(v < FLOOR * run["evaluations"][0][1] for run in runs for _, v in run["evaluations"])
        number = sum(len(run["evaluations"]) for run in runs)
        differences = spread([run["final_less_start"][0] for run in runs])
        falls.append(f"| {WAYS[way]} | {len(runs)} | {lowest} | {below} of {number} | {differences} |")
    teacher, student = references["teacher"], references["student"]
    first, last = (
        " ".join(tokens(Path("best_student.pt"), way, 0, settings["iterations"])).replace(f"{ROOT}/", "")
        for way in ("warm-up", "held")
    )
    return "\n".join(
        [
            "# Distil, then fine-tune on the same task",
            "",
            f"Made by `python scripts/point_ctrl_finetune.py --iterations {settings['iterations']} --episodes "
            f"{settings['episodes']}`. A student of the shipped teacher of `{TASK}` that sees the 22 numbers a "
            "vehicle can measure (`experiment=fast_adam`) is trained further by PPO (`experiment=polish`). The first "
            f"three ways differ by the critic's {WARMUP} iterations alone and by the moments of the distillation's "
            "optimiser, which a resumed run goes on with; the fourth has the settings that train the task from "
            "scratch, and their noise. "
            "The fifth is the first with a KL divergence to the student in the policy's loss. The last is the first "
            f"with the advantages of those settings (`{' '.join(SHORT)}`): what is still to be won is smaller than the "
            "critic's errors, which these advantages contain and those of long rollouts with `lam=1` do not. On "
            f"{settings['episodes']} fresh episodes the teacher reaches {teacher[0]:.2f} ± {teacher[1]:.2f} and the "
            f"student {student[0]:.2f} ± {student[1]:.2f} (± is the half-width of the 95 % confidence interval of a "
            "mean). Raw numbers: "
            f"`{name}.json`.",
            "",
            f"![Return over the iterations, of that of the start]({name}.png)",
            "",
            "How low the deterministic policy falls: it is evaluated after every fifth iteration, on 128 episodes "
            "that are always the same. Medians and ranges over the seeds.",
            "",
            *falls,
            "",
            "Where it ends, on the fresh episodes, which start and end have in common: the differences are means of "
            "pairs. The best policy is that of the highest evaluation on the way.",
            "",
            *ends,
            "",
            "The first way and the last are typed so:",
            "",
            "```bash",
            f"python foundation/rsl_rl/finetune.py {first}",
            f"python foundation/rsl_rl/finetune.py {last}",
            "```",
            "",
        ]
    )


def _signed(difference: Sequence[float]) -> str:
    return f"{difference[0]:+.2f} ± {difference[1]:.2f}"


def draw(found: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """Draw the evaluations of every run as shares of the first, over the iterations.

    Args:
        found: Runs of each way.
        path: The PNG.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 10, "font.family": "DejaVu Sans", "text.color": INK, "axes.edgecolor": "#bbbbbb"})
    figure, (whole, near) = plt.subplots(ncols=2, figsize=(9.2, 3.6), dpi=150)
    for axes in (whole, near):
        for way, runs in found.items():
            for number, run in enumerate(runs):
                start = run["evaluations"][0][1]
                iterations = [iteration for iteration, _ in run["evaluations"]]
                shares = [100.0 * value / start for _, value in run["evaluations"]]
                label = WAYS[way] if number == 0 else None
                axes.plot(iterations, shares, color=COLORS[way], linewidth=1.3, alpha=0.8, label=label)
        axes.axhline(100.0, color="#999999", linewidth=0.8)
        axes.set_xlabel("iteration")
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(colors=INK, which="both", color="#bbbbbb")
    whole.axhline(100.0 * FLOOR, color="#999999", linewidth=0.8, linestyle=(0, (4, 3)))
    whole.set_ylabel("return [% of the student's]")
    near.set_ylim(98.9, 100.5)
    near.set_title("near the student's", fontsize=10)
    figure.legend(*whole.get_legend_handles_labels(), frameon=False, loc="upper center", ncols=3, fontsize=9)
    figure.tight_layout(rect=(0.0, 0.0, 1.0, 0.86))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the study."""
    Study(parse(argv)).run()
    return 0


if __name__ == "__main__":
    from foundation.cli.command import run_command

    sys.exit(run_command(main))
