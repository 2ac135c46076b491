"""The built-in engine: tasks whose environment is batched torch, on any device, any number per process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, ClassVar, cast

import gymnasium
from gymnasium.envs.registration import EnvSpec

from foundation.config.agent_cfg import AgentDict
from foundation.config.validate import read
from foundation.core.devices import check_device
from foundation.core.errors import UserError
from foundation.core.memory import refuse_beyond_memory
from foundation.core.registry import resolve_attribute
from foundation.engines.base import AGENT_ENTRY_POINT, Configure, Engine, LaunchRequest, VecEnv, VideoRequest
from foundation.engines.checked_env import CheckedEnv
from foundation.engines.video import ActionClip, VideoRecorder
from foundation.tasks import launching, load_entry_point, resolve_task, why_not_registered

ENV_BYTES = 4_000
"""What an environment takes while it steps, intermediate results included; the quadrotor takes 5 kB."""


class TorchEngine(Engine):
    """Run tasks that registered a ``torch_env_entry_point``."""

    name: ClassVar[str] = "torch"
    envs_per_process: ClassVar[int | None] = None
    entry_point: ClassVar[str] = "torch_env_entry_point"
    """What a task registers to run here."""

    def __init__(self) -> None:
        self._spec: EnvSpec | None = None

    @classmethod
    def task_names(cls) -> list[str]:
        """List the registered tasks that have a torch environment."""
        return sorted(key for key, spec in gymnasium.registry.items() if cls.entry_point in spec.kwargs)

    @classmethod
    def why_not(cls, task: str) -> str | None:
        """Return why the task cannot run here, or None. Imports the module of ``module:Id``."""
        return why_not_registered(task, cls.entry_point)

    def launch(self, request: LaunchRequest, configure: Configure) -> AbstractContextManager[tuple[Any, Any]]:
        """Load the task's configurations, let ``configure`` change them, and yield them."""
        return self._session(request, configure)

    @contextmanager
    def _session(self, request: LaunchRequest, configure: Configure) -> Iterator[tuple[Any, Any]]:
        check_device(request.device)
        spec = resolve_task(request.task)
        if self.entry_point not in spec.kwargs:
            raise UserError(f"--engine {self.name}: task '{spec.id}' has no '{self.entry_point}'")
        with launching(self.name):
            env_cfg, agent_cfg = self.load_configs(request)
            self.set_common(env_cfg, num_envs=None, seed=None, device=request.device)
            configure(env_cfg, agent_cfg)
            self._spec = spec
            try:
                yield env_cfg, agent_cfg
            finally:
                self._spec = None

    def load_configs(self, request: LaunchRequest) -> tuple[Any, Any]:
        """Load the task's configurations."""
        spec = resolve_task(request.task)
        with launching(self.name):
            env_cfg = load_entry_point(spec, "env_cfg_entry_point")
            if _does_without_agent(request, spec):
                agent_cfg: Any = {"experiment_name": spec.id}
            else:
                agent_cfg = load_entry_point(spec, request.agent_entry_point)
        _check_agent_cfg(request, spec, agent_cfg)
        return env_cfg, AgentDict.of(agent_cfg) if isinstance(agent_cfg, dict) else agent_cfg

    def set_common(self, env_cfg: object, *, num_envs: int | None, seed: int | None, device: str | None) -> None:
        """Set number of environments, seed and device where given."""
        if num_envs is not None:
            if num_envs < 1:
                raise UserError(f"--num_envs must be at least 1, it is {num_envs}")
            _write(env_cfg, "scene", "num_envs", num_envs)
        if seed is not None:
            _write(env_cfg, None, "seed", seed)
        if device is not None:
            check_device(device)
            _write(env_cfg, "sim", "device", device)

    def num_envs(self, env_cfg: object) -> int | None:
        """Return how many environments the config asks for, in ``scene.num_envs`` or ``num_envs``; None: neither."""
        found = _find(env_cfg, "scene", "num_envs")
        return None if found is None else int(found)

    def make_env(self, env_cfg: object, agent_cfg: object, *, video: VideoRequest | None = None) -> VecEnv:
        """Build an environment of the launched task, recording it where asked to."""
        if self._spec is None:
            raise RuntimeError("make_env is called inside 'with engine.launch(...)'")
        device = _find(env_cfg, "sim", "device")
        if device is not None:
            check_device(str(device))
        target = self._spec.kwargs[self.entry_point]
        if isinstance(target, str):
            target = resolve_attribute(target, f"task '{self._spec.id}': its {self.entry_point}", trusted=True)
        num_envs = self.num_envs(env_cfg)
        if num_envs is not None:
            what = f"--num_envs {num_envs} ({ENV_BYTES} bytes each)"
            refuse_beyond_memory(num_envs * ENV_BYTES, str(device or "cpu"), what, "give fewer")
        env: Any = CheckedEnv(self._call(target, env_cfg), env_cfg)
        if video is not None:
            env = VideoRecorder(env, video)
        clip = read(agent_cfg, "clip_actions")
        if clip is not None:
            env = ActionClip(env, float(clip))
        return cast(VecEnv, env)

    def _call(self, target: Any, env_cfg: object) -> Any:
        """Make the user's environment; what cannot be called with its config is named, what it raises is its own."""
        try:
            return target(env_cfg)
        except TypeError as error:
            if error.__traceback__ is not None and error.__traceback__.tb_next is not None:
                raise  # from inside it
            name = getattr(target, "__name__", repr(target))
            what = f"task '{getattr(self._spec, 'id', '')}': its {self.entry_point}"
            raise UserError(f"{what} must be a class or a function of env_cfg; {name}(env_cfg): {error}") from None


