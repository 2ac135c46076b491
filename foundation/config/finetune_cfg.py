"""Typed configuration of a fine-tuning run: PPO on a trained policy, with terms that keep it from forgetting."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from foundation.config.derived_cfg import DerivedObsCfg, check_derived
from foundation.config.distillation_cfg import LoggerName, LossCfg, ScheduleCfg, StudentCfg, StudentMemory
from foundation.config.typing_fit import choices_of, field_hints
from foundation.config.validate import A_COUNT, A_PATH, MAX_COUNT, MAX_SEED, check_device, check_schedule, is_named
from foundation.core.errors import UserError, suggest

KlDirection = Literal["teacher_policy", "policy_teacher"]
CriticInit = Literal["fresh", "teacher"]
ColumnInit = Literal["copy", "fresh"]
Coefficient = float | ScheduleCfg
"""A number, or a schedule over the iterations in which the actor learns."""


@dataclass
class RetainedTeacherCfg:
    """The frozen policies that the distillation and the KL term are about."""

    checkpoint: str | list[str] | None = None
    """Path of a teacher's checkpoint, or several (``--teacher_checkpoint``); they are named teacher1, teacher2, ...
    None: the policy that the run starts from, where a coefficient asks for one."""
    obs_groups: list[str] | None = None
    """Observation groups of all teachers. None: those that each was trained on, or else the actor's."""
    obs_slice: list[int] | None = None
    """``[a, b]``: only these columns of the concatenated groups."""
    groups: dict[str, list[str]] = field(default_factory=dict)
    """Observation groups of one teacher, by its name: ``finetune.teacher.groups.teacher2=[privileged]``."""
    weights: dict[str, float] = field(default_factory=dict)
    """Factor on the terms of one teacher, by its name (1): ``finetune.teacher.weights.teacher2=0.5``. The KL terms are
    added up; the distillation terms are averaged with these weights, so that ``alpha`` stays a share."""
    tasks: dict[str, str] = field(default_factory=dict)
    """The only task on whose states a teacher counts, by its name: ``finetune.teacher.tasks.teacher1=OLD``, the run's
    own task or that of ``rehearsal``. Without an entry a teacher counts on all states."""
    activation: str | None = None
    """Activation of the checkpoints' networks, where no config beside them states it."""
    std: float | None = None
    """Standard deviation that a deterministic teacher is taken to have in the KL term [action units]. None: a KL term
    with a deterministic teacher is refused."""


@dataclass
class ActorCfg:
    """The policy that is trained."""

    obs_groups: list[str] | None = None
    """Observation groups, concatenated in order. None: those of the checkpoint, or else the agent config's."""
    obs_slice: list[int] | None = None
    """``[a, b]``: only these columns of the concatenated groups. None: as in the checkpoint."""
    init_std: float | None = None
    """Standard deviation of the actions at the start [action units] (``--init_std``). None: the checkpoint's own, or
    else the first teacher's on the first states, or else 0.05."""
    init_entropy: float | None = None
    """Entropy of the action distribution at the start [nats], from which ``init_std`` follows."""
    min_std: float | None = None
    """Floor of a std that does not depend on the state [action units]. None: none for a policy that is trained
    already, the agent config's for a fresh one, whose noise must not vanish before its mean is good."""


