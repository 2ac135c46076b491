"""Stand-ins for Isaac Sim, so that the real Python code of Isaac Lab 2.3 runs without it.

:func:`install` adds a finder for ``isaacsim``, ``omni``, ``carb``, ``usdrt`` and ``pxr.PhysxSchema``, and for nothing
else; ``pxr`` itself is real. What Isaac Lab needs to build and step an environment without assets is defined below, as
little as that takes. Every other name can be imported, subclassed and annotated with, and raises when it is called.
"""

from __future__ import annotations

import builtins
import importlib.abc
import importlib.machinery
import os
import sys
import types
from pathlib import Path
from typing import Any

ROOTS = ("isaacsim", "omni", "carb", "usdrt")
EXTRA = ("pxr.PhysxSchema",)
CALLS: list[str] = []
"""What the code under test asked of Kit, in order."""


class _Undefined(type):
    """Metaclass of the names that nobody defined."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if cls.__dict__.get("_stand_in"):
            raise RuntimeError(f"the stand-in {cls.__qualname__} was called: define it in kit_stand_ins.py")
        return super().__call__(*args, **kwargs)

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _undefined(f"{cls.__qualname__}.{name}")

    def __or__(cls, other: Any) -> Any:
        return Any

    __ror__ = __or__


def _undefined(path: str) -> Any:
    return _Undefined(path.rpartition(".")[2], (), {"_stand_in": True, "__qualname__": path})


class _Module(types.ModuleType):
    """A module whose missing names are stand-ins."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        value = _undefined(f"{self.__name__}.{name}")
        setattr(self, name, value)
        return value


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name.partition(".")[0] in ROOTS or name in EXTRA:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: Any) -> types.ModuleType:
        module = _Module(spec.name)
        module.__file__ = f"/nowhere/{spec.name.replace('.', '/')}.py"
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        for name, value in DEFINED.get(module.__name__, {}).items():
            setattr(module, name, value)
        if module.__name__ == "isaacsim":
            _remember_shim()


# -- Kit ----------------------------------------------------------------------------------------------------------

_shim: Any = None


def _remember_shim() -> None:
    """Keep the wheel's own top-level package, which imports ``isaacsim`` while it is itself being imported."""
    global _shim
    _shim = sys.modules.get("isaaclab")


class SimulationApp:
    """Start Kit: make the packages in the wheel's ``source`` folder importable, and do what Kit does to the process."""

    def __init__(self, config: dict | None = None, experience: str = ""):
        CALLS.append("SimulationApp")
        self.config = config
        source = Path(_shim.__file__).parent / "source"
        for package in sorted(source.iterdir(), reverse=True):
            sys.path.insert(0, str(package))
        _shim.__path__.insert(0, str(source / "isaaclab" / "isaaclab"))
        builtins.ISAAC_LAUNCHED_FROM_TERMINAL = False

    def close(self) -> None:
        CALLS.append("SimulationApp.close")

    def is_running(self) -> bool:
        return True


class _Settings(dict):
    """carb's settings: a tree of values by path."""

    def _set(self, path: str, value: Any) -> None:
        self[path] = value

    set = set_bool = set_int = set_float = set_string = _set

    def get(self, path: str, default: Any = None) -> Any:
        return super().get(path, default)

    get_as_bool = get_as_int = get_as_float = get_as_string = get


SETTINGS = _Settings({"/rtx/rendermode": "RaytracedLighting"})


class _Quiet:
    """An interface whose methods do nothing."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **kwargs: None


class _Context:
    """omni.usd's context: one stage."""

    def __init__(self) -> None:
        from pxr import Usd

        self.stage = Usd.Stage.CreateInMemory()

    def get_stage(self) -> Any:
        return self.stage

    def get_stage_id(self) -> int:
        from pxr import UsdUtils

        return UsdUtils.StageCache.Get().GetId(self.stage).ToLongInt()

    def get_stage_state(self) -> int:
        return 0

    def attach_stage_with_callback(self, *args: Any) -> None:
        pass


_context: list[_Context] = []


def get_context(name: str = "") -> _Context:
    if not _context:
        _context.append(_Context())
    return _context[0]


class _Timeline(_Quiet):
    playing = False

    def is_playing(self) -> bool:
        return self.playing

    def is_stopped(self) -> bool:
        return not self.playing

    def get_timeline_event_stream(self) -> Any:
        return _Quiet()


TIMELINE = _Timeline()


