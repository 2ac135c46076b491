"""Distil mjlab's Cartpole-Balance into students without velocities, beside RSL-RL's own ``DistillationRunner``.

``python scripts/mjlab_cartpole.py`` in an environment with mjlab writes ``docs/results/mjlab.json`` and ``mjlab.md``.
What is measured is kept in ``logs/mjlab_cartpole``, a file for each run, so that the same command goes on where the
last one stopped; ``--seconds`` ends it early, ``--only baselines 'race/*'`` runs ``experiment=fast`` as it is against
RSL-RL's best setting alone.

Every policy is measured on the same whole episodes of the task, in one environment whose students' groups mjlab itself
makes. CPU seconds are those of collecting and learning: start-up, baselines and evaluations are left out on both sides.
RSL-RL's settings are swept: each trains for a number of CPU seconds, and the first of its snapshots that has
99 % of the teacher's return counts. The best of them is run with more seeds, as are this project's students.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import fnmatch
import io
import itertools
import json
import math
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from benchmarks.common import Clock
from benchmarks.snapshots import BudgetSpentError, SnapshotRecorder, Trace, reached

from foundation.cli.command import run_command
from foundation.cli.parser import ScriptParser
from foundation.config.agent_cfg import DistillationAlgorithmCfg, DistillationRunnerCfg, DistributionCfg, ModelCfg
from foundation.config.overrides import Overrides
from foundation.config.resolve import resolve_distillation_cfg
from foundation.core.files import atomic_write_bytes
from foundation.engines import engine_class
from foundation.engines.base import LaunchRequest
from foundation.policies.actors import Actor, PolicyActor, ZeroActor
from foundation.policies.obs_groups import ObsSelector
from foundation.ppo.library_runner import RslRlRunner
from foundation.rollout.evaluate import evaluate
from foundation.students import student_cfg_class
from foundation.teachers import TeacherPolicyWrapper

ROOT = Path(__file__).resolve().parents[1]
TASK = "Mjlab-Cartpole-Balance"
TEACHER = ROOT / "foundation" / "assets" / "teachers" / "mjlab_cartpole" / "model.pt"
RESULTS = ROOT / "docs" / "results"
PIECES = ROOT / "logs" / "mjlab_cartpole"
NUM_ENVS = 64
HIDDEN = ("cart_vel", "pole_vel")
"""Terms that no student sees."""
EPISODE = 10.0
"""Episodes in training [s]."""
WHOLE = 50.0
"""Episodes in which all are measured [s]; the task's own."""
GOAL = 0.99
"""Share of the teacher's return at which a student counts as good."""
SEEDS = (1, 2, 3)
MEASURED_SEED = 100
"""Seed of the episodes in which all are measured."""


@dataclass(frozen=True)
class Student:
    """A student of this project."""

    group: str
    """The group of :func:`configure` that it reads."""
    tokens: tuple[str, ...]
    """What is typed for it."""
    key: str
    """Beginning of the names of its files."""


NOISE = "distill.collection.noise_std=0.2"
"""Noise on whoever acts: without it, the first epoch's states are so near to the balance that the student's normaliser
and its first fit know no others, and some seeds do not recover."""
OURS = {
    "MLP, three frames, one epoch": Student(
        "frames",
        (
            *("experiment=fast_isaaclab", "obs.student.history=3", "--n_epochs", "1", "--num_eval_episodes", "64"),
            *(NOISE, "distill.optimizer.update_ratio=12"),
        ),
        "frames_one",
    ),
    "MLP, three frames, three epochs": Student(
        "frames",
        (
            *("experiment=fast_isaaclab", "obs.student.history=3", "--n_epochs", "3"),
            *(NOISE, "distill.optimizer.update_ratio=24"),
        ),
        "frames",
    ),
    "GRU, one frame": Student("now", ("experiment=fast_isaaclab_gru", "--n_epochs", "3", NOISE), "now"),
}


@dataclass(frozen=True)
class Setting:
    """A setting of RSL-RL's ``DistillationRunner``."""

    steps: int
    """Env steps of a rollout."""
    passes: int
    """Passes over it (``num_learning_epochs``)."""
    rate: float
    """Learning rate."""
    gradient_length: int = 1
    """Env steps of an update."""
    std: float = 0.1
    """Standard deviation of the acting student."""

    @property
    def name(self) -> str:
        """Name of its files."""
        name = f"steps{self.steps}_passes{self.passes}_rate{self.rate:g}_length{self.gradient_length}"
        return name if self.std == 0.1 else f"{name}_std{self.std:g}"