@dataclass
class CriticCfg:
    """The value function, which acting does not need."""

    init: CriticInit = "fresh"
    """``fresh``: random weights; ``teacher``: the first teacher's own critic, which then reads what that teacher
    reads."""
    obs_groups: list[str] | None = None
    """Observation groups, which may be privileged. None: the agent config's for its critic, or else the actor's."""
    hidden_dims: list[int] | None = None
    """Sizes of the hidden layers of a fresh critic. None: the agent config's."""
    activation: str | None = None
    """Activation of a fresh critic. None: the agent config's."""
    memory: StudentMemory = "none"
    """Recurrent layer of a fresh critic, before its dense ones: none | gru | lstm. Without one it sees a state as the
    observation shows it, also where the actor remembers more."""
    hidden_size: int = 64
    """Units of that layer."""
    obs_normalization: bool = True
    """Normalise the observations of a fresh critic by their running mean and variance."""
    warmup_iterations: int | None = None
    """Iterations in which the critic alone learns and the actor is frozen (``--critic_warmup_iterations``). None: 10
    with a fresh critic of an actor that is trained already, else 0."""
    warmup_learning_rate: float = 1e-3
    """Learning rate in these iterations; a large one cannot harm the policy, which does not learn then."""


@dataclass
class KlCfg:
    """How the retention by KL ends. Only one of ``target`` and ``kl_decay`` can steer the coefficient."""

    off_below: float | None = None
    """Switch the term off for good once the KL [nats] has fallen below this, having been above it."""
    off_after: int | None = None
    """Switch the term off after so many iterations in which the actor has learned."""
    target: float | None = None
    """Hold the KL [nats] at this: the coefficient is doubled after an iteration with more than 1.5 times as much, and
    halved after one with less than a 1.5th (Schulman et al. 2017, section 4)."""


@dataclass
class ReplayCfg:
    """Saved datasets of old tasks, replayed through the distillation loss beside the new task's data."""

    dataset: str | list[str] | None = None
    """Folder that ``distillation.py --save_dataset`` wrote, or several, one for each old task."""
    coef: Coefficient = 1.0
    """Weight of the term."""
    batch_size: int = 256
    """Transitions of each dataset, or for an actor with memory sequences of ``sequence_length``, in each minibatch of
    PPO."""
    sequence_length: int = 16
    """Steps of a sequence, for an actor with memory."""
    memory_gb: float = 2.0
    """Most memory that it may take [GB]."""


@dataclass
class RehearsalCfg:
    """An old task that some of the environments keep running: PPO learns from its rewards too."""

    task: str | None = None
    """Gym id of the old task, with the new one's actions and observation groups, on the same engine. None: all
    environments run the new task."""
    share: float = 0.25
    """Share of the environments that run it."""


@dataclass
class EwcCfg:
    """Elastic weight consolidation (Kirkpatrick et al. 2017) on the replayed dataset's states."""

    coef: float = 0.0
    """Weight of the penalty on moving weights that the old task depends on; 0: off."""
    samples: int = 512
    """States that the diagonal of the Fisher information is estimated from."""


@dataclass
class AdaptersCfg:
    """Low-rank additions to the weights of the frozen policy (Hu et al. 2021, LoRA), which are trained instead."""

    rank: int | None = None
    """Rank of each dense layer's addition. None: no adapters, all weights are trained."""
    scale: float = 1.0
    """Factor on the additions."""
    by_task: bool = False
    """Add them where the new task runs alone, so that the policy stays what it was on all others. Off: everywhere, and
    the result is one network of the same size as before."""


@dataclass
class HeadsCfg:
    """Output layers that belong to the new task alone, on the frozen layers beneath."""

    layers: int | None = None
    """Hidden layers beneath the new head that are the new task's own too, from the last one on, copies at the start;
    0: the head alone. None: there are no heads by task."""


@dataclass
class ProgressiveCfg:
    """A column of its own for the new task, which also reads the frozen ones before it (Rusu et al. 2016)."""

    init: ColumnInit | None = None
    """copy: the new column begins as a copy of the policy, its connections from the others at zero; fresh: with random
    weights, as in the paper. None: there are no columns."""


