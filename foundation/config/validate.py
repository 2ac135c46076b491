"""Ranges of a distillation config: one line per mistake, naming the flag, the value and what is allowed."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from typing import Any, get_args

from foundation.config.derived_cfg import check_derived
from foundation.config.distillation_cfg import (
    PREDICT,
    DistillationCfg,
    LossCfg,
    ScheduleCfg,
    ScheduleKind,
    TeacherCfg,
    TermCfg,
)
from foundation.config.typing_fit import choices_of, field_hints
from foundation.core.errors import UserError, suggest

logger = logging.getLogger(__name__)

MAX_EMPHASIS = 255
MAX_EPOCHS = 1_000_000
"""Each epoch is a checkpoint's step, a line and a shard: more are a slip of the keyboard."""
MAX_COUNT = 2**31 - 1
"""The largest integer of 32 bits, which event files count to: so many episodes or updates would never end."""
A_COUNT = f"at most {MAX_COUNT}, the largest integer of 32 bits"
"""What a larger number must be."""
MAX_SEED = 2**32 - 1
"""What NumPy takes."""
MIN_POSITIVE = 1.2e-38
"""Below it float32 has no full precision."""
MIN_BOUND = 1e-6
"""Smaller bounds than this would make every label zero [action units]."""
_FLAGS = {
    "teacher.checkpoint": "--teacher_checkpoint",
    "teacher.min_return": "--teacher_min_return",
    "teacher.below_min": "--teacher_below_min",
    "dataset.load": "--dataset",
    "dataset.save": "--save_dataset",
    "teacher.num_active": "--num_active_teachers",
    "teacher.selection": "--teacher_selection",
    "teacher.position_offset_correction": "--position_offset_correction",
    "collection.teacher_student_mix": "--teacher_student_mix",
}

_AT_LEAST = {
    "num_envs": 1,
    "n_epochs": 1,
    "num_episodes": 1,
    "batch_size": 1,
    "sequence_length": 1,
    "eval_interval": 1,
    "num_eval_episodes": 1,
    "final_eval_episodes": 1,
    "save_interval": 1,
    "epoch_teacher_forcing": 0,
    "seed": 0,
    "teacher.relabel": 0,
    "teacher.num_active": 1,
    "teacher.emphasis": 0,
    "teacher.gate.episodes": 1,
    "teacher.gate.horizon": 1,
    "teacher.gate.updates": 1,
    "collection.teacher_student_mix": 0,
    "dataset.size": 1,
    "dataset.chunk_steps": 1,
    "dataset.newest_epochs": 1,
    "dataset.burn_in": 0,
    "dataset.load_files": 1,
    "dataset.filter.min_length": 1,
    "optimizer.updates_per_epoch": 1,
    "optimizer.int8_epochs": 0,
    "augment_images.shift": 0,
    "early_stopping.patience": 1,
}
_COUNTS = (
    "num_envs",
    "num_episodes",
    "batch_size",
    "sequence_length",
    "num_eval_episodes",
    "final_eval_episodes",
    "teacher.gate.episodes",
    "teacher.gate.horizon",
    "teacher.gate.updates",
    "collection.teacher_student_mix",
    "dataset.chunk_steps",
    "optimizer.updates_per_epoch",
)
"""Numbers of what is done or stored. An interval may be longer than any run: it is then never."""
_POSITIVE = (
    "learning_rate",
    "teacher.combine_temperature",
    "teacher.gate.temperature",
    "dataset.memory_gb",
    "loss.huber_delta",
    "loss.min_std",
    "loss.gap_temperature",
    "optimizer.update_ratio",
    "optimizer.max_grad_norm",
    "collection.label_bound",
)
"""Numbers above 0, large enough for float32."""
_NOT_NEGATIVE = (
    "dataset.disk_gb",
    "optimizer.weight_decay",
    "collection.noise_std",
    "collection.dart_alpha",
    "augment_images.noise",
    "early_stopping.min_delta",
)
_PATHS = (
    "multi_task",
    "teacher.checkpoint",
    "teacher.watch",
    "student.init_checkpoint",
    "student.init_encoder",
    "dataset.load",
    "dataset.save",
)
A_PATH = "a path; leave it out where there is none"
"""What a blank path must be."""
_AGENT_OPTIMIZERS = ("adam", "adamw", "rmsprop", "sgd")
"""What RSL-RL takes."""