DEFAULT = Setting(24, 1, 1e-3, 15)
"""RSL-RL's own learning rate, passes and gradient length, and Isaac Lab's usual rollout."""
SWEEP = (
    *(Setting(*values) for values in itertools.product((16, 64), (5, 10), (1e-3, 3e-3))),
    *(Setting(16, 2, rate) for rate in (1e-3, 3e-3)),
    Setting(64, 10, 3e-3, std=0.2),
    Setting(64, 5, 1e-3, 4),
    DEFAULT,
)
BUDGET = 12.0
"""CPU seconds of a run in the sweep."""
LONG_BUDGET = 12.0
"""CPU seconds of the runs with more seeds."""
INTERVAL = 0.5
"""CPU seconds between two snapshots."""
RACE_SEEDS = (1, 2, 3, 4, 5)
RACE_BUDGETS = {"preset": 4.0, "stock": 8.0}
"""CPU seconds of a run of ``experiment=fast`` as it is, and of RSL-RL's best setting, in the race between the two."""
RACE_LEVELS = (0.95, 0.98)
"""Shares of the teacher's return in episodes as in training."""


# -- the environment -------------------------------------------------------------------------------------------------


def configure(env_cfg: Any) -> None:
    """Set number and seed, and have mjlab make the students' groups: the actor's terms without velocities."""
    env_cfg.scene.num_envs = NUM_ENVS
    env_cfg.seed = 1
    env_cfg.episode_length_s = EPISODE
    for name, history in (("now", None), ("frames", 3)):
        group = copy.deepcopy(env_cfg.observations["actor"])
        group.terms = {term: cfg for term, cfg in group.terms.items() if term not in HIDDEN}
        group.history_length = history
        env_cfg.observations[name] = group


class Cartpole:
    """The task's environment, with graphs, made when it is first needed: a process holds one of them."""

    def __init__(self, stack: contextlib.ExitStack):
        self._stack = stack
        self._env: Any = None

    @property
    def env(self) -> Any:
        """The environment."""
        if self._env is None:
            engine = engine_class("mjlab")()
            request = LaunchRequest(TASK, args=argparse.Namespace(cpu_graphs=True))
            launched = engine.launch(request, lambda env_cfg, agent_cfg: configure(env_cfg))
            self._env = engine.make_env(*self._stack.enter_context(launched))
            self._stack.callback(self._env.close)
        return self._env

    def measure(self, actor: Actor, seconds: float = WHOLE) -> float:
        """Return the mean return of one episode of so many seconds in every environment, the same for every actor."""
        cfg = self.env.unwrapped.cfg
        cfg.episode_length_s = seconds
        try:
            return evaluate(self.env, actor, NUM_ENVS, MEASURED_SEED).summary()["mean_return"]
        finally:
            cfg.episode_length_s = EPISODE
            self.env.reset()


def reader(path: Path, group: str) -> PolicyActor:
    """Return a policy as an actor on a group that mjlab has made."""
    return PolicyActor(TeacherPolicyWrapper(path).policy, ObsSelector([group]))


# -- pieces ----------------------------------------------------------------------------------------------------------


def measure_baselines(cartpole: Cartpole) -> dict[str, Any]:
    """Return the returns of the teacher and of zero actions, in whole and in short episodes."""
    actors: dict[str, Actor] = {"teacher": reader(TEACHER, "actor"), "zero": ZeroActor(1)}
    short = {f"{name}, {EPISODE:g} s": cartpole.measure(actor, EPISODE) for name, actor in actors.items()}
    return short | {name: cartpole.measure(actor) for name, actor in actors.items()}


def command(student: Student, seed: int) -> list[str]:
    """Return what is typed after ``distillation.py``."""
    tokens = ["--task", TASK, "--teacher_checkpoint", str(TEACHER.relative_to(ROOT)), "--device", "cpu", "--cpu_graphs"]
    tokens += ["--seed", str(seed), *student.tokens, "--num_envs", str(NUM_ENVS), "--num_episodes", str(NUM_ENVS)]
    return [
        *tokens,
        f"env.episode_length_s={EPISODE}",
        "obs.student.from=actor",
        f"obs.student.drop=[{','.join(HIDDEN)}]",
    ]


