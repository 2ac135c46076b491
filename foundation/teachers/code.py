"""A teacher that is code: a controller or a planner, ``pkg.module:function``, that maps observations to actions.

The function takes the teacher's observations of all environments, a tensor of shape (num_envs, num_obs), or a
``TensorDict`` of observation groups where its first parameter is annotated so, and returns actions of shape
(num_envs, num_actions). One that remembers is an object, or a class without arguments, with ``state_size``: it is
called with a state of shape (num_envs, state_size), zeros at an episode's start, and returns actions and the next
state.
"""

from __future__ import annotations

import hashlib
import inspect
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict

from foundation.checkpoints.reading.loading import LoadedPolicy
from foundation.core.errors import UserError
from foundation.core.registry import resolve_attribute
from foundation.core.text import one_line
from foundation.policies.choices import NumChoices, best_choices, draw_choices, num_choices_of, sizes_of
from foundation.policies.info import PolicyInfo
from foundation.policies.obs_groups import teacher_selector
from foundation.policies.output import PolicyOutput
from foundation.policies.policy_network import PolicyNetwork
from foundation.teachers.wrapper import TeacherPolicyWrapper

SURE = 30.0
"""How much higher the logit of a choice that code makes is than those of the others."""
_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


def is_code(spec: str | Sequence[str] | None) -> bool:
    """Return whether ``--teacher_checkpoint`` is ``pkg.module:function`` and no file."""
    parts = [spec] if isinstance(spec, str) else list(spec or ())
    return len(parts) == 1 and _NAME.fullmatch(parts[0]) is not None and not Path(parts[0]).exists()


class CodePolicy(PolicyNetwork):
    """The function as a policy. Its sizes are those of the environment (:meth:`CodeTeacher.bind`).

    Sequences run step by step: the function sees each step's environments side by side, in their order.
    """

    def __init__(self, function: Callable[..., Any], outputs: str | None) -> None:
        """Take the function.

        Args:
            function: Maps observations to actions.
            outputs: ``q_values`` or ``logits`` where it returns a score for each discrete choice.
        """
        super().__init__()
        self.function = function
        self.outputs = outputs
        self.num_obs = 0
        self.num_actions = 0
        self.num_choices: NumChoices = None
        self.state_size = int(getattr(function, "state_size", 0))
        self.reads_groups = _reads_groups(function)
        self.groups: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
        """Shape and type of each observation group, in order, for a function of a ``TensorDict``."""

    def call(self, obs: torch.Tensor, state: torch.Tensor | None) -> tuple[Any, Any]:
        """Call the function. Shapes: (num_envs, num_obs) and (num_envs, state_size)."""
        given = self._grouped(obs) if self.reads_groups else obs
        return self.function(given, state) if self.state_size else (self.function(given), None)

    def run(
        self, obs: torch.Tensor, state: torch.Tensor | None, resets: torch.Tensor | None, sequence: bool
    ) -> tuple[PolicyOutput, torch.Tensor | None]:
        """Act for one step or for many."""
        if sequence:
            return self.run_steps(obs, state, resets)
        actions, state = self.call(obs, state)
        return self._output(actions), state

    def sample(self, output: PolicyOutput, generator: torch.Generator | None = None) -> torch.Tensor:
        """Draw actions: of logits a choice, else the actions themselves. Shape: (num_envs, num_actions)."""
        if self.outputs == "logits" and output.logits is not None:
            return draw_choices(output.logits, sizes_of(self.num_choices), generator)
        return output.mean

    def _output(self, actions: torch.Tensor) -> PolicyOutput:
        sizes = sizes_of(self.num_choices)
        if not sizes:
            return PolicyOutput(actions.float())
        if self.outputs is not None:
            return PolicyOutput(best_choices(actions, sizes).float(), logits=actions.float())
        index = actions.reshape(-1, len(sizes)).long()
        first = index.new_tensor([sum(sizes[:place]) for place in range(len(sizes))])
        logits = torch.full((len(index), sum(sizes)), -SURE, device=index.device)
        return PolicyOutput(index.float(), logits=logits.scatter(1, index + first, 0.0))

    def _grouped(self, obs: torch.Tensor) -> TensorDict:
        parts = obs.split([math.prod(shape) for shape, _ in self.groups.values()], dim=-1)
        groups = {
            name: part.unflatten(-1, shape).to(dtype)
            for (name, (shape, dtype)), part in zip(self.groups.items(), parts, strict=True)
        }
        return TensorDict(groups, batch_size=[len(obs)], device=obs.device)