@dataclass
class FinetuneCfg:
    """A whole run. Field names are the flags of ``finetune.py``; PPO's own settings are those of the agent config.

    The loss of an update is ``(1 - alpha) * PPO + alpha * distillation + kl_coef * KL``, and the value loss, which
    belongs to a network of its own, whatever ``alpha`` is.
    """

    task: str | None = None
    """Gym id of the task, or ``module:Id``. None: the one that the checkpoint names."""
    engine: str = "auto"
    """auto | a module of ``foundation.engines``."""
    device: str = "auto"
    """Compute device; ``auto`` takes cuda:0 when there is one, else cpu."""
    seed: int = 42
    """Seed of everything random."""
    num_envs: int | None = None
    """Parallel environments. None: the env config's ``scene.num_envs``."""
    experiment_name: str | None = None
    """Folder under ``logs/finetune``. None: the agent config's ``experiment_name``."""
    run_name: str = ""
    """Suffix of the run's folder."""
    logger: LoggerName = "tensorboard"
    """Where scalars go."""
    log_project_name: str | None = None
    """Project name for wandb or neptune."""
    checkpoint: str | None = None
    """The policy to start from (``--checkpoint``). None: a fresh actor, as ``student`` describes it."""
    max_iterations: int = 100
    """Iterations, each of a rollout (``agent.num_steps_per_env``) and of PPO's updates on it; those of the critic's
    warm-up included."""
    learning_rate: float | None = None
    """Step size of the optimiser at the start. None: the agent config's."""
    random_episode_starts: bool = True
    """Start the environments at random times of their episodes, as RSL-RL does, so that ends come evenly."""
    eval_interval: int = 5
    """Iterations between two evaluations of the deterministic policy, the best of which is ``best_student.pt``. Where
    only one environment can exist, the training return is the measure."""
    num_eval_episodes: int = 128
    """Episodes in an evaluation."""
    final_eval_episodes: int = 1024
    """Episodes on fresh seeds that the best policy and the one at the start are measured with at the end."""
    save_interval: int = 25
    """Iterations between ``checkpoint_epoch_*.pt``."""
    alpha: Coefficient = 0.0
    """Share of distillation in the policy's loss, from 0 (PPO alone) to 1 (distillation alone)."""
    kl_coef: Coefficient = 0.0
    """Weight of the KL divergence between each teacher's action distribution and the policy's."""
    kl_decay: float | None = None
    """Factor on ``kl_coef`` from each iteration to the next; None: 1."""
    kl_direction: KlDirection = "teacher_policy"
    """``teacher_policy``: KL(teacher || policy), which keeps the policy where the teacher acts; ``policy_teacher``:
    KL(policy || teacher), which lets it keep to a part of that."""
    kl: KlCfg = field(default_factory=KlCfg)
    loss: LossCfg = field(default_factory=LossCfg)
    """The distillation loss, as in ``distillation.py``."""
    obs: dict[str, DerivedObsCfg] = field(default_factory=dict)
    """Observation groups that are made for the policy, by their names; those that the checkpoint was trained on are
    there already (docs/howto/observations.md)."""
    teacher: RetainedTeacherCfg = field(default_factory=RetainedTeacherCfg)
    actor: ActorCfg = field(default_factory=ActorCfg)
    critic: CriticCfg = field(default_factory=CriticCfg)
    replay: ReplayCfg = field(default_factory=ReplayCfg)
    rehearsal: RehearsalCfg = field(default_factory=RehearsalCfg)
    ewc: EwcCfg = field(default_factory=EwcCfg)
    adapters: AdaptersCfg = field(default_factory=AdaptersCfg)
    heads: HeadsCfg = field(default_factory=HeadsCfg)
    progressive: ProgressiveCfg = field(default_factory=ProgressiveCfg)
    task_columns: list[int] | None = None
    """``[a, b]``: columns a to b - 1 of the policy's observations say which task runs: 1 in its own, else 0. None: the
    field that the task calls ``task``."""
    student: StudentCfg = field(default_factory=StudentCfg)
    """The fresh actor of a run without ``checkpoint``."""

    @property
    def n_epochs(self) -> int:
        """Iterations, by the name that every kind of run has for them."""
        return self.max_iterations

    def teacher_checkpoints(self) -> dict[str, str]:
        """Return the teachers' files by their names: teacher1, teacher2, ..."""
        given = self.teacher.checkpoint
        paths = [given] if isinstance(given, str) else list(given or [])
        return {f"teacher{index}": path for index, path in enumerate(paths, 1)}

    def replay_datasets(self) -> list[str]:
        """Return the folders that are replayed."""
        given = self.replay.dataset
        return [given] if isinstance(given, str) else list(given or [])

    def part_by_task(self) -> str | None:
        """Return the key that asks for a part of the new task's own, if one does."""
        asked = {
            "finetune.heads.layers": self.heads.layers is not None,
            "finetune.progressive.init": self.progressive.init is not None,
            "finetune.adapters.by_task": self.adapters.by_task,
        }
        return next((key for key, is_asked in asked.items() if is_asked), None)

    def wants_teacher(self) -> bool:
        """Whether a coefficient is anything but 0, so that a teacher is needed."""
        return not (is_zero(self.alpha) and is_zero(self.kl_coef))