def distil(student: Student, seed: int) -> dict[str, Any]:
    """Run ``distillation.py``; return its figures."""
    folder = PIECES / "runs" / f"{student.key}_{seed}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    tokens = [str(TEACHER) if token.endswith("model.pt") else token for token in command(student, seed)]
    script = ROOT / "foundation" / "rsl_rl" / "distillation.py"
    subprocess.run([sys.executable, str(script), *tokens, "distill.final_eval_episodes=64"], cwd=folder, check=True)
    summary = json.loads((run_folder(student, seed) / "summary.json").read_text())
    cpu = summary["cpu_seconds"]["collection"] + summary["cpu_seconds"]["learning"]
    figures = {"env_steps": summary["env_steps"], "cpu": cpu, "short": summary["best_student_return"]}
    return figures | {"parameters": summary["parameters"]["student"]}


def run_folder(student: Student, seed: int) -> Path:
    """Return the folder of a run of :func:`distil`."""
    return next((PIECES / "runs" / f"{student.key}_{seed}" / "logs" / "distillation" / "cartpole").iterdir())


def measure_student(cartpole: Cartpole, student: Student, seed: int) -> dict[str, Any]:
    """Return the figures of a run of :func:`distil`, with its best student's return."""
    value = cartpole.measure(reader(run_folder(student, seed) / "best_student.pt", student.group))
    return {"return": value}


def train_stock(env: Any, setting: Setting, seed: int, budget: float) -> tuple[RslRlRunner, list[dict[str, Any]]]:
    """Run RSL-RL's distillation; return its runner and snapshots: iteration, CPU seconds, weights."""
    runner = stock_runner(env, setting, seed)
    with contextlib.redirect_stdout(io.StringIO()):
        snapshots = [{"iteration": 0, "cpu": 0.0, "weights": copy.deepcopy(runner.policy.state_dict())}]
        iteration = 0
        spent = 0.0
        start = time.process_time()

        def note(_: int) -> None:
            nonlocal iteration, spent, start
            spent += time.process_time() - start
            iteration += 1
            if spent - snapshots[-1]["cpu"] >= INTERVAL or spent >= budget:
                weights = copy.deepcopy(runner.policy.state_dict())
                snapshots.append({"iteration": iteration, "cpu": spent, "weights": weights})
            if spent >= budget:
                raise _Spent
            start = time.process_time()

        runner.on_iteration = note
        with contextlib.suppress(_Spent):
            runner.learn(10**6)
    return runner, snapshots


def stock_runner(env: Any, setting: Setting, seed: int) -> RslRlRunner:
    """Return RSL-RL's distillation with a setting, its teacher loaded and the environment reset."""
    layers: dict[str, Any] = {"hidden_dims": [64, 64], "activation": "elu"}
    cfg = DistillationRunnerCfg(
        seed=seed,
        num_steps_per_env=setting.steps,
        obs_groups={"teacher": ["actor"], "student": ["frames"]},
        student=ModelCfg(**layers, obs_normalization=True, distribution_cfg=DistributionCfg(init_std=setting.std)),
        teacher=ModelCfg(**layers, distribution_cfg=DistributionCfg()),
        algorithm=DistillationAlgorithmCfg(
            num_learning_epochs=setting.passes,
            gradient_length=setting.gradient_length,
            learning_rate=setting.rate,
        ),
        save_interval=10**9,
    )
    torch.manual_seed(seed)
    env.reset(seed)
    with contextlib.redirect_stdout(io.StringIO()):
        runner = RslRlRunner(env, cfg, None, "cpu")
        runner.load(TEACHER)
    return runner


class _Spent(Exception):  # noqa: N818  (it ends a run, and is no error)
    """A run has had its CPU seconds."""


def train_and_measure(cartpole: Cartpole, setting: Setting, seed: int, budget: float) -> dict[str, Any]:
    """Run RSL-RL's distillation and measure its snapshots until one is good: in short episodes, and then in whole ones.

    Of a long run, the first and the last snapshot are measured in whole episodes in any case.
    """
    baselines = piece_file("baselines").read()
    runner, snapshots = train_stock(cartpole.env, setting, seed, budget)
    policy = runner.inference_policy()
    rows = []
    for snapshot in snapshots:
        policy.module.load_state_dict(snapshot["weights"])
        policy.reset()
        row = {"env_steps": snapshot["iteration"] * setting.steps * NUM_ENVS, "cpu": snapshot["cpu"]}
        row["short"] = cartpole.measure(policy, EPISODE)
        rows.append(row)
        ends = budget == LONG_BUDGET and (snapshot is snapshots[0] or snapshot is snapshots[-1])
        if ends or row["short"] >= GOAL * baselines[f"teacher, {EPISODE:g} s"]:
            row["return"] = cartpole.measure(policy)
            if row["return"] >= GOAL * baselines["teacher"]:
                break
    good = [row for row in rows if row.get("return", 0.0) >= GOAL * baselines["teacher"]]
    return {"setting": vars(setting), "seed": seed, "good_after": good[0]["cpu"] if good else None, "rows": rows}


