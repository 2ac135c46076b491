"""Gymnasium: any registered id, vectorised, as the ``VecEnv`` that everything else relies on.

``ALE/`` and ``MinAtar/`` ids are registered when they are asked for. Where a package has a vector environment of its
own that can reset in the same step (``AtariVectorEnv``), that one is taken, otherwise one environment after the other;
``env.vectorization=envpool`` takes envpool's of the same id.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import inspect
import re
import sys
import typing
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import field
from typing import Any, ClassVar, NamedTuple, cast

import gymnasium
from gymnasium import error
from gymnasium.envs.registration import EnvSpec, load_env_creator
from gymnasium.vector import AutoresetMode

from foundation.config.agent_cfg import DistributionCfg, ModelCfg, OnPolicyRunnerCfg, PPOAlgorithmCfg
from foundation.core.devices import check_device
from foundation.core.errors import UserError, suggest
from foundation.core.memory import refuse_beyond_memory
from foundation.core.registry import refuse_untyped, resolve_module
from foundation.core.text import one_line, shorten
from foundation.engines.base import (
    AGENT_ENTRY_POINT,
    Configure,
    Engine,
    LaunchRequest,
    MissingPackage,
    VecEnv,
    VideoRequest,
)
from foundation.engines.envpool_vec_env import EnvpoolVectorEnv
from foundation.engines.gymnasium_cfg import INSTALL, GymnasiumEnvCfg
from foundation.engines.gymnasium_vec_env import GymnasiumVecEnv
from foundation.engines.headless import prepare_rendering
from foundation.engines.video import ActionClip, VideoRecorder

LONGEST_EPISODE = 10_000
"""Time limit of a task that registers none [env steps]: an episode that can go on for ever cannot be measured."""
ENV_BYTES = 50_000
"""Memory of a small environment of Python objects."""

_NAMESPACES = {"ALE": "ale_py", "MinAtar": "minatar.gym"}
"""Namespace of ids -> the module that registers them."""
_PACKAGES = {
    "gymnasium.envs.mujoco": "mujoco",
    "gymnasium.envs.box2d": "Box2D",
    "gymnasium.envs.phys2d": "jax",
    "gymnasium.envs.tabular": "jax",
    "gymnasium_robotics": "mujoco",
    "minatar": "minatar",
    "ale_py": "ale_py",
}
"""Beginning of an entry point -> the package that its environments need."""
_PLAIN = (bool, int, float, str, list, tuple, dict, type(None))
"""Types of the constructor's arguments that an override can set."""
_CAMERA = {"camera_id", "camera_name", "default_camera_config"}
"""Arguments of MuJoCo's environments that choose their camera."""
_NOT_THEIRS = {"self", "render_mode", "num_envs", "autoreset_mode", "batch_size", "max_episode_steps"}
"""Arguments of constructors that this engine sets itself."""
_OWN_DEFAULTS = {"reward_clipping": False}
"""Where the default of a constructor would hide something: returns are those of the game."""


