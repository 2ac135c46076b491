"""Description of a policy that was read from a file."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass, field
from typing import Any

from foundation.config.derived_cfg import DerivedGroup
from foundation.config.env_state import EnvState
from foundation.policies.choices import NumChoices

Fact = str | int | float | bool | list[str] | None
"""A further fact of one format."""


@dataclass(frozen=True, kw_only=True)
class PolicyInfo:
    """The architecture of a policy, where it was read from, and what it reads and gives."""

    format: str
    """Library, version and kind of the file, as text."""
    path: str
    """The file."""
    num_obs: int
    """Number of observations; 0 while the sizes of its images are not known."""
    num_actions: int
    """Number of actions; 1 for a policy of one discrete action, which is a choice's index."""
    num_choices: NumChoices = None
    """Number of choices of a discrete policy, a list where it makes several at once. None: its actions are
    continuous."""
    hidden_dims: list[int]
    """Sizes of the dense hidden layers."""
    activation: str
    """Activation of the hidden layers."""
    activation_from: str
    """Source of the activation: ``override``, ``checkpoint``, the config's path, or that it is not known."""
    obs_normalization: bool | None = None
    """Whether observations are normalised. None: not known."""
    normalizer: str | None = None
    """The normaliser's formula, where it is not RSL-RL's."""
    recurrence: str = "none"
    """Its memory, such as ``lstm 256 x 1``."""
    distribution: str
    """Distribution of its actions."""
    action_shape: str | None = None
    """Processing of its actions: squashed, clipped, brought to a range."""
    has_std: bool
    """Whether its output has a standard deviation."""
    has_value: bool = False
    """Whether its output has a value."""
    obs_groups: list[str] | None = None
    """Observation groups that it reads, in order, where they are known."""
    obs_slice: list[int] | None = None
    """``[a, b]``: the columns that it reads of them. None: all."""
    image_groups: list[str] = field(default_factory=list)
    """Those of the groups that are images; they are read after what is flat."""
    image_shapes: dict[str, list[int]] | None = None
    """Channels, height and width of each."""
    clip_actions: float | None = None
    """Bound of its actions outside of it, where one is known."""
    agent_config: str | None = None
    """The run's config that was read beside it."""
    joint_order: list[str] | None = None
    """Joints in the order of its actions and of its columns, and bodies after them. None: not stated anywhere."""
    joint_order_from: str | None = None
    """Where that is stated."""
    derived: dict[str, DerivedGroup] = field(default_factory=dict)
    """Those of the groups that are made of others (``distill.obs``), as it was trained on them."""
    env_state: EnvState | None = None
    """Curriculum of the environment that it was trained in, where its file has it."""
    more: dict[str, Fact] = field(default_factory=dict)
    """Further facts of its format, as text."""

    def as_dict(self) -> dict[str, Any]:
        """Return plain values by name, ``more`` among them."""
        plain = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        derived = {name: group.to_plain() for name, group in plain.pop("derived").items()}
        more = plain.pop("more")
        state = plain.pop("env_state")
        if state is not None:
            plain["env_state"] = state.to_plain()
        if self.joint_order is None:
            del plain["joint_order"], plain["joint_order_from"]
        return copy.deepcopy(plain | ({"derived_groups": derived} if derived else {}) | more)
