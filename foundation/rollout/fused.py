"""Env steps in which the student acts alone, each one compiled function: its forward pass, the simulator, the storing.

With few environments a step is bound by the time between operations, not by them. The numbers are those of a
``Stepper`` to rounding, as those of the compiled simulator are.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from tensordict import TensorDict
from torch import nn
from torch.func import functional_call

from foundation.accel.compiled import CompiledFunction
from foundation.core.errors import RunInterrupted, UserError
from foundation.core.text import shorten
from foundation.engines.base import VecEnv
from foundation.engines.checked_env import CheckedEnv
from foundation.engines.traced import TracedEnv
from foundation.engines.video import ActionClip
from foundation.policies.obs_groups import ObsSelector
from foundation.rollout.episodes import EpisodeTracker, Running, StepRows, add_step
from foundation.rollout.labelling import LabellingActor

logger = logging.getLogger(__name__)


class _Arguments(NamedTuple):
    """What a step takes, in order: what it reads and leaves as it is, and where it writes and does not read."""

    weights: Sequence[torch.Tensor]
    """The student's parameters and buffers."""
    groups: Sequence[torch.Tensor]
    """Observation groups to act on (``TracedEnv.traced_groups``)."""
    memory: Sequence[torch.Tensor]
    """The student's, if it has any. Shape: (num_envs, state_size)."""
    resets: Sequence[torch.Tensor]
    """Whether this step begins an episode. Shape: (num_envs,)."""
    running: Sequence[torch.Tensor]
    """Episodes in progress (see ``episodes.Running``)."""
    env: Sequence[torch.Tensor]
    """What the environment begins the step with."""
    stored: Sequence[torch.Tensor]
    """Where the step is kept (see ``LabellingActor.step_rows``)."""
    ledger: Sequence[torch.Tensor]
    """Where the outcomes of episodes are written (see ``episodes.StepRows``)."""
    metrics: Sequence[torch.Tensor]
    """Where the task's metrics are written. Shape of each: (num_envs,)."""