def _check_agent_cfg(request: LaunchRequest, spec: EnvSpec, agent_cfg: object) -> None:
    """Refuse what is no agent's config, or none that RSL-RL could train by where it is to."""
    what = f"task '{spec.id}': its {request.agent_entry_point} gives"
    how = "RSL-RL's runner settings, such as foundation.config.agent_cfg.OnPolicyRunnerCfg, or a dictionary of them"
    if not isinstance(agent_cfg, dict) and not hasattr(agent_cfg, "__dict__"):
        raise UserError(f"{what} {type(agent_cfg).__name__}; expected {how}")
    given = AgentDict.of(agent_cfg) if isinstance(agent_cfg, dict) else agent_cfg
    missing = [name for name in _TRAINING if not hasattr(given, name)] if request.needs_agent else []
    if missing:
        raise UserError(f"{what} {type(agent_cfg).__name__} without {', '.join(missing)}; expected {how}")


_TRAINING = ("seed", "max_iterations", "num_steps_per_env", "experiment_name", "algorithm")
"""What an agent's config must have to be trained by."""


def _does_without_agent(request: LaunchRequest, spec: EnvSpec) -> bool:
    """Whether a task without an agent's config is run by a command that trains nothing by it."""
    asked = request.needs_agent or request.agent_entry_point != AGENT_ENTRY_POINT
    return not asked and AGENT_ENTRY_POINT not in spec.kwargs


def _holds(holder: object, name: str) -> bool:
    return name in holder if isinstance(holder, dict) else hasattr(holder, name)


def _place(env_cfg: object, group: str | None, name: str) -> Any:
    """Find the config that holds a setting: ``env_cfg.<group>``, else ``env_cfg`` itself; None where neither does."""
    for holder in (read(env_cfg, group) if group else None, env_cfg):
        if holder is not None and _holds(holder, name):
            return holder
    return None


def _find(env_cfg: object, group: str, name: str) -> Any:
    """Read ``env_cfg.<group>.<name>``, or ``env_cfg.<name>`` in a config without such a group; None where absent."""
    holder = _place(env_cfg, group, name)
    return None if holder is None else read(holder, name)


def _write(env_cfg: object, group: str | None, name: str, value: object) -> None:
    """Set a value where :func:`_find` reads it; a seed or ``cpu`` has no effect on a config without a place for it."""
    holder = _place(env_cfg, group, name)
    if isinstance(holder, dict):
        holder[name] = value
    elif holder is not None:
        setattr(holder, name, value)
    elif name == "num_envs" or (name == "device" and value != "cpu"):
        if group and _holds(env_cfg, group):
            raise UserError(f"env.{group}=null, and --{name} {value} is to be set in it: leave one of them out")
        raise UserError(
            f"--{name} {value}: the task's config, {type(env_cfg).__name__}, has neither {group}.{name} nor {name}"
        )