class GymnasiumEngine(Engine):
    """Run any gymnasium id."""

    name: ClassVar[str] = "gymnasium"
    envs_per_process: ClassVar[int | None] = None

    def __init__(self) -> None:
        self._spec: EnvSpec | None = None
        self._trains = False

    @classmethod
    def task_names(cls) -> list[str]:
        """List the registered ids that are plain gymnasium environments."""
        return sorted(name for name, spec in gymnasium.registry.items() if _is_plain(spec))

    @classmethod
    def why_not(cls, task: str) -> str | None:
        """Return why the task cannot run here, or None. Imports the module that registers its id."""
        try:
            spec = find_spec(task)
        except MissingError as reason:
            return MissingPackage(reason)
        except UserError as reason:
            return str(reason)
        if not _is_plain(spec):
            return f"'{spec.id}' is registered for other engines"
        package = _PACKAGES.get(next((name for name in _PACKAGES if _entry_point(spec).startswith(name)), ""))
        return None if package is None or _is_installed(package) else MissingPackage(_missing(package))

    def launch(self, request: LaunchRequest, configure: Configure) -> AbstractContextManager[tuple[Any, Any]]:
        """Make the task's configurations, let ``configure`` change them, and yield them."""
        return self._session(request, configure)

    @contextmanager
    def _session(self, request: LaunchRequest, configure: Configure) -> Iterator[tuple[Any, Any]]:
        check_device(request.device)
        env_cfg, agent_cfg = self.load_configs(request)
        self.set_common(env_cfg, num_envs=None, seed=None, device=request.device)
        configure(env_cfg, agent_cfg)
        self._spec = find_spec(request.task)
        self._trains = request.needs_agent
        try:
            yield env_cfg, agent_cfg
        finally:
            self._spec = None

    def load_configs(self, request: LaunchRequest) -> tuple[Any, Any]:
        """Make the task's configurations: no gymnasium task brings an agent's, so that it is one of ours."""
        reason = self.why_not(request.task)
        if reason is not None:
            raise UserError(f"--task {request.task}: {reason}")
        if request.agent_entry_point != AGENT_ENTRY_POINT:
            raise UserError(
                f"--agent {request.agent_entry_point}: gymnasium's tasks have no agent configs; leave it out"
            )
        spec = find_spec(request.task)
        return make_env_cfg(spec), make_agent_cfg(spec)

    def set_common(self, env_cfg: Any, *, num_envs: int | None, seed: int | None, device: str | None) -> None:
        """Set number of environments, seed and device where given."""
        if num_envs is not None:
            if num_envs < 1:
                raise UserError(f"--num_envs must be at least 1, it is {num_envs}")
            _need(env_cfg, "scene", "num_envs").num_envs = num_envs
        if seed is not None:
            env_cfg.seed = seed
        if device is not None:
            check_device(device)
            _need(env_cfg, "sim", "device").device = device

    def make_env(self, env_cfg: Any, agent_cfg: Any, *, video: VideoRequest | None = None) -> VecEnv:
        """Build environments of the launched task, recording the first of them where asked to."""
        if self._spec is None:
            raise RuntimeError("make_env is called inside 'with engine.launch(...)'")
        inner = make_vec_env(self._spec, env_cfg, rendered=video is not None)
        if self._trains and inner.action_choices is not None:
            inner.close()
            raise UserError(
                f"{self._spec.id} takes one of {inner.action_choices[0]} actions, and RSL-RL's PPO has only Gaussian "
                f"policies: train its teacher by scripts/train_dqn.py --task {self._spec.id}, or by any program that "
                "writes a zip of Stable-Baselines3; distillation.py reads it"
            )
        fill_obs_groups(agent_cfg, inner)
        env: Any = inner
        if video is not None:
            env = VideoRecorder(env, video)
        clip = getattr(agent_cfg, "clip_actions", None)
        if clip is not None and inner.action_choices is None:
            env = ActionClip(env, float(clip))
        return cast(VecEnv, env)


# -- tasks and their configurations ----------------------------------------------------------------------------------


class MissingError(UserError):
    """The package that registers an id is not installed."""


def find_spec(task: str) -> EnvSpec:
    """Find a registered id; those of ``ALE/`` and ``MinAtar/`` are registered first.

    Args:
        task: A gym id, or ``module:Id``, whose module is imported first so that it can register the id.

    Raises:
        UserError: If it is not registered, naming the package that would register it.
    """
    refuse_untyped(task, "task", "--task")
    module, _, name = task.rpartition(":")
    if module:
        try:
            resolve_module(task, "task", typed_as="--task")
        except UserError as failure:
            raise UserError(f"cannot import its module ({failure.__cause__ or failure})") from failure
    namespace = name.rpartition("/")[0]
    if namespace in _NAMESPACES and name not in gymnasium.registry:
        package = _NAMESPACES[namespace].partition(".")[0]
        if not _is_installed(package):
            raise MissingError(_missing(package))
        registering = importlib.import_module(_NAMESPACES[namespace])
        getattr(registering, "register_envs", lambda: None)()
    spec = gymnasium.registry.get(name)
    if spec is None:
        near = f". {suggest(name, GymnasiumEngine.task_names())}" if namespace in _NAMESPACES else ""
        raise UserError(f"does not know it{near}")
    return spec