def is_zero(coefficient: Coefficient) -> bool:
    """Whether a coefficient is 0 throughout."""
    return isinstance(coefficient, float | int) and coefficient == 0.0


# -- checks -----------------------------------------------------------------------------------------------------------

_AT_LEAST = {
    "num_envs": 1,
    "max_iterations": 1,
    "eval_interval": 1,
    "num_eval_episodes": 1,
    "final_eval_episodes": 1,
    "save_interval": 1,
    "critic.warmup_iterations": 0,
    "kl.off_after": 0,
    "replay.batch_size": 1,
    "replay.sequence_length": 1,
    "ewc.samples": 1,
    "adapters.rank": 1,
    "critic.hidden_size": 1,
    "heads.layers": 0,
    "seed": 0,
}
_POSITIVE = (
    "learning_rate",
    "critic.warmup_learning_rate",
    "actor.init_std",
    "teacher.std",
    "kl.off_below",
    "kl.target",
    "replay.memory_gb",
    "loss.huber_delta",
    "loss.min_std",
    "adapters.scale",
)
_COUNTS = (
    "num_envs",
    "max_iterations",
    "num_eval_episodes",
    "final_eval_episodes",
    "critic.warmup_iterations",
    "replay.batch_size",
    "replay.sequence_length",
    "ewc.samples",
)
_PATHS = ("checkpoint", "teacher.checkpoint", "replay.dataset", "student.init_checkpoint", "student.init_encoder")
_FLAGS = {
    "critic.warmup_iterations": "--critic_warmup_iterations",
    "teacher.checkpoint": "--teacher_checkpoint",
    "actor.init_std": "--init_std",
}
_WITHOUT_FLAG = ("task_columns", "random_episode_starts")


def key_of_finetune(path: str) -> str:
    """Name a field as a user sets it: by its flag where it has one, else by its key."""
    if path in _FLAGS:
        return _FLAGS[path]
    return f"finetune.{path}" if "." in path or path in _WITHOUT_FLAG else f"--{path}"


