"""Many teachers in a run: assignment to environments, selection, position offsets, and metrics per teacher."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDict

from foundation.config.distillation_cfg import DistillationCfg
from foundation.core.distributed import Ranks
from foundation.core.errors import UserError, suggest
from foundation.dataset.dataset import DistillationDataset
from foundation.engines.base import EnvCapabilities, VecEnv
from foundation.learning.gate import collect_gate_rows, fit_gate, gate_horizon
from foundation.learning.saliency import shared_columns
from foundation.policies.actors import Actor
from foundation.policies.obs_groups import ObsSelector
from foundation.rollout.episodes import CollectionStats
from foundation.rollout.evaluate import EvaluationResult
from foundation.rollout.position_offset import PositionCorrection
from foundation.runs.context import GATE_SEED, OFFSET_SEED
from foundation.runs.report import Reporter
from foundation.teachers import TeacherPolicyWrapper
from foundation.teachers.assignment import BY_TEACHER, ExpertSelector, TeacherAssignment, make_choice
from foundation.teachers.ensemble import TeacherEnsemble
from foundation.teachers.gate import TeacherGate
from foundation.teachers.teacher_board import TeacherBoard

Teacher = TeacherPolicyWrapper | TeacherEnsemble
"""One teacher, or several with the interface of one."""

_OF_A_POLICY = ("activation", "distribution", "action_shape", "clip_actions", "recurrence", "obs_groups", "obs_slice")
"""Parts of a teacher's description that change its actions, beside its weights."""