def _is_plain(spec: EnvSpec) -> bool:
    return not any(key.endswith("_entry_point") for key in spec.kwargs)


def _entry_point(spec: EnvSpec) -> str:
    return spec.entry_point if isinstance(spec.entry_point, str) else ""


def _is_installed(package: str) -> bool:
    return package in sys.modules or importlib.util.find_spec(package) is not None


def _missing(package: str) -> str:
    if package == "jax":
        return "the Python package 'jax' is not installed: pip install 'gymnasium[jax]'"
    return f"the Python package '{package.replace('_', '-')}' is not installed: {INSTALL} in the clone's folder"


def make_env_cfg(spec: EnvSpec) -> GymnasiumEnvCfg:
    """Make a task's config: :class:`GymnasiumEnvCfg` and the arguments of its constructors, with their annotations."""
    reserved = {item.name for item in dataclasses.fields(GymnasiumEnvCfg)}
    arguments: dict[str, Argument] = {}
    for creator in _creators(spec).values():
        arguments = arguments_of(creator, spec) | arguments
    own = [
        (name, argument.hint, field(default_factory=lambda value=argument.default: _copy(value)))
        for name, argument in arguments.items()
        if name not in reserved
    ]
    kind = dataclasses.make_dataclass("GymnasiumEnvCfg", own, bases=(GymnasiumEnvCfg,))
    return kind(**{name: value for name, value in _OWN_DEFAULTS.items() if name in arguments})


def _copy(value: object) -> Any:
    return value.copy() if isinstance(value, list | dict) else value


class Argument(NamedTuple):
    """An argument of a constructor that an override can set."""

    default: Any
    hint: Any


def arguments_of(creator: Callable[..., Any], spec: EnvSpec) -> dict[str, Argument]:
    """List what a constructor can be given, those of its base classes included where it passes ``**kwargs`` on."""
    found: dict[str, Argument] = {}
    for function in _constructors(creator):
        hints = _hints(function)
        parameters = inspect.signature(function).parameters.values()
        for parameter in parameters:
            default = spec.kwargs.get(parameter.name, parameter.default)
            if parameter.name in _NOT_THEIRS | found.keys() or not _can_be_written(default):
                continue
            found[parameter.name] = Argument(default, hints.get(parameter.name, Any))
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            break
    return found


def _can_be_written(value: Any) -> bool:
    """Return whether an override can write a default, all that it holds included: a camera's may hold an array."""
    if isinstance(value, dict):
        return all(map(_can_be_written, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_can_be_written, value))
    return isinstance(value, _PLAIN)


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function)
    except Exception:  # an annotation imported only for type checkers: the defaults' types then count
        return {}


def _constructors(creator: Callable[..., Any]) -> list[Callable[..., Any]]:
    """Return a function, or the ``__init__`` of a class and of its bases."""
    if not isinstance(creator, type):
        return [creator]
    return [vars(base)["__init__"] for base in creator.__mro__ if "__init__" in vars(base) and base is not object]


def _creators(spec: EnvSpec) -> dict[str, Callable[..., Any]]:
    """Import what makes one environment (``sync``) and what makes many (``vector_entry_point``), where registered."""
    creators: dict[str, Callable[..., Any]] = {}
    for name, entry in (("sync", spec.entry_point), ("vector_entry_point", spec.vector_entry_point)):
        if entry is None:
            continue
        try:
            creators[name] = cast(Callable[..., Any], load_env_creator(entry) if isinstance(entry, str) else entry)
        except (ImportError, AttributeError, error.Error) as failure:
            if name == "sync":
                raise UserError(f"--task {spec.id}: cannot import {entry}: {one_line(failure)}; {INSTALL}") from failure
    if not creators:
        raise UserError(f"--task {spec.id} is registered without an entry point")
    return creators