def check_finetune(cfg: FinetuneCfg) -> None:
    """Check what types cannot express.

    Raises:
        UserError: At the first value out of range, in one line.
    """
    _check_choices(cfg)
    check_derived(cfg.obs, "finetune.obs")
    check_device(cfg.device)
    for path, least in _AT_LEAST.items():
        _check(cfg, path, lambda v, least=least: v >= least, f"at least {least}")
    for path in _COUNTS:
        _check(cfg, path, lambda v: v <= MAX_COUNT, A_COUNT)
    for path in _PATHS:
        _check(cfg, path, is_named, A_PATH)
    _check(cfg, "seed", lambda v: v <= MAX_SEED, f"at most {MAX_SEED}")
    for path in _POSITIVE:
        _check(cfg, path, lambda v: v > 0.0 and math.isfinite(v), "a finite number above 0")
    floor = cfg.actor.min_std
    if floor is not None and not 0.0 <= floor < math.inf:
        raise UserError(f"finetune.actor.min_std is {floor:g}: it must be a finite number, 0 or more")
    if any(size < 1 for size in cfg.critic.hidden_dims or ()):
        raise UserError(f"finetune.critic.hidden_dims is {cfg.critic.hidden_dims}: each size must be at least 1")
    _check_coefficient(cfg.alpha, "alpha", 1.0)
    _check_coefficient(cfg.kl_coef, "kl_coef")
    _check_coefficient(cfg.replay.coef, "replay.coef")
    _check_coefficient(cfg.ewc.coef, "ewc.coef")
    for name, weight in cfg.teacher.weights.items():
        _check_coefficient(weight, f"teacher.weights.{name}")
    _check_kl(cfg)
    _check_names(cfg)
    _check_parts(cfg)
    _check_structure(cfg)
    _check_rehearsal(cfg)


def _check(cfg: FinetuneCfg, path: str, fits: Callable[[Any], bool], expected: str) -> None:
    """Refuse a value, where there is one, that does not fit."""
    value = _get(cfg, path)
    if value is not None and not fits(value):
        shown = f"{value:g}" if isinstance(value, float) else repr(value)
        raise UserError(f"{key_of_finetune(path)} is {shown}: it must be {expected}")


def _check_rehearsal(cfg: FinetuneCfg) -> None:
    """Refuse a share that leaves a task without environments, and teachers of tasks that do not run."""
    share = cfg.rehearsal.share
    if not 0.0 < share < 1.0:
        raise UserError(f"finetune.rehearsal.share is {share:g}: it must be above 0 and below 1")
    if cfg.rehearsal.task is not None and cfg.rehearsal.task == cfg.task:
        raise UserError(f"finetune.rehearsal.task is {cfg.task}, the task that is learned: name the old one")
    running = [task for task in (cfg.task, cfg.rehearsal.task) if task is not None]
    for name, task in cfg.teacher.tasks.items():
        if task not in running:
            raise UserError(
                f"finetune.teacher.tasks.{name} is {task!r}, which does not run: there is {' and '.join(running)} "
                "(finetune.rehearsal.task runs an old one too)"
            )


def _check_structure(cfg: FinetuneCfg) -> None:
    """Refuse adapters, heads and columns that do not go together, or have nothing to start from."""
    asked = {
        "finetune.adapters.rank": cfg.adapters.rank is not None,
        "finetune.heads.layers": cfg.heads.layers is not None,
        "finetune.progressive.init": cfg.progressive.init is not None,
    }
    keys = [key for key, is_asked in asked.items() if is_asked]
    if len(keys) > 1:
        raise UserError(f"{keys[0]} and {keys[1]} each say what of the policy is trained: give one of them")
    if cfg.adapters.by_task and cfg.adapters.rank is None:
        raise UserError("finetune.adapters.by_task is about adapters: give finetune.adapters.rank=8")
    if keys and cfg.checkpoint is None:
        raise UserError(f"{keys[0]} adds to a policy that is trained already: give --checkpoint PATH")
    columns = cfg.task_columns
    if columns is None:
        return
    if not (len(columns) == 2 and 0 <= columns[0] < columns[1]):
        raise UserError(f"finetune.task_columns is {columns}: it must be [a, b] with 0 <= a < b")