def validate(cfg: DistillationCfg, loss_names: Iterable[str] | None = None) -> None:
    """Check what types cannot express.

    Args:
        cfg: The whole config.
        loss_names: Valid names for the main and the auxiliary losses. None leaves them unchecked.

    Raises:
        UserError: At the first value out of range.
    """
    for path, least in _AT_LEAST.items():
        _check(cfg, path, lambda v, least=least: v >= least, f"at least {least}")
    for path in ("n_epochs", "epoch_teacher_forcing"):
        _check(cfg, path, lambda v: v <= MAX_EPOCHS, f"at most {MAX_EPOCHS}")
    for path in _COUNTS:
        _check(cfg, path, lambda v: v <= MAX_COUNT, A_COUNT)
    for path in _PATHS:
        _check(cfg, path, is_named, A_PATH)
    _check(cfg, "seed", lambda v: v <= MAX_SEED, f"at most {MAX_SEED}")
    for path in _POSITIVE:
        _check(cfg, path, _is_positive, f"a finite number above 0 ({MIN_POSITIVE:g} or more)")
    _check(cfg, "collection.label_bound", lambda v: v >= MIN_BOUND, f"at least {MIN_BOUND:g}")
    for path in _NOT_NEGATIVE:
        _check(cfg, path, lambda v: v >= 0 and math.isfinite(v), "a finite number, 0 or more")
    _check(cfg, "collection.epsilon", lambda v: 0 <= v <= 1, "from 0 to 1")
    _check(cfg, "augment_images.groups", bool, "a list with at least one image group")
    for name in ("brightness", "lost_frames"):
        _check(cfg, f"augment_images.{name}", lambda v: 0 <= v < 1, "from 0 up to, but not including, 1")
    _check(cfg, "optimizer.ema_decay", lambda v: 0 <= v < 1, "from 0 up to, but not including, 1")
    _check(cfg, "optimizer.int8_epochs", lambda v: v <= cfg.n_epochs, f"at most --n_epochs ({cfg.n_epochs})")
    if cfg.optimizer.int8_epochs and (cfg.multi_task is not None or cfg.offline or cfg.early_stopping.patience):
        raise UserError(
            "distill.optimizer.int8_epochs are the last epochs of a run of one task with a simulator, to its end: "
            "leave out --multi_task, --offline and distill.early_stopping.patience"
        )
    _check(cfg, "teacher.min_return", math.isfinite, "a finite number")
    _check(cfg, "dataset.held_out", lambda v: 0 < v < 1, "above 0 and below 1")
    _check(cfg, "dataset.filter.return_quantile", lambda v: 0 <= v <= 1, "from 0 to 1")
    _check_offline(cfg)
    _check_choices(cfg)
    check_device(cfg.device)
    check_device(cfg.dataset.device, "dataset.device")
    _check_groups(cfg)
    check_derived(cfg.obs)
    _check_collection(cfg)
    _check_schedules(cfg)
    _check_losses(cfg, loss_names)
    _check_teachers(cfg)
    if cfg.epoch_teacher_forcing > cfg.n_epochs and cfg.collection.beta is None and not cfg.offline:
        logger.warning(
            "--epoch_teacher_forcing %d is beyond --n_epochs %d: the student never acts, only the teacher does.",
            cfg.epoch_teacher_forcing,
            cfg.n_epochs,
        )


def is_named(value: str | list[str]) -> bool:
    """Whether no path is blank: that of the current folder would be taken for it."""
    return all(path.strip() for path in ([value] if isinstance(value, str) else value))


def _is_positive(value: float) -> bool:
    return value >= MIN_POSITIVE and math.isfinite(value)