class CodeTeacher(TeacherPolicyWrapper):
    """A teacher that is code. :meth:`bind` checks it against the environment, once, before it teaches."""

    def __init__(self, name: str, device: torch.device | str = "cpu", outputs: str | None = None) -> None:
        """Import the function, which the user must have typed.

        Args:
            name: ``pkg.module:function``.
            device: Where observations are.
            outputs: ``q_values`` or ``logits`` where it returns a score for each discrete choice.
        """
        self.name = name
        found = resolve_attribute(name, "teacher", typed_as="--teacher_checkpoint")
        try:
            function = found() if isinstance(found, type) else found
        except Exception as error:  # the user's own code
            raise UserError(f"teacher '{name}' cannot be made: {type(error).__name__}: {one_line(error)}") from error
        size = getattr(function, "state_size", 0)
        if not callable(function):
            raise UserError(f"teacher '{name}' is no function: it must map observations to actions")
        if type(size) is not int or size < 0:
            raise UserError(f"teacher '{name}': state_size must be an integer of 0 or more, got {size!r}"[:200])
        policy = CodePolicy(function, None if outputs == "mean" else outputs)
        info = PolicyInfo(
            format=f"code {name}",
            path=name,
            num_obs=0,
            num_actions=0,
            hidden_dims=[],
            activation="none",
            activation_from="code",
            recurrence=f"memory of {size}" if size else "none",
            distribution="deterministic",
            has_std=False,
            more=_source_of(found),
        )
        super().__init__(LoadedPolicy(policy, info), device)

    @property
    def code(self) -> CodePolicy:
        """The function as a policy."""
        assert isinstance(self.policy, CodePolicy)
        return self.policy

    def fit_groups(self, obs: TensorDict, groups: list[str]) -> list[str]:
        """Return the groups, whose shapes and types a function of a ``TensorDict`` gets back."""
        known = {str(name): obs[name] for name in obs.keys()}  # noqa: SIM118  # a TensorDict's
        self.code.groups = {n: (tuple(known[n].shape[1:]), known[n].dtype) for n in groups if n in known}
        return groups

    @torch.no_grad()
    def bind(
        self,
        obs: TensorDict,
        groups: Sequence[str],
        obs_slice: Sequence[int] | None,
        num_actions: int,
        choices: Sequence[int] | None,
    ) -> None:
        """Learn the environment's sizes and check what the function returns in it.

        Args:
            obs: The environment's observations.
            groups: Groups that it reads, in order.
            obs_slice: Columns of the concatenated groups, for a function of a tensor.
            num_actions: Actions that the environment takes.
            choices: Choices of each discrete action. None: actions are continuous.

        Raises:
            UserError: If it raises, or returns something else than finite actions of the right shape and device.
        """
        if self.code.reads_groups:
            if obs_slice is not None:
                raise UserError(f"teacher '{self.name}' reads groups, so that distill.teacher.obs_slice has no effect")
            self.image_groups = list(groups)  # of any shape: the function gets them as they are
        selector = teacher_selector(self, obs, groups, obs_slice)
        self.num_obs = self.code.num_obs = selector.check(obs, "teacher")
        self.num_choices = self.code.num_choices = num_choices_of(choices or ())
        self.num_actions = self.code.num_actions = num_actions
        self._check(selector(obs).float())
        sizes = {"num_obs": self.num_obs, "num_actions": num_actions, "num_choices": self.num_choices}
        self.info = replace(self.info, obs_groups=list(selector.groups), **sizes)
        self.obs_groups = self.info.obs_groups

    def architecture_line(self) -> str:
        """Return the console's line on what teaches."""
        memory = f", memory of {self.state_size} numbers" if self.state_size else ""
        return f"Teacher: code, {self.name}{memory}"

    def _check(self, obs: torch.Tensor) -> None:
        """Call the function once and refuse what it must not return."""
        rows = len(obs)
        state = self.code.initial_state(rows, obs.device)
        try:
            actions, after = self.code.call(obs, state)
        except Exception as error:  # the user's own code
            raise UserError(f"teacher '{self.name}' failed: {type(error).__name__}: {one_line(error)}") from error
        if state is not None:
            self._check_tensor(after, "state", [(rows, self.state_size)], obs.device)
        if self.code.num_choices is None:
            self._check_tensor(actions, "actions", [(rows, self.num_actions)], obs.device)
        elif self.code.outputs is not None:
            count = sum(sizes_of(self.code.num_choices))
            self._check_tensor(actions, self.code.outputs, [(rows, count)], obs.device)
        else:
            self._check_choices(actions, obs.device, sizes_of(self.code.num_choices))

    def _check_choices(self, actions: object, device: torch.device, sizes: tuple[int, ...]) -> None:
        rows: list[tuple[int, ...]] = []
        count = sum(sizes)
        if isinstance(actions, torch.Tensor) and actions.dim():
            rows = [(len(actions), len(sizes)), *([(len(actions),)] if len(sizes) == 1 else [])]
        scores = isinstance(actions, torch.Tensor) and actions.dim() == 2 and actions.shape[1] == count
        if scores and count != len(sizes):
            raise UserError(
                f"teacher '{self.name}' returned {count} numbers for each environment and the task takes an index: say "
                "what they are by distill.teacher.outputs=q_values or logits, or return the index"
            )
        checked = self._check_tensor(actions, "choices", rows or [(-1, len(sizes))], device)
        whole = checked.float().reshape(-1, len(sizes))
        most = torch.tensor(sizes, device=device) - 1
        if bool((whole != whole.round()).any() | (whole < 0).any() | (whole > most).any()):
            ends = ", ".join(str(size - 1) for size in sizes)
            raise UserError(
                f"teacher '{self.name}' must return integers from 0 to {ends}, got {whole.min():g} to {whole.max():g}"
            )

    def _check_tensor(
        self, found: object, what: str, shapes: Sequence[tuple[int, ...]], device: torch.device
    ) -> torch.Tensor:
        if not isinstance(found, torch.Tensor):
            raise UserError(f"teacher '{self.name}' must return {what} as a tensor, got {type(found).__name__}")
        if tuple(found.shape) not in shapes:
            raise UserError(f"teacher '{self.name}' must return {what} of shape {shapes[0]}, got {tuple(found.shape)}")
        if found.device.type != device.type:
            raise UserError(f"teacher '{self.name}' returned {what} on {found.device}: they must be on {device}")
        if not bool(found.isfinite().all()):
            raise UserError(f"teacher '{self.name}' returned {what} that are NaN or infinite")
        return found


def _reads_groups(function: Callable[..., Any]) -> bool:
    """Return whether a function's first parameter is annotated as a ``TensorDict``."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # a function written in C may have no signature
        return False
    annotation = parameters[0].annotation if parameters else None
    name = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")
    return name.rpartition(".")[2] in ("TensorDict", "TensorDictBase")


def _source_of(found: object) -> dict[str, Any]:
    """Return the file of a function, and a hash of its module, by which a change is seen."""
    try:
        kind = found if inspect.isroutine(found) or isinstance(found, type) else type(found)
        file = inspect.getsourcefile(kind)
    except TypeError:
        file = None
    if file is None or not Path(file).is_file():
        return {}
    return {"source": file, "source_sha256": hashlib.sha256(Path(file).read_bytes()).hexdigest()}
