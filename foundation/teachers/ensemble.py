"""Many teachers as one policy: each for its own environments, chosen per environment, or all together."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from foundation.config.distillation_cfg import GateCfg
from foundation.config.env_state import furthest
from foundation.core.errors import UserError, suggest
from foundation.policies.distribution import sample_gaussian
from foundation.policies.output import PolicyOutput, map_output
from foundation.policies.policy_network import PolicyNetwork
from foundation.teachers.combine import COMBINATIONS, combine, refuse_discrete
from foundation.teachers.gate import TeacherGate
from foundation.teachers.joint_order import JointOrder
from foundation.teachers.manifest import TeacherEntry
from foundation.teachers.stacked import LoopedNetworks, stack_networks
from foundation.teachers.wrapper import TeacherPolicyWrapper


class TeacherEnsemble(PolicyNetwork):
    """K teachers of the same architecture, with the interface of one.

    ``combine`` selects the output that an environment gets:

    - ``per_env``: environment i that of teacher ``i % K`` (the rule by which environments get their vehicles);
    - ``expert``: that of the teacher whose index is the observation's last column;
    - any other: all teachers' outputs, put together (see :mod:`foundation.teachers.combine`).
    """

    def __init__(
        self,
        teachers: Sequence[TeacherPolicyWrapper],
        names: Sequence[str],
        mode: str = "per_env",
        temperature: float = 1.0,
        gate: GateCfg | None = None,
    ) -> None:
        """Stack the teachers.

        Args:
            teachers: At least one, of the same architecture.
            names: Their names.
            mode: ``per_env``, ``expert``, or how to combine.
            temperature: Of the weights that ``value`` gives.
            gate: Of the weights that ``gate`` gives.
        """
        super().__init__()
        if mode not in ("per_env", "expert", *COMBINATIONS):
            raise UserError(f"distill.teacher.combine is {mode!r}. {suggest(mode, ('per_env', *COMBINATIONS))}")
        _check_alike(teachers, names)
        first = teachers[0]
        self.mode = mode
        self.temperature = temperature
        self.names = list(names)
        self.infos = [teacher.info for teacher in teachers]
        """Description of each."""
        self.joints: JointOrder | None = None
        """Between the orders of their joints and that of the environment. None: they are all the same."""
        self.num_teachers = len(teachers)
        self.vehicles: list[str] = []
        """Files of the vehicles that they fly, one each, where they have any."""
        self.num_obs = first.num_obs
        self.num_actions = first.num_actions
        self.hidden_dims = first.hidden_dims
        self.obs_groups = first.obs_groups
        self.obs_slice = first.obs_slice
        self.clip_actions = first.clip_actions
        self.has_std = all(teacher.has_std for teacher in teachers)
        self.has_value = all(teacher.has_value for teacher in teachers)
        self._needs_value = mode == "value"
        if (mode == "uncertainty" and not self.has_std) or (self._needs_value and not self.has_value):
            lacking = "standard deviation" if mode == "uncertainty" else "critic of the same observations"
            raise UserError(f"distill.teacher.combine={mode} needs teachers with a {lacking}: use combine=mean.")
        self.gate: TeacherGate | None = None
        """Weighs the teachers (``gate``); all alike until it is given what was fitted."""
        if mode == "gate":
            if len(teachers) < 2:
                raise UserError(f"distill.teacher.combine=gate weighs several teachers: '{names[0]}' is the only one.")
            untrained = TeacherGate(self.num_obs, len(teachers), gate or GateCfg()).to(first.device)
            self.gate = untrained.requires_grad_(False).eval()
        self.num_parameters = sum(teacher.num_parameters for teacher in teachers)
        more = first.info.more | {"num_teachers": len(teachers), "combine": mode}
        furthest_state = furthest(teacher.info.env_state for teacher in teachers)
        self.info = replace(first.info, more=more, env_state=furthest_state)
        """Description of the first of them; the others differ in their weights alone. The curriculum is that of the
        one that was trained for the most env steps."""
        networks = stack_networks([teacher.policy for teacher in teachers])
        self.networks = networks.requires_grad_(False).eval()
        self.device = first.device
        self._wants_value = self.networks.with_value
        self._size = self.networks.state_size
        self.state_size = self._size * (1 if mode == "per_env" else self.num_teachers)

    # -- the policy's interface ---------------------------------------------------------------------------------

    def initial_state(self, num_envs: int, device: torch.device | str | None = None) -> torch.Tensor | None:
        """Return the state at an episode's start. Shape: (num_envs, state_size), None without memory."""
        states = self.networks.initial_states(device or self.device)
        if states is None:
            return None
        if self.mode == "per_env":
            return states.repeat(-(-num_envs // self.num_teachers), 1)[:num_envs]
        return states.flatten().expand(num_envs, -1)

    def reset_state(self, state: torch.Tensor | None, dones: torch.Tensor) -> torch.Tensor | None:
        """Return the state with the envs in ``dones`` at an episode's start, which may differ from env to env."""
        initial = None if state is None else self.initial_state(state.shape[0], state.device)
        if state is None or initial is None:
            return None
        return torch.where(dones.bool().unsqueeze(-1), initial, state)

    def run(
        self, obs: torch.Tensor, state: torch.Tensor | None, resets: torch.Tensor | None, sequence: bool
    ) -> tuple[PolicyOutput, torch.Tensor | None]:
        """Act for one step or for many; with ``expert`` obs has one column more, the teacher's index."""
        if not sequence:
            return self._step_own(obs, state) if self.mode == "per_env" else self._step_all(obs, state)
        steps, envs = obs.shape[:2]
        if not self._size and (self.mode != "per_env" or envs % self.num_teachers == 0):
            output, _ = self.step(obs.flatten(0, 1))
            return map_output(lambda f: f.unflatten(0, (steps, envs)), output), None
        return self.run_steps(obs, state, resets)

    def sample(self, output: PolicyOutput, generator: torch.Generator | None = None) -> torch.Tensor:
        """Draw actions from an output's distribution. Shape: (num_envs, num_actions)."""
        joints = self.joints
        if self.mode == "per_env" and isinstance(self.networks, LoopedNetworks):
            actions = torch.empty_like(output.mean)
            for index, policy in enumerate(self.networks.policies):  # their distributions may differ in their ranges
                rows = slice(index, None, self.num_teachers)
                own = map_output(lambda field, rows=rows: field[rows], output)
                if joints is not None:
                    own = joints.undo(own, index)
                drawn = policy.sample(own, generator)
                actions[rows] = drawn if joints is None else joints.for_env(drawn, index)
            return actions
        if self.mode in ("per_env", "expert"):
            return self.networks.sample(output, generator)
        return sample_gaussian(output.mean, output.std, generator)

    @property
    def with_value(self) -> bool:
        """Whether outputs carry the value; the critics are not run if it is set to False."""
        return self.has_value and self._wants_value

    @with_value.setter
    def with_value(self, wanted: bool) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]  # passed on
        self._wants_value = wanted
        self.networks.with_value = wanted or self._needs_value

    def without_features(self) -> None:
        """Leave the last hidden layer out of the outputs from here on, where no loss reads it."""
        self.networks.with_features = False

    # -- which teacher ------------------------------------------------------------------------------------------

    def teacher_index(self, num_envs: int) -> torch.Tensor:
        """Return the teacher of each environment where each has its own (``per_env``). Shape: (num_envs,)."""
        return torch.arange(num_envs, device=self.device) % self.num_teachers

    def _step_own(self, obs: torch.Tensor, state: torch.Tensor | None) -> tuple[PolicyOutput, torch.Tensor | None]:
        """Step each environment by its own teacher: environments i, i + K, i + 2 K, ... have teacher i."""
        envs = obs.shape[0]
        missing = -obs.shape[0] % self.num_teachers
        x = self._deal(obs, missing)
        memory = None if state is None else self._deal(state, missing)
        output, memory = self._step_networks(x, memory)

        def undeal(rows: torch.Tensor) -> torch.Tensor:
            return rows.transpose(0, 1).flatten(0, 1)[:envs]

        return map_output(undeal, output), None if memory is None else undeal(memory)

    def _step_networks(self, x: torch.Tensor, memory: torch.Tensor | None) -> tuple[PolicyOutput, torch.Tensor | None]:
        """Step the networks, each in the order of its own joints. Shape of x: (num_teachers, rows, num_obs)."""
        joints = self.joints
        if joints is None:
            return self.networks.step(x, memory)
        output, memory = self.networks.step(joints.observe(x), memory)
        return joints.act(output), memory

    def _deal(self, rows: torch.Tensor, missing: int) -> torch.Tensor:
        """Split environments by teacher. Shape: (num_teachers, envs_per_teacher, size)."""
        if missing:
            rows = torch.nn.functional.pad(rows, (0, 0, 0, missing))
        return rows.unflatten(0, (-1, self.num_teachers)).transpose(0, 1)

    def step_each(
        self, obs: torch.Tensor, state: torch.Tensor | None = None
    ) -> tuple[PolicyOutput, torch.Tensor | None]:
        """Step every teacher in every environment (not with ``per_env``), so that each keeps its memory of all.

        Args:
            obs: Shape: (num_envs, num_obs).
            state: Shape: (num_envs, state_size). None: an episode's start.

        Returns:
            Fields of shape (num_teachers, num_envs, size), and the state.
        """
        state = self._state_before(obs, state)
        memory = None if state is None else state.unflatten(-1, (self.num_teachers, -1)).transpose(0, 1)
        output, memory = self._step_networks(obs.expand(self.num_teachers, *obs.shape), memory)
        if self.mode in COMBINATIONS:
            refuse_discrete(output, self.mode)
        return output, None if memory is None else memory.transpose(0, 1).flatten(1)

    def _step_all(self, obs: torch.Tensor, state: torch.Tensor | None) -> tuple[PolicyOutput, torch.Tensor | None]:
        """Step every teacher in every environment, then choose or combine their outputs."""
        x = obs[..., : self.num_obs]
        output, state = self.step_each(x, state)
        if self.mode == "expert":
            index = obs[..., self.num_obs].long()
            rows = torch.arange(obs.shape[0], device=obs.device)
            result = map_output(lambda f: f[index, rows], output)
        else:
            weights = None if self.gate is None else self.gate(x)
            result = combine(output, self.mode, self.temperature, weights)
            result = result if self._wants_value else result._replace(value=None)
        return result, state

    # -- what the user sees ---------------------------------------------------------------------------------------

    def describe(self) -> dict[str, Any]:
        """Return what was understood about the teachers, as plain values."""
        return self.info.as_dict()

    def architecture_line(self) -> str:
        """Return the line that the console shows."""
        what = {"per_env": "each with its own environments", "expert": "chosen per environment"}
        return (
            f"Teacher architecture: obs={self.num_obs}, actions={self.num_actions}, hidden={self.hidden_dims}; "
            f"{self.num_teachers} teachers, {what.get(self.mode, f'combined by {self.mode}')}"
        )


_SAME = {
    "num_obs": "observations",
    "num_actions": "actions",
    "hidden_dims": "hidden layers",
    "activation": "activation",
    "recurrence": "recurrence",
    "distribution": "distribution",
    "obs_groups": "observation groups",
    "obs_slice": "slice of the observations",
    "clip_actions": "bound of the actions",
}


def _check_alike(teachers: Sequence[TeacherPolicyWrapper], names: Sequence[str]) -> None:
    """Refuse teachers that differ in more than their weights."""
    first = teachers[0].info
    for teacher, name in zip(teachers[1:], names[1:], strict=True):
        for key, label in _SAME.items():
            one, other = (getattr(info, key) for info in (first, teacher.info))
            if one != other:
                raise UserError(
                    f"The teachers '{names[0]}' and '{name}' differ in their {label}: {one} and "
                    f"{other}. Teachers of one run have the same architecture: leave one of them out."
                )


@contextmanager
def said_once() -> Iterator[None]:
    """Let a warning through once, however many checkpoints it is about."""
    said: set[str] = set()

    def is_new(record: logging.LogRecord) -> bool:
        new = str(record.msg) not in said
        said.add(str(record.msg))
        return new

    names = [name for name in logging.root.manager.loggerDict if name.startswith("foundation.checkpoints.")]
    loggers = [logging.getLogger(name) for name in names]
    for logger in loggers:
        logger.addFilter(is_new)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(is_new)


def load_ensemble(
    entries: Sequence[TeacherEntry],
    device: torch.device | str = "cpu",
    mode: str = "per_env",
    temperature: float = 1.0,
    gate: GateCfg | None = None,
    **overrides: object,
) -> TeacherEnsemble:
    """Read the teachers and stack them.

    Args:
        entries: Which.
        device: Where they run.
        mode: ``per_env``, ``expert``, or how to combine.
        temperature: Of the weights that ``value`` gives.
        gate: Of the weights that ``gate`` gives.
        overrides: What the user says about all of them (see ``foundation.checkpoints.reading.loading.Overrides``).
    """
    with said_once():
        teachers = [TeacherPolicyWrapper(entry.checkpoint, device, **overrides) for entry in entries]
    return TeacherEnsemble(teachers, [entry.name for entry in entries], mode, temperature, gate)