def _check_parts(cfg: FinetuneCfg) -> None:
    """Refuse parts that need others which are not there."""
    if cfg.actor.init_std is not None and cfg.actor.init_entropy is not None:
        raise UserError("--init_std and finetune.actor.init_entropy both set the std at the start: give one")
    if cfg.checkpoint is None and cfg.wants_teacher() and not cfg.teacher_checkpoints():
        raise UserError(
            "alpha and kl_coef are about a teacher, and there is none: give --teacher_checkpoint PATH, or --checkpoint "
            "PATH to start from a policy that is then its own teacher"
        )
    if cfg.critic.init == "teacher" and not cfg.teacher_checkpoints():
        raise UserError("finetune.critic.init=teacher starts from a teacher's critic: give --teacher_checkpoint PATH")
    if cfg.ewc.coef > 0.0 and not cfg.replay_datasets():
        raise UserError(
            "finetune.ewc.coef needs states of the old task: give finetune.replay.dataset=PATH (and "
            "finetune.replay.coef=0 to replay nothing)"
        )


def _check_kl(cfg: FinetuneCfg) -> None:
    if cfg.kl_decay is not None and not 0.0 < cfg.kl_decay <= 1.0:
        raise UserError(f"--kl_decay is {cfg.kl_decay:g}: it must be above 0 and at most 1")
    if cfg.kl_decay is not None and isinstance(cfg.kl_coef, ScheduleCfg):
        raise UserError("--kl_decay and a schedule in finetune.kl_coef both change the coefficient: give one of them")
    if cfg.kl.target is None:
        return
    if cfg.kl_decay is not None or isinstance(cfg.kl_coef, ScheduleCfg):
        raise UserError(
            "finetune.kl.target adapts the coefficient: leave out --kl_decay and give kl_coef one number to start from"
        )
    if is_zero(cfg.kl_coef):
        raise UserError("finetune.kl.target adapts kl_coef, which is 0: give it a number to start from, --kl_coef 1.0")


def _check_names(cfg: FinetuneCfg) -> None:
    known = list(cfg.teacher_checkpoints()) or ["start"]
    named = {"weights": cfg.teacher.weights, "groups": cfg.teacher.groups, "tasks": cfg.teacher.tasks}
    for key, names in named.items():
        for name in names:
            if name not in known:
                raise UserError(f"finetune.teacher.{key}.{name}: there is no such teacher. {suggest(name, known)}")
    for path, groups in (
        ("actor.obs_groups", cfg.actor.obs_groups),
        ("critic.obs_groups", cfg.critic.obs_groups),
        ("teacher.obs_groups", cfg.teacher.obs_groups),
    ):
        if groups is not None and not groups:
            raise UserError(f"finetune.{path} is []: it must be a list with at least one observation group")
    for path, columns in (("actor.obs_slice", cfg.actor.obs_slice), ("teacher.obs_slice", cfg.teacher.obs_slice)):
        if columns is not None and not (len(columns) == 2 and 0 <= columns[0] < columns[1]):
            raise UserError(f"finetune.{path} is {columns}: it must be [a, b] with 0 <= a < b")


def _check_coefficient(value: Coefficient, path: str, most: float = math.inf) -> None:
    """Refuse a coefficient that is, or becomes, negative or more than ``most``."""
    if isinstance(value, ScheduleCfg):
        check_schedule(value, f"finetune.{path}", 0.0, most)
        return
    if not (0.0 <= value <= most and math.isfinite(value)):
        allowed = f"from 0 to {most:g}" if math.isfinite(most) else "a finite number, 0 or more"
        raise UserError(f"{key_of_finetune(path)} is {value:g}: it must be {allowed}")


def _check_choices(cfg: FinetuneCfg) -> None:
    """Check fields with a fixed set of values, also of a config that was made in code."""
    for owner, prefix in ((cfg, ""), (cfg.critic, "critic."), (cfg.progressive, "progressive.")):
        hints = field_hints(type(owner))
        for name, value in vars(owner).items():
            valid = choices_of(hints.get(name, Any))
            if valid and isinstance(value, str) and value not in valid:
                raise UserError(f"{key_of_finetune(prefix + name)} is {value!r}. {suggest(value, valid)}")


def _get(cfg: object, path: str) -> Any:
    for name in path.split("."):
        cfg = getattr(cfg, name, None)  # a student need not have every field
    return cfg