def _following_camera(creator: Callable[..., Any] | None, typed: Mapping[str, Any]) -> dict[str, Any]:
    """Return the camera to see a robot of MuJoCo by, unless one was typed: it leaves the picture of one that stands.

    From release 1.4 on gymnasium takes a free camera and its class's settings of it. A free camera follows no body,
    even where these name one (``trackbodyid``: Walker2d), unless they set its ``type`` as well. The models have a
    camera ``track`` that does. A model without one has the free camera still.
    """
    parameters = {} if creator is None else inspect.signature(creator).parameters
    settings = parameters["default_camera_config"].default if "default_camera_config" in parameters else None
    takes_more = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    follows = not isinstance(settings, dict) or "type" in settings
    return {} if follows or not takes_more or _CAMERA & typed.keys() else {"camera_name": "track"}


def make_agent_cfg(spec: EnvSpec) -> OnPolicyRunnerCfg:
    """Return the settings of PPO for a task that brings none: usual ones for continuous control, normalised inputs."""
    return OnPolicyRunnerCfg(
        experiment_name=re.sub(r"[^\w.-]+", "-", spec.id),
        num_steps_per_env=128,
        max_iterations=500,
        actor=ModelCfg(hidden_dims=[256, 256], obs_normalization=True, distribution_cfg=DistributionCfg()),
        critic=ModelCfg(hidden_dims=[256, 256], obs_normalization=True),
        algorithm=PPOAlgorithmCfg(learning_rate=3e-4),
    )


def fill_obs_groups(agent_cfg: Any, env: GymnasiumVecEnv) -> None:
    """Let actor and critic read every flat group, where the environment has no ``policy`` and nothing else is set."""
    obs = env.get_observations()
    flat = [str(name) for name, group in obs.items() if group.ndim == 2]
    if "policy" in obs.keys() or not flat:  # noqa: SIM118  # a TensorDict supports `in` for its keys() only
        return
    if getattr(agent_cfg, "obs_groups", None) == OnPolicyRunnerCfg().obs_groups:
        agent_cfg.obs_groups = {"actor": flat, "critic": flat}


# -- making environments ---------------------------------------------------------------------------------------------


def make_vec_env(spec: EnvSpec, cfg: GymnasiumEnvCfg, rendered: bool = False) -> GymnasiumVecEnv:
    """Make the environments of a task.

    Args:
        spec: The task.
        cfg: Its config.
        rendered: Whether ``render()`` is to give images, without a display.

    Raises:
        UserError: If a package is missing, or the constructor refuses an argument.
    """
    num_envs = _check_cfg(cfg)
    creators = _creators(spec)
    how = _choose_vectorization(spec, cfg, creators)
    typed: dict[str, Any] = _changed_arguments(spec, cfg, creators, how) | cfg.make_kwargs
    kwargs = dict(typed)
    options: dict[str, Any] = {}
    longest = cfg.max_episode_steps or spec.max_episode_steps
    if how == "envpool":
        return _make_envpool(spec, cfg, creators, kwargs, rendered)
    mode = AutoresetMode[cfg.autoreset_mode.upper()]
    if how == "vector_entry_point":
        longest = cfg.max_episode_steps or longest or _frame_limit(spec, cfg) or LONGEST_EPISODE
        if "autoreset_mode" in inspect.signature(creators[how]).parameters:
            kwargs["autoreset_mode"] = mode
        if cfg.max_episode_steps is not None:
            _limit_frames(spec, cfg, creators[how], kwargs)
    else:
        longest = longest or LONGEST_EPISODE
        kwargs |= {"max_episode_steps": longest, "disable_env_checker": True}
        options = {"vector_kwargs": {"autoreset_mode": mode, "copy": False}}
    if rendered:
        kwargs |= _drawing(spec, how, creators, typed)
    try:
        vector = gymnasium.make_vec(spec.id, num_envs=num_envs, vectorization_mode=how, **options, **kwargs)
    except error.DependencyNotInstalled as failure:
        raise UserError(
            f"--task {spec.id}: {one_line(failure)}; {INSTALL} has what gymnasium's tasks need"
        ) from failure
    except ImportError as failure:
        raise UserError(f"--task {spec.id}: cannot be imported: {one_line(failure)}; {INSTALL}") from failure
    except (TypeError, error.Error) as failure:
        raise UserError(f"--task {spec.id} cannot be made: {one_line(failure, 300)}") from failure
    except (LookupError, ValueError, AttributeError, AssertionError) as failure:
        _name_arguments(spec, typed, failure)
        raise
    vector.metadata = _frame_rate(creators) | vector.metadata
    return GymnasiumVecEnv(vector, spec, cfg, longest)