class RunTeachers:
    """Assignment, selection, position offsets and figures by teacher.

    Args:
        teacher: One teacher, or a ``TeacherEnsemble``.
        cfg: The run's configuration.
        env: The environment to collect in.
        base: Selects the teachers' observations.
        student_obs: Selects the student's.
    """

    def __init__(self, teacher: Any, cfg: DistillationCfg, env: VecEnv, base: ObsSelector, student_obs: ObsSelector):
        self.teacher = teacher
        self.cfg = cfg
        self.number = int(getattr(teacher, "num_teachers", 1))
        mode = getattr(teacher, "mode", "one")
        self.selector = base
        self.student_obs = student_obs
        self.assignment = None
        if mode == "expert":
            choose = make_choice(cfg.teacher.expert or "", env.get_observations())
            self.assignment = TeacherAssignment(teacher.names, choose, f"distill.teacher.expert={cfg.teacher.expert}")
            self.selector = ExpertSelector(base, self.assignment)
            self.assignment.index(env.get_observations())
            self.assignment.check()
        elif mode == "per_env":
            if env.num_envs % self.number:
                raise UserError(f"--num_envs {env.num_envs} must be a multiple of the {self.number} teachers.")
            self.assignment = TeacherAssignment(teacher.names)
        if self.assignment is None and cfg.teacher.num_active is not None:
            raise UserError("--num_active_teachers needs several teachers, each with its own environments.")
        self.weights = teacher_weights(cfg.teacher.weights, self.assignment)
        """Sampling weight of each teacher's transitions. Shape: (num_teachers,); None where all are alike."""
        self.teacher_of = None if self.assignment is None else self.assignment.index
        """Maps observations to each environment's teacher, (num_envs,); None where all have the same."""
        self.board = None if self.assignment is None else TeacherBoard(teacher.names)
        self.correction = None
        if cfg.teacher.position_offset_correction:
            self.correction = PositionCorrection(env, student_obs, self.num_assigned)
        self.gate: TeacherGate | None = getattr(teacher, "gate", None)
        self.fingerprint = fingerprint(teacher)
        self.gate_figures: dict[str, Any] = {}

    @property
    def num_assigned(self) -> int:
        """Number of teachers that transitions are labelled with by index; 1 where all have the same."""
        return 1 if self.assignment is None else self.number

    def round_envs(self, num_envs: int, most: int) -> int:
        """Return a number of environments to evaluate in: the same for every teacher, and at least one."""
        if self.board is None or self.assignment is None or self.assignment.choose is not None:
            return min(num_envs, most)
        each = min(-(-num_envs // self.number), max(1, most // self.number))
        return each * self.number

    def ask_for(self, wanted: set[str]) -> None:
        """Leave out of the teachers' outputs what no loss reads: unneeded critics and last layers cost time."""
        self.teacher.with_value = "value" in wanted
        leave_out = getattr(self.teacher, "without_features", None)
        if leave_out is not None and "features" not in wanted:
            leave_out()

    def tap_layers(self) -> list[int]:
        """Let the teacher's features be the layers of ``distill.loss.layers``; return their sizes.

        Raises:
            UserError: If it has no layer of such a name, or there are several teachers.
        """
        names = [theirs for _, theirs in self.cfg.loss.layers]
        if not names:
            return []
        if not isinstance(self.teacher, TeacherPolicyWrapper):
            raise UserError("distill.loss.layers names layers of one teacher, and there are several: unset it")
        policy = self.teacher.policy
        policy.tap(names, "distill.loss.layers, of the teacher")
        return policy.tapped_sizes()

    def share_columns(self, wanted: set[str], obs: TensorDict) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Return which observations student and teacher share, where a loss compares saliencies.

        Args:
            wanted: The teacher's outputs that the losses read.
            obs: Observations of the environment.

        Returns:
            Columns of the student's and of the teacher's observation, (num_shared,) each.

        Raises:
            UserError: If there are several teachers, the teacher has memory, or they share nothing.
        """
        if "saliency" not in wanted:
            return None
        if not isinstance(self.teacher, TeacherPolicyWrapper) or self.teacher.state_size:
            raise UserError("Loss 'attention' is for one teacher, without memory: leave it out.")
        return shared_columns(self.student_obs, self.selector, obs, self.teacher.device)

    def fit_gate(self, env: VecEnv, reporter: Reporter, poll: Callable[[], None]) -> None:
        """Learn how much each teacher counts in a state, with ``distill.teacher.combine=gate``."""
        if self.gate is None:
            return
        seed = self.cfg.seed + GATE_SEED
        cfg = self.cfg.teacher.gate
        names = self.teacher.names
        rows = collect_gate_rows(env, self.teacher, self.selector, cfg, seed, poll)
        fitted, explained = fit_gate(rows, names, cfg, seed, poll)
        self.gate.load_state_dict(fitted.state_dict())
        weights = dict(zip(names, self.gate(rows.obs).mean(0).tolist(), strict=True))
        returns = {name: float(rows.returns[rows.teacher == index].mean()) for index, name in enumerate(names)}
        self.gate_figures = {"explained_variance": explained, "rows": len(rows.obs)}
        self.gate_figures |= {"mean_weights": weights, "mean_returns": returns}
        most = sorted(weights, key=lambda name: -weights[name])
        shown = ", ".join(f"{name} {weights[name]:.3f} (return {returns[name]:.2f})" for name in most[:5])
        shown += ", ..." if len(most) > 5 else ""
        reporter.line(
            f"Gate over {self.number} teachers, from {len(rows.obs)} transitions: explains {100.0 * explained:.0f} % "
            f"of the variance of the returns in {gate_horizon(env, cfg.horizon)} steps in episodes held out; mean "
            f"weights {shown}"
        )
        if explained <= 0.0:
            reporter.warn("the gate explains nothing: raise distill.teacher.gate.episodes, or combine=mean.")
        scalars = {f"baseline_gate_weight/{name}": weight for name, weight in weights.items()}
        reporter.scalars({"baseline/gate_explained_variance": explained, **scalars}, 0)

    def share_gate(self, ranks: Ranks) -> None:
        """Take the gate that the first process has fitted."""
        if self.gate is not None:
            ranks.share_modules([self.gate])

    def share_offsets(self, ranks: Ranks) -> None:
        """Take the position offsets that the first process has estimated."""
        if self.correction is not None:
            ranks.share([self.correction.offsets])

    @property
    def is_single(self) -> bool:
        """Whether there is one teacher, of which nothing has to be known before it acts."""
        return self.number == 1 and self.correction is None and self.gate is None

    def measured(self, teacher: EvaluationResult, reporter: Reporter) -> None:
        """Take the teachers' own episodes; refuse teachers below ``--teacher_min_return``."""
        if self.board is None or teacher.teacher is None:
            return
        self.record("teacher", teacher)
        reporter.line(f"{self.number} teachers - Mean return: {self.board.line('teacher')}")
        if self.cfg.teacher.below_min == "refuse":
            self.board.check(self.cfg.teacher.min_return)
        reporter.scalars(self.board.baseline_scalars(), 0)

    def measure_offsets(self, env: VecEnv, teacher: Actor, reporter: Reporter, poll: Callable[[], None]) -> None:
        """Estimate the position offsets, where they are to be corrected."""
        if self.correction is None:
            return
        counts = self.correction.measure(env, teacher, self.teacher_of, self.cfg.seed + OFFSET_SEED, poll)
        sizes = self.correction.offsets.norm(dim=-1)
        factor, unit = EnvCapabilities.of(env).position_unit
        reporter.line(
            f"Position offset of the teacher{'s' * (len(sizes) > 1)}: {factor * float(sizes.mean()):.2f} {unit} on "
            f"average, {factor * float(sizes.max()):.2f} {unit} at most, from {int(counts.sum())} episodes"
        )
        missing = (counts == 0).nonzero().flatten().tolist()
        if missing:
            names = ["the teacher"] if self.assignment is None else [self.assignment.names[i] for i in missing]
            shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
            reporter.warn(f"no episode ended by time-out, so that no offset is corrected, with {shown}.")
        reporter.scalars({"baseline/position_offset": float(sizes.mean())}, 0)

    def collected(self, epoch: int, beta: float, stats: CollectionStats, dataset: DistillationDataset) -> int:
        """Take an epoch's episodes and choose the teachers whose transitions are learned from.

        Args:
            epoch: Counted from 0.
            beta: Share of the episodes in which the teachers acted.
            stats: The epoch's episodes; the entries about their teachers are removed from its metrics.
            dataset: Transitions of teachers that are not chosen are no longer sampled from it.

        Returns:
            Number of new transitions, each multiplied by its oversampling factor.
        """
        teacher = stats.teacher
        teacher_acted = stats.metrics.pop(BY_TEACHER, None)
        if self.board is None or teacher is None or teacher_acted is None:
            return stats.env_steps
        own = ~teacher_acted.bool() if beta < 1.0 else torch.ones_like(teacher_acted, dtype=torch.bool)
        own &= torch.ones_like(own) if stats.settled is None else stats.settled
        self.board.record("collected", stats.returns[own], teacher[own])
        times = self._times(self.board, beta, epoch)
        if times is None:
            return stats.env_steps
        dataset.activate(stats.slots, times.repeat(dataset.num_envs // self.number))
        return stats.env_steps * int(times.sum()) // self.number

    def _times(self, board: TeacherBoard, beta: float, epoch: int) -> torch.Tensor | None:
        """Return the oversampling factor of each teacher in an epoch, (num_teachers,); None: all are alike."""
        cfg = self.cfg.teacher
        if beta == 1.0 or cfg.num_active is None:
            return self.weights
        active = board.choose(cfg.num_active, cfg.selection, self.cfg.seed + epoch)
        times = torch.where(active, max(cfg.emphasis, 1), int(cfg.emphasis > 0))
        return times if self.weights is None else torch.where(times > 0, times.maximum(self.weights), 0)

    def evaluated(self, result: EvaluationResult) -> None:
        """Take the episodes of an evaluation of the student."""
        if self.assignment is not None:
            self.assignment.check()
        self.record("student", result)

    def record(self, what: str, result: EvaluationResult) -> None:
        """Take the episodes of an evaluation of the ``teacher`` or the ``student``."""
        if self.board is not None and result.teacher is not None:
            self.board.record(what, result.returns, result.teacher)

    def log(self, reporter: Reporter, epoch: int, evaluated: bool) -> None:
        """Show and log the figures by teacher after an epoch."""
        if self.board is None:
            return
        if evaluated:
            reporter.line(f"Evaluation by teacher - Mean return: {self.board.line('student')}")
        reporter.scalars(self.board.scalars(epoch, evaluated), epoch + 1)

    def summary(self) -> dict[str, Any]:
        """Return the entries of ``summary.json`` about many teachers."""
        if self.board is None:
            return {"gate": self.gate_figures} if self.gate_figures else {}
        return {"teachers": self.board.summary() | {"dropped": list(self.cfg.teacher.dropped)}}

    def state_dict(self) -> dict[str, Any]:
        """Return what an exact resume needs."""
        names = list(getattr(self.teacher, "names", []))
        state: dict[str, Any] = {"names": names, "fingerprint": self.fingerprint}
        if self.board is not None:
            state["board"] = self.board.state_dict()
        if self.gate is not None:
            weights = {name: tensor.clone() for name, tensor in self.gate.state_dict().items()}
            state["gate"] = {"weights": weights, "figures": self.gate_figures}
        return state if self.correction is None else state | {"offsets": self.correction.offsets.clone()}

    def are_others(self, state: dict[str, Any]) -> bool:
        """Return whether the teachers differ from those of a saved state, as where a file was written anew."""
        return state.get("fingerprint", self.fingerprint) != self.fingerprint

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned; transitions and figures go by the teachers' numbers."""
        names = state.get("names")
        own = list(getattr(self.teacher, "names", []))
        if names is not None and names != own:
            raise UserError(
                f"The run had other teachers, or in another order: {_few(names)}, now {_few(own)}: give the same."
            )
        if self.board is not None and "board" in state:
            self.board.load_state_dict(state["board"])
        if self.gate is not None:
            saved = state.get("gate", {"weights": {}, "figures": {}})
            shapes = {name: tensor.shape for name, tensor in self.gate.state_dict().items()}
            if shapes != {name: tensor.shape for name, tensor in saved["weights"].items()}:
                raise UserError("The run to resume has another gate, or none: give the same distill.teacher settings.")
            self.gate.load_state_dict(saved["weights"])
            self.gate_figures = saved["figures"]
        if self.correction is not None and "offsets" in state:
            self.correction.offsets.copy_(state["offsets"])


def fingerprint(teacher: Any) -> str:
    """Return a checksum of a teacher's weights and of what was understood of its file, wherever that lies.

    A gate that is fitted in the run is none of the teacher's own.
    """
    describe = getattr(teacher, "describe", dict)
    understood = describe()
    parts = [understood.get(name) for name in _OF_A_POLICY]
    if understood.get("joint_order"):  # left out where none is stated: runs from before it was read go on
        parts.append(understood["joint_order"])
    digest = hashlib.sha256(repr(parts).encode())
    weights = getattr(teacher, "state_dict", dict)()
    for name in sorted(name for name in weights if not name.startswith("gate.")):
        value = weights[name]
        if isinstance(value, torch.Tensor):
            digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
            digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def teacher_weights(weights: dict[str, int], assignment: TeacherAssignment | None) -> torch.Tensor | None:
    """Lay weights by name out by teacher.

    Returns:
        Shape: (num_teachers,), 1 for those not named; None without weights.

    Raises:
        UserError: For a name that is none of the teachers', or where there is one teacher.
    """
    if not weights:
        return None
    if assignment is None:
        raise UserError("distill.teacher.weights needs several teachers, each with its own environments.")
    names = assignment.names
    for name in weights:
        if name not in names:
            raise UserError(f"distill.teacher.weights.{name}: no teacher has this name. {suggest(name, names)}")
    return torch.tensor([weights.get(name, 1) for name in names])


def _few(names: list[str], most: int = 5) -> str:
    shown = ", ".join(names[:most]) + (", ..." if len(names) > most else "")
    return f"{len(names)} ({shown})" if names else "one"