def check_env_and_agent(env_cfg: object, agent_cfg: object) -> None:
    """Check what every environment's and agent's config means alike: seeds, the bound of the actions, the optimiser.

    Raises:
        UserError: At the first value that cannot be.
    """
    seed = read(env_cfg, "seed")
    if isinstance(seed, int) and not 0 <= seed <= MAX_SEED:
        raise UserError(f"env.seed is {seed}: it must be at least 0 and at most {MAX_SEED}")
    clip = read(agent_cfg, "clip_actions")
    number = isinstance(clip, (int, float)) and not isinstance(clip, bool)
    if clip is not None and not (number and clip >= MIN_BOUND):
        shown = f"{clip:g}" if number else repr(clip)
        raise UserError(f"agent.clip_actions is {shown}: it must be null, or a number of at least {MIN_BOUND:g}")
    optimizer = read(read(agent_cfg, "algorithm"), "optimizer")
    if optimizer is not None and str(optimizer).lower() not in _AGENT_OPTIMIZERS:
        near = suggest(str(optimizer), _AGENT_OPTIMIZERS)
        raise UserError(f"agent.algorithm.optimizer is {optimizer!r}. {near}")


def read(cfg: object, name: str) -> Any:
    """Read a field of a config object or mapping; None where it is absent."""
    return cfg.get(name) if isinstance(cfg, dict) else getattr(cfg, name, None)


def _check_teachers(cfg: DistillationCfg) -> None:
    teacher = cfg.teacher
    if (teacher.num_active is None) != (teacher.selection == "all"):
        raise UserError("--num_active_teachers and --teacher_selection best|worst|random go together: give both")
    if teacher.below_min == "drop" and teacher.min_return is None:
        raise UserError("--teacher_below_min drop leaves out those below --teacher_min_return: give both")
    if teacher.emphasis > MAX_EMPHASIS:
        _fail("teacher.emphasis", teacher.emphasis, f"at most {MAX_EMPHASIS}")
    if teacher.emphasis and teacher.num_active is None:
        raise UserError("distill.teacher.emphasis needs a selection of teachers: give --num_active_teachers")
    if any(width < 1 for width in teacher.gate.hidden_dims):
        _fail("teacher.gate.hidden_dims", teacher.gate.hidden_dims, "a list of sizes, each at least 1")
    if teacher.expert is not None and teacher.combine != "per_env":
        raise UserError("distill.teacher.expert and distill.teacher.combine both choose: give one of them")
    _check_weights(teacher)
    if cfg.collection.teacher_student_mix and cfg.collection.beta is not None:
        raise UserError("--teacher_student_mix and distill.collection.beta both set who acts: give one of them")


def _check_weights(teacher: TeacherCfg) -> None:
    for name, weight in teacher.weights.items():
        if not 1 <= weight <= MAX_EMPHASIS:
            _fail(f"teacher.weights.{name}", weight, f"1 to {MAX_EMPHASIS}")
    if teacher.expert is None and teacher.combine == "per_env":
        return
    for flag, given in (("--num_active_teachers", teacher.num_active), ("distill.teacher.weights", teacher.weights)):
        if given:
            raise UserError(f"{flag} is for teachers with environments of their own (combine=per_env)")


def _check_offline(cfg: DistillationCfg) -> None:
    # What does not go together comes first: it would be in vain to ask for a dataset before.
    if cfg.offline and cfg.multi_task is not None:
        raise UserError(
            "--multi_task lists tasks that are simulated, and --offline simulates none: leave one of them out"
        )
    if cfg.offline and cfg.dataset.save is not None:
        raise UserError("--offline collects nothing, so that --save_dataset has nothing to save: leave one of them out")
    if cfg.offline and cfg.robustness:
        raise UserError("distill.robustness=true needs an environment, and --offline has none: leave one of them out")
    if cfg.offline and cfg.dataset.load is None:
        raise UserError("--offline learns from a saved dataset: give --dataset PATH")
    if cfg.on_policy and cfg.dataset.load is not None and not cfg.offline:
        raise UserError("--on_policy empties the dataset every epoch, --dataset would be lost: leave one of them out")


def label(path: str) -> str:
    """Name a field as a user sets it: by its flag where it has one, else by its key."""
    if "." not in path:
        return f"--{path}"
    if path.startswith("finetune."):  # the key of another command's config, whole
        return path
    return _FLAGS.get(path, f"distill.{path}")