def _drawing(
    spec: EnvSpec, how: str, creators: Mapping[str, Callable[..., Any]], typed: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the arguments that make a task give images; none for Atari's, whose observations are shown."""
    if how == "vector_entry_point" and not _takes(creators[how], "render_mode"):
        if _entry_point(spec).startswith("ale_py"):
            return {}
        raise UserError(f"--video: the vector environment of {spec.id} is not drawn; use env.vectorization=sync")
    prepare_rendering()
    return {"render_mode": "rgb_array"} | _following_camera(creators.get("sync"), typed)


def _takes(creator: Callable[..., Any], name: str) -> bool:
    """Return whether a constructor takes an argument."""
    parameters = inspect.signature(creator).parameters
    return name in parameters or any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values())


def _frame_rate(creators: Mapping[str, Callable[..., Any]]) -> dict[str, Any]:
    """Return the ``render_fps`` of the single environment, which not every vector environment states."""
    rate = getattr(creators.get("sync"), "metadata", {}).get("render_fps")
    return {} if rate is None else {"render_fps": rate}


def _check_cfg(cfg: GymnasiumEnvCfg) -> int:
    """Refuse values that no task can be made with; return the number of environments."""
    if cfg.max_episode_steps is not None and cfg.max_episode_steps < 1:
        raise UserError(f"env.max_episode_steps is {cfg.max_episode_steps}: it must be at least 1")
    num_envs = _need(cfg, "scene", "num_envs").num_envs
    _need(cfg, "sim", "device")
    _refuse_own_arguments(cfg.make_kwargs)
    what = f"--num_envs {num_envs} ({ENV_BYTES} bytes each)"
    refuse_beyond_memory(num_envs * ENV_BYTES, "cpu", what, "give fewer")
    return num_envs


def _make_envpool(
    spec: EnvSpec,
    cfg: GymnasiumEnvCfg,
    creators: Mapping[str, Callable[..., Any]],
    kwargs: dict[str, Any],
    rendered: bool,
) -> GymnasiumVecEnv:
    """Make envpool's environments of the same id."""
    if rendered:
        raise UserError("--video: envpool's environments are not drawn; use env.vectorization=sync")
    if cfg.autoreset_mode != "same_step":
        raise UserError(f"env.autoreset_mode={cfg.autoreset_mode}: with envpool it is same_step; leave it out")
    longest = cfg.max_episode_steps or spec.max_episode_steps or _frame_limit(spec, cfg) or LONGEST_EPISODE
    rate = _frame_rate(creators).get("render_fps")
    return GymnasiumVecEnv(EnvpoolVectorEnv(spec.id, cfg.scene.num_envs, longest, rate, kwargs), spec, cfg, longest)


def _need(cfg: Any, group: str, name: str) -> Any:
    """Return a group of a config, which ``env.scene=null`` may have taken away."""
    found = getattr(cfg, group)
    if found is None:
        raise UserError(f"env.{group}=null: the task needs it; set single values of it, env.{group}.{name}=VALUE")
    return found