def race_preset(cartpole: Cartpole, seed: int) -> dict[str, Any]:
    """Train with ``experiment=fast``, nothing of it changed but the number of environments, and measure the snapshots.

    The student's own rollout goes on from epoch to epoch, as in that preset: nothing else uses the only environment.
    """
    from benchmarks.ours import NoRunDir, TimedRunner

    flags = {
        "task": TASK,
        "seed": seed,
        "device": "cpu",
        "num_envs": NUM_ENVS,
        "teacher.obs_groups": ["actor"],
        "student.obs_groups": ["frames"],
        "student.obs_normalization": True,
        "student.hidden_dims": [64, 64],
        "collection.mode": "steps",
        "dataset.disk_gb": 0.0,
    }
    groups = {"experiment": "fast", "student": "mlp"}
    cfg = resolve_distillation_cfg(Overrides(groups=groups), flags, student_cfg_class=student_cfg_class)
    env = cartpole.env
    env.reset(seed)
    teacher = TeacherPolicyWrapper(TEACHER)
    runner = TimedRunner(env, teacher, cfg, NoRunDir(), make_eval_env=lambda _: env)  # type: ignore[arg-type]

    def train() -> None:
        for epoch in range(cfg.n_epochs):
            runner.run_epoch(epoch)

    learner = runner.learner
    trace = traced(env, learner.optimizer, learner.policy.state_dict, train, RACE_BUDGETS["preset"], seed)

    def actor(weights: dict[str, torch.Tensor]) -> Actor:
        learner.policy.load_state_dict(weights)
        return PolicyActor(learner.policy.eval(), ObsSelector(["frames"]))

    return race_figures(cartpole, trace, actor, {"experiment": "fast"})


def race_stock(cartpole: Cartpole, setting: Setting, seed: int) -> dict[str, Any]:
    """Train with RSL-RL's best setting and measure its snapshots, taken as those of :func:`race_preset` are."""
    env = cartpole.env
    runner = stock_runner(env, setting, seed)
    policy = runner.inference_policy()
    optimizer = runner.runner.alg.optimizer

    def train() -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            runner.learn(10**6)

    trace = traced(env, optimizer, runner.policy.state_dict, train, RACE_BUDGETS["stock"], seed)

    def actor(weights: dict[str, torch.Tensor]) -> Actor:
        policy.module.load_state_dict(weights)
        policy.reset()
        return policy

    return race_figures(cartpole, trace, actor, vars(setting))


def traced(
    env: Any,
    optimizer: torch.optim.Optimizer,
    weights: Callable[[], dict[str, torch.Tensor]],
    train: Callable[[], None],
    budget: float,
    seed: int,
) -> Trace:
    """Train for a number of CPU seconds and return the snapshots, on the benchmark's grid of training time."""
    trace = Trace("", seed, budget)
    clock = Clock("cpu")
    steps = 0
    step = env.step

    def counted(actions: torch.Tensor) -> Any:
        nonlocal steps
        steps += NUM_ENVS
        return step(actions)

    hook = optimizer.register_step_post_hook(SnapshotRecorder(trace, clock, weights, lambda: steps))
    env.step = counted
    try:
        clock.start()
        with contextlib.suppress(BudgetSpentError):
            train()
    finally:
        env.step = step
        hook.remove()
    return trace


def race_figures(
    cartpole: Cartpole, trace: Trace, actor: Callable[[dict[str, torch.Tensor]], Actor], setting: dict[str, Any]
) -> dict[str, Any]:
    """Measure every snapshot in episodes as in training, and return when each level was reached and held."""
    teacher = piece_file("baselines").read()[f"teacher, {EPISODE:g} s"]
    for snapshot in trace.snapshots:
        snapshot.ratio = cartpole.measure(actor(snapshot.weights), EPISODE) / teacher
    return {"setting": setting, "seed": trace.seed, "reached": reached(trace), "curve": trace.curve}