def _get(cfg: object, path: str) -> Any:
    for name in path.split("."):
        cfg = getattr(cfg, name, None)  # a student need not have every field
    return cfg


def _fail(path: str, value: object, expected: str) -> None:
    shown = repr(value)
    if isinstance(value, float):
        shown = f"{value:g}"
    raise UserError(f"{label(path)} is {shown}: it must be {expected}")


def _check(cfg: Any, path: str, ok: Any, expected: str) -> None:
    value = _get(cfg, path)
    if value is not None and not ok(value):
        _fail(path, value, expected)


def _check_choices(cfg: Any, path: str = "") -> None:
    """Check every field that has a fixed set of values, also of a config that was made in code."""
    for own in fields(cfg):
        value = getattr(cfg, own.name)
        full = f"{path}{own.name}"
        valid = choices_of(field_hints(type(cfg)).get(own.name, Any))
        if valid and value is not None:
            _check_name(full, value, valid)
        if is_dataclass(value):
            _check_choices(value, f"{full}.")


def _check_name(path: str, value: str, valid: Iterable[str]) -> None:
    if value not in valid:
        raise UserError(f"{label(path)} is {value!r}. {suggest(value, valid)}")


def check_device(device: str | None, path: str = "device") -> None:
    """Refuse what is no device's name."""
    kind, _, index = (device or "cpu").partition(":")
    if kind not in ("auto", "cpu", "cuda", "mps", "xpu") or (":" in (device or "") and not index.isdigit()):
        _fail(path, device, "auto, cpu, cuda or cuda:<number>")


def _check_groups(cfg: DistillationCfg) -> None:
    for role in ("teacher", "student"):
        groups = _get(cfg, f"{role}.obs_groups")
        columns = _get(cfg, f"{role}.obs_slice")
        if groups is not None and not groups:
            _fail(f"{role}.obs_groups", groups, "a list with at least one observation group")
        if role == "student" and len(set(groups or ())) < len(groups or ()):
            _fail(f"{role}.obs_groups", groups, "a list that names each observation group once")
        if columns is not None and not (len(columns) == 2 and 0 <= columns[0] < columns[1]):
            _fail(f"{role}.obs_slice", columns, "[a, b] with 0 <= a < b")


def _check_collection(cfg: DistillationCfg) -> None:
    collection = cfg.collection
    if collection.label_bound is not None and not collection.clip_labels:
        _fail("collection.label_bound", collection.label_bound, "left out with collection.clip_labels=false")
    if not collection.student_deterministic and not cfg.student.stochastic:
        raise UserError(
            "distill.collection.student_deterministic=false needs a student with a standard deviation: set "
            "distill.student.stochastic=true, or explore with distill.collection.noise_std"
        )


def _check_schedules(cfg: DistillationCfg) -> None:
    check_schedule(cfg.collection.beta, "collection.beta", 0.0, 1.0)
    check_schedule(cfg.optimizer.lr_schedule, "optimizer.lr_schedule", 0.0)
    _check_temperature(cfg.loss.temperature, "loss.temperature")
    if cfg.loss.smoothing is not None:
        _check_weight(cfg.loss.smoothing, "loss.smoothing")
    _check_weight(cfg.loss.weight, "loss.weight")
    if cfg.loss.weight == 0:
        _fail("loss.weight", 0.0, "above 0: the main loss trains the actions")
    for name, term in cfg.loss.auxiliary.items():
        if isinstance(term, TermCfg):
            _check_weight(term.weight, f"loss.auxiliary.{name}.weight")
            _check_temperature(term.temperature, f"loss.auxiliary.{name}.temperature")
        else:
            _check_weight(term, f"loss.auxiliary.{name}")


def _check_temperature(temperature: float | ScheduleCfg | None, path: str) -> None:
    if isinstance(temperature, ScheduleCfg):
        check_schedule(temperature, path, 0.0, zero=False)
    elif temperature is not None and not _is_positive(temperature):
        _fail(path, temperature, "a finite number above 0")


def _check_weight(weight: float | ScheduleCfg, path: str) -> None:
    if isinstance(weight, ScheduleCfg):
        check_schedule(weight, path, 0.0)
    elif not (weight >= 0 and math.isfinite(weight)):
        _fail(path, weight, "a finite number, 0 or more")