def _name_arguments(spec: EnvSpec, typed: Mapping[str, Any], failure: Exception) -> None:
    """Explain an error of gymnasium's own constructors, which use values unchecked, by the typed arguments."""
    if not typed or not _entry_point(spec).startswith("gymnasium."):
        return  # a user's own constructor: the error shows its line
    given = ", ".join(f"env.{name}={value}" for name, value in typed.items())
    text = f"{type(failure).__name__}: {one_line(failure, 300)}"
    raise UserError(f"--task {spec.id} cannot be made with {shorten(given, 200)}: {text}") from failure


def _refuse_own_arguments(given: Mapping[str, Any]) -> None:
    """Refuse what this engine sets itself, and would set again without a word."""
    flags = {"num_envs": "--num_envs", "max_episode_steps": "env.max_episode_steps", "render_mode": "--video"}
    flags["autoreset_mode"] = "env.autoreset_mode"
    for name in given:
        if name in _NOT_THEIRS:
            instead = f"; write {flags[name]}" if name in flags else ""
            raise UserError(f"env.make_kwargs: '{name}' is not for the constructor{instead}")


def _choose_vectorization(spec: EnvSpec, cfg: GymnasiumEnvCfg, creators: Mapping[str, Callable[..., Any]]) -> str:
    vector = creators.get("vector_entry_point")
    resets = vector is not None and "autoreset_mode" in inspect.signature(vector).parameters
    if cfg.vectorization == "auto":
        return "vector_entry_point" if resets else "sync"
    if cfg.vectorization == "vector_entry_point" and vector is None:
        raise UserError(f"env.vectorization=vector_entry_point: {spec.id} registers none; use sync or async")
    return cfg.vectorization


def _changed_arguments(
    spec: EnvSpec, cfg: GymnasiumEnvCfg, creators: Mapping[str, Callable[..., Any]], how: str
) -> dict[str, Any]:
    """Return the constructor's arguments that differ from its own defaults.

    Raises:
        UserError: For one that this way of making the task does not take.
    """
    reserved = {item.name for item in dataclasses.fields(GymnasiumEnvCfg)}
    used = "vector_entry_point" if how == "vector_entry_point" else "sync"
    taken = arguments_of(creators[used], spec)
    changed: dict[str, Any] = {}
    for name, argument in {**arguments_of(creators.get("vector_entry_point", creators[used]), spec), **taken}.items():
        value = getattr(cfg, name, argument.default)
        if name in reserved or value == argument.default:
            continue
        if name in taken:
            changed[name] = value
        elif value != _OWN_DEFAULTS.get(name, argument.default):
            raise UserError(f"env.{name}: {spec.id} takes it with env.vectorization=vector_entry_point only")
    return changed


def _frame_limit(spec: EnvSpec, cfg: GymnasiumEnvCfg) -> int | None:
    """Return Atari's time limit, which is given in frames [env steps]."""
    frames = getattr(cfg, "max_num_frames_per_episode", None)
    skip = getattr(cfg, "frameskip", None)
    return max(1, frames // skip) if isinstance(frames, int) and isinstance(skip, int) and frames > 0 else None


def _limit_frames(spec: EnvSpec, cfg: GymnasiumEnvCfg, creator: Callable[..., Any], kwargs: dict[str, Any]) -> None:
    """Pass a time limit on to a vector environment, by the name that it has for it."""
    assert cfg.max_episode_steps is not None
    names = inspect.signature(creator).parameters
    if "max_num_frames_per_episode" in names:
        kwargs["max_num_frames_per_episode"] = cfg.max_episode_steps * getattr(cfg, "frameskip", 1)
    elif "max_episode_steps" in names:
        kwargs["max_episode_steps"] = cfg.max_episode_steps
    else:
        raise UserError(f"env.max_episode_steps: the vector environment of {spec.id} takes no time limit; use sync")
