"""Lifelong learning by stages: each is learned, then compressed into one small network of a constant size.

After progress and compress (Schwarz et al. 2018). A stage of a file with ``lifelong:`` is two or three runs, each in a
process of its own: ``finetune.py`` learns the stage's task, with whatever the stage says (progress);
``distillation.py`` stores transitions of what was learned, and makes the small network at the first stage; from the
second stage on ``finetune.py`` distils what was learned into the small network on that network's own states, while the
stored transitions of all earlier stages are replayed (compress). The next stage starts from the small network. Then
every task so far is measured by ``play.py``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from foundation.cli.own_process import run_in_a_process
from foundation.cli.steps import StagedCommand, StepFailed, Steps, merged
from foundation.config.typing_fit import MisfitError, field_hints, fit
from foundation.config.validate import A_COUNT, MAX_COUNT, MAX_SEED
from foundation.core.errors import UserError, suggest
from foundation.core.files import atomic_write_bytes, load_checkpoint
from foundation.evaluation.forgetting import Forgetting, TaskReturns, measure_forgetting
from foundation.runs.run_state import BEST

FINAL = "final_student.pt"
"""The small network after a stage: that of the end, which has been replayed to, and not the best on the new task."""
_COMPRESS: dict[str, Any] = {
    "alpha": 1.0,
    "learning_rate": 1e-3,
    "actor": {"init_std": 0.1},
    "critic": {"warmup_iterations": 0},
    "loss": {"name": "huber", "huber_delta": 0.03},
}
"""Settings of ``finetune.py`` that compress: distillation alone."""


@dataclass
class LifelongCfg:
    """``lifelong:`` of a file with stages."""

    episodes: int = 128
    """Episodes of each measurement."""
    seed: int = 5_000_011
    """Of the measurements' initial states, the same after every stage."""
    distill: dict[str, Any] = field(default_factory=dict)
    """Settings of ``distillation.py``, which stores each stage's transitions and makes the small network."""
    compress: dict[str, Any] = field(default_factory=dict)
    """Settings of ``finetune.py``, which distils the later stages into it."""


def read_lifelong(values: dict[str, Any]) -> LifelongCfg | None:
    """Take the settings out of a file's values; None where it has none.

    Raises:
        UserError: If a key is unknown or a value is out of range.
    """
    given = values.pop("lifelong", None)
    if given is None:
        return None
    if not isinstance(given, dict):
        raise UserError(f"lifelong is {given!r}: it must be a mapping, such as {{episodes: 128}}")
    names = [own.name for own in fields(LifelongCfg)]
    for name in given:
        if name not in names:
            raise UserError(f"lifelong.{name}: there is no such key. {suggest(str(name), names)}")
    # What is inside distill and compress is checked by the commands that get it.
    cfg = LifelongCfg()
    for name, hint in field_hints(LifelongCfg).items():
        try:
            setattr(cfg, name, fit(given.get(name, getattr(cfg, name)), hint))
        except MisfitError as error:
            raise UserError(f"lifelong.{name} is {given[name]!r}: it must be {error}") from None
    for name, fits, expected in (
        ("episodes", cfg.episodes >= 1, "at least 1"),
        ("episodes", cfg.episodes <= MAX_COUNT, A_COUNT),
        ("seed", 0 <= cfg.seed <= MAX_SEED, f"at least 0 and at most {MAX_SEED}"),
    ):
        if not fits:
            raise UserError(f"lifelong.{name} is {getattr(cfg, name)}: it must be {expected}")
    _refuse_own_keys(cfg)
    return cfg


def _refuse_own_keys(cfg: LifelongCfg) -> None:
    """Refuse what each stage says itself."""
    for part, own in (("distill", cfg.distill), ("compress", cfg.compress)):
        teacher = own.get("teacher")
        named = {"task": "task" in own, "teacher.checkpoint": isinstance(teacher, dict) and "checkpoint" in teacher}
        for key, is_there in named.items():
            if is_there:
                raise UserError(f"lifelong.{part}.{key} is the stage's own: leave it out")