class FusedSteps:
    """Steps an environment as a ``Stepper`` does, for a labelling actor and an episode tracker.

    Where the environment is compiled and its steps cannot be made so, the reason is logged once.

    Args:
        env: The environment, perhaps wrapped.
        actor: Acts and stores.
        tracker: Follows the episodes.
    """

    def __init__(self, env: VecEnv, actor: LabellingActor, tracker: EpisodeTracker):
        self.actor = actor
        self.tracker = tracker
        self._env, self._clip = _traced_env(env)
        self._is_asked_for = bool(getattr(getattr(getattr(env, "unwrapped", env), "cfg", None), "compile", False))
        self._is_told = False
        self._policy = _Policy(actor.student.policy)
        self._compiled: dict[float, CompiledFunction | None] = {}
        """By the tracker's quota; None where the student cannot be compiled."""

    def fits(self, obs: TensorDict) -> bool:
        """Whether the next steps can be made so, from these observations on."""
        actor = self.actor
        if not self._is_asked_for or actor.beta > 0.0:
            return False
        obstacle = self._obstacle()
        if not obstacle:
            return self._call(obs) is not None
        self._tell(logging.INFO, obstacle)
        return False

    def _obstacle(self) -> str:
        """Return why steps cannot be made so; empty: they can."""
        actor, dataset, env = self.actor, self.actor.dataset, self._env
        if env is None:
            return "the environment has noise, a camera, a step of its own or another wrapper"
        if actor.shared_by:
            return actor.shared_by
        student = actor.student.policy
        if not isinstance(student, nn.Module) or student is not self._policy.policy:
            return "the student is not the module that it was at first"
        if dataset.typed or any(type(own.selector) is not ObsSelector for own in (actor.student, actor.teacher)):
            return "observations are images, or computed from others"
        devices = {torch.device(device).type for device in (env.device, dataset.device)}
        return "" if devices == {"cpu"} else "it is for the CPU"

    def _tell(self, level: int, reason: str) -> None:
        if not self._is_told:
            self._is_told = True
            logger.log(level, "The student's part of a step is not compiled into the simulator's: %s.", reason)

    @torch.no_grad()
    def run(self, obs: TensorDict, num_steps: int) -> tuple[TensorDict, dict[str, Any]]:
        """Run some env steps in every environment, where that :meth:`fits`.

        Args:
            obs: Observations to act on.
            num_steps: How many.

        Returns:
            Observations to act on next, and of the last step's extras ``log`` alone.
        """
        env, actor, tracker, call = self._env, self.actor, self.tracker, self._call(obs)
        assert env is not None and call is not None
        for name in env.traced_metrics:  # before the labels, so that both have the order that a stepper gives them
            tracker.metric_row(name, torch.float32)
        tracker.label_steps(num_steps, actor.begin_steps(obs, num_steps))
        tracker.gives_time_outs = True
        teacher_obs = actor.teacher.selector(obs)
        weights, groups, carried, resets, running = self._start(obs)
        first, second = len(groups), len(groups) + len(carried)
        for _ in range(num_steps):
            begun = env.step_inputs()
            out = call(*weights, *groups, *carried, resets, *running, *begun, *self._rows(teacher_obs, carried))
            groups, carried = out[:first], out[first:second]
            resets, *rest = out[second:]
            running, after = tuple(rest[: len(running)]), rest[len(running) :]
            env.take_state(after)
            tracker.end_step()
            actor.end_step()
        actor.resets.copy_(resets)
        for own, last in zip(tracker.running, running, strict=True):
            own.copy_(last)
        actor.student.state = carried[0] if carried else None
        return env.take_observations(dict(zip(env.traced_groups, groups, strict=True))), {"log": env.episode_log}

    def _start(
        self, obs: TensorDict
    ) -> tuple[
        Sequence[torch.Tensor], Sequence[torch.Tensor], Sequence[torch.Tensor], torch.Tensor, Sequence[torch.Tensor]
    ]:
        """Return what the first step reads beside the environment's part: as of ``_Arguments``, up to ``running``."""
        assert self._env is not None
        student = self.actor.student
        memory = student.current_state(student.selector(obs))
        weights = [*self._policy.parameters(), *self._policy.buffers()]
        # Contiguous, as those of the following steps are: what is compiled is compiled for one layout.
        groups = [obs[name].contiguous() for name in self._env.traced_groups]
        carried = [] if memory is None else [memory.contiguous()]
        return weights, groups, carried, self.actor.resets, tuple(self.tracker.running)

    def _rows(self, teacher_obs: torch.Tensor, carried: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Return where the next step is written."""
        assert self._env is not None
        stored = self.actor.step_rows(teacher_obs, carried[0] if carried else None)
        metrics = (self.tracker.metric_row(name, torch.float32) for name in self._env.traced_metrics)
        return (*stored, *self.tracker.step_rows, *metrics)

    def _call(self, obs: TensorDict) -> CompiledFunction | None:
        """Return the compiled step, which counts no more episodes than the tracker does now."""
        quota = self.tracker.quota
        if quota not in self._compiled:
            self._compiled[quota] = self._compile(obs)
        return self._compiled[quota]

    @torch.no_grad()
    def _compile(self, obs: TensorDict) -> CompiledFunction | None:
        """Compile a step; None, with a warning, if the student cannot be traced."""
        env = self._env
        assert env is not None
        before = env.state_dict()  # the inputs of a step are taken once, and this is none
        made = CompiledFunction(self._step, torch.device("cpu"))
        weights, groups, carried, resets, running = self._start(obs)
        begun = env.step_inputs()
        rows = self._rows(self.actor.teacher.selector(obs), carried)
        try:
            made.compile(*weights, *groups, *carried, resets, *running, *begun, *rows)
        except (UserError, RunInterrupted):
            raise
        except Exception as error:  # of a user's own student, whose code may do what only runs step by step
            name = type(self.actor.student.policy).__name__
            said = shorten(next(iter(str(error).splitlines()), ""), 200)
            self._tell(logging.WARNING, f"{name} cannot be traced ({type(error).__name__}: {said})")
            return None
        finally:
            env.load_state_dict(before)
        return made

    def _step(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Make one step, which is what is compiled.

        Returns:
            The groups to act on next, the memory, whether the next step begins an episode, the episodes in progress,
            and the environment's state.
        """
        env = self._env
        assert env is not None
        given = self._split(tensors)
        names = [name for name, _ in (*self._policy.named_parameters(), *self._policy.named_buffers())]
        weights = dict(zip(names, given.weights, strict=True))
        obs = cast(TensorDict, env.groups(dict(zip(env.traced_groups, given.groups, strict=True))))
        student_obs = self.actor.student.selector(obs)
        memory = given.memory[0] if given.memory else None
        action, memory = functional_call(self._policy, weights, (student_obs, memory))
        if self._clip is not None:
            action = action.clamp(-self._clip, self._clip)
        following, rewards, ended, extras, after = env.trace_step(action, given.env)
        dones = ended.bool()
        carried = [] if memory is None else [functional_call(self._policy, weights, (None, memory, dones))]

        row, row_resets, teacher_obs, teacher_resets = given.stored
        row[:, self.actor.dataset.columns["obs"]].copy_(student_obs)
        teacher_obs.copy_(self.actor.teacher.selector(obs))
        row_resets.copy_(given.resets[0])
        teacher_resets.copy_(given.resets[0])
        running = Running(*(part.clone() for part in given.running))
        add_step(running, StepRows(*given.ledger), rewards, dones, extras["time_outs"], self.tracker.quota)
        for name, written in zip(env.traced_metrics, given.metrics, strict=True):
            written.copy_(extras["episode_metrics"][name])
        return (*(following[name] for name in env.traced_groups), *carried, dones, *running, *after)

    def _split(self, tensors: Sequence[torch.Tensor]) -> _Arguments:
        """Name the arguments of a step."""
        env = self._env
        assert env is not None
        remembers = 1 if self.actor.student.policy.state_size else 0
        num_weights = sum(1 for _ in (*self._policy.parameters(), *self._policy.buffers()))
        sizes = [num_weights, len(env.traced_groups), remembers, 1, len(Running._fields)]
        tail = [len(LabellingActor.KEPT), len(StepRows._fields), len(env.traced_metrics)]
        sizes += [len(tensors) - sum(sizes) - sum(tail), *tail]
        rest = list(tensors)
        return _Arguments(*([rest.pop(0) for _ in range(size)] for size in sizes))


class _Policy(nn.Module):
    """A policy's two functions as one, for ``functional_call``."""

    def __init__(self, policy: Any):
        super().__init__()
        self.policy = policy

    def forward(self, obs: torch.Tensor | None, state: torch.Tensor | None, dones: torch.Tensor | None = None) -> Any:
        """Return mean action and next state; with ``dones`` the state where episodes begin anew instead."""
        if dones is not None:
            return self.policy.reset_state(state, dones)
        output, state = self.policy.step(obs, state)
        return output.mean, state


def _traced_env(env: VecEnv) -> tuple[TracedEnv | None, float | None]:
    """Return the traced environment inside wrappers that do no more than check or clip, and the bound of the actions.

    None where there is no such environment, or it is in another wrapper.
    """
    inner: Any = env
    clip: float | None = None
    while type(inner) in (CheckedEnv, ActionClip):
        if isinstance(inner, ActionClip):
            clip = inner.clip_actions if clip is None else min(clip, inner.clip_actions)
        inner = inner.env
    # Of the class, as a wrapper has everything that is inside it.
    found = hasattr(type(inner), "is_traced") and inner.is_traced
    return (cast(TracedEnv, inner), clip) if found else (None, None)
