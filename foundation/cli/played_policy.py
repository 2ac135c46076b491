"""The policy of ``play.py``: find its file by the flags, read it, and find the task that it was trained on."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import foundation
from foundation.checkpoints.foundation_multi_task import find_head, recognise, tasks_of
from foundation.cli.discrete_actions import check_choices
from foundation.cli.teacher_tokens import DERIVED, TEACHER, said_of_teacher
from foundation.config.derived_cfg import DerivedObsCfg, check_derived, copied
from foundation.config.distillation_cfg import DistillationCfg
from foundation.config.overrides import parse_overrides
from foundation.config.values import apply_values
from foundation.core.devices import resolve_device
from foundation.core.errors import UserError, suggest
from foundation.core.files import load_checkpoint
from foundation.core.registry import refuse_untyped
from foundation.core.text import plain_task, shorten
from foundation.engines.base import EnvCapabilities, VecEnv
from foundation.policies.actors import Actor, PolicyActor, RandomActor, ZeroActor
from foundation.policies.obs_groups import ObsSelector, teacher_selector
from foundation.rollout.joints import fit_joints
from foundation.runs.run_dir import RunDir
from foundation.teachers import TeacherPolicyWrapper
from foundation.teachers.code import CodeTeacher, is_code

logger = logging.getLogger("foundation.play")

LOG_ROOT = Path("logs")
BEST = "best_student.pt"
FINETUNED = "finetune"
"""Folder of the runs of ``finetune.py`` among the logs."""


@dataclass
class PlayedPolicy:
    """The policy that acts, and the task that it acts in."""

    task: str
    device: str
    agent: str = "trained"
    """Agent where there is no policy: ``zero`` or ``random``."""
    checkpoint: Path | None = None
    policy: TeacherPolicyWrapper | None = None
    head: str | None = None
    """Id of the task whose head acts, of a student of several tasks."""
    obs: dict[str, DerivedObsCfg] = field(default_factory=dict)
    """Settings of the derived observation groups that it reads: those of its training, and overrides."""

    @classmethod
    def find(cls, args: argparse.Namespace, tokens: Sequence[str] = ()) -> PlayedPolicy:
        """Find and read the policy, and the task that it was trained on.

        Args:
            args: Flags.
            tokens: Overrides that were typed; those of ``distill.teacher`` are about the policy's checkpoint.
        """
        device = resolve_device(args.device or "auto")
        if args.agent in ("zero", "random"):
            if args.task is None:
                raise UserError(f"--agent {args.agent} needs a task: --task ID, such as Isaac-Quadcopter-Point-Ctrl-v0")
            return cls(args.task, device, args.agent)
        if is_code(args.checkpoint):
            return cls._of_code(args, tokens, device)
        overrides = said_of_teacher([token for token in tokens if token.startswith(TEACHER)])
        checkpoint = find_checkpoint(args, overrides.get("head"))
        if args.obs_groups:
            overrides["obs_groups"] = args.obs_groups
        found = find_head(checkpoint, args.task, overrides.get("head"))
        if found is not None:
            head, task = found
            refuse_untyped(task, f"'{checkpoint}': its task", "--task")
            policy = TeacherPolicyWrapper(checkpoint, device, **overrides | {"head": head})
            return cls(task, device, args.agent, checkpoint, policy, head, derived_settings(policy, tokens))
        policy = TeacherPolicyWrapper(checkpoint, device, **overrides)
        task = args.task or ("" if args.describe else own_task(checkpoint))
        return cls(task, device, args.agent, checkpoint, policy, obs=derived_settings(policy, tokens))

    @classmethod
    def _of_code(cls, args: argparse.Namespace, tokens: Sequence[str], device: str) -> PlayedPolicy:
        """Take a function as the policy, as ``distillation.py --teacher_checkpoint`` does."""
        if args.task is None:
            raise UserError(f"--checkpoint {args.checkpoint} needs a task: --task ID, such as CartPole-v1")
        said = said_of_teacher([token for token in tokens if token.startswith(TEACHER)])
        outputs = said.pop("outputs", None)
        if said:
            raise UserError(f"distill.teacher.{next(iter(said))} has no effect on a policy that is code: leave it out")
        policy = CodeTeacher(args.checkpoint, device, outputs)
        policy.obs_groups = args.obs_groups
        return cls(args.task, device, args.agent, None, policy)

    @property
    def folder(self) -> Path:
        """The policy's run; a folder for all others where there is no policy, or one that is shipped."""
        package = Path(foundation.__file__).resolve().parent
        run = None if self.checkpoint is None else self.checkpoint.resolve().parent
        if run is not None and self.head is not None:
            run = run / "tasks" / self.head
        return LOG_ROOT / "play" if run is None or package in run.parents else run

    def describe(self) -> str:
        """Return one line on the policy that acts."""
        policy = self.policy
        if policy is None:
            return f"{self.agent} actions"
        memory = policy.info.recurrence
        kind = policy.info.format if memory == "none" else f"{policy.info.format}, {memory}"
        groups = ", ".join(policy.obs_groups or ["policy"])
        return f"{kind}: {policy.num_obs} ({groups}) -> {policy.hidden_dims} -> {policy.num_actions}"

    def make_actor(self, env: VecEnv, seed: int) -> tuple[Actor, ObsSelector | None]:
        """Return what acts, and how a policy's observations are selected.

        Args:
            env: The environment that it acts in.
            seed: Seed of random actions.
        """
        policy = self.policy
        if policy is None:
            if self.agent == "zero":
                return ZeroActor(env.num_actions), None
            declared = EnvCapabilities.of(env)
            return RandomActor(env.num_actions, seed, env.device, declared.action_choices, declared.action_range), None
        obs = env.get_observations()
        if isinstance(policy, CodeTeacher):
            groups = policy.obs_groups or (list(map(str, obs.keys())) if policy.code.reads_groups else ["policy"])
            policy.bind(obs, groups, None, env.num_actions, EnvCapabilities.of(env).action_choices)
        selector = teacher_selector(policy, obs, policy.obs_groups, policy.obs_slice)
        try:
            selector.check(obs, "policy", policy.num_obs, key="--obs_groups")
        except UserError as error:
            raise UserError(f"{error}{self._trained_elsewhere()}") from None
        if policy.num_actions != env.num_actions:
            raise UserError(
                f"the policy has {policy.num_actions} actions but the task '{self.task}' takes {env.num_actions}: "
                "it was trained on another task"
            )
        check_choices(policy.num_choices, env, f"the task '{self.task}'", "policy")
        for line in fit_joints(policy, env, self.task, list(selector.groups), policy.obs_slice):
            print(line)
        return PolicyActor(policy, selector), selector

    def _trained_elsewhere(self) -> str:
        """Return what to do where the policy's file names another task than the one it acts in; else nothing."""
        if self.checkpoint is None:
            return ""
        with contextlib.suppress(UserError):
            task = own_task(self.checkpoint)
            if task != self.task:
                return f" ('{self.checkpoint}' was trained on '{task}': leave out --task, or give another --checkpoint)"
        return ""