# -- what is kept ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PieceFile:
    """The figures of one piece."""

    path: Path

    def read(self) -> dict[str, Any]:
        """Return the figures."""
        return json.loads(self.path.read_text())

    def write(self, figures: dict[str, Any]) -> None:
        """Keep the figures."""
        atomic_write_bytes(self.path, (json.dumps(figures, indent=1) + "\n").encode())


def piece_file(name: str) -> PieceFile:
    """Return the file of a piece."""
    return PieceFile(PIECES / f"{name}.json")


def swept(figures: dict[str, dict[str, Any]]) -> list[Setting]:
    """Return the settings of the sweep that have been measured."""
    return [setting for setting in SWEEP if f"sweep/{setting.name}" in figures]


def best_short(figures: dict[str, Any]) -> float:
    """Return the highest return of a run's snapshots in short episodes."""
    return max(row["short"] for row in figures["rows"])


def best_of(figures: dict[str, dict[str, Any]]) -> Setting:
    """Return the setting that was good after the fewest CPU seconds; where none was, the one of the highest return."""

    def rank(setting: Setting) -> tuple[float, float]:
        found = figures[f"sweep/{setting.name}"]
        good = found["good_after"]
        return (math.inf if good is None else good), -best_short(found)

    return min(swept(figures), key=rank)


def published_best() -> Setting:
    """Return RSL-RL's best setting of the sweep whose figures are published beside the page."""
    return best_of(json.loads((RESULTS / "mjlab.json").read_text()))


def race_table(figures: dict[str, dict[str, Any]]) -> list[str]:
    """Return the table of the race: medians over the seeds, and the range; a miss counts as later than all."""
    labels = {"preset": "foundation, `experiment=fast` as it is", "stock": "RSL-RL, its best setting"}
    head = "| | to | first at, CPU s | settled, CPU s | first at, env steps | settled, env steps |"
    lines = [head, "|---|---:|---:|---:|---:|---:|"]
    for key, label in labels.items():
        runs = [found["reached"] for name, found in sorted(figures.items()) if name.startswith(f"race/{key}_")]
        for level in (f"{level:g}" for level in RACE_LEVELS):
            cells = [
                _spread([(run[level] or {}).get(quantity) for run in runs], digits)
                for quantity, digits in (("cpu_seconds", 2), ("settled_cpu_seconds", 2))
            ]
            cells += [_spread([(run[level] or {}).get(name) for run in runs], 0) for name in _STEPS]
            lines.append(f"| {label} | {100 * float(level):g} % | {' | '.join(cells)} |")
    return lines


_STEPS = ("env_steps", "settled_env_steps")


def _spread(values: Sequence[float | None], digits: int) -> str:
    known = sorted(math.inf if value is None else value for value in values)
    shown = [f"{value:,.{digits}f}" if math.isfinite(value) else "missed" for value in known]
    return f"{shown[len(shown) // 2]} ({shown[0]} to {shown[-1]})" if shown else ""


def pieces(cartpole: Cartpole) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Yield each piece's name and what measures it; the last ones follow from those before."""
    yield "baselines", lambda: measure_baselines(cartpole)
    for seed, student in itertools.product(SEEDS, OURS.values()):
        yield f"ours/{student.key}_{seed}", lambda it=student, seed=seed: distil(it, seed)
    for seed, student in itertools.product(SEEDS, OURS.values()):
        if piece_file(f"ours/{student.key}_{seed}").path.is_file():
            yield f"measured/{student.key}_{seed}", lambda it=student, seed=seed: measure_student(cartpole, it, seed)
    for setting in SWEEP:
        yield f"sweep/{setting.name}", lambda it=setting: train_and_measure(cartpole, it, SEEDS[0], BUDGET)
    figures = collected()
    for seed in RACE_SEEDS if "baselines" in figures else ():
        yield f"race/preset_{seed}", lambda seed=seed: race_preset(cartpole, seed)
        setting = best_of(figures) if swept(figures) else published_best()
        yield f"race/stock_{seed}", lambda it=setting, seed=seed: race_stock(cartpole, it, seed)
    for seed in SEEDS[1:] if swept(figures) else ():  # the sweep has the first
        best = best_of(figures)
        yield f"stock/{best.name}_{seed}", lambda it=best, seed=seed: train_and_measure(cartpole, it, seed, LONG_BUDGET)