class _TimelineEventType:
    PLAY, STOP, PAUSE = 0, 1, 2


class SimulationContext:
    """Isaac Sim's own context: time goes on, and nothing moves."""

    _instance: Any = None

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        SimulationContext._instance = super().__new__(cls)
        return SimulationContext._instance

    def __init__(self, **kwargs: Any):
        CALLS.append("SimulationContext")
        self.settings = kwargs
        self.physics_sim_view = None
        self._app, self._settings = _Quiet(), SETTINGS
        self.current_time = 0.0

    @classmethod
    def instance(cls) -> Any:
        return SimulationContext._instance

    @classmethod
    def clear_instance(cls) -> None:
        CALLS.append("SimulationContext.clear_instance")
        SimulationContext._instance = None

    @classmethod
    def clear_all_callbacks(cls) -> None:
        pass

    @property
    def stage(self) -> Any:
        return get_context().get_stage()

    def get_physics_dt(self) -> float:
        return self.settings["physics_dt"]

    def get_rendering_dt(self) -> float:
        return self.settings["rendering_dt"]

    def reset(self, soft: bool = False) -> None:
        TIMELINE.playing = True

    def step(self, render: bool = True) -> None:
        self.current_time += self.settings["physics_dt"]

    def render(self) -> None:
        pass

    def is_playing(self) -> bool:
        return TIMELINE.playing

    def is_stopped(self) -> bool:
        return not TIMELINE.playing

    def stop(self) -> None:
        TIMELINE.playing = False


class SimulationManager:
    """Remembers the device."""

    _device = "cpu"

    @classmethod
    def set_physics_sim_device(cls, device: str) -> None:
        cls._device = device

    @classmethod
    def get_physics_sim_device(cls) -> str:
        return cls._device

    @classmethod
    def enable_fabric(cls, enable: bool) -> None:
        pass

    @classmethod
    def get_physics_sim_view(cls) -> None:
        return None

    @classmethod
    def set_backend(cls, backend: str) -> None:
        pass


class GridCloner:
    """Places environments on a line."""

    def __init__(self, spacing: float, num_per_row: int = -1, stage: Any = None):
        self.spacing = spacing

    def define_base_env(self, path: str) -> None:
        pass

    def generate_paths(self, root: str, num: int) -> list[str]:
        return [f"{root}_{i}" for i in range(num)]

    def clone(self, prim_paths: list[str], **kwargs: Any) -> list[list[float]]:
        return [[i * self.spacing, 0.0, 0.0] for i in range(len(prim_paths))]

    def filter_collisions(self, *args: Any, **kwargs: Any) -> None:
        pass

    def replicate_physics(self, *args: Any, **kwargs: Any) -> None:
        pass


def _nothing(*args: Any, **kwargs: Any) -> None:
    return None


DEFINED: dict[str, dict[str, Any]] = {
    "isaacsim": {"SimulationApp": SimulationApp},
    "isaacsim.core.api.simulation_context": {"SimulationContext": SimulationContext},
    "isaacsim.core.simulation_manager": {"SimulationManager": SimulationManager},
    "isaacsim.core.cloner": {"GridCloner": GridCloner, "Cloner": GridCloner},
    "isaacsim.core.version": {"get_version": lambda: ("5.1.0", "", "5", "1", "0", "", "", "")},
    "carb": {"log_info": _nothing, "log_warn": _nothing, "log_error": _nothing},
    "carb.settings": {"get_settings": lambda: SETTINGS},
    "omni.replicator.core": {"set_global_seed": _nothing},
    "omni.usd": {"get_context": get_context},
    "omni.timeline": {"get_timeline_interface": lambda: TIMELINE, "TimelineEventType": _TimelineEventType},
    "omni.kit.app": {"get_app": lambda: _Quiet(), "get_app_interface": lambda: _Quiet()},
    "omni.physx": {
        "acquire_physx_interface": lambda: _Quiet(),
        "get_physx_interface": lambda: _Quiet(),
        "get_physx_simulation_interface": lambda: _Quiet(),
    },
}


def install() -> None:
    """Put the stand-ins where the real packages would be found."""
    os.environ.setdefault("EXP_PATH", "/nowhere/apps")  # Isaac Sim sets it
    sys.meta_path.insert(0, _Finder())
    import carb
    import carb.settings  # noqa: F401  (real carb has it from the start)
    import omni.kit.app
    import omni.timeline  # noqa: F401