class Lifelong:
    """Compresses and measures the stages of one file.

    Args:
        cfg: Its settings.
        steps: Runs the processes.
        command: What a stage is a run of.
        distillation: The module of ``distillation.py`` and the folder of its runs.
        play: The module of ``play.py``.
        shared: Arguments of the user's that each of the commands takes.
    """

    def __init__(
        self,
        cfg: LifelongCfg,
        steps: Steps,
        command: StagedCommand,
        distillation: tuple[str, Path],
        play: str,
        shared: Sequence[str],
    ):
        self.cfg = cfg
        self.steps = steps
        self.command = command
        self.distillation = distillation
        self.play = play
        self.shared = list(shared)
        self.tasks: list[str] = []
        self.active: list[str] = []
        """The policy that has learned each stage's task."""
        self.small: list[str] = []
        """The small network after each stage."""
        self.memories: list[str] = []
        """Stored transitions of each stage."""
        self._measured: set[str] = set()
        """Files of measurements that were made here."""

    def compress(self, name: str, task: str, active: Path) -> str:
        """Compress a stage that was learned, measure all tasks so far, and return the small network's file.

        Args:
            name: The stage.
            task: Its task.
            active: The best policy of its run.
        """
        memory = active.parent / "transitions"
        stored = self._store(f"{name}_store", task, active, memory)
        small = stored / BEST
        if self.small:
            small = self._distil(f"{name}_compress", task, active) / FINAL
        self.tasks.append(task)
        self.active.append(str(active))
        self.small.append(str(small))
        self.memories.append(str(memory))
        self._measure()
        return str(small)

    def _store(self, name: str, task: str, active: Path, memory: Path) -> Path:
        """Store transitions with the learned policy's labels, and distil it; return the run's folder."""
        module, root = self.distillation
        groups = load_checkpoint(active).get("obs_groups")
        student: dict[str, Any] = {} if groups is None else {"obs_groups": list(groups)}
        if self.small:
            student["init_checkpoint"] = self.small[-1]
        values = merged({"student": student}, self.cfg.distill)

        def arguments() -> list[str]:
            path = self.steps.write(name, values)
            given = ["--task", task, "--teacher_checkpoint", str(active), "--save_dataset", str(memory)]
            return [*given, *self.shared, f"experiment={path}"]

        return self.steps.run(name, module, root, arguments).path

    def _distil(self, name: str, task: str, active: Path) -> Path:
        """Distil the learned policy into the small network while earlier tasks are replayed; return the folder."""
        values = merged(_COMPRESS, {"replay": {"dataset": list(self.memories)}})
        values = merged(values, self.cfg.compress)

        def arguments() -> list[str]:
            path = self.steps.write(name, values)
            given = ["--task", task, "--teacher_checkpoint", str(active), "--checkpoint", self.small[-1]]
            return [*given, *self.shared, f"experiment={path}"]

        return self.steps.run(name, self.command.module, self.command.log_root, arguments).path

    # -- measuring --------------------------------------------------------------------------------------------------

    def _measure(self) -> None:
        """Measure what is not measured yet of the square of stages and their tasks; print and write the matrix."""
        returns: list[TaskReturns] = []
        for column, task in enumerate(self.tasks):
            random = self._return_of(task, None)
            reference = self._return_of(task, self.active[column])
            after = tuple(self._return_of(task, small) for small in self.small)
            label = task if self.tasks.count(task) == 1 else f"{task} ({column + 1})"
            returns.append(TaskReturns(label, random, reference, random, after))
        found = measure_forgetting(returns)
        report = {
            "tasks": [vars(task) | {"after": list(task.after)} for task in returns],
            "matrix": found.matrix,
            "measures": found.tags(),
            "networks": self.small,
        }
        path = self.steps.folder / f"{self.steps.run_name}_forgetting.json"
        atomic_write_bytes(path, json.dumps(report, indent=2).encode())
        print("\n".join([*matrix_lines(found), str(path)]), flush=True)

    def _return_of(self, task: str, policy: str | None) -> float:
        """Return the mean return of a policy, None: random actions; what was measured is kept in a file.

        Raises:
            StepFailed: If ``play.py`` fails.
        """
        name = "random" if policy is None else Path(policy).parent.name
        file = f"{self.steps.run_name}_{name}_{task.replace(':', '_').replace('/', '_')}.json"
        path = self.steps.folder / "measured" / file
        if not (path.exists() and (self.steps.resumes or file in self._measured)):
            path.parent.mkdir(parents=True, exist_ok=True)
            whose = ["--agent", "random"] if policy is None else ["--checkpoint", policy]
            given = ["--task", task, "--num_episodes", str(self.cfg.episodes), "--no-export", "--json", str(path)]
            fixed = ["--seed", str(self.cfg.seed)]
            with open(path.with_suffix(".log"), "wb") as log:
                code = run_in_a_process(self.play, [*whose, *given, *self.shared, *fixed], out=log)
            if code:
                raise StepFailed(code, f"{name} could not be measured on {task}: see {path.with_suffix('.log')}")
            self._measured.add(file)
        return float(json.loads(path.read_text(encoding="utf-8"))["return"]["mean"])


def matrix_lines(found: Forgetting) -> list[str]:
    """Return the forgetting matrix as lines of text: normalised scores, a line for each stage.

    Args:
        found: 0 is what random actions reach, 1 what the policy reached that was compressed.
    """
    widths = [max(8, len(name)) for name in found.names]
    lines = ["Scores after each stage [%]; 0: random actions, 100: the policy that learned the task"]
    lines.append("  ".join(["          ", *(f"{name:>{w}}" for name, w in zip(found.names, widths, strict=True))]))
    for stage, scores in enumerate(found.matrix, 1):
        cells = [f"{100 * score:>{width}.1f}" for score, width in zip(scores, widths, strict=True)]
        lines.append("  ".join([f"stage {stage:<4}", *cells]))
    transfer = "" if len(found.names) < 2 else f", backward transfer {100 * found.backward_transfer:.1f} %"
    return [*lines, f"Mean {100 * found.mean_score:.1f} %{transfer}"]


def shared_arguments(args: Mapping[str, Any], argv: Sequence[str]) -> list[str]:
    """Return what the user has typed that all of the commands take: engine, device, modules, the environment's keys.

    Args:
        args: The parsed flags.
        argv: The arguments.
    """
    flags = [(f"--{name}", args.get(name)) for name in ("engine", "device", "seed")]
    typed = [word for flag, value in flags if value is not None for word in (flag, str(value))]
    return [*typed, *(word for word in argv if word.startswith("env."))]