def measure(patterns: Sequence[str], seconds: float) -> None:
    """Measure the pieces that are not there yet, in the order of :func:`pieces`.

    Args:
        patterns: Names to measure, as in a shell.
        seconds: No piece is begun later than this.
    """
    torch.set_num_threads(1)
    start = time.monotonic()
    with contextlib.ExitStack() as stack:
        for name, run in pieces(Cartpole(stack)):
            file = piece_file(name)
            wanted = any(fnmatch.fnmatch(name, pattern) for pattern in patterns)
            if file.path.is_file() or not wanted or time.monotonic() - start > seconds:
                continue
            file.path.parent.mkdir(parents=True, exist_ok=True)
            file.write(run())
            print(f"{name}: {time.monotonic() - start:.0f} s", flush=True)


# -- the page --------------------------------------------------------------------------------------------------------


def collected() -> dict[str, Any]:
    """Return the figures of all pieces that are there, by name."""
    names = [str(path.relative_to(PIECES).with_suffix("")) for path in sorted(PIECES.glob("*.json"))]
    names += [str(path.relative_to(PIECES).with_suffix("")) for path in sorted(PIECES.glob("*/*.json"))]
    return {name: piece_file(name).read() for name in names}


@dataclass(frozen=True)
class Row:
    """What several seeds of one policy came to."""

    name: str
    runs: list[dict[str, Any]]
    """``env_steps``, ``cpu``, the return ``short`` in episodes as in training, and in whole ones, ``return``."""

    def line(self, short_teacher: float, teacher: float) -> str:
        """Return a line of the table: means over the seeds, and the lowest share of the teacher's return."""
        steps, cpu, short = (
            sum(run[key] for run in self.runs) / len(self.runs) for key in ("env_steps", "cpu", "short")
        )
        shown = f"{steps:,.0f} | {cpu:.1f}" if steps else " | "
        whole = [run["return"] for run in self.runs if "return" in run]
        shares = f"{_share(sum(whole) / len(whole), teacher)} | {_share(min(whole), teacher)}" if whole else "| "
        return f"| {self.name} | {len(self.runs)} | {shown} | {_share(short, short_teacher)} | {shares} |"


def _share(value: float, teacher: float) -> str:
    return f"{100 * value / teacher:.1f} %"


def last_measured(figures: dict[str, Any]) -> dict[str, Any]:
    """Return the snapshot that a run of RSL-RL's is judged by: the first good one, or its last."""
    return figures["rows"][-1]


def table(figures: dict[str, dict[str, Any]]) -> list[str]:
    """Return the table of the policies."""
    baselines = figures["baselines"]
    short = f"{EPISODE:g} s"
    teachers = (baselines[f"teacher, {short}"], baselines["teacher"])
    rows = [
        Row(name, [{"env_steps": 0, "cpu": 0, "short": baselines[f"{key}, {short}"], "return": baselines[key]}])
        for key, name in (("teacher", "teacher"), ("zero", "zero actions"))
    ]
    stock = {name: found for name, found in figures.items() if name.startswith(("sweep/", "stock/"))}
    untrained = [found["rows"][0] for found in stock.values() if "return" in found["rows"][0]]
    rows.append(Row("untrained student", untrained[:1]))
    for name, student in OURS.items():
        runs = [
            found | figures.get(key.replace("ours/", "measured/"), {})
            for key, found in figures.items()
            if re.fullmatch(rf"ours/{student.key}_\d+", key)
        ]
        size = runs[0]["parameters"] if runs else 0
        rows.append(Row(f"foundation, {name}, {size:,} parameters", runs))
    best = best_of(figures).name
    wanted = {f"sweep/{best}", *(f"stock/{best}_{seed}" for seed in SEEDS)}
    runs = [last_measured(found) for name, found in stock.items() if name in wanted]
    runs = [run for run in runs if "return" in run]  # the sweep's run has none if no setting was good
    rows.append(Row("RSL-RL, its best setting, three frames", runs))
    columns = f"of the teacher's return in {short} | in {WHOLE:g} s | in {WHOLE:g} s, the worst run"
    head = [f"| policy | runs | transitions | CPU seconds | {columns} |", "|---|---:|---:|---:|---:|---:|---:|"]
    return [*head, *(row.line(*teachers) for row in rows if row.runs)]