def derived_settings(policy: TeacherPolicyWrapper, tokens: Sequence[str]) -> dict[str, DerivedObsCfg]:
    """Return the settings of the derived observation groups that a policy reads.

    Args:
        policy: The policy; its checkpoint has those of its training.
        tokens: Overrides that were typed; those of ``obs.`` beat them: ``obs.student.noise=0.1``.

    Raises:
        UserError: For a key that does not exist, or a value that cannot be.
    """
    holder = DistillationCfg(obs=copied(policy.info.derived))
    typed = [token.removeprefix("distill.") for token in tokens if token.startswith(DERIVED)]
    for item in parse_overrides(typed, scopes=()).bare:
        name = item.path.partition(".")[2].partition(".")[0]
        if name not in holder.obs and not _may_read(policy, name):
            raise UserError(
                f"override '{item.token}': the policy reads no observation group '{name}'. "
                f"{suggest(name, policy.obs_groups or [*holder.obs])}"
            )
        apply_values(holder, {item.path: item.value})
    check_derived(holder.obs, "obs")
    return holder.obs


def _may_read(policy: TeacherPolicyWrapper, group: str) -> bool:
    """Whether a policy reads a group, or what it reads is not known."""
    return policy.obs_groups is None or group in policy.obs_groups


def find_checkpoint(args: argparse.Namespace, head: str | None = None) -> Path:
    """Return the file that the flags mean; by default the best student of the task's newest distillation run.

    Args:
        args: Flags.
        head: Task that is named as one of several of a student's; it comes before ``--task``.
    """
    named = args.checkpoint
    if named and (Path(named).exists() or os.sep in named):
        return Path(named)
    try:
        wanted = named or BEST  # a run that was stopped before its first evaluation has no student yet
        runs = RunDir.find_all(LOG_ROOT / "distillation", args.experiment_name, args.load_run, with_file=wanted)
    except UserError as error:  # it may be a run of finetune.py or train.py, but only if the user names one
        if args.experiment_name is None and args.load_run is None:
            missing = f"'{named}' does not exist, and " if named else ""
            raise UserError(
                f"{missing}no run found in {LOG_ROOT / 'distillation'}: give --checkpoint PATH, or distil a student "
                "first"
            ) from None
        run = _find_named(args, named or BEST)
        if run is None:
            raise error from None
        if run.path.resolve().is_relative_to((LOG_ROOT / FINETUNED).resolve()):
            return run.checkpoint_path(named or BEST)
        best = run.path / "best_model.pt"
        return best if named is None and best.exists() else run.checkpoint_path(named or r"model_.*\.pt")
    task = head or args.task
    if task is None:
        return runs[-1].checkpoint_path(wanted)
    return _of_task(runs, task, wanted, is_named=args.experiment_name is not None or args.load_run is not None)


