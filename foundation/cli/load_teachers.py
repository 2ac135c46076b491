"""Load the teacher, or the many teachers, that ``--teacher_checkpoint`` names, with their vehicles and environments."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

from foundation.cli.agent_defaults import choose_groups
from foundation.cli.session import Session
from foundation.config.distillation_cfg import DistillationCfg
from foundation.config.validate import read
from foundation.core.errors import UserError, suggest
from foundation.core.text import plain_task
from foundation.engines.base import AgentCfg, Engine, EnvCapabilities, EnvCfg, VecEnv, variants_key
from foundation.policies.actors import PolicyActor
from foundation.policies.obs_groups import ObsSelector
from foundation.rollout.evaluate import evaluate
from foundation.rollout.joints import fit_joints
from foundation.runs.context import EVAL_SEED
from foundation.runs.run_dir import RunDir
from foundation.runs.run_teachers import Teacher
from foundation.runs.teacher_watch import wait_for_first
from foundation.teachers import TeacherPolicyWrapper
from foundation.teachers.assignment import TeacherAssignment
from foundation.teachers.code import CodeTeacher, is_code
from foundation.teachers.ensemble import TeacherEnsemble, load_ensemble
from foundation.teachers.manifest import FAILED, TeacherEntry, find_teachers, is_one_file
from foundation.teachers.teacher_board import TeacherBoard

logger = logging.getLogger("foundation.distillation")

_UNSET = {"strict": True, "run_as_is": False}
"""Settings of a checkpoint that are not None where nothing was set."""


def load_teacher(cfg: DistillationCfg) -> Teacher:
    """Read the teacher, or the teachers; a path of one checkpoint is one teacher, in any environment."""
    if cfg.teacher.watch is not None:
        watch_training(cfg, Path(cfg.teacher.watch))
    spec = cfg.teacher.checkpoint
    if spec is None:
        raise UserError("no teacher was given: --teacher_checkpoint PATH")
    if is_code(spec):
        return _load_code(cfg, spec if isinstance(spec, str) else spec[0])
    if not is_one_file(spec):
        return _load_many(cfg, find_teachers(spec))
    chosen = (cfg.teacher.expert, cfg.teacher.num_active, cfg.teacher.dropped or None)
    if cfg.teacher.combine != "per_env" or chosen != (None, None, None):
        raise UserError(
            "distill.teacher.combine, distill.teacher.expert, distill.teacher.dropped and --num_active_teachers need "
            "several teachers: give --teacher_checkpoint a folder, a manifest, or several files."
        )
    path = spec if isinstance(spec, str) else spec[0]
    return TeacherPolicyWrapper(path, cfg.device, **_overrides(cfg))


def watch_training(cfg: DistillationCfg, folder: Path) -> None:
    """Load the best checkpoint of a training that is still running; it may be weak yet, which is no reason to stop.

    Args:
        cfg: Its ``teacher.checkpoint`` is set, and ``teacher.check`` is off.
        folder: Where the training writes.

    Raises:
        UserError: If another teacher was given too, or there is no such folder.
    """
    given = cfg.teacher.checkpoint
    if given is not None and (isinstance(given, list) or Path(given).resolve().parent != folder.resolve()):
        raise UserError("--teacher_checkpoint and --watch_teacher name two teachers: leave one of them out")
    cfg.teacher.checkpoint = str(wait_for_first(folder))
    cfg.teacher.check = False


def _load_code(cfg: DistillationCfg, name: str) -> CodeTeacher:
    without_effect = [key for key, value in _overrides(cfg).items() if key != "outputs" and value != _UNSET.get(key)]
    if without_effect:
        raise UserError(f"distill.teacher.{without_effect[0]} has no effect on a teacher that is code: leave it out")
    return CodeTeacher(name, cfg.device, cfg.teacher.outputs)


def bind_code(cfg: DistillationCfg, agent_cfg: AgentCfg, teacher: Teacher, env: VecEnv) -> None:
    """Check a teacher that is code against the environment; nothing is done for another.

    Args:
        cfg: Its ``teacher.obs_groups`` are set where they are None: all groups for a function of a ``TensorDict``.
        agent_cfg: The agent's config, whose groups a function of a tensor reads.
        teacher: The teacher.
        env: The environment.

    Raises:
        UserError: If the function fails, or returns what does not fit.
    """
    if not isinstance(teacher, CodeTeacher):
        return
    own = cfg.teacher
    obs = env.get_observations()
    if own.obs_groups is None and teacher.code.reads_groups:
        own.obs_groups = [str(name) for name in obs.keys()]  # noqa: SIM118  # a TensorDict's
    choose_groups(cfg, agent_cfg, teacher, obs)
    choices = EnvCapabilities.of(env).action_choices
    teacher.bind(obs, own.obs_groups or ["policy"], own.obs_slice, env.num_actions, choices)
    compares_values = "q_mse" in (cfg.loss.name, *cfg.loss.auxiliary)
    if teacher.num_choices is not None and own.outputs is None and compares_values:
        raise UserError(
            f"loss=q_mse compares Q-values, and '{teacher.name}' returns choices alone: use loss=nll, or return the "
            "Q-values and set distill.teacher.outputs=q_values"
        )


def code_changed(run: RunDir, teacher: Teacher) -> None:
    """Warn where the code that teaches is not that with which a resumed run began."""
    if not isinstance(teacher, CodeTeacher) or not (run.params_dir / "teacher.yaml").exists():
        return
    key = "source_sha256"
    if run.load_params("teacher").get(key) != teacher.describe().get(key):
        logger.warning("the code of teacher '%s' has changed since the run began: its labels may differ", teacher.name)


def _overrides(cfg: DistillationCfg) -> dict[str, Any]:
    """Return what the user has set about the checkpoint, which takes precedence over its config."""
    names = ("activation", "distribution", "outputs", "head", "action_range", "strict", "joint_order")
    as_is = ("run_as_is", "num_obs", "input_sizes")
    return {name: getattr(cfg.teacher, name) for name in (*names, *as_is)}


def _load_many(cfg: DistillationCfg, entries: list[TeacherEntry]) -> TeacherEnsemble:
    failed = [entry.name for entry in entries if entry.status == FAILED]
    if failed:
        logger.info(
            "%d of %d teachers are left out, as their training failed: %s", len(failed), len(entries), _few(failed)
        )
    unknown = [name for name in cfg.teacher.dropped if name not in {entry.name for entry in entries}]
    if unknown:
        names = [entry.name for entry in entries]
        raise UserError(f"distill.teacher.dropped: there is no teacher '{unknown[0]}'. {suggest(unknown[0], names)}")
    left_out = {*failed, *cfg.teacher.dropped}
    entries = [entry for entry in entries if entry.name not in left_out]
    if not entries:
        raise UserError("--teacher_checkpoint: every teacher of the set has failed or is dropped; none is left.")
    teacher = cfg.teacher
    if teacher.num_active is not None and teacher.num_active > len(entries):
        raise UserError(f"--num_active_teachers {teacher.num_active}: there are {len(entries)} teachers; give fewer.")
    mode = "expert" if teacher.expert is not None else teacher.combine
    weights: dict[str, Any] = {"temperature": teacher.combine_temperature, "gate": teacher.gate}
    ensemble = load_ensemble(entries, cfg.device, mode, **weights, **_overrides(cfg))
    ensemble.vehicles = [str(entry.vehicle) for entry in entries if entry.vehicle is not None]
    _warn_of_another_task(cfg.task, entries)
    return ensemble


def _warn_of_another_task(task: str | None, entries: list[TeacherEntry]) -> None:
    """Warn if the manifest names a task that is neither this one nor its variant for playing."""
    for entry in entries:
        if task is not None and entry.task is not None and plain_task(entry.task) != plain_task(task):
            logger.warning("teacher '%s' was trained on %s, and --task is %s", entry.name, entry.task, task)
            return


def _few(names: list[str], most: int = 10) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def fit_environments(engine: Engine, env_cfg: EnvCfg, teacher: Teacher) -> None:
    """Give each of many teachers the same number of environments, and its variant of the task, such as a vehicle.

    Args:
        engine: Sets the number of environments.
        env_cfg: The environment's configuration, everything typed applied; changed in place.
        teacher: One teacher, for which nothing is done, or many.

    Raises:
        UserError: If the teachers have vehicles and the task declares no field for them.
    """
    if not isinstance(teacher, TeacherEnsemble) or teacher.mode != "per_env":
        return
    number = teacher.num_teachers
    num_envs = engine.num_envs(env_cfg) or number
    rounded = -(-num_envs // number) * number
    if rounded != num_envs:
        logger.info("--num_envs %d is rounded up to %d, a multiple of the %d teachers", num_envs, rounded, number)
        engine.set_common(env_cfg, num_envs=rounded, seed=None, device=None)
    if not teacher.vehicles:
        return
    key = variants_key(env_cfg)
    if key is None:
        raise UserError(
            "the manifest gives each teacher a vehicle, but this task has none to choose (its config has no method "
            "variants_key): leave 'vehicle' out of the manifest, or use a task that has."
        )
    if read(env_cfg, key) is not None:
        logger.warning("env.%s was given: the vehicles of the teachers' manifest are not used", key)
        return
    setattr(env_cfg, key, list(teacher.vehicles))


def drop_weak_teachers(session: Session, cfg: DistillationCfg, teacher: Teacher) -> Teacher:
    """Measure many teachers, each on its vehicle, and leave out those below ``--teacher_min_return``.

    Does nothing unless ``--teacher_below_min drop`` says so.

    Args:
        session: Makes the environment to measure in; the config of its environments is fitted to those that are left.
        cfg: The run's configuration; ``teacher.dropped`` gets the names.
        teacher: The teachers.

    Returns:
        Those that are left.
    """
    floor = cfg.teacher.min_return
    if floor is None or cfg.teacher.below_min != "drop":
        return teacher
    if not isinstance(teacher, TeacherEnsemble) or teacher.mode != "per_env":
        return teacher
    if not session.holds_many:
        raise UserError(
            "--teacher_below_min drop measures the teachers in an environment of their own: use refuse here."
        )
    board = _measure(session, cfg, teacher)
    below = board.below(floor)
    if not below:
        return teacher
    names = [teacher.names[index] for index in below]
    if len(names) == teacher.num_teachers:
        raise UserError(f"all {len(names)} teachers are below --teacher_min_return {floor:g}: {board.line('teacher')}.")
    logger.info("%d of %d teachers are dropped, below %g: %s", len(names), teacher.num_teachers, floor, _few(names))
    cfg.teacher.dropped = [*cfg.teacher.dropped, *names]
    key = variants_key(session.env_cfg)
    if key is not None and teacher.vehicles and read(session.env_cfg, key) == teacher.vehicles:
        setattr(session.env_cfg, key, None)  # fit_environments sets those of the teachers that are left
    teacher = load_teacher(cfg)
    fit_environments(session.engine, session.env_cfg, teacher)
    return teacher


def _measure(session: Session, cfg: DistillationCfg, teacher: TeacherEnsemble) -> TeacherBoard:
    own = copy.deepcopy(cfg)
    each = -(-(cfg.num_eval_episodes or 1) // teacher.num_teachers)
    assignment = TeacherAssignment(teacher.names)
    board = TeacherBoard(teacher.names)
    with session.temporary_env(each * teacher.num_teachers) as env:
        choose_groups(own, session.agent_cfg, teacher, env.get_observations())
        selector = ObsSelector(own.teacher.obs_groups or ["policy"], own.teacher.obs_slice)
        selector.check(env.get_observations(), "teacher", teacher.num_obs)
        fit_joints(teacher, env, cfg.task or "", list(selector.groups), own.teacher.obs_slice)
        actor = PolicyActor(teacher, selector)
        result = evaluate(env, actor, env.num_envs, cfg.seed + EVAL_SEED, teacher_of=assignment.index)
    assert result.teacher is not None
    board.record("teacher", result.returns, result.teacher)
    return board