def sweep_table(figures: dict[str, dict[str, Any]]) -> list[str]:
    """Return the table of RSL-RL's settings."""
    teacher = figures["baselines"][f"teacher, {EPISODE:g} s"]
    last = f"best of the teacher's return in {EPISODE:g} s"
    lines = [f"| steps | passes | learning rate | gradient length | deviation | CPU seconds to 99 % | {last} |"]
    lines.append("|---:|---:|---:|---:|---:|---:|---:|")
    for setting in swept(figures):
        found = figures[f"sweep/{setting.name}"]
        good = found["good_after"]
        shown = f"not in {BUDGET:g}" if good is None else f"{good:.1f}"
        value = _share(best_short(found), teacher)
        settings = (
            f"{setting.steps} | {setting.passes} | {setting.rate:g} | {setting.gradient_length} | {setting.std:g}"
        )
        lines.append(f"| {settings} | {shown} | {value} |")
    return lines


def page(figures: dict[str, dict[str, Any]]) -> str:
    """Return the page of the figures."""
    baselines = figures["baselines"]
    short = f"{EPISODE:g} s"
    best = best_of(figures)
    lines = [
        "# Cartpole on mjlab, without velocities",
        "",
        "`python scripts/mjlab_cartpole.py` in an environment with mjlab, on one shared CPU core; it goes on where it",
        "stopped. The teacher is the shipped one and sees cart, pole and their velocities; no student sees these.",
        f"All train in {NUM_ENVS} environments with episodes of {short}, with `--cpu_graphs`, and are measured on the",
        f"same {NUM_ENVS} whole episodes of {WHOLE:g} s. In {short}, zero actions have",
        f"{baselines[f'zero, {short}']:.2f} and the teacher {baselines[f'teacher, {short}']:.2f}.",
        "",
        "CPU seconds are those of collecting and learning; start-up, baselines and evaluations are left out on both",
        f"sides. This project's are the whole run's; RSL-RL's those of the first snapshot, one every {INTERVAL:g} CPU",
        f"seconds (three in the sweep's other rows), with {100 * GOAL:.0f} % of the teacher's return (or of the end,",
        f"after {LONG_BUDGET:g} CPU seconds).",
        f"This project's returns in {short} are those that its runs end with, on 64 fresh episodes. Where no return in",
        "whole episodes stands, it has not been measured.",
        "",
        *table(figures),
        "",
        "```bash",
    ]
    for name, student in OURS.items():
        lines += [f"# {name}", f"python foundation/rsl_rl/distillation.py {' '.join(command(student, SEEDS[0]))}"]
    lines += [
        "```",
        "",
        "## RSL-RL's settings",
        "",
        "`DistillationRunner`, students of two hidden layers of 64 with three frames, normalised, one seed,",
        f"{BUDGET:g} CPU seconds each. {len(swept(figures))} of the script's {len(SWEEP)} settings have been measured.",
        f"The best: {best.steps} steps, {best.passes} passes, learning rate {best.rate:g}, gradient length",
        f"{best.gradient_length}, deviation {best.std:g}.",
        "",
        *sweep_table(figures),
        "",
    ]
    if any(name.startswith("race/") for name in figures):
        lines += [
            "## The preset of the built-in task, unchanged",
            "",
            "`experiment=fast` as the quadrotor has it, but for the number of environments, against RSL-RL's best",
            f"setting: shares of the teacher's return in {short}, first snapshot at and first one after which none is",
            "below, medians (ranges) over the seeds. Snapshots of both are on the benchmark's grid.",
            "",
            *race_table(figures),
            "",
        ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what is missing; write the page from all that is there."""
    parser = ScriptParser(__doc__)
    parser.add_argument("--only", nargs="+", default=["*"], metavar="PATTERN", help="pieces, such as 'sweep/*' (all)")
    parser.add_argument("--seconds", type=float, default=1e9, metavar="S", help="begin no piece later than this [s]")
    parser.add_argument("--page", action="store_true", help="write the page from mjlab.json alone")
    args = parser.read(argv)
    path = RESULTS / "mjlab.json"
    if not args.page:
        measure(args.only, args.seconds)
        # What was measured earlier and is in no piece here stays: some pieces may be measured without the others.
        kept = json.loads(path.read_text()) if path.is_file() else {}
        atomic_write_bytes(path, (json.dumps({**kept, **collected()}, indent=1) + "\n").encode())
    figures = json.loads(path.read_text())
    if swept(figures):
        (RESULTS / "mjlab.md").write_text(page(figures), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