def _of_task(runs: Sequence[RunDir], task: str, wanted: str, *, is_named: bool) -> Path:
    """Return the checkpoint of the newest run whose student is one of a task, or names none.

    Args:
        runs: The newest last.
        task: Gym id, or the id of one of several tasks.
        wanted: Name or pattern of the checkpoint.
        is_named: Whether the user chose the runs; the newest is then taken where none is of that task.
    """
    others: set[str] = set()
    for run in reversed(runs):
        try:
            checkpoint = run.checkpoint_path(wanted)
        except UserError:  # another run may have it
            continue
        tasks = tasks_named(checkpoint)
        if not tasks or plain_task(task) in map(plain_task, tasks):
            what = f"the newest student of {task}" if tasks else "a student of no named task"
            logger.info("%s: %s", what, checkpoint)
            return checkpoint
        others |= tasks
    if is_named or not others:
        return runs[-1].checkpoint_path(wanted)
    raise UserError(
        f"--task {task}: no student of it in {LOG_ROOT / 'distillation'}, only of "
        f"{shorten(', '.join(sorted(others)), 300)}; give --checkpoint PATH, or distil one first"
    )


def _find_named(args: argparse.Namespace, wanted: str) -> RunDir | None:
    """Find a run of ``finetune.py``, or else of ``train.py``; None where there is none of that name."""
    for root in (FINETUNED, "rsl_rl"):
        with contextlib.suppress(UserError):
            return RunDir.find(LOG_ROOT / root, args.experiment_name, args.load_run, with_file=wanted)
    return None


def tasks_named(checkpoint: Path) -> set[str]:
    """Return the task that a checkpoint names as the one it was trained on, or ids and gym ids of several."""
    try:
        saved = load_checkpoint(checkpoint)
        if recognise(saved):
            tasks = tasks_of(saved, f"'{checkpoint}'")
            return {*tasks, *tasks.values()}
    except UserError:  # whoever reads the policy raises what is wrong with it
        return set()
    task = saved.get("task")
    return {task} if isinstance(task, str) else set()


def own_task(checkpoint: Path) -> str:
    """Return the task that a checkpoint names as the one it was trained on."""
    try:
        task = load_checkpoint(checkpoint).get("task")
    except UserError:  # the policy could be read: its file is of another kind, which names no task
        task = None
    if not isinstance(task, str):
        raise UserError(f"'{checkpoint}' does not name the task that it was trained on: give --task ID")
    refuse_untyped(task, f"'{checkpoint}': its task", "--task")
    return task