def check_schedule(
    schedule: ScheduleCfg | None, path: str, low: float, high: float = math.inf, zero: bool = True
) -> None:
    """Check one schedule: its kind, its length, and that its values stay between ``low`` and ``high``.

    Args:
        schedule: None: nothing to check.
        path: Its place in the config.
        low: Least value.
        high: Greatest value.
        zero: Whether a value may be zero.
    """
    if schedule is None:
        return
    _check_name(f"{path}.kind", schedule.kind, get_args(ScheduleKind))
    if schedule.epochs < 0:
        _fail(f"{path}.epochs", schedule.epochs, "at least 0 (0 is the whole run)")
    if schedule.kind in ("piecewise", "step"):
        if not schedule.points or any(len(point) != 2 for point in schedule.points):
            _fail(f"{path}.points", schedule.points, "a list of [epoch, value] pairs")
        epochs = [point[0] for point in schedule.points]
        if epochs != sorted(epochs):
            _fail(f"{path}.points", schedule.points, "in the order of their epochs")
        values = [(f"{path}.points", point[1]) for point in schedule.points]
    else:
        values = [(f"{path}.start", schedule.start)]
        values += [] if schedule.kind == "constant" else [(f"{path}.end", schedule.end)]
    for where, value in values:
        if not zero and value == 0:
            _fail(where, value, "above 0")
        if not (low <= value <= high and math.isfinite(value)):
            _fail(
                where,
                value,
                f"from {low:g} to {high:g}" if math.isfinite(high) else f"a finite number, {low:g} or more",
            )
    if schedule.kind == "exponential" and not (schedule.start > 0 and schedule.end > 0):
        _fail(f"{path}.end", schedule.end, "above 0 at both ends for an exponential schedule")


def _check_layers(loss: LossCfg) -> None:
    if any(len(pair) != 2 for pair in loss.layers):
        _fail("loss.layers", loss.layers, "a list of [student's layer, teacher's layer] pairs")
    if loss.feature_hints == "each":
        return
    if len(loss.layers) < 2 or len({theirs for _, theirs in loss.layers}) > 1:
        _fail("loss.layers", loss.layers, "two pairs or more, of one layer of the teacher, for feature_hints=residual")
    if loss.feature_distance != "l2":
        _fail("loss.feature_distance", loss.feature_distance, "l2 for feature_hints=residual")


def _check_losses(cfg: DistillationCfg, loss_names: Iterable[str] | None) -> None:
    _check_layers(cfg.loss)
    if loss_names is not None:
        valid = list(loss_names)
        for path, name in [("loss.name", cfg.loss.name), *(("loss.auxiliary", n) for n in cfg.loss.auxiliary)]:
            if ":" not in name and name not in valid:
                raise UserError(f"{label(path)}: unknown loss '{name}'. {suggest(name, valid)}")
    for name, term in cfg.loss.auxiliary.items():
        group = term.group if isinstance(term, TermCfg) else None
        fed = isinstance(term, TermCfg) and term.feed
        if name == PREDICT and not group:
            raise UserError(
                f"{label(f'loss.auxiliary.{name}')} needs the observation group that is predicted: "
                f"distill.loss.auxiliary={{{name}: {{group: NAME, weight: 0.1}}}}"
            )
        if name != PREDICT and (group or fed):
            key = "group" if group else "feed"
            raise UserError(f"{label(f'loss.auxiliary.{name}.{key}')}: only the term '{PREDICT}' has one")
    term = cfg.loss.prediction
    if getattr(cfg.student, "num_estimates", 0) and not (term is not None and term.feed):
        raise UserError(
            "distill.student.num_estimates is set by the run: leave it out, and let the student estimate a group by "
            f"distill.loss.auxiliary={{{PREDICT}: {{group: NAME, weight: 0.1, feed: true}}}}"
        )
    if cfg.loss.name in cfg.loss.auxiliary:
        name = cfg.loss.name
        raise UserError(
            f"{label(f'loss.auxiliary.{name}')}: '{name}' is the main loss already; its weight is distill.loss.weight"
        )
