"""A trained teacher, frozen, ready to act and to label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from torch import nn

from foundation.checkpoints import load_policy
from foundation.checkpoints.reading.loading import LoadedPolicy, Overrides
from foundation.core.errors import UserError
from foundation.policies.actor_critic import ActorCritic
from foundation.policies.layers import Layers
from foundation.policies.output import PolicyOutput
from foundation.policies.policy_network import PolicyNetwork
from foundation.teachers.joint_order import JointOrder


class TeacherPolicyWrapper(nn.Module):
    """A policy read from a checkpoint of any known format.

    ``act``, ``output`` and ``reset`` keep a recurrent teacher's state, one per env; ``step`` and ``sequence`` are the
    same policy with the state passed in and returned.
    """

    def __init__(
        self, checkpoint_path: str | Path | LoadedPolicy, device: torch.device | str = "cpu", **overrides: object
    ) -> None:
        """Read and freeze the policy.

        Args:
            checkpoint_path: The checkpoint; the run's ``params/agent.yaml`` is looked for beside it. Or a policy that
                was read already.
            device: Where it runs.
            overrides: Fields of :class:`~foundation.checkpoints.reading.loading.Overrides`, such as
                ``activation="relu"``.

        Raises:
            UserError: If the checkpoint is missing, corrupt or of an unknown format.
        """
        super().__init__()
        self._overrides = Overrides.parse({k: v for k, v in overrides.items() if v is not None})
        loaded = checkpoint_path
        if not isinstance(loaded, LoadedPolicy):
            loaded = load_policy(loaded, self._overrides)
        self.policy: PolicyNetwork = loaded.network.to(device).requires_grad_(False).eval()
        self.device = torch.device(device)
        self.num_obs: int = self.policy.num_obs
        self.num_actions: int = self.policy.num_actions
        self.info = loaded.info
        """Description of the checkpoint's policy; its joints are in the file's order."""
        self.num_choices = loaded.info.num_choices
        self.state_size: int = self.policy.state_size
        self.hidden_dims = loaded.info.hidden_dims
        self.obs_groups = loaded.info.obs_groups
        self.image_groups = loaded.info.image_groups
        self.obs_slice = loaded.info.obs_slice
        self.clip_actions = loaded.info.clip_actions
        self.num_parameters: int = self.policy.num_parameters
        self.has_std = loaded.info.has_std
        self.has_value = loaded.info.has_value
        self.joints: JointOrder | None = None
        """Between the order of its joints and that of the environment that it acts in. None: they are the same."""
        self._state: torch.Tensor | None = None

    @torch.no_grad()
    def act(
        self, obs: torch.Tensor | TensorDict, deterministic: bool = True, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        """Choose actions.

        Args:
            obs: A tensor, shape (num_envs, num_obs), or the env's TensorDict of observation groups.
            deterministic: Return the mean (of a discrete policy, the index of the best choice); otherwise a sample.
            generator: Random numbers of the sample.

        Returns:
            Actions. Shape: (num_envs, num_actions).
        """
        output = self.output(self.select(obs))
        return output.mean if deterministic else self.sample(output, generator)

    @torch.no_grad()
    def output(self, obs: torch.Tensor) -> PolicyOutput:
        """Return the policy's output, and advance the recurrent state that is kept.

        Args:
            obs: The teacher's observations, see :meth:`select`. Shape: (num_envs, num_obs).

        Returns:
            Fields of shape (num_envs, ...).

        Raises:
            UserError: If the number of observations, or of environments since the last reset, is another one.
        """
        if obs.shape[-1] != self.num_obs:
            raise UserError(self._size_message(f"was given {obs.shape[-1]}"))
        if self._state is not None and self._state.shape[0] != obs.shape[0]:
            kept = self._state.shape[0]
            raise UserError(f"the recurrent teacher remembers {kept} envs and was given {obs.shape[0]}; call reset().")
        output, self._state = self.step(obs, self._state)
        return output

    def sample(self, output: PolicyOutput, generator: torch.Generator | None = None) -> torch.Tensor:
        """Draw actions from an output's distribution. Shape: (num_envs, num_actions)."""
        joints = self.joints
        if joints is None:
            return self.policy.sample(output, generator)
        return joints.for_env(self.policy.sample(joints.undo(output), generator))

    def reset(self, dones: torch.Tensor | None = None) -> None:
        """Reset the recurrent state of the envs in ``dones`` (None: of all). Shape: (num_envs,)."""
        self._state = None if dones is None else self.policy.reset_state(self._state, dones)

    @property
    def with_value(self) -> bool:
        """Whether outputs have the critic's value; False spares running the critic."""
        return self.has_value and self.policy.with_value

    @with_value.setter
    def with_value(self, wanted: bool) -> None:
        self.policy.with_value = wanted

    def initial_state(self, num_envs: int, device: torch.device | str | None = None) -> torch.Tensor | None:
        """Return the state at an episode's start. Shape: (num_envs, state_size), or None without memory."""
        return self.policy.initial_state(num_envs, device)

    def reset_state(self, state: torch.Tensor | None, dones: torch.Tensor) -> torch.Tensor | None:
        """Return the state with the envs in ``dones`` at an episode's start. Shape: (num_envs, state_size)."""
        return self.policy.reset_state(state, dones)

    def step(self, obs: torch.Tensor, state: torch.Tensor | None = None) -> tuple[PolicyOutput, torch.Tensor | None]:
        """Act for one step, with the state passed in and returned. Shape of obs: (num_envs, num_obs)."""
        joints = self.joints
        if joints is None:
            return self.policy.step(obs, state)
        output, state = self.policy.step(joints.observe(obs), state)
        return joints.act(output), state

    def sequence(
        self, obs: torch.Tensor, state: torch.Tensor | None = None, resets: torch.Tensor | None = None
    ) -> tuple[PolicyOutput, torch.Tensor | None]:
        """Act for many steps. Shape of obs: (num_steps, num_envs, num_obs), of resets: (num_steps, num_envs)."""
        joints = self.joints
        if joints is None:
            return self.policy.sequence(obs, state, resets)
        output, state = self.policy.sequence(joints.observe(obs), state, resets)
        return joints.act(output), state

    def layers(self) -> Layers:
        """Return the policy as typed layers, with its weights, for exporters (:mod:`foundation.policies.layers`)."""
        return self.policy.layers()

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        """Return mean actions without touching the state that ``act`` keeps. Shape: (num_envs, num_actions)."""
        joints = self.joints
        return self.policy(obs) if joints is None else joints.for_env(self.policy(joints.observe(obs)))

    def select(self, obs: torch.Tensor | TensorDict) -> torch.Tensor:
        """Concatenate the teacher's observation groups and cut its columns out; a tensor is returned as it is.

        Args:
            obs: The env's TensorDict of observation groups, or the teacher's observations.

        Returns:
            Shape: (num_envs, num_obs).

        Raises:
            UserError: If a group is missing, or the groups' sizes do not add up to the teacher's input.
        """
        if isinstance(obs, torch.Tensor):
            return obs
        groups = self.fit_groups(obs, self.obs_groups or ["policy"])
        missing = [group for group in groups if group not in obs.keys()]  # noqa: SIM118  # a TensorDict supports `in` for its keys() only
        if missing:
            raise UserError(
                f"the teacher reads observation group '{missing[0]}', which the environment does not have "
                f"(it has {', '.join(map(str, obs.keys()))}). Set the teacher's obs_groups."
            )
        parts = [obs[group].flatten(1) for group in groups]
        selected = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
        if self.obs_slice is not None:
            selected = selected[..., slice(*self.obs_slice)]
        if selected.shape[-1] != self.num_obs:
            sizes = " + ".join(f"{group} {part.shape[-1]}" for group, part in zip(groups, parts, strict=True))
            raise UserError(self._size_message(f"the groups give {selected.shape[-1]} ({sizes})"))
        return selected

    def fit_groups(self, obs: TensorDict, groups: list[str]) -> list[str]:
        """Return the order in which groups are concatenated: flat groups as given, then images, which are flattened.

        A checkpoint does not hold the sizes of images: a policy that reads images is told them here.

        Args:
            obs: The env's TensorDict.
            groups: The groups that the teacher reads.
        """
        images = self.image_groups
        if not images:
            return groups
        if isinstance(self.policy, ActorCritic):
            shapes = {name: tuple(obs[name].shape[1:]) for name in images if name in groups and name in obs.keys()}  # noqa: SIM118
            self.policy.bind(shapes)
            self.num_obs = self.policy.num_obs
            listed = {name: list(shape) for name, shape in shapes.items()}
            self.info = replace(self.info, num_obs=self.num_obs, image_shapes=listed)
        elif self.info.image_shapes:
            self._check_images(obs, self.info.image_shapes)
        return [name for name in groups if name not in images] + images

    def _check_images(self, obs: TensorDict, known: Mapping[str, Sequence[int]]) -> None:
        """Refuse images of other sizes than those that it was trained on."""
        for name, shape in known.items():
            found = list(obs[name].shape[1:]) if name in obs.keys() else None  # noqa: SIM118  # a TensorDict's
            stated = [isinstance(side, int) for side in shape]  # an ONNX file may leave a side open
            if found is not None and all(stated) and found != list(shape):
                raise UserError(
                    f"'{self.info.path}' reads images of {' x '.join(map(str, shape))} from the group '{name}', and "
                    f"the environment gives {' x '.join(map(str, found))}: give it a camera of the size that it was "
                    "trained with."
                )

    def describe(self) -> dict[str, Any]:
        """Return what was understood about the checkpoint, as plain values."""
        return self.info.as_dict()

    def read_again(self, path: str | Path) -> LoadedPolicy:
        """Read a newer checkpoint of this policy with the same overrides; this policy stays as it is.

        Args:
            path: The checkpoint.
        """
        return load_policy(path, self._overrides)

    def replace_by(self, newer: LoadedPolicy) -> bool:
        """Replace the weights by those of a newer checkpoint; the recurrent state of the episodes in progress is kept.

        Args:
            newer: What :meth:`read_again` returned.

        Returns:
            Whether any weight differs.

        Raises:
            UserError: If its architecture differs.
        """
        network = newer.network
        if isinstance(network, ActorCritic) and self.info.image_shapes:
            network.bind(self.info.image_shapes)
        network = network.to(self.device).requires_grad_(False).eval()
        before = self.policy.state_dict()
        after = network.state_dict()
        shapes = [{name: tensor.shape for name, tensor in state.items()} for state in (before, after)]
        if type(network) is not type(self.policy) or shapes[0] != shapes[1]:
            raise UserError(
                f"'{newer.info.path}' is not a newer version of the teacher: its architecture differs. Start a new run"
            )
        network.with_value = self.policy.with_value
        self.policy = network
        return any(not torch.equal(before[name], after[name]) for name in before)

    def architecture_line(self) -> str:
        """Return the line that the console shows about the architecture."""
        return f"Teacher architecture: obs={self.num_obs}, actions={self.num_actions}, hidden={self.hidden_dims}"

    def check(self, group_sizes: Mapping[str, int], groups: list[str], num_actions: int) -> None:
        """Raise ``UserError`` if the environment's sizes do not fit the checkpoint's.

        Args:
            group_sizes: Sizes of the environment's observation groups.
            groups: The groups that the teacher reads, in order.
            num_actions: Number of actions of the environment.
        """
        total = sum(group_sizes[group] for group in groups)
        if total != self.num_obs:
            sizes = " + ".join(f"{group} {group_sizes[group]}" for group in groups)
            others = ", ".join(f"{group} {size}" for group, size in group_sizes.items())
            raise UserError(self._size_message(f"the groups give {total} ({sizes}); the environment has {others}"))
        if num_actions != self.num_actions:
            raise UserError(
                f"teacher '{self.info.path}' gives {self.num_actions} actions and the environment takes "
                f"{num_actions}. Use the task it was trained on."
            )

    def _size_message(self, found: str) -> str:
        return (
            f"teacher '{self.info.path}' expects {self.num_obs} observations and {found}. "
            "Set distill.teacher.obs_groups (and obs_slice)."
        )
